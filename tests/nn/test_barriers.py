import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fcn_jax
from fcn_jax import nn
from fcn_jax.nn import _conv_cpu
from fcn_jax.nn._barriers import fusion_barrier, remat_barrier

on_cpus = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form for CPUs")


def blocks_in_a_fusion(text):
    """The most ReLUs of images that one fused loop of a compiled program computes."""
    loops = re.findall(r"^%fused_computation\S* .*?^}", text, flags=re.MULTILINE | re.DOTALL)
    return max(
        len(re.findall(r"= f32\[\d+,\d+,\d+,\d+\]\S* maximum\(.*\bjit\(relu\)", loop))
        for loop in loops
    )


def test_residual_add_adds_and_applies_the_activation():
    y, shortcut = jnp.asarray([1.0, -2.0]), jnp.asarray([0.5, 1.0])
    assert nn.residual_add(y, shortcut).tolist() == [1.5, -1.0]
    assert nn.residual_add(y, shortcut, nnx.relu).tolist() == [1.5, 0.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("first", [1.0, -1.0, np.nan])
def test_fusion_barrier_and_its_gradient_are_the_identity(dtype, first):
    x = jnp.asarray([[first, 2.0, -3.0]], dtype)
    y, vjp = jax.jit(lambda x: jax.vjp(fusion_barrier, x))(x)
    assert y.dtype == x.dtype
    assert np.array_equal(np.asarray(y, np.float32), np.asarray(x, np.float32), equal_nan=True)
    assert np.array_equal(
        np.asarray(vjp(x)[0], np.float32), np.asarray(x, np.float32), equal_nan=True
    )


@pytest.mark.lowering
@on_cpus
@pytest.mark.parametrize("keep", [fusion_barrier, lambda x: x])
def test_fusion_barrier_computes_a_chain_of_sums_once(keep):
    def chain(x, matrices):
        for matrix in matrices:
            x = keep(nnx.relu(x + nn.conv(x, matrix)))
        return x

    x, matrices = jnp.ones((1, 8, 8, 64)), [jnp.ones((1, 1, 64, 64))] * 6
    compiled = (
        jax.jit(chain, compiler_options=fcn_jax.compiler_options()).lower(x, matrices).compile()
    )
    assert (blocks_in_a_fusion(compiled.as_text()) == 1) == (keep is fusion_barrier)


@pytest.mark.lowering
def test_fusion_barrier_vanishes_on_gpus():
    exported = jax.export.export(jax.jit(fusion_barrier), platforms=["cuda"])(
        jax.ShapeDtypeStruct((2, 3), jnp.float32)
    )
    assert not re.search("compare|optimization_barrier", exported.mlir_module())


@pytest.mark.lowering
@on_cpus
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_computes_the_blocks_of_a_resnet_once(name):
    model = nnx.eval_shape(lambda: fcn_jax.build_model(name, "fcn32s", 3, rngs=nnx.Rngs(0)))
    model.eval()
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    run = jax.jit(
        lambda state, x: nnx.merge(graphdef, state)(x), compiler_options=fcn_jax.compiler_options()
    )
    assert blocks_in_a_fusion(run.lower(state, x).compile().as_text()) <= 2


@pytest.mark.parametrize("first", [0.0, -0.0, 1.0, -3.5, 1e-40, np.inf, -np.inf, np.nan])
def test_remat_barrier_is_the_identity_whatever_it_reads(first):
    x, stored = np.asarray([1.5, -2.0, np.inf], np.float32), np.asarray([[first, 2.0]], np.float32)
    assert np.array_equal(jax.jit(remat_barrier)(x, stored), x)
    assert np.array_equal(
        jax.jit(jax.grad(lambda x: remat_barrier(x, stored)[:2].sum()))(x), [1.0, 1.0, 0.0]
    )


def temporaries():
    """Bytes of temporary memory of the gradients of three convolutions in Winograd's form."""

    def loss(x, kernels):
        for kernel in kernels:
            x = fusion_barrier(nnx.relu(nn.conv(x, kernel, padding=1)))
        return jnp.square(x).mean()

    x = jax.ShapeDtypeStruct((1, 40, 60, 128), jnp.float32)
    kernels = [jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)] * 3
    gradients = jax.jit(jax.grad(loss, (0, 1)), compiler_options=fcn_jax.compiler_options())
    return gradients.lower(x, kernels).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.lowering
@on_cpus
def test_remat_barrier_keeps_no_transformed_images_for_the_gradients(monkeypatch):
    taken = temporaries()
    monkeypatch.setattr(_conv_cpu, "remat_barrier", lambda x, stored: x)
    jax.clear_caches()
    kept = temporaries()
    jax.clear_caches()
    transformed = 3 * (4 * 40 * 60 * 128 + 16 * 128 * 128) * 4
    assert taken < kept - transformed / 2
