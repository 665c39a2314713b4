"""Images that fill a part of their array: every operator gives there what it gives on the image alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax import build_model, nn
from fcn_jax.nn import valid

SIDES = st.tuples(st.integers(4, 19), st.integers(4, 19))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(function, inner, more, atol=1e-5):
    """Run `function` on an image alone, and in an array with something else at its right and bottom."""
    x = noise(2, *inner, 3)
    outer = (inner[0] + more[0], inner[1] + more[1])
    beside = 50 + noise(2, *outer, 3, seed=1)
    beside[:, : inner[0], : inner[1]] = x
    alone = np.asarray(jax.jit(function)(x))

    @jax.jit
    def among_others(beside, *hw):
        with valid.sizes({outer: hw}):
            y = function(beside)
            return y, valid.of(y.shape[1:3])

    y, known = among_others(beside, *map(jnp.int32, inner))
    assert tuple(map(int, known)) == alone.shape[1:3]
    np.testing.assert_allclose(y[:, : alone.shape[1], : alone.shape[2]], alone, atol=atol)


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, st.sampled_from([(1, 1), (3, 1), (3, 2), (7, 2)]), st.integers(0, 3), st.integers(1, 2))
def test_convolution(inner, more, form, padding, dilation):
    size, stride = form
    if min(inner) + 2 * padding < dilation * (size - 1) + 1:
        return
    kernel = jnp.asarray(noise(size, size, 3, 4, seed=2))
    check(lambda x: nn.conv(x, kernel, stride, padding, dilation), inner, more, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 3), (3, 1), (2, 4)])
def test_kernels_that_are_not_square(size):
    kernel = jnp.asarray(noise(*size, 3, 4, seed=2))
    check(lambda x: nn.conv(x, kernel, padding=1), (7, 9), (4, 5), atol=1e-4)
    check(lambda x: nn.conv_transpose(x, kernel, 2), (7, 9), (4, 5), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 2, 0)]), st.booleans())
def test_max_pool(inner, more, form, ceil_mode):
    check(lambda x: nn.max_pool(x, *form, ceil_mode=ceil_mode), inner, more)


@settings(max_examples=15, deadline=None)
@given(SIDES, SIDES)
def test_global_average_pool(inner, more):
    check(nn.global_average_pool, inner, more)


@settings(max_examples=15, deadline=None)
@given(SIDES, SIDES, st.sampled_from([(4, 2, 1), (4, 2, 0), (3, 2, 1), (8, 4, 2)]))
def test_transposed_convolution(inner, more, form):
    size, stride, padding = form
    kernel = jnp.asarray(noise(size, size, 3, 2, seed=2))
    check(lambda x: nn.conv_transpose(x, kernel, stride, padding), inner, more, atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("inner", "new"), [((5, 7), (33, 47)), ((9, 6), (4, 11)), ((1, 1), (8, 8))])
def test_bilinear_resize(inner, new, align_corners):
    x, outer, new_outer = noise(2, *inner, 3), (12, 13), (64, 65)
    beside = 50 + noise(2, *outer, 3, seed=1)
    beside[:, : inner[0], : inner[1]] = x
    alone = nn.resize_bilinear(jnp.asarray(x), new, align_corners=align_corners)
    with valid.sizes({outer: inner, new_outer: new}):
        y = nn.resize_bilinear(jnp.asarray(beside), new_outer, align_corners=align_corners)
    np.testing.assert_allclose(y[:, : new[0], : new[1]], alone, atol=1e-4)


def test_a_network_that_slices_by_itself_is_refused():
    with valid.sizes({(8, 8): (5, 5)}), pytest.raises(ValueError, match="feature of 7x8 pixels is not known"):
        nn.max_pool(jnp.ones((1, 8, 8, 1))[:, 1:], 2, 2)


def halved_twice(x):
    """Two maps of half the size, whatever it is, and the sum's pool."""
    kernels = (jnp.asarray(noise(size, size, 3, 3, seed=size)) for size in (1, 3))
    return nn.max_pool(sum(nn.conv(x, kernel, 2, kernel.shape[0] // 2) for kernel in kernels), 3, 2, 1)


def one_shape_two_sizes(x):
    """A pool that halves, and in arrays of 8 pixels a convolution that takes off as much."""
    nn.conv(x, jnp.ones((5, 5, 3, 3)), 1)
    return nn.max_pool(nn.max_pool(x, 2, 2), 2, 2)


def test_two_maps_of_one_size_need_not_be_told_apart():
    check(halved_twice, (7, 12), (4, 5), atol=1e-4)


@pytest.mark.parametrize("traced", [False, True])
def test_two_maps_of_one_shape_that_hold_different_sizes_are_refused(traced):
    def run(hw):
        with valid.sizes({(8, 8): hw}):
            return one_shape_two_sizes(jnp.ones((1, 8, 8, 3)))

    complaint = (
        "feature of 4x4 pixels is not known: this network has two such features.*or its descriptor must not say `maskable`"
    )
    with pytest.raises(ValueError, match=complaint):
        jax.eval_shape(run, (jnp.int32(6), jnp.int32(7))) if traced else run((6, 7))
    if not traced:
        run((8, 8))  # the whole array: both are 4x4


def test_a_size_that_is_not_known_for_sure_is_no_error_where_nobody_asks():
    with valid.sizes({(8, 8): (6, 7)}):
        nn.max_pool(jnp.ones((1, 8, 8, 3)), 2, 2)
        nn.conv(jnp.ones((1, 8, 8, 3)), jnp.ones((5, 5, 3, 3)), 1)


def test_a_skip_heads_maps_that_cannot_be_told_apart_in_a_small_array_are_refused():
    model = nnx.eval_shape(lambda: build_model("resnet18", "fcn8s", 3, rngs=nnx.Rngs(0)))
    model.eval()
    graphdef, state = nnx.split(model)
    hw = (jax.ShapeDtypeStruct((), jnp.int32),) * 2

    def shape(side):
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return jax.eval_shape(lambda state, x, hw: nnx.merge(graphdef, state)(x, hw), state, image, hw).shape

    with pytest.raises(ValueError, match="feature of 4x4 pixels is not known: this network has two such features"):
        shape(32)
    for side in (64, 65, 96, 97, 128):
        assert shape(side) == (1, side, side, 3)


@pytest.mark.parametrize(
    ("head", "hw"),
    [
        ("fcn32s", (40, 64)),
        ("fcn8s", (33, 71)),
        *(pytest.param(head, hw, marks=pytest.mark.slow) for head in ("fcn16s", "fcn") for hw in ((40, 64), (33, 71))),
    ],
)
def test_a_whole_network(head, hw):
    model = build_model("resnet18", head, 3, rngs=nnx.Rngs(0))
    model.eval()
    x = noise(1, *hw, 3)
    padded = 50 + noise(1, 80, 90, 3, seed=1)
    padded[:, : hw[0], : hw[1]] = x
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, x, hw: nnx.merge(graphdef, state)(x, hw))
    alone = np.asarray(run(state, x, None))
    logits = np.asarray(run(state, padded, tuple(jnp.int32(side) for side in hw)))[:, : hw[0], : hw[1]]
    assert np.abs(logits - alone).max() < 1e-5 * np.abs(alone).max()
