"""The settings that the library compiles with."""

import jax
import jax.numpy as jnp
import pytest

import fcn_jax
from fcn_jax import compiler
from fcn_jax.nn import conv


def compiled_conv(**settings):
    x, kernel = jnp.zeros((1, 20, 30, 64)), jnp.zeros((3, 3, 64, 64))
    return jax.jit(lambda x, kernel: conv(x, kernel, 1, 1), **settings).lower(x, kernel).compile().as_text()


def test_convolutions_are_left_to_xla_on_a_cpu():
    if not fcn_jax.compiler_options():
        pytest.skip("this XLA does not know the setting")
    assert "ynn_fusion" not in compiled_conv(compiler_options=fcn_jax.compiler_options())


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "_CPU", {"xla_cpu_no_such_setting": "1"})
    compiler._known.cache_clear()
    try:
        assert fcn_jax.compiler_options() == {}
    finally:
        compiler._known.cache_clear()


def test_other_devices_get_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fcn_jax.compiler_options() == {}
