import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fcn_jax
from fcn_jax import nn

on_cpus = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form for CPUs")


def blocks_in_a_fusion(text):
    """The most ReLUs of images that one fused loop of a compiled program computes."""
    loops = re.findall(r"^%fused_computation\S* .*?^}", text, flags=re.MULTILINE | re.DOTALL)
    return max(
        len(re.findall(r"= f32\[\d+,\d+,\d+,\d+\]\S* maximum\(.*\bjit\(relu\)", loop))
        for loop in loops
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("first", [1.0, -1.0, np.nan])
def test_it_is_the_identity_and_so_is_its_gradient(dtype, first):
    x = jnp.asarray([[first, 2.0, -3.0]], dtype)
    y, vjp = jax.jit(lambda x: jax.vjp(nn.materialize, x))(x)
    assert y.dtype == x.dtype
    assert np.array_equal(np.asarray(y, np.float32), np.asarray(x, np.float32), equal_nan=True)
    assert np.array_equal(
        np.asarray(vjp(x)[0], np.float32), np.asarray(x, np.float32), equal_nan=True
    )


@pytest.mark.lowering
@on_cpus
@pytest.mark.parametrize("keep", [nn.materialize, lambda x: x])
def test_a_chain_of_sums_is_not_computed_anew_for_each_of_its_uses(keep):
    def chain(x, matrices):
        for matrix in matrices:
            x = keep(nnx.relu(x + nn.conv(x, matrix)))
        return x

    x, matrices = jnp.ones((1, 8, 8, 64)), [jnp.ones((1, 1, 64, 64))] * 6
    compiled = (
        jax.jit(chain, compiler_options=fcn_jax.compiler_options()).lower(x, matrices).compile()
    )
    assert (blocks_in_a_fusion(compiled.as_text()) == 1) == (keep is nn.materialize)


@pytest.mark.lowering
def test_other_devices_see_nothing_of_it():
    exported = jax.export.export(jax.jit(nn.materialize), platforms=["cuda"])(
        jax.ShapeDtypeStruct((2, 3), jnp.float32)
    )
    assert not re.search("compare|optimization_barrier", exported.mlir_module())


@pytest.mark.lowering
@on_cpus
@pytest.mark.parametrize("name", ["resnet34", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_the_blocks_of_a_resnet_are_computed_once(name):
    model = nnx.eval_shape(lambda: fcn_jax.build_model(name, "fcn32s", 3, rngs=nnx.Rngs(0)))
    model.eval()
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    run = jax.jit(
        lambda state, x: nnx.merge(graphdef, state)(x), compiler_options=fcn_jax.compiler_options()
    )
    assert blocks_in_a_fusion(run.lower(state, x).compile().as_text()) <= 2
