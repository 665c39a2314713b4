"""Sensitivities, against finite differences and exact values."""

import collections

import numpy as np
import pytest

from fcn_jax.verify import Comparison, Report, Section
from fcn_jax.verify.sensitivity import Sensitivity, floor_of, measure
from fcn_jax.verify.torch_side import REFERENCE, TorchSide, to_nchw

torch = pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).standard_normal((2, 9, 8, 3)).astype(np.float32)


def side_of(network, call=lambda network, inputs: network(*inputs)):
    side = TorchSide(network, "float32", call)
    side.train(False)
    return side


def measured(network, floor=1e-4, inputs=(IMAGES,), names=None):
    side = side_of(network)
    names = set(network.state_dict()) if names is None else names
    return {entry.name: entry for entry in measure(side, inputs, names, floor)}


def small_network():
    torch.manual_seed(0)
    layers = {
        "conv": torch.nn.Conv2d(3, 6, 3),
        "norm": torch.nn.BatchNorm2d(6),
        "act": torch.nn.ReLU(),
        "head": torch.nn.Conv2d(6, 4, 1),
    }
    network = torch.nn.Sequential(collections.OrderedDict(layers))
    for value in (*network.norm.parameters(), network.norm.running_mean, network.norm.running_var):
        torch.nn.init.uniform_(value, 0.5, 1.5)
    return network


def test_matches_finite_differences():
    network, step = small_network(), 1e-5
    found = measured(network)
    wide = small_network().double().eval()
    x = torch.from_numpy(to_nchw(IMAGES).copy()).double()
    generator = torch.Generator().manual_seed(1)
    state = wide.state_dict()
    with torch.no_grad():
        y = wide(x)
        for name, entry in found.items():
            tensor = state[name]
            kept, rms = tensor.clone(), tensor.square().mean().sqrt()
            moves = []
            for _ in range(60):
                noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(kept + step * rms * noise)
                moves.append(float((wide(x) - y).norm() / y.norm() / step))
            tensor.copy_(kept)
            assert entry.value == pytest.approx(np.mean(np.square(moves)) ** 0.5, rel=0.3), name
    assert found.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    assert not any(entry.reason for entry in found.values())


def test_linear_layer_has_a_sensitivity_of_one():
    """y = W x, with |dy|^2 = rms(W)^2 |x|^2 for each row and |y|^2 of about the same size."""
    torch.manual_seed(0)
    network = torch.nn.Linear(50, 400, bias=False)
    entry = measured(network, inputs=[np.random.default_rng(0).standard_normal((1, 50))])["weight"]
    assert entry.value == pytest.approx(1, rel=0.15)


def test_parameters_and_their_gradients_are_restored():
    network = small_network()
    network.head.bias.requires_grad_(False)
    side = side_of(network)
    measure(side, (IMAGES,), set(network.state_dict()), 1e-4)
    copied = side.network(REFERENCE)
    assert not copied.head.bias.requires_grad
    assert copied.conv.bias.requires_grad
    assert not copied.norm.running_mean.requires_grad
    assert all(p.grad is None for p in copied.parameters())


def test_ambiguous_and_unused_tensors_are_not_proven():
    layers = list(small_network().children())

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, _, self.head = layers
            self.unused = torch.nn.Parameter(torch.randn(3))
            self.again = torch.nn.Conv2d(4, 4, 1)
            self.last = torch.nn.Conv2d(4, 4, 1)
            self.tied = torch.nn.Conv2d(4, 4, 1)
            self.tied.weight = self.last.weight
            self.weak = torch.nn.Parameter(torch.randn(1) * 1e-7)

        def forward(self, x):
            y = self.head(torch.relu(self.norm(self.conv(x))))
            return self.tied(self.last(self.again(y))) + self.weak

    network = Network()
    with torch.no_grad():
        network.last.weight.copy_(network.again.weight)
        network.norm.bias.fill_(0.25)
    reasons = {name: entry.reason for name, entry in measured(network).items() if entry.reason}
    assert reasons == {
        "norm.bias": "all its elements are 0.25",
        "again.weight": "it equals last.weight",
        "last.weight": "it equals again.weight",
        "tied.weight": "it equals again.weight",
        "unused": "the outputs hardly depend on it (below 1e-04)",
        "weak": "the outputs hardly depend on it (below 1e-04)",
    }


def test_only_the_given_names_are_measured():
    assert measured(small_network(), names={"head.bias", "absent"}).keys() == {"head.bias"}


@pytest.mark.parametrize(
    ("dtype", "limit", "floor"),
    [
        ("float32", 1e-7, 9.54e-5),
        ("float32", 1e-6, 1e-4),
        ("float32", 1e-4, 1e-2),
        ("bfloat16", 2e-2, 2e-2),
    ],
)
def test_floor_is_a_multiple_of_the_limit(dtype, limit, floor):
    comparisons = [
        Comparison("out", (1,), 1e-7, 1e-7, limit, 0.0),
        Comparison("aux", (1,), 1.0, 0.0, 1.0, 0.0, "shape"),
    ]
    assert floor_of(comparisons, dtype) == pytest.approx(floor, rel=0.01)


def test_report_names_what_is_not_proven():
    section = Section("outputs", 2.0, (Comparison("out", (1,), 1e-7, 1e-7, 1e-6, 0.0),))
    reason = "all its elements are 1"
    entries = (
        Sensitivity("a", 0.5),
        Sensitivity("b", 0.5, reason),
        Sensitivity("c", 0.0, "it equals b"),
        Sensitivity("d", 0.5, reason),
    )
    report = Report("net", "float32", sections=[section], sensitivity=entries)
    assert report.equal
    assert report.verdict == (
        "EQUAL, except 3 tensors that are not proven: b, c, d: net in float32 is the same function "
        "in JAX and PyTorch"
    )
    assert f"not proven, since {reason}: b, d" in str(report)
    table = report.to_dict()
    assert table["verdict"] == "equal"
    assert table["not_proven"] == ["b", "c", "d"]
    assert table["sensitivity"][0] == {"name": "a", "value": 0.5, "reason": ""}
