"""The forms for GPUs and TPUs, run on whatever device there is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fcn_jax import nn
from fcn_jax.nn._conv_xla import Settings, gpu_conv, gpu_grads, space_to_depth, tpu_grads, xla_conv


def drawn(settings, size, kernel_size, channels, out):
    """Images, kernel and gradient of the result."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *size, channels * settings.groups)), jnp.float32)
    kernel = jnp.asarray(
        rng.standard_normal((kernel_size, kernel_size, channels, out * settings.groups)),
        jnp.float32,
    )
    shape = jax.eval_shape(functools.partial(xla_conv, settings), x, kernel).shape
    return x, kernel, jnp.asarray(rng.standard_normal(shape), jnp.float32)


def xla_grads(settings, x, kernel, grad):
    return jax.vjp(functools.partial(xla_conv, settings), x, kernel)[1](grad)


def check_tpu_grads(size, kernel_size, stride, padding, dilation, groups):
    settings = Settings(stride, padding, dilation, groups)
    arrays = drawn(settings, size, kernel_size, 2, 3)
    found = jax.jit(lambda *arrays: (tpu_grads(settings, *arrays), xla_grads(settings, *arrays)))(
        *arrays
    )
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    half = [array.astype(jnp.bfloat16) for array in arrays]
    dtypes = [array.dtype for array in jax.eval_shape(lambda: tpu_grads(settings, *half))]
    assert dtypes == [jnp.bfloat16, jnp.float32]


# Size, kernel, stride, padding, dilation, groups.
@pytest.mark.parametrize(
    "form",
    [
        ((9, 7), 3, 1, 1, 1, 1),
        ((8, 9), 3, 2, 1, 1, 1),  # the last row is not seen
        ((6, 5), 1, 2, 0, 1, 2),
        ((7, 9), 3, 1, 2, 2, 3),
        ((5, 4), 4, 3, 3, 1, 1),
        ((9, 8), 2, 2, 0, 2, 2),
    ],
)
def test_gradients_for_tpus_match_xla_with_a_float32_kernel_gradient(form):
    check_tpu_grads(*form)


@pytest.mark.slow
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel_size=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 3]),
)
def test_gradients_for_tpus_match_xla_for_any_settings(
    size, kernel_size, stride, padding, dilation, groups
):
    assume(min(size) + 2 * padding >= dilation * (kernel_size - 1) + 1)
    check_tpu_grads(size, kernel_size, stride, padding, dilation, groups)


def check_gpu_forms(size, kernel_size, stride, padding, channels, columns):
    settings = Settings(stride, padding, 1, 1)

    @jax.jit
    def run(x, kernel, grad):
        convolved = [gpu_conv(settings, x, kernel)]
        if channels <= 4:
            convolved.append(space_to_depth(settings, x, kernel, columns))
        return (
            xla_conv(settings, x, kernel),
            convolved,
            gpu_grads(settings, x, kernel, grad),
            xla_grads(settings, x, kernel, grad),
        )

    wanted, convolved, grads, wanted_grads = run(*drawn(settings, size, kernel_size, channels, 3))
    for found in convolved:
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    for ours, theirs in zip(grads, wanted_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


# Size, kernel, stride, padding, channels, columns that are taken together.
@pytest.mark.parametrize(
    "form",
    [
        ((16, 18), 7, 2, 3, 3, 4),  # the stem's
        ((15, 19), 7, 2, 3, 3, 2),
        ((9, 8), 3, 1, 1, 4, 3),
        ((6, 7), 3, 3, 0, 1, 5),
        ((4, 3), 8, 2, 3, 2, 1),
        ((5, 9), 1, 2, 0, 5, 1),
    ],
)
def test_forms_for_gpus_match_xla(form):
    check_gpu_forms(*form)


@pytest.mark.slow
@given(
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    kernel_size=st.integers(1, 8),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    channels=st.integers(1, 5),
    columns=st.integers(1, 5),
)
def test_forms_for_gpus_match_xla_at_any_size(
    size, kernel_size, stride, padding, channels, columns
):
    assume(min(size) + 2 * padding >= kernel_size)
    check_gpu_forms(size, kernel_size, stride, padding, channels, columns)


@pytest.mark.lowering
@pytest.mark.parametrize(
    ("kernel_size", "stride", "channels", "groups", "deep"),
    [
        (7, 2, 3, 1, True),
        (3, 2, 3, 1, True),
        (3, 1, 3, 1, False),
        (3, 2, 64, 1, False),
        (1, 2, 3, 1, False),
        (3, 2, 3, 3, False),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "becomes"), [("bfloat16", "x64x24xbf16>) ->"), ("float32", "x16x6xf32>) ->")]
)
def test_first_convolution_becomes_space_to_depth_only_on_gpus(
    kernel_size, stride, channels, groups, deep, dtype, becomes
):
    x = jax.ShapeDtypeStruct((1, 32, 32, channels), dtype)
    kernel = jax.ShapeDtypeStruct((kernel_size, kernel_size, channels // groups, 6), jnp.float32)
    traced = jax.jit(
        lambda x, kernel: nn.conv(x, kernel, stride, kernel_size // 2, 1, groups)
    ).trace(x, kernel)
    found = {
        platform: becomes
        in next(line for line in text.splitlines() if "stablehlo.convolution" in line)
        for platform in ("cuda", "tpu")
        if (text := traced.lower(lowering_platforms=(platform,)).as_text())
    }
    assert found == {"cuda": deep, "tpu": False}


def test_sums_the_gradients_of_stem_columns_in_float32():
    settings, rng = Settings(2, 3, 1, 1), np.random.default_rng(0)
    x, kernel, grad = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
        for shape in ((2, 64, 64, 3), (7, 7, 3, 8), (2, 32, 32, 8))
    )
    found = gpu_grads(settings, x, kernel, grad)[1]
    exact = xla_grads(settings, *(array.astype(jnp.float32) for array in (x, kernel, grad)))[1]
    assert found.dtype == jnp.float32
    assert float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)) < 2.4e-3, (
        "bfloat16 rounds by 1.7e-3 once, by 3.1e-3 so often"
    )


def test_stem_gradients_keep_float64():
    settings, rng = Settings(2, 3, 1, 1), np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel, grad = (
            jnp.asarray(rng.standard_normal(shape))
            for shape in ((1, 9, 9, 3), (7, 7, 3, 2), (1, 5, 5, 2))
        )
        ours, exact = (
            gpu_grads(settings, x, kernel, grad)[0],
            xla_grads(settings, x, kernel, grad)[0],
        )
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=1e-12)
