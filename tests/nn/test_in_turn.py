"""SubpixelLogits in a loop give what they give one after another: results, gradients and statistics."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from fcn_jax import nn
from fcn_jax.models.resnet import Architecture, ResNet
from fcn_jax.nn import _valid
from fcn_jax.nn._in_turn import LEAST, loops


class Block(nnx.Module):
    """A residual block with all kinds of state, whose 1x1 convolution widens."""

    def __init__(self, channels, inner, rngs):
        self.narrow = nn.Conv(channels, inner, 3, padding=1, use_bias=False, rngs=rngs)
        self.norm = nn.BatchNorm(inner)
        self.wide = nn.Conv(inner, channels, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.dropout(self.wide(nnx.relu(self.norm(self.narrow(x))))) + x)


def chain(*inner):
    return nnx.List([Block(8, width, nnx.Rngs(i)) for i, width in enumerate(inner)])


def alike(block):
    """As many blocks as make a loop, made by a function of their number."""
    return nnx.List([block(i) for i in range(LEAST)])


def run(blocks, x, looped):
    """Value, gradients by the parameters and x, and all state afterwards, as of a training step."""
    blocks.train()
    graphdef, params, rest = nnx.split(blocks, nnx.Param, ...)

    def loss(params, x, rest):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        with loops(looped):
            y = nn.in_turn(merged, x)
        return jnp.sin(y).mean(), (y, nnx.state(merged, nnx.Not(nnx.Param)))

    function = jax.value_and_grad(loss, (0, 1), has_aux=True)
    return jax.make_jaxpr(function)(params, x, rest), jax.jit(function)(params, x, rest)


def scans(jaxpr, least=LEAST):
    """Lengths of the loops; CPUs sum up kernel gradients in short ones."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] >= least:
            found.append(equation.params["length"])
        for inner in jaxprs_in_params(equation.params):
            found += scans(inner, least)
    return found


@pytest.mark.parametrize(
    ("inner", "lengths"),
    [
        ((4,) * LEAST, [LEAST]),
        ((4,) * (LEAST - 1), []),
        ((4, 4, *(3,) * LEAST, 4), [LEAST]),
        ((3,) * LEAST + (4,) * (LEAST + 1), [LEAST, LEAST + 1]),
        ((4,) * (2 * LEAST + 1), [LEAST, LEAST + 1]),
    ],
)
def test_a_loop_gives_the_same_and_takes_equal_neighbors(monkeypatch, inner, lengths):
    monkeypatch.setattr(
        sys.modules["fcn_jax.nn._in_turn"], "MOST", 2 * LEAST
    )  # the name is the function's, too
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 8)), jnp.float32)
    blocks = chain(*inner)
    (line, plain), (looped, found) = run(blocks, x, False), run(blocks, x, True)
    assert scans(line.jaxpr) == []
    assert sorted(scans(looped.jaxpr)) == sorted(2 * lengths), "forward and backward"
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


class Rectified(nnx.Module):
    """A block without variables."""

    def __call__(self, x):
        return nnx.relu(x - 0.1)


class Noisy(nnx.Module):
    """A block that draws from a source which it may share."""

    def __init__(self, rngs):
        self.rngs = rngs

    def __call__(self, x):
        return x + jax.random.normal(self.rngs.noise(), x.shape)


TIED = Block(8, 4, nnx.Rngs(0))
STREAM = nnx.Rngs(noise=0)
LINES = {
    "one block, six times": alike(lambda i: TIED),
    "one source of random numbers": alike(lambda i: Noisy(STREAM)),
    "other dilations": alike(
        lambda i: nn.Conv(8, 8, 3, padding=1 + i % 2, dilation=1 + i % 2, rngs=nnx.Rngs(i))
    ),
    "strides": alike(lambda i: nn.Conv(8, 8, 3, padding=1, stride=2, rngs=nnx.Rngs(i))),
    "another dtype at first": alike(
        lambda i: nn.Conv(8, 8, 1, dtype=jnp.bfloat16, rngs=nnx.Rngs(i))
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_blocks_that_are_no_loop_are_called_one_by_one(name):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 8)), jnp.float32)
    (_, plain), (looped, found) = run(LINES[name], x, False), run(LINES[name], x, True)
    assert scans(looped.jaxpr) == []
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(one, other)


def test_blocks_without_variables_are_a_loop():
    x = jnp.ones((1, 2, 2, 3))
    with loops(True):
        np.testing.assert_allclose(
            nn.in_turn(alike(lambda i: Rectified()), x), 1 - 0.1 * LEAST, rtol=1e-5
        )


def test_images_that_fill_a_part_of_their_array_go_block_by_block():
    blocks = alike(lambda i: nn.Conv(8, 8, 3, padding=1, rngs=nnx.Rngs(i)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 8, 8)), jnp.float32)
    with loops(True), _valid.sizes({(8, 8): (5, 6)}):
        y = nn.in_turn(blocks, x)
    np.testing.assert_allclose(y[:, :5, :6], nn.in_turn(blocks, x[:, :5, :6]), atol=1e-5)


def test_statistics_and_random_counts_of_every_block_are_updated():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 8)), jnp.float32)
    blocks = chain(*(4,) * LEAST)
    blocks.train()
    before = jnp.stack([block.norm.mean[...] for block in blocks])
    with loops(True):
        y = nn.in_turn(blocks, x)
    assert y.shape == x.shape
    after = jnp.stack([block.norm.mean[...] for block in blocks])
    assert (jnp.abs(after - before).max(1) > 0).all()
    assert len(np.unique(np.asarray(after), axis=0)) == LEAST, "each its own"
    assert [int(block.norm.num_batches_tracked[...]) for block in blocks] == [1] * LEAST
    assert {int(block.dropout.rngs.count[...]) for block in blocks} == {1}


@pytest.mark.lowering
def test_a_loop_keeps_no_widened_output_for_the_backward_pass():
    x = jnp.zeros((2, 6, 5, 8))
    traced, _ = run(chain(*(4,) * LEAST), x, True)
    forward = next(equation for equation in traced.jaxpr.eqns if equation.primitive.name == "scan")
    kept = [
        var.aval.shape
        for var in forward.outvars
        if var.aval.shape[:1] == (LEAST,) and len(var.aval.shape) == 5
    ]
    # The blocks' inputs, the 3x3 convolutions' outputs; not what the 1x1 ones make of them, nor
    # what was rectified.
    assert sorted(kept) == [(LEAST, 2, 6, 5, 4), (LEAST, 2, 6, 5, 8)]


def test_a_resnet_without_a_long_row_has_no_loops():
    trunk = nnx.eval_shape(
        lambda: ResNet(
            Architecture((3, 4, 6, 3)), dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
    )
    trunk.eval()
    graphdef, state = nnx.split(trunk)

    def features(state, x):
        with loops(True):
            return list(nnx.merge(graphdef, state)(x).values())

    assert (
        scans(
            jax.make_jaxpr(features)(
                state, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
            ).jaxpr,
            2,
        )
        == []
    )


@pytest.mark.slow
def test_a_deep_resnets_features_are_the_same_by_loops():
    deep = Architecture((3, 1, 1 + LEAST, 1), bottleneck=False)
    trunk = ResNet(deep, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    trunk.eval()
    graphdef, state = nnx.split(trunk)

    def features(looped):
        def run(state, x):
            with loops(looped):
                return nnx.merge(graphdef, state)(x)

        return jax.jit(run)

    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 64, 64, 3)), jnp.float32)
    assert scans(jax.make_jaxpr(features(True))(state, x).jaxpr, 2) == [3, LEAST], (
        "with a long row, short ones too"
    )
    plain, looped = features(False)(state, x), features(True)(state, x)
    for name, feature in plain.items():
        np.testing.assert_allclose(looped[name], feature, rtol=1e-4, atol=1e-4)
