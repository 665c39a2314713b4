import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcn_jax import nn

torch = pytest.importorskip("torch")
F = torch.nn.functional

SIDES = st.tuples(st.integers(1, 24), st.integers(1, 24))


def both(old, new, align_corners, dtype, absolute=False):
    """Output and input gradient: of `nn.resize_bilinear` in `dtype`, and of PyTorch in float64; both in our layout."""
    rng = np.random.default_rng(0)
    # Both sides start from the same numbers, those that `dtype` can hold.
    x, weights = (jnp.asarray(rng.standard_normal((2, *side, 3)), dtype) for side in (old, new))
    if absolute:
        x, weights = jnp.abs(x), jnp.abs(weights)

    @jax.jit
    def ours(x, weights):
        y, vjp = jax.vjp(lambda x: nn.resize_bilinear(x, new, align_corners=align_corners), x)
        return y, vjp(weights)[0]

    def nchw(array):
        return torch.tensor(np.asarray(array, np.float64).transpose(0, 3, 1, 2).copy(), dtype=torch.float64)

    tx = nchw(x).requires_grad_()
    ty = F.interpolate(tx, size=new, mode="bilinear", align_corners=align_corners, antialias=False)
    ty.backward(nchw(weights))
    theirs = [t.detach().double().numpy().transpose(0, 2, 3, 1) for t in (ty, tx.grad)]
    found = ours(x, weights)
    assert all(array.dtype == dtype for array in found)
    return [np.asarray(array, np.float64) for array in found], theirs


@settings(max_examples=16)
@example(old=(10, 15), new=(320, 480), align_corners=False)  # logits to an image
@example(old=(33, 47), new=(5, 7), align_corners=False)  # antialiasing would show
@example(old=(1, 9), new=(6, 1), align_corners=True)  # corners that fall together
@given(old=SIDES, new=SIDES, align_corners=st.booleans())
def test_resize_and_its_gradient_equal_torch(old, new, align_corners):
    for name, ours, theirs in zip(("output", "gradient"), *both(old, new, align_corners, jnp.float32), strict=True):
        assert ours.shape == theirs.shape, name
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * max(np.abs(theirs).max(), 1), err_msg=name)


@settings(max_examples=8)
@example(old=(2, 1), new=(1, 1), align_corners=False)  # the mean of two pixels that nearly cancel
@given(old=SIDES, new=SIDES, align_corners=st.booleans())
def test_bfloat16_is_rounded_a_few_times_and_no_more(old, new, align_corners):
    ours, exact = both(old, new, align_corners, jnp.bfloat16)
    sizes = both(old, new, align_corners, jnp.bfloat16, absolute=True)[1]
    for name, a, b, scale in zip(("output", "gradient"), ours, exact, sizes, strict=True):
        # The position along each axis, between neighbours of up to 4 with different signs; the half-way result; the end.
        allowed = 6 * 2**-9 * (scale.max() + 4)
        assert np.abs(a - b).max() < allowed, name


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_constant_image_stays_as_it_is(dtype):
    x = jnp.full((1, 7, 5, 2), 1.5, dtype)
    for size in ((29, 31), (3, 2)):
        np.testing.assert_allclose(
            nn.resize_bilinear(x, size).astype(jnp.float32), 1.5, rtol=0 if dtype == jnp.bfloat16 else 1e-6
        )


def test_the_same_size_changes_no_bit():
    x = jnp.asarray([[[[1e-30], [-0.0]]]])
    assert nn.resize_bilinear(x, (1, 2)) is x


@pytest.mark.parametrize(("shape", "size"), [((1, 0, 3, 1), (2, 2)), ((1, 3, 3, 1), (2, 0))])
def test_a_side_of_zero_is_an_error_that_says_the_sizes(shape, size):
    with pytest.raises(ValueError, match=r"cannot resize \d+x3 pixels to 2x\d: each side must be at least 1"):
        nn.resize_bilinear(jnp.zeros(shape), size)
