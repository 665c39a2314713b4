"""Blocks that the backward pass computes again give the same values, and keep less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.ad_checkpoint import saved_residuals

from fcn_jax import nn
from fcn_jax.api import ModelSpec
from fcn_jax.models.build import build_backbone
from fcn_jax.nn._blocks import recompute_blocks


class Block(nnx.Module):
    """Everything that a block may have: statistics, stochastic depth, a constant argument."""

    def __init__(self, rngs):
        self.conv1 = nn.ConvNormAct(4, 16, 3, rngs=rngs)
        self.conv2 = nn.ConvNormAct(16, 4, 3, rngs=rngs)
        self.drop = nn.StochasticDepth(0.5, rngs=rngs)

    def __call__(self, x, factor):
        return x + factor * self.drop(self.conv2(self.conv1(x)))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List(Block(rngs) for _ in range(3))

    def __call__(self, x):
        for block in self.blocks:
            x = nn.call_block(block, x, np.float32(0.5))
        return x


@pytest.fixture(scope="module")
def parts():
    return nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)


def loss(parts, on):
    graphdef, _, rest = parts

    def value(params):
        network = nnx.merge(graphdef, params, rest, copy=True)
        with recompute_blocks(on):
            y = network(jnp.linspace(-1, 1, 2 * 6 * 5 * 4).reshape(2, 6, 5, 4))
        return jnp.sin(y).sum(), nnx.state(network, nnx.BatchStat)

    return value


def test_values_gradients_and_statistics_are_the_same(parts):
    found = [
        jax.jit(jax.value_and_grad(loss(parts, on), has_aux=True))(parts[1]) for on in (False, True)
    ]
    for plain, again in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-6)


def held(function, *args):
    """Bytes that the forward pass keeps for the backward pass, without the arguments."""
    return sum(
        shape.dtype.itemsize * shape.size
        for shape, why in saved_residuals(function, *args)
        if "argument" not in why and not jnp.issubdtype(shape.dtype, jax.dtypes.prng_key)
    )


def test_only_the_inputs_of_blocks_are_kept(parts):
    plain, again = (
        held(lambda params, on=on: loss(parts, on)(params)[0], parts[1]) for on in (False, True)
    )
    one = 4 * 2 * 6 * 5 * 4
    assert again < 0.3 * plain
    assert again >= 2 * one


@pytest.mark.parametrize(
    ("backbone", "most"),
    [
        ("resnet18", 0.6),
        ("fcn-jax-mobilenet:mobilenet_v2", 0.2),
        pytest.param("fcn-jax-efficientnet:efficientnet_lite0", 0.2, marks=pytest.mark.slow),
        pytest.param("fcn-jax-convnext:convnext_atto", 0.2, marks=pytest.mark.slow),
        pytest.param("fcn-jax-mit:mit_b0", 0.2, marks=pytest.mark.slow),
        pytest.param("fcn-jax-swin:swin_tiny_patch4_window7_224", 0.2, marks=pytest.mark.slow),
        pytest.param("fcn-jax-vit:vit_tiny_patch16_224", 0.2, marks=pytest.mark.slow),
    ],
)
def test_all_families_keep_less(backbone, most):
    if ":" in backbone:
        pytest.importorskip(backbone.partition(":")[0].replace("-", "_"))
    spec = ModelSpec(backbone, None)
    network = nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0)))
    network.train()
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def total(params, rest, x, on):
        with recompute_blocks(on):
            features = nnx.merge(graphdef, params, rest, copy=True)(x)
        return sum(jnp.sin(y).sum() for y in features.values())

    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    plain, again = (
        held(lambda p, r, x, on=on: total(p, r, x, on), params, rest, x) for on in (False, True)
    )
    assert again < most * plain
