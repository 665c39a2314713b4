"""Compiler options."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fcn_jax
from fcn_jax.api import Preprocess
from fcn_jax.nn import conv
from fcn_jax.runtime import compiler
from fcn_jax.train import step as train_step


def compiled_conv(**settings):
    x, kernel = jnp.zeros((1, 20, 30, 32)), jnp.zeros((3, 3, 32, 32))
    return (
        jax.jit(lambda x, kernel: conv(x, kernel, 1, 1), **settings)
        .lower(x, kernel)
        .compile()
        .as_text()
    )


def test_xla_computes_convolutions_on_cpus():
    if not fcn_jax.compiler_options():
        pytest.skip("this XLA does not know the setting")
    assert "ynn_fusion" not in compiled_conv(compiler_options=fcn_jax.compiler_options())


@pytest.mark.slow
def test_training_step_takes_less_memory_than_with_xlas_defaults():
    if "xla_cpu_scheduler_type" not in fcn_jax.compiler_options():
        pytest.skip("this XLA does not know the setting")
    model = fcn_jax.build_model(num_classes=3, rngs=nnx.Rngs(0))
    state, step = train_step.make(model, optax.sgd(0.1), Preprocess())
    batch = {
        "image": np.zeros((4, 128, 160, 3), np.uint8),
        "mask": np.zeros((4, 128, 160), np.uint8),
    }

    def temporaries(options):
        return (
            jax.jit(step, compiler_options=options)
            .lower(state, batch)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    options = fcn_jax.compiler_options()
    without = {name: value for name, value in options.items() if name != "xla_cpu_scheduler_type"}
    assert temporaries(options) < 0.95 * temporaries(without)


def test_leaves_out_options_that_xla_does_not_know(monkeypatch):
    monkeypatch.setattr(compiler, "_CPU", {"xla_cpu_no_such_setting": "1"})
    compiler._is_known.cache_clear()
    try:
        assert fcn_jax.compiler_options() == {}
    finally:
        compiler._is_known.cache_clear()


def test_other_devices_get_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fcn_jax.compiler_options() == {}
