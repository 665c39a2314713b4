import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fcn_jax
from fcn_jax import nn
from fcn_jax.nn import _conv_cpu
from fcn_jax.nn._recompute import remat_barrier

on_cpus = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form for CPUs")


@pytest.mark.parametrize("first", [0.0, -0.0, 1.0, -3.5, 1e-40, np.inf, -np.inf, np.nan])
def test_it_is_the_identity_whatever_is_read(first):
    x, stored = np.asarray([1.5, -2.0, np.inf], np.float32), np.asarray([[first, 2.0]], np.float32)
    assert np.array_equal(jax.jit(remat_barrier)(x, stored), x)
    assert np.array_equal(
        jax.jit(jax.grad(lambda x: remat_barrier(x, stored)[:2].sum()))(x), [1.0, 1.0, 0.0]
    )


def temporaries():
    """Bytes that the gradients of three convolutions in Winograd's form take."""

    def loss(x, kernels):
        for kernel in kernels:
            x = nn.materialize(nnx.relu(nn.conv(x, kernel, padding=1)))
        return jnp.square(x).mean()

    x = jax.ShapeDtypeStruct((1, 40, 60, 128), jnp.float32)
    kernels = [jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)] * 3
    gradients = jax.jit(jax.grad(loss, (0, 1)), compiler_options=fcn_jax.compiler_options())
    return gradients.lower(x, kernels).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.lowering
@on_cpus
def test_what_a_convolution_has_transformed_is_not_kept_for_its_gradients(monkeypatch):
    taken = temporaries()
    monkeypatch.setattr(_conv_cpu, "remat_barrier", lambda x, stored: x)
    jax.clear_caches()
    kept = temporaries()
    jax.clear_caches()
    transformed = 3 * (4 * 40 * 60 * 128 + 16 * 128 * 128) * 4
    assert taken < kept - transformed / 2
