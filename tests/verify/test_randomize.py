"""References in which every tensor matters, and faults that only such values show."""

import copy

import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.pytorch.rules import Op, Rule, Table, conv
from fcn_jax.verify import compare
from fcn_jax.verify.randomize import LARGE_EVERY, randomize

torch = pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).standard_normal((2, 12, 16, 3)).astype(np.float32)


class Mixed(torch.nn.Module):
    """Tensors of all kinds."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(64)
        self.scale = torch.nn.Parameter(torch.full((64, 1, 1), 1e-6))
        self.conv = torch.nn.Conv2d(64, 8, 3)
        torch.nn.init.zeros_(self.conv.bias)
        torch.nn.init.zeros_(self.conv.weight)
        self.first = torch.nn.Linear(8, 8)
        self.copied = copy.deepcopy(self.first)
        self.tied = torch.nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.up = torch.nn.ConvTranspose2d(3, 3, 4, bias=False)
        line = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            self.up.weight.zero_()
            for i in range(3):
                self.up.weight[i, i] = line[:, None] * line
        self.register_buffer("table", torch.arange(16.0).repeat(2))
        self.register_buffer("mask", torch.zeros(5), persistent=False)


@pytest.fixture
def drawn():
    network = Mixed()
    before = {name: value.clone() for name, value in network.named_parameters()}
    randomize(network, seed=0)
    return network, before


def test_elements_that_were_alike_differ(drawn):
    network, _ = drawn
    for name, low, high in (
        ("norm.bias", 0, 1),
        ("norm.running_mean", -0.5, 0.5),
        ("norm.running_var", 0.5, 1.5),
        ("scale", 0.5, 1.5),
        ("conv.bias", 0, 1),
    ):
        value = network.state_dict()[name]
        assert low <= value.min() < value.max() <= high, name
        assert len(value.unique()) == value.numel(), name
    scales = network.norm.weight
    assert ((scales >= 2) & (scales <= 3)).sum() == 64 // LARGE_EVERY
    assert ((scales >= 0.5) & (scales <= 1.5)).sum() == 64 - 64 // LARGE_EVERY
    bound = (64 * 9) ** -0.5
    assert 0.9 * bound < network.conv.weight.abs().max() <= bound, "as a new convolution"


def test_copies_and_structured_kernels_get_noise(drawn):
    network, before = drawn
    assert torch.equal(network.first.weight, before["first.weight"]), "new values are kept"
    difference = network.copied.weight - network.first.weight
    rms = network.first.weight.square().mean().sqrt()
    assert 0.3 * rms < difference.square().mean().sqrt() < 0.7 * rms
    kernel = network.up.weight
    for other in (kernel.flip(2), kernel.flip(3), kernel.transpose(2, 3), kernel.transpose(0, 1)):
        assert (kernel - other).norm() > 0.3 * kernel.norm()


def test_tied_integer_and_computed_tensors_stay(drawn):
    network, _ = drawn
    assert network.tied.weight is network.first.weight
    assert network.norm.num_batches_tracked == 0
    assert torch.equal(network.table, torch.arange(16.0).repeat(2))
    assert not network.mask.any(), "no state dict has it"


def test_seed_decides_and_the_random_state_of_the_caller_stays():
    torch.manual_seed(5)
    networks = [Mixed() for _ in range(3)]
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())
    state = torch.get_rng_state()
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        randomize(network, seed)
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (network.state_dict() for network in networks)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["scale"], c["scale"])


def test_statistics_follow_the_inputs():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.ReLU()
    ).train()
    images = 5 + 3 * torch.randn(2, 3, 16, 16)
    randomize(network, seed=0, run=lambda network: network(images))
    x, norm = network[0](images), network[1]
    assert network.training
    assert norm.training
    assert norm.num_batches_tracked == 0
    variance = x.var((0, 2, 3), unbiased=False)
    ratio = norm.running_var / variance
    assert 0.49 < ratio.min() < 0.6 < 1.4 < ratio.max() < 1.51
    offset = (norm.running_mean - x.mean((0, 2, 3))) / variance.sqrt()
    assert -0.51 < offset.min() < -0.4 < 0.4 < offset.max() < 0.51
    y = network.eval()(images)
    assert (y > 6).any(), "a ReLU6 is another function"
    assert (y == 0).any()


def test_small_biases_grow_to_a_tenth_of_the_products():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ConvTranspose2d(8, 5, 32, 32))
    small, large = network[1].bias, network[0].bias
    large.data.uniform_(5, 6)
    before = large.detach().clone()
    assert small.abs().max() < 0.02
    randomize(network, seed=0, run=lambda network: network(torch.randn(2, 3, 6, 6)))
    torch.testing.assert_close(large, before)
    assert 0.149 < small.square().mean().sqrt() < 0.301


class Block(torch.nn.Module):
    """As in ConvNeXt: depthwise and project convolutions, a layer scale, a shortcut."""

    def __init__(self):
        super().__init__()
        self.dw = torch.nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.project = torch.nn.Conv2d(3, 3, 1)
        self.scale = torch.nn.Parameter(torch.full((3, 1, 1), 1e-6))
        for layer in (self.dw, self.project):
            torch.nn.init.zeros_(layer.bias)

    def forward(self, x):
        return x + self.scale * self.project(torch.nn.functional.gelu(self.dw(x)))


class Port(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dw = nn.Conv(3, 3, 3, padding=1, groups=3, rngs=rngs)
        self.project = nn.Conv(3, 3, 1, rngs=rngs)
        self.scale = nnx.Param(np.zeros(3, np.float32))

    def __call__(self, x):
        return x + self.scale[...] * self.project(nnx.gelu(self.dw(x), approximate=False))


class Ports(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([Port(), Port()])

    def __call__(self, x):
        return self.blocks[1](self.blocks[0](x))


FLAT = Op("[C,1,1] <-> [C]", lambda x: x.reshape(-1), lambda x: x.reshape(-1, 1, 1))
RIGHT = (
    conv("{i}.dw", "blocks.{i}.dw", bias=True),
    conv("{i}.project", "blocks.{i}.project", bias=True),
    Rule("{i}.scale", "blocks.{i}.scale", FLAT),
)
FAULTS = {
    "layer scales of two blocks": [
        Rule("0.scale", "blocks.1.scale", FLAT),
        Rule("1.scale", "blocks.0.scale", FLAT),
    ],
    "depthwise and project biases": [
        Rule("{i}.dw.bias", "blocks.{i}.project.bias"),
        Rule("{i}.project.bias", "blocks.{i}.dw.bias"),
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_swapped_tensors_are_not_equal(fault):
    torch.manual_seed(0)
    network = torch.nn.Sequential(Block(), Block())
    wrong = Table(*FAULTS[fault], *RIGHT)
    before = compare(network, Ports(), IMAGES, rules=wrong, grad=False)
    assert before.equal, "with torchvision's initial values, nothing shows"
    swapped = {entry.name for entry in before.not_proven}
    assert swapped >= {
        f"{i}.{name}" for i in range(2) for name in ("dw.bias", "project.bias", "scale")
    }
    randomize(network, seed=0)
    right = compare(network, Ports(), IMAGES, rules=Table(*RIGHT), grad=False)
    assert right.equal, right
    assert not right.not_proven
    report = compare(network, Ports(), IMAGES, rules=wrong, grad=False)
    assert not report.equal
    assert report.failures[0].excess > 1e3
    assert "blocks.0" in report.failure
