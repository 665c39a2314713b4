"""The traps that docs/porting.md lists: a port that falls into one is found, and where."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn, verify
from fcn_jax.verify.randomize import randomize

torch = pytest.importorskip("torch")
PAGE = (Path(__file__).parents[1] / "docs" / "porting.md").read_text()
HEADS, CHANNELS, GRID = 2, 4, (7, 9)


class Reference(torch.nn.Module):
    """Each layer has a setting or a convention that a port can miss."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.03)
        self.qkv = torch.nn.Linear(CHANNELS, 3 * CHANNELS)
        self.score = torch.nn.Linear(CHANNELS * GRID[0] * GRID[1], 5)

    def forward(self, x):
        x = torch.nn.functional.gelu(self.norm(self.conv(x)))
        x = torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = torch.nn.functional.interpolate(x, GRID, mode="bilinear", align_corners=True)
        x = x + self.attention(x.flatten(2).mT).mT.unflatten(2, GRID)
        return self.score(x.flatten(1))

    def attention(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class Port(nnx.Module):
    """The same in JAX. The defaults are right; each argument is a trap."""

    def __init__(
        self,
        *,
        padding=1,
        eps=1e-3,
        momentum=0.03,
        approximate=False,
        ceil_mode=True,
        align_corners=True,
        heads_first=False,
        channels_first=True,
    ):
        rngs = nnx.Rngs(0)
        self.conv = nn.Conv(3, CHANNELS, 3, stride=2, padding=padding, rngs=rngs)
        self.norm = nn.BatchNorm(CHANNELS, eps=eps, momentum=momentum)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, rngs=rngs)
        self.score = nn.Linear(CHANNELS * GRID[0] * GRID[1], 5, rngs=rngs)
        self.approximate, self.ceil_mode, self.align_corners = approximate, ceil_mode, align_corners
        self.heads_first, self.channels_first = heads_first, channels_first

    def __call__(self, x):
        x = jax.nn.gelu(self.norm(self.conv(x)), self.approximate)
        x = nn.max_pool(x, 3, 2, ceil_mode=self.ceil_mode)
        x = nn.resize_bilinear(x, GRID, align_corners=self.align_corners)
        n, h, w, c = x.shape
        x = x + self.attention(x.reshape(n, h * w, c)).reshape(n, h, w, c)
        return self.score((x.transpose(0, 3, 1, 2) if self.channels_first else x).reshape(n, -1))

    def attention(self, x):
        n, length, c = x.shape
        shape = (HEADS, 3, -1) if self.heads_first else (3, HEADS, -1)
        qkv = self.qkv(x).reshape(n, length, *shape)
        q, k, v = jnp.moveaxis(qkv, 3 if self.heads_first else 2, 0)
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[-1] ** -0.5)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, length, c)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((2, 20, 23, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(images):
    torch.manual_seed(0)
    network = Reference()
    randomize(network, 0, run=lambda net: net(torch.from_numpy(images).permute(0, 3, 1, 2)))
    return network


def compare(reference, port, images, *, train=False):
    return verify.compare(reference, port, images, train=train, grad=False, sensitive=False)


def test_port_without_a_trap_is_equal(reference, images):
    report = compare(reference, Port(), images, train=True)
    assert report.equal, str(report)


TRAPS = {
    "padding": ({"padding": "same"}, "conv: error "),
    "epsilon": ({"eps": 1e-5}, "norm: error "),
    "GELU": ({"approximate": True}, "between norm and qkv: error "),
    "`ceil_mode`": ({"ceil_mode": False}, "between norm and qkv: error "),
    "`align_corners`": ({"align_corners": False}, "between norm and qkv: error "),
    "queries, keys and values": ({"heads_first": True}, "between qkv and score: error "),
    "flattening": ({"channels_first": False}, "between qkv and score: error "),
}


@pytest.mark.parametrize("name", TRAPS)
def test_trap_is_found(name, reference, images):
    wrong, failure = TRAPS[name]
    report = compare(reference, Port(**wrong), images)
    assert not report.equal
    assert report.failure.startswith(failure), report.failure


def test_momentum_fails_in_train_mode_only(reference, images):
    assert compare(reference, Port(momentum=0.97), images).equal
    report = compare(reference, Port(momentum=0.97), images, train=True)
    assert not report.equal
    assert "norm.running_" in report.failure, report.failure


def test_odd_sizes_hide_the_padding_of_tensorflow():
    assert nn.same_padding(23, 3, 2) == (1, 1)
    assert nn.same_padding(20, 3, 2) == (0, 1)


@pytest.mark.parametrize("name", [*TRAPS, "momentum"])
def test_page_lists_the_trap(name):
    table = PAGE.split("## Traps")[1]
    assert re.search(rf"^\| .*{re.escape(name)}", table, re.MULTILINE), name
