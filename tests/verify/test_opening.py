"""Weights with which few units are near a kink."""

import pytest

torch = pytest.importorskip("torch")

from fcn_jax.verify.opening import DISTANCE, open_units  # noqa: E402


def network(activation, bias=True):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, bias=bias), activation, torch.nn.Conv2d(8, 5, 3)]
    return torch.nn.Sequential(*layers, torch.nn.BatchNorm2d(5), activation).double()


def inputs_of(net):
    """The inputs of both activations, in train mode."""
    seen = []
    hook = net[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    net(IMAGES)
    hook.remove()
    return [x.transpose(0, 1).flatten(1) for x in seen]


IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("inplace", [False, True])
def test_means_are_far_from_the_zero_of_relu(inplace):
    net = network(torch.nn.ReLU(inplace))
    before = {name: x.clone() for name, x in net.state_dict().items()}
    open_units(net, lambda: net(IMAGES))
    changed = {name for name, x in net.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {"0.bias", "3.bias"}
    for x in inputs_of(net):
        assert (x.mean(1) > 0.999 * DISTANCE * x.std(1)).all()
        assert (x.mean(1) < DISTANCE * x.std(1) + 0.2).all()
    assert all(x.equal(x.float().double()) for x in net.parameters()), "float32 represents them"


def test_means_are_between_the_kinks_of_relu6():
    net = network(torch.nn.ReLU6())
    open_units(net, lambda: net(IMAGES))
    for x in inputs_of(net):
        torch.testing.assert_close(
            x.mean(1), torch.full((len(x),), 3.0).double(), rtol=1e-5, atol=0
        )


def test_means_are_in_the_linear_part_of_hardswish():
    net = network(torch.nn.Hardswish())
    open_units(net, lambda: net(IMAGES))
    for x in inputs_of(net):
        assert (x.mean(1) > 3 + 0.999 * DISTANCE * x.std(1)).all()


def test_channels_without_a_bias_stay():
    net = network(torch.nn.ReLU(), bias=False)
    first = inputs_of(net)[0]
    open_units(net, lambda: net(IMAGES))
    torch.testing.assert_close(inputs_of(net)[0], first)
