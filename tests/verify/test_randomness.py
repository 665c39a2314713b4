"""Random layers are switched off, and other randomness is refused by name."""

import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.errors import ConfigError
from fcn_jax.pytorch.rules import Table, conv
from fcn_jax.verify import compare
from fcn_jax.verify.torch_side import REFERENCE, TorchSide

torch = pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).standard_normal((2, 8, 9, 3)).astype(np.float32)


class DropPath(torch.nn.Module):
    """As in timm."""

    def __init__(self, drop_prob=0.5):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop_prob)


class LayerSkip(DropPath):
    """Random, and not known."""

    def forward(self, x):
        return x * torch.empty(()).uniform_().to(x) if self.training else x


class Functional(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5)  # in eval mode as well, a usual mistake


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.MultiheadAttention(3, 1, dropout=0.5, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        first = self.layer(tokens, tokens, tokens)[0]
        q = first[:, None]
        second = torch.nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
        return second[:, 0]


def side_of(*layers):
    side = TorchSide(torch.nn.Sequential(*layers), "float32", lambda net, inputs: net(*inputs))
    side.train(True)
    return side


def layers(torchvision):
    return {
        "dropout": torch.nn.Dropout2d(0.5),
        "alpha": torch.nn.AlphaDropout(0.5),
        "functional": Functional(),
        "drop path": DropPath(),
        "stochastic depth": torchvision.ops.StochasticDepth(0.5, "row"),
        "drop block": torchvision.ops.DropBlock2d(0.5, 3),
        "attention": Attention(),
    }


def test_known_random_layers_are_switched_off(torchvision):
    for name, layer in layers(torchvision).items():
        side = side_of(torch.nn.Conv2d(3, 3, 1), layer)
        with torch.no_grad():
            first, second = (side.outputs(REFERENCE, [IMAGES])["output"] for _ in range(2))
        assert torch.equal(first, second), name
        side.check_deterministic([IMAGES])


def test_other_randomness_is_refused_by_name():
    side = side_of(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), LayerSkip(), torch.nn.ReLU())
    side.train(False)
    before = {k: v.clone() for k, v in side.network(REFERENCE).state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"random in train mode.*'uniform_' of 2 \(LayerSkip\)"):
        side.check_deterministic([IMAGES])
    after = side.network(REFERENCE).state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not side.network(REFERENCE).training
    assert torch.equal(torch.get_rng_state(), state)


def test_function_without_a_module_is_named(torchvision):
    side = TorchSide(
        torch.nn.Conv2d(3, 3, 1),
        "float32",
        lambda net, inputs: torchvision.ops.stochastic_depth(net(*inputs), 0.5, "row"),
    )
    with pytest.raises(ConfigError, match="'bernoulli_' of the call of the module"):
        side.check_deterministic([IMAGES])


class Port(nnx.Module):
    def __init__(self):
        self.conv = nn.Conv(3, 3, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.conv(x)


@pytest.mark.parametrize("layer", [DropPath(), Functional()])
def test_right_port_of_a_random_module_is_equal(layer):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), layer)
    report = compare(network, Port(), IMAGES, rules=Table(conv("0", "conv", bias=True)))
    assert report.equal, report
    assert max(c.reference_error for c in report.sections[-1].comparisons) < 1e-5
    assert layer.__dict__.get("drop_prob", 0.5) == 0.5, "the caller's module does not change"


def test_rejects_a_random_module_if_gradients_are_compared():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), LayerSkip())
    table = Table(conv("0", "conv", bias=True))
    with pytest.raises(ConfigError, match=r"use torch\.nn\.Dropout, which is switched off"):
        compare(network, Port(), IMAGES, rules=table)
    assert compare(network, Port(), IMAGES, rules=table, grad=False, train=False).equal, (
        "not in eval mode"
    )
