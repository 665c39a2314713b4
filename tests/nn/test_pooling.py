import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fcn_jax import nn

torch = pytest.importorskip("torch")
F = torch.nn.functional


@functools.cache
def ours(kernel_size, stride, padding, ceil_mode):
    """`nn.max_pool` with its gradient, compiled once for each shape."""

    @jax.jit
    def run(x, weights):
        y, vjp = jax.vjp(
            lambda x: nn.max_pool(x, kernel_size, stride, padding, ceil_mode=ceil_mode), x
        )
        return y, vjp(weights)[0]

    return run


def check(x, kernel_size, stride, padding, ceil_mode):
    tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    ty = F.max_pool2d(tx, kernel_size, stride, padding, ceil_mode=ceil_mode)
    # Different gradients, so that a wrong pixel shows; small integers, so that sums are exact.
    weights = np.arange(ty.numel(), dtype=np.float32).reshape(ty.shape) % 50 + 1
    ty.backward(torch.tensor(weights))
    theirs = ty.detach().numpy().transpose(0, 2, 3, 1)
    y, grad = ours(kernel_size, stride, padding, ceil_mode)(x, weights.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(y, theirs)
    np.testing.assert_array_equal(grad, tx.grad.numpy().transpose(0, 2, 3, 1))


def check_with_ties(size, kernel_size, stride, padding, ceil_mode, seed):
    """Only three values: most windows have several maxima; the first one gets the gradient."""
    check(
        np.random.default_rng(seed).integers(-1, 2, (2, *size, 2)).astype(np.float32),
        kernel_size,
        stride,
        padding,
        ceil_mode,
    )


FORMS = {
    "ResNet's": ((9, 8), 3, 2, 1, False),
    "the original FCN's": ((7, 5), 2, 2, 0, True),
    "pixels between the windows": ((9, 11), 2, 4, 0, False),
    "a last window that would start in the right padding": ((8, 9), 2, 3, 1, True),
    "windows that overlap by more than half": ((6, 7), 4, 1, 2, False),
    "a row of one pixel": ((1, 6), 3, 3, 1, True),
    "single pixels": ((4, 5), 1, 2, 0, False),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_max_pool_and_its_gradient_match_torch_with_ties(form, seed):
    check_with_ties(*FORMS[form], seed)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    kernel_size=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    ceil_mode=st.booleans(),
    seed=st.integers(0, 3),
)
def test_max_pool_and_its_gradient_match_torch_for_any_settings(
    size, kernel_size, stride, padding, ceil_mode, seed
):
    assume(padding <= kernel_size // 2)
    assume(min(size) + 2 * padding >= kernel_size)
    check_with_ties(size, kernel_size, stride, padding, ceil_mode, seed)


def test_max_pool_prefers_negative_values_over_padding():
    check(np.full((1, 4, 5, 1), -1e30, np.float32), 3, 2, 1, False)


def test_max_pool_keeps_bfloat16_in_both_directions():
    x = jnp.asarray(np.random.default_rng(0).integers(-3, 3, (1, 6, 6, 2)), jnp.bfloat16)
    y, vjp = jax.vjp(lambda x: nn.max_pool(x, 3, 2, 1), x)
    (grad,) = vjp(jnp.ones_like(y))
    assert y.dtype == grad.dtype == jnp.bfloat16
    assert float(grad.astype(jnp.float32).sum()) == y.size


@given(st.sampled_from([(1, 1), (7, 10), (11, 3)]), st.integers(0, 2**32 - 1))
def test_global_average_pool_matches_torch(size, seed):
    x = np.random.default_rng(seed).standard_normal((2, *size, 3), np.float32)
    theirs = (
        F.adaptive_avg_pool2d(torch.tensor(x.transpose(0, 3, 1, 2).copy()), 1)
        .numpy()
        .transpose(0, 2, 3, 1)
    )
    np.testing.assert_allclose(nn.global_average_pool(jnp.asarray(x)), theirs, atol=1e-6)


def test_global_average_pool_sums_bfloat16_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.0078125, jnp.bfloat16)  # a bfloat16 sum would stall at 256
    y = nn.global_average_pool(x)
    assert y.dtype == jnp.bfloat16
    assert y.item() == 1.0078125


@pytest.mark.parametrize("platform", ["cpu", "tpu", "default"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 0), (5, 2, 2)]
)
def test_forms_of_all_devices_return_the_same_gradient_with_ties(
    monkeypatch, platform, kernel_size, stride, padding
):
    x = jnp.asarray(np.random.default_rng(0).integers(-1, 2, (2, 9, 8, 3)), jnp.float32)

    def gradient(x):
        y, vjp = jax.vjp(lambda x: nn.max_pool(x, kernel_size, stride, padding), x)
        return vjp(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape) % 50 + 1)[0]

    here = jax.jit(lambda x: gradient(x))(x)
    taken = []

    def on_the_platform(*args, **forms):
        taken.append(platform)
        return forms.get(platform, forms["default"])(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_the_platform)
    np.testing.assert_array_equal(jax.jit(lambda x: gradient(x))(x), here)
    assert taken, "platform_dependent was not called, so nothing was compared"


@pytest.mark.lowering
def test_gradient_scatters_only_on_tpus():
    x = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.bfloat16)
    traced = jax.jit(jax.grad(lambda x: nn.max_pool(x, 3, 2, 1).astype(jnp.float32).sum())).trace(x)
    found = {
        platform: "select_and_scatter" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert found == {"cpu": False, "cuda": False, "tpu": True}


def test_forward_pass_alone_returns_the_same_and_avoids_reduce_window_on_cpus():
    x = (
        jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 8, 3)), jnp.float32)
        .at[0, 3, 4, 1]
        .set(jnp.nan)
    )
    alone, with_gradient = nn.max_pool(x, 3, 2, 1), jax.vjp(lambda x: nn.max_pool(x, 3, 2, 1), x)[0]
    np.testing.assert_array_equal(alone, with_gradient)
    assert int(jnp.isnan(alone[..., 1]).sum()) == 2, "the windows that hold it"
    traced = jax.jit(lambda x: nn.max_pool(x, 3, 2, 1)).trace(
        jax.ShapeDtypeStruct(x.shape, x.dtype)
    )
    found = {
        p: "reduce_window" in traced.lower(lowering_platforms=(p,)).as_text()
        for p in ("cpu", "cuda", "tpu")
    }
    assert found == {"cpu": False, "cuda": True, "tpu": True}


def test_max_pool_rejects_images_smaller_than_the_window():
    with pytest.raises(
        ValueError,
        match="a pooling window of 7x7 does not fit an image of 6x9 pixels with padding 0; use a",
    ):
        nn.max_pool(jnp.ones((1, 6, 9, 1)), 7, 2)


@pytest.mark.parametrize(
    ("old", "bins"),
    [
        ((7, 11), (6, 6)),  # bins overlap
        ((12, 6), (3, 2)),  # bins do not
        ((1, 2), (3, 6)),  # each pixel lies in several bins
        ((5, 9), (1, 1)),
        ((4, 5), (4, 5)),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_adaptive_average_pool_and_its_gradient_match_torch(old, bins, dtype):
    rng = np.random.default_rng(0)
    x, weights = (rng.standard_normal((2, *side, 3)).astype(dtype) for side in (old, bins))
    y, vjp = jax.vjp(lambda x: nn.adaptive_average_pool(x, bins), jnp.asarray(x))

    def nchw(array):
        return torch.tensor(array.astype(np.float64).transpose(0, 3, 1, 2).copy())

    tx = nchw(x).requires_grad_()
    ty = F.adaptive_avg_pool2d(tx, bins)
    ty.backward(nchw(weights))
    # In bfloat16, only the results are rounded.
    limit = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 2**-8, "atol": 1e-6}
    for found, expected in ((y, ty), (vjp(jnp.asarray(weights))[0], tx.grad)):
        assert found.dtype == dtype
        expected = expected.detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, **limit)


@pytest.mark.parametrize(("shape", "size"), [((1, 3, 0, 1), (1, 1)), ((1, 3, 3, 1), (1, 0))])
def test_adaptive_average_pool_rejects_a_side_of_zero(shape, size):
    with pytest.raises(ValueError, match=r"cannot pool 3x\d pixels to 1x\d: each side must"):
        nn.adaptive_average_pool(jnp.zeros(shape), size)
