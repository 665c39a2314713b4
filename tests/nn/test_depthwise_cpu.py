import re

import jax
import jax.numpy as jnp
import pytest

import fcn_jax
from fcn_jax import nn
from fcn_jax.nn import _depthwise_cpu


def loops(function, *arrays):
    """The fused loops of the compiled program, as text."""
    compiled = jax.jit(function, compiler_options=fcn_jax.compiler_options())
    text = compiled.lower(*arrays).compile().as_text()
    return re.findall(r"^%fused_computation\S* .*?^}", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.lowering
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form for CPUs")
@pytest.mark.parametrize("stores", [True, False])
def test_computes_its_input_and_its_gradient_once(monkeypatch, stores):
    """Loops over the taps would compute them again at each tap."""
    if not stores:
        monkeypatch.setattr(_depthwise_cpu, "stored", lambda x: x)
    x, kernel = jnp.ones((2, 9, 8, 16)), jnp.ones((3, 3, 1, 16))

    def both(x, kernel, weights):
        y, vjp = jax.vjp(lambda x: nn.conv(x, kernel, 1, 1, 1, 16), jnp.tanh(x))
        return y, vjp(jnp.cos(weights))[0]

    found = loops(both, x, kernel, x)
    sums = [loop for loop in found if loop.count(" slice(") >= 9]
    assert sums
    assert stores == (not any("tanh" in loop or "cosine" in loop for loop in sums))


def test_gradients_of_an_empty_batch_are_zero():
    x, kernel = jnp.zeros((0, 5, 6, 4)), jnp.ones((3, 3, 1, 4))
    y, vjp = jax.vjp(lambda x, kernel: nn.conv(x, kernel, 2, 1, 1, 4), x, kernel)
    grad_x, grad_kernel = vjp(y)
    assert y.shape == (0, 3, 3, 4)
    assert grad_x.shape == x.shape
    assert not grad_kernel.any()
