import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax import nn
from fcn_jax.nn._resize import nearest_pixels

torch = pytest.importorskip("torch")
F = torch.nn.functional

SIDES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@functools.cache
def ours(new, align_corners):
    """`nn.resize_bilinear` with its gradient, compiled once for each shape."""

    @jax.jit
    def run(x, weights):
        y, vjp = jax.vjp(lambda x: nn.resize_bilinear(x, new, align_corners=align_corners), x)
        return y, vjp(weights)[0]

    return run


def drawn(old, new, dtype, seed):
    """Images and weights of the outputs that are exact in `dtype`."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((2, *side, 3)).astype(dtype) for side in (old, new)]


def by_torch(x, weights, align_corners):
    """Output and input gradient in float64, in our layout."""

    def nchw(array):
        return torch.tensor(array.astype(np.float64).transpose(0, 3, 1, 2).copy())

    tx = nchw(x).requires_grad_()
    ty = F.interpolate(
        tx, size=weights.shape[1:3], mode="bilinear", align_corners=align_corners, antialias=False
    )
    ty.backward(nchw(weights))
    return [t.detach().numpy().transpose(0, 2, 3, 1) for t in (ty, tx.grad)]


def check(old, new, align_corners, seed=0):
    x, weights = drawn(old, new, np.float32, seed)
    found = ours(new, align_corners)(x, weights)
    for name, a, b in zip(
        ("output", "gradient"), found, by_torch(x, weights, align_corners), strict=True
    ):
        assert a.dtype == np.float32
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, atol=2e-6 * max(np.abs(b).max(), 1), err_msg=name)


def check_bfloat16(old, new, align_corners, seed=0):
    x, weights = drawn(old, new, jnp.bfloat16, seed)
    found = ours(new, align_corners)(x, weights)
    exact, sizes = (
        by_torch(x, weights, align_corners),
        by_torch(np.abs(x), np.abs(weights), align_corners),
    )
    for name, a, b, scale in zip(("output", "gradient"), found, exact, sizes, strict=True):
        assert a.dtype == jnp.bfloat16
        # The position along each axis, between neighbors of up to 4 with different signs; the
        # half-way result; the end.
        allowed = 6 * 2**-9 * (scale.max() + 4)
        assert np.abs(np.asarray(a, np.float64) - b).max() < allowed, name


FORMS = {
    "logits to an image": ((10, 15), (320, 480), False),
    "antialiasing would show": ((33, 47), (5, 7), False),
    "corners that fall together": ((1, 9), (6, 1), True),
    "aligned corners, larger": ((4, 7), (13, 19), True),
    "aligned corners, smaller": ((21, 16), (8, 5), True),
    "one side larger, one smaller": ((6, 20), (11, 9), False),
    "a single pixel": ((1, 1), (3, 4), False),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_resize_and_its_gradient_match_torch(form, seed):
    check(*FORMS[form], seed)


@pytest.mark.parametrize(
    "form",
    [
        ((2, 1), (1, 1), False),  # the mean of two pixels that nearly cancel
        ((5, 9), (17, 23), False),
        ((24, 10), (7, 13), True),
    ],
)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_bfloat16_is_rounded_only_a_few_times(form, seed):
    check_bfloat16(*form, seed)


@pytest.mark.slow
@settings(max_examples=40)
@given(old=SIDES, new=SIDES, align_corners=st.booleans())
def test_resize_matches_torch_at_any_size(old, new, align_corners):
    check(old, new, align_corners)
    check_bfloat16(old, new, align_corners)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_a_constant_image(dtype):
    x = jnp.full((1, 7, 5, 2), 1.5, dtype)
    for size in ((29, 31), (3, 2)):
        np.testing.assert_allclose(
            nn.resize_bilinear(x, size).astype(jnp.float32),
            1.5,
            rtol=0 if dtype == jnp.bfloat16 else 1e-6,
        )


def test_returns_the_input_for_the_same_size():
    x = jnp.asarray([[[[1e-30], [-0.0]]]])
    assert nn.resize_bilinear(x, (1, 2)) is x


@pytest.mark.parametrize(("shape", "size"), [((1, 0, 3, 1), (2, 2)), ((1, 3, 3, 1), (2, 0))])
def test_rejects_a_side_of_zero(shape, size):
    with pytest.raises(
        ValueError, match=r"cannot resize \d+x3 pixels to 2x\d: each side must be at least 1"
    ):
        nn.resize_bilinear(jnp.zeros(shape), size)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsample_and_its_gradient_match_torch(mode, factor):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32)
    y, vjp = jax.vjp(lambda x: nn.upsample(x, factor, mode), x)
    tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    ty = torch.nn.functional.interpolate(tx, scale_factor=factor, mode=mode)
    weights = np.random.default_rng(1).standard_normal(y.shape, np.float32)
    ty.backward(torch.tensor(weights.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(vjp(weights)[0], tx.grad.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("factor", "mode", "message"),
    [
        (0, "nearest", "factor is 0; it must be at least 1"),
        (2, "bicubic", "mode is 'bicubic'; it must be 'bilinear' or 'nearest'"),
    ],
)
def test_upsample_rejects_invalid_arguments(factor, mode, message):
    with pytest.raises(ValueError, match=message):
        nn.upsample(jnp.zeros((1, 2, 2, 1)), factor, mode)


def by_torch_nearest(x, weights):
    """Output and input gradient in the dtype of `x`, in our layout."""

    def nchw(array):
        return torch.tensor(np.asarray(array, np.float32).transpose(0, 3, 1, 2).copy()).to(dtype)

    dtype = torch.bfloat16 if x.dtype == jnp.bfloat16 else torch.float32
    tx = nchw(x).requires_grad_()
    ty = F.interpolate(tx, size=weights.shape[1:3], mode="nearest")
    ty.backward(nchw(weights))
    return [t.detach().float().numpy().transpose(0, 2, 3, 1) for t in (ty, tx.grad)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((3, 4), (5, 8)),  # a feature of half the size, rounded up
        ((2, 4), (5, 9)),  # rounded down, for which pixels repeat unevenly
        ((5, 7), (13, 3)),
        ((1, 1), (2, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nearest_and_its_gradient_match_torch(old, new, dtype):
    x, weights = drawn(old, new, dtype, 0)
    y, vjp = jax.vjp(lambda x: nn.resize_nearest(x, new), jnp.asarray(x))
    expected, gradient = by_torch_nearest(x, weights)
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y, np.float32), expected)
    found = np.asarray(vjp(jnp.asarray(weights))[0], np.float32)
    np.testing.assert_allclose(found, gradient, atol=1e-6 if dtype == jnp.float32 else 0.1)


@pytest.mark.parametrize("old", [1, 2, 3, 7, 12, 29, 47, 101])
def test_nearest_picks_the_pixels_of_torch_at_every_size(old):
    x = np.arange(old, dtype=np.float32)
    for new in range(1, 3 * old + 2):
        expected = F.interpolate(torch.tensor(x)[None, None, None], size=(1, new), mode="nearest")
        found = nearest_pixels(old, new)
        np.testing.assert_array_equal(found, expected[0, 0, 0], err_msg=str(new))


def test_nearest_rejects_a_side_of_zero():
    with pytest.raises(ValueError, match="cannot resize 1x2 pixels to 0x2"):
        nn.resize_nearest(jnp.zeros((1, 1, 2, 1)), (0, 2))
