"""Two modules against each other: right ones pass, and of a wrong one the guilty layer is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fcn_jax import nn
from fcn_jax.convert.rules import CONV, Op, Rule, Table, batch_norm, conv
from fcn_jax.errors import WeightsError
from fcn_jax.models.resnet import RESNET50, Architecture, ResNet
from fcn_jax.verify import compare_modules
from fcn_jax.verify.reference import randomise_batch_norm, torch_features

torch = pytest.importorskip("torch")

TABLE = RESNET50.torch.tables(RESNET50.options())["torchvision"]
IMAGES = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def original(torchvision):
    """ResNet-50 with one block a stage."""
    torch.manual_seed(0)
    network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    randomise_batch_norm(network, seed=0)
    return network


@pytest.fixture
def port():
    return ResNet(Architecture((1, 1, 1, 1)), dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def compare(original, port, table=TABLE, **settings):
    specs = RESNET50.features(RESNET50.options(), 32)
    return compare_modules(
        original, port, table, IMAGES, call_torch=lambda network, x: torch_features(network, x[0], specs), **settings
    )


def test_a_right_port_is_equal(original, port):
    before = {name: value.clone() for name, value in original.state_dict().items()}
    mode = original.training
    report = compare(original, port)
    assert report.equal, report
    layers, accumulated, outputs, gradients = report.sections
    # Every convolution, normalisation, shortcut and block, in the order in which they are computed.
    names = [c.name for c in layers.comparisons]
    assert len(names) == 2 + 4 * (6 + 3 + 1)
    assert names[:5] == ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2"]
    assert names[-1] == "layer4.0"
    assert [c.name for c in accumulated.comparisons] == names
    assert [c.name for c in outputs.comparisons] == ["layer1", "layer2", "layer3", "layer4"]
    assert len(gradients.comparisons) == 1 + len([n for n, _ in original.named_parameters() if not n.startswith("fc.")])
    assert report.uncompared == ()
    after = original.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "PyTorch's module must stay as it was"
    assert original.training == mode
    assert all(parameter.grad is None for parameter in original.parameters())


def with_rules(*rules):
    return lambda port, monkeypatch: Table(*rules, TABLE.rules, *TABLE.drops)


def flipped_kernel():
    op = Op("flipped", lambda x: CONV.to_jax(x)[::-1, ::-1], lambda x: CONV.to_torch(x[::-1, ::-1]))
    return with_rules(Rule("layer1.0.conv2.weight", "layer1.0.conv2.kernel", op))


def wrongly_transposed_kernel():
    op = Op("OIHW -> HWOI", lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
    return with_rules(Rule("layer3.0.conv2.weight", "layer3.0.conv2.kernel", op))


def swapped_vectors():
    return with_rules(Rule("layer2.0.bn2.weight", "layer2.0.bn2.bias"), Rule("layer2.0.bn2.bias", "layer2.0.bn2.scale"))


def wrong_eps():
    def fault(port, monkeypatch):
        port.layer1[0].bn3.eps = 1e-3

    return fault


class SamePadded(nn.Conv):
    def __call__(self, x):
        strides = (self.stride, self.stride)
        return lax.conv_general_dilated(x, self.kernel[...], strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def same_padding_in_the_stem():
    def fault(port, monkeypatch):
        port.conv1 = SamePadded(3, 64, 7, stride=2, padding=3, use_bias=False, rngs=nnx.Rngs(0))

    return fault


def stride_on_the_first_convolution_of_a_bottleneck():
    def fault(port, monkeypatch):
        port.layer2[0].conv1.stride, port.layer2[0].conv2.stride = 2, 1

    return fault


def same_padding_in_the_pool():
    def fault(port, monkeypatch):
        def pool(x, size, stride, padding):
            return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), "SAME")

        monkeypatch.setattr(nn, "max_pool", pool)

    return fault


@pytest.mark.parametrize(
    ("make_fault", "blamed"),
    [
        (flipped_kernel, "layer1.0.conv2"),
        (wrongly_transposed_kernel, "layer3.0.conv2"),
        (swapped_vectors, "layer2.0.bn2"),
        (wrong_eps, "layer1.0.bn3"),
        (same_padding_in_the_stem, "conv1"),
        (stride_on_the_first_convolution_of_a_bottleneck, "layer2.0.conv1"),
        (same_padding_in_the_pool, "between bn1 and layer1.0.conv1"),
    ],
)
def test_a_fault_is_over_its_threshold_by_ten_times_and_the_layer_is_named(original, port, monkeypatch, make_fault, blamed):
    table = make_fault()(port, monkeypatch) or TABLE
    report = compare(original, port, table, grad=False)
    assert not report.equal
    assert report.blame.startswith(f"{blamed}: ")
    assert report.verdict.startswith("NOT EQUAL")
    failures = [c for c in report.failures if c.name == blamed.split(" and ")[-1]]
    assert failures
    assert min(c.excess for c in failures) >= 10
    # Layers that are right by themselves are not blamed for what reaches them.
    isolated = [c.name for c in report.sections[0].comparisons if not c.equal]
    family = {blamed, blamed.rsplit(".", 1)[0]}
    strided = {"layer2.0.conv1", "layer2.0.conv2", "layer2.0"} if blamed == "layer2.0.conv1" else set()
    assert set(isolated) <= family | strided


def test_a_layers_gradient_may_be_wrong_where_its_output_is_right(original, port, monkeypatch):
    @jax.custom_vjp
    def relu(x):
        return jnp.maximum(x, 0)

    relu.defvjp(lambda x: (relu(x), x), lambda x, grad: (jnp.where(x > 0.1, grad, 0),))
    monkeypatch.setattr(nnx, "relu", relu)
    report = compare(original, port)
    assert [section.title for section in report.sections if not section.equal] == ["gradients"]
    assert report.failures[0].excess > 10


def test_rules_that_do_not_take_the_state_dict_are_refused_with_the_full_list(original, port):
    with pytest.raises(WeightsError, match=r"surplus 2: fc\.weight, fc\.bias"):
        compare(original, port, Table(TABLE.rules))


def test_modules_of_several_inputs_without_images_can_be_compared():
    class Gate(nnx.Module):
        def __init__(self):
            self.norm = nn.BatchNorm(5)

        def __call__(self, x, y):
            return {"gated": self.norm(x) * y}

    class Original(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(5)

        def forward(self, x, y):
            return {"gated": self.norm(x) * y}

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((7, 5)).astype(np.float32) for _ in range(2)]
    report = compare_modules(Original(), Gate(), Table(batch_norm("norm")), inputs, subject="gate")
    assert report.equal, report
    assert report.subject == "gate"
    assert [section.title for section in report.sections] == ["layers, isolated", "layers, accumulated", "outputs", "gradients"]


def test_layers_that_pytorch_does_not_call_are_listed():
    class Functional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.conv.weight, self.conv.bias)

    class Port(nnx.Module):
        def __init__(self):
            self.conv = nn.Conv(3, 4, 1, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.conv(x)

    report = compare_modules(Functional(), Port(), Table(conv("conv", bias=True)), IMAGES[:, :8, :8])
    assert report.equal, report
    assert report.uncompared == ("conv",)
    assert "not compared one by one" in str(report)
