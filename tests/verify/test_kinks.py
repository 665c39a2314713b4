"""Units at kinks are moved, and gradients are then held to tight limits."""

import collections

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax import nn
from fcn_jax.pytorch.rules import Table, batch_norm, conv
from fcn_jax.verify import Comparison, Section, compare, kinks
from fcn_jax.verify.gradients import _with_kinks
from fcn_jax.verify.randomize import randomize
from fcn_jax.verify.torch_side import REFERENCE, TorchSide

torch = pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).standard_normal((2, 24, 32, 3)).astype(np.float32)
KINKS = {
    "relu": (torch.nn.ReLU(), (0,)),
    "relu in place": (torch.nn.ReLU(inplace=True), (0,)),
    "relu6": (torch.nn.ReLU6(), (0, 6)),
    "hardswish": (torch.nn.Hardswish(), (-3, 3)),
    "hardsigmoid": (torch.nn.Hardsigmoid(), (-3, 3)),
    "leaky relu": (torch.nn.LeakyReLU(), (0,)),
    "hardtanh": (torch.nn.Hardtanh(-0.5, 0.75), (-0.5, 0.75)),
    "threshold": (torch.nn.Threshold(0.5, 0), (0.5,)),
}


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def side_of(*layers, call=lambda net, inputs: net(*inputs)):
    side = TorchSide(torch.nn.Sequential(*layers), "float32", call)
    side.train(True)
    return side


def inputs_of(side, index, images=IMAGES):
    """The reference's input of a layer, f64."""
    seen = []
    layer = side.network(REFERENCE)[index]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        side.outputs(REFERENCE, [images])
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", KINKS)
def test_units_keep_their_distance(name):
    torch.manual_seed(0)
    layer, points = KINKS[name]
    convolution = torch.nn.Conv2d(3, 4, 3)
    side = side_of(convolution, layer)
    before = inputs_of(side, 1)
    network = side.network(REFERENCE)
    with torch.no_grad():  # one unit of channel 2 is at the last kink, except for rounding
        unit = before[1, 2, 5, 7] - network[0].bias[2]
        network[0].bias[2] = (points[-1] - unit + 3e-8).float().double()
        for other in side.networks():
            other[0].bias.copy_(network[0].bias)
    result = kinks.condition(side, [IMAGES])
    assert result.left == ()
    assert "0.bias" in result.parameters
    assert result.parameters["0.bias"].dtype == torch.float32
    assert result.passes <= 4
    after = inputs_of(side, 1)
    for point in points:
        # Rounding moves such a unit by about 1e-7; the margin is four times the largest error.
        assert (after - point).abs().min() > 4e-7
    moved = (network[0].bias - torch.tensor(0.0)).detach()
    assert torch.equal(moved.float(), result.parameters["0.bias"])
    assert torch.equal(moved, moved.float().double()), "JAX gets the same value"


def test_functions_and_methods_are_seen():
    for function in (
        torch.relu,
        torch.nn.functional.relu,
        lambda x: x.relu(),
        lambda x: x.clamp(min=0),
        lambda x: torch.clamp(x, 0, 1),
        lambda x: x.abs(),
    ):
        torch.manual_seed(0)
        side = side_of(torch.nn.Conv2d(3, 4, 1), Function(function))
        side.network(REFERENCE)[0].bias.data.zero_()
        images = IMAGES.copy()
        images[0, 3, 4] = 0
        assert "0.bias" in kinks.condition(side, [images]).parameters


def test_next_layers_follow_in_the_same_pass():
    torch.manual_seed(0)
    layers = [
        module
        for _ in range(3)
        for module in (torch.nn.Conv2d(3, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU())
    ]
    side = side_of(*layers)
    images = np.tile(IMAGES, (1, 6, 6, 1))
    with torch.no_grad():  # a unit at the kink of the first ReLU
        x = torch.from_numpy(images).permute(0, 3, 1, 2).double()
        network = side.network(REFERENCE)
        unit = float(network[1](network[0](x))[0, 0, 5, 5])
        for copied in side.networks():
            copied[1].bias[0] = -unit
    result = kinks.condition(side, [images])
    assert result.left == ()
    assert "1.bias" in result.parameters
    assert set(result.parameters) <= {"1.bias", "4.bias", "7.bias"}
    assert result.passes == 4, "two that measure, one that moves, one that checks"


def test_ties_of_a_pooling_window_are_parted():
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 4, 3)
    torch.nn.init.constant_(convolution.bias, 3)
    side = side_of(convolution, torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1))
    images = IMAGES.copy()
    images[0, :14] = 0.25
    pooled = inputs_of(side, 2, images)

    def smallest_gap(x):
        windows = torch.nn.functional.unfold(x[0][:, None], 3, stride=2, padding=1)
        top = windows.topk(2, dim=1).values
        return float((top[:, 0] - top[:, 1])[top[:, 0] > 0].min())

    assert smallest_gap(pooled) < 1e-12
    result = kinks.condition(side, [images])
    assert result.left == ()
    assert not np.array_equal(result.inputs[0], images), "only noise parts flat areas"
    assert smallest_gap(inputs_of(side, 2, result.inputs[0])) > 4e-7


def test_kernel_is_changed_if_few_windows_are_tied():
    torch.manual_seed(0)
    side = side_of(torch.nn.Conv2d(3, 4, 1, bias=False), Function(lambda x: x.amax((2, 3))))
    network = side.network(REFERENCE)
    images = IMAGES.copy()
    x = inputs_of(side, 1, images)
    best = x[0, 1].flatten().topk(2).indices
    flat = images[0].reshape(-1, 3)
    row = network[0].weight[1, :, 0, 0].detach().numpy()
    gap = float(x[0, 1].flatten()[best[0]] - x[0, 1].flatten()[best[1]])
    flat[best[1]] += (gap - 1e-8) * row / (row @ row)
    result = kinks.condition(side, [images])
    assert result.left == ()
    assert list(result.parameters) == ["0.weight"]
    np.testing.assert_array_equal(result.inputs[0], images)
    values = inputs_of(side, 1, images)[0, 1].flatten().topk(2).values
    assert values[0] - values[1] > 4e-7


def test_what_cannot_be_moved_is_listed():
    images = IMAGES.copy()
    images[0, 3, 4] = 3e-9
    side = side_of(torch.nn.PReLU(), torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 1))
    left = kinks.condition(side, [images]).left
    assert [*map(str, left)] == ["3 units of prelu 1", "3 units of relu 2"]
    assert [x.upstream for x in left] == [{"0.weight"}, {"0.weight"}], "not of the convolution"


def test_clear_changes_only_parameters():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    ).double()
    x = torch.from_numpy(np.tile(IMAGES, (1, 4, 4, 1)).transpose(0, 3, 1, 2)).double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert kinks.clear(network, x) == ()
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["1.bias"]


@given(
    values=st.lists(st.floats(-2, 2), min_size=1, max_size=30),
    points=st.lists(st.floats(-1, 1), min_size=1, max_size=2),
)
def test_shift_is_the_best_of_all(values, points):
    reach = 0.5
    tensor = torch.tensor(values, dtype=torch.float64)
    shift, found = kinks._best_shift(tensor, points, reach)
    assert abs(shift) <= reach

    def distance(shift):
        units = [abs(v + shift - p) for v in values for p in points]
        return min([*units, 2 * (reach - abs(shift))])

    others = max(distance(s) for s in np.linspace(-reach, reach, 201))
    assert distance(shift) >= others / 2 - 1e-9
    assert distance(shift) >= found - 1e-9


class Layer(nnx.Module):
    def __init__(self, inputs, slope, rngs):
        self.slope = slope
        self.conv = nn.Conv(inputs, 8, 3, padding=1, use_bias=False, rngs=rngs)
        self.bn = nn.BatchNorm(8)

    def __call__(self, x):
        @jax.custom_vjp
        def scaled(x):
            return x

        scaled.defvjp(lambda x: (x, None), lambda _, grad: (grad * self.slope,))
        y = scaled(nnx.relu(self.bn(self.conv(x))))
        return nn.max_pool(y, 3, 2, 1)


class Port(nnx.Module):
    def __init__(self, slope=1.0):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([Layer(3, slope, rngs), Layer(8, 1.0, rngs)])

    def __call__(self, x):
        return self.layers[1](self.layers[0](x))


def reference():
    torch.manual_seed(0)
    network = torch.nn.Sequential()
    for i, inputs in enumerate((3, 8)):
        layers = {
            "conv": torch.nn.Conv2d(inputs, 8, 3, padding=1, bias=False),
            "bn": torch.nn.BatchNorm2d(8),
            "relu": torch.nn.ReLU(),
            "pool": torch.nn.MaxPool2d(3, 2, 1),
        }
        network.add_module(str(i), torch.nn.Sequential(collections.OrderedDict(layers)))
    randomize(network, seed=0)
    return network


def compared(slope):
    images = np.tile(IMAGES, (1, 4, 4, 1))  # flat and repeated parts, as drawings have
    images[:, :40] = 0.25
    table = Table(
        conv("{i}.conv", "layers.{i}.conv", bias=False), batch_norm("{i}.bn", "layers.{i}.bn")
    )
    return compare(reference(), Port(slope), images, rules=table)


@pytest.mark.slow
def test_gradients_are_held_to_rounding():
    report = compared(1.0)
    assert report.equal, report
    gradients = report.sections[-1]
    assert len(gradients.comparisons) == 7
    assert gradients.attempts == 1
    assert gradients.loose == ()
    assert max(c.reference_error for c in gradients.comparisons) < 5e-5


@pytest.mark.parametrize("slope", [pytest.param(1.2, marks=pytest.mark.slow), 1.002])
def test_slightly_larger_gradient_is_caught(slope):
    report = compared(slope)
    assert not report.equal
    assert {c.name for c in report.failures} == {"0.conv.weight", "0.bn.weight", "0.bn.bias"}
    assert min(c.excess for c in report.failures) > 10


def test_limits_that_are_wide_are_counted():
    def section(wide):
        comparisons = [Comparison(f"t{i}", (2,), 1e-6, 1e-6, 3e-6, 0.0) for i in range(20)]
        comparisons += [Comparison(f"w{i}", (2,), 1e-6, 1e-2, 3e-2, 0.0) for i in range(wide)]
        upstream = frozenset(c.name for c in comparisons)
        left = (kinks.Leftover("relu 4", 3, upstream),)
        return _with_kinks(
            Section("gradients", 3.0, tuple(comparisons)), kinks.Conditioned({}, (), left, 3)
        )

    few = section(2)
    assert few.loose == ("w0", "w1")
    assert few.equal
    assert few.remarks == (
        "gradients: 3 units of relu 4 lie at a kink and could not be moved; the limits of w0, w1 "
        "may be wide",
    )
    many = section(6)
    assert not many.equal
    assert "units at a kink widen the limits of 6 of 26 tensors" in many.doubt
