"""The tasks in JAX: with the library, and with plain Flax, as a beginner would write it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.networks import PlainFlax
from benchmarks.setting import Setting, training_step
from fcn_jax import compiler_options
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.preprocess import normalize
from fcn_jax.plugins import registry
from fcn_jax.runtime.memory import trim_malloc
from fcn_jax.train import step as train_step
from fcn_jax.train.losses import cross_entropy

Start = Callable[[], Any]
"""Does the work once and returns its result, which the device may still compute."""

wait = jax.block_until_ready


def _normalized(setting: Setting) -> jax.Array:
    preprocess = setting.preprocess
    return jax.block_until_ready(
        jax.jit(lambda images: normalize(images, preprocess))(setting.images())
    )


def _logits(setting: Setting, model: nnx.Module, options: Mapping[str, str]) -> Start:
    model.eval()
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x), compiler_options=dict(options))
    x = _normalized(setting)
    return lambda: run(state, x)


def _mask(setting: Setting) -> Start:
    run, images = Predictor(setting.build()).batch, setting.images()
    return lambda: run(images)


def _flax_mask(setting: Setting) -> Start:
    model = PlainFlax(setting.build())
    model.eval()
    graphdef, state = nnx.split(model)
    preprocess = setting.preprocess
    run = jax.jit(
        lambda state, x: jnp.argmax(
            nnx.merge(graphdef, state)(normalize(x, preprocess)), -1
        ).astype(jnp.uint8)
    )
    images = setting.images()
    return lambda: np.asarray(run(state, images))


def _gradients(
    module: nnx.Module,
    loss: Callable[..., jax.Array],
    inputs: tuple[Any, ...],
    options: Mapping[str, str],
) -> Start:
    """Compute the loss of a part of the network and its gradients; only the loss is returned."""
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    def run(params: Any, rest: Any, *inputs: Any) -> Any:
        return loss(nnx.merge(graphdef, params, rest, copy=True), *inputs)

    compiled = jax.jit(jax.value_and_grad(run, argnums=(0, 2)), compiler_options=dict(options))
    inputs = tuple(jax.device_put(x) for x in inputs)
    return lambda: compiled(params, rest, *inputs)[0]


def _head(setting: Setting, *, plain: bool = False) -> Start:
    model = setting.build()
    deepest = model.features[-1]
    network: Any = PlainFlax(model) if plain else model

    def loss(head: Any, features: jax.Array, labels: jax.Array) -> jax.Array:
        if plain:
            return cross_entropy(head["transpose_conv"](head["final_conv"](features)), labels)
        return cross_entropy(head({deepest.name: features}, out_hw=setting.size), labels)

    features = jnp.asarray(
        setting.features(deepest.channels, deepest.stride), jnp.dtype(setting.dtype)
    )
    return _gradients(
        network.head, loss, (features, setting.labels()), {} if plain else compiler_options()
    )


def _backbone(setting: Setting, *, plain: bool = False) -> Start:
    model = setting.build()
    deepest = model.features[-1].name

    def loss(backbone: Any, x: jax.Array) -> jax.Array:
        feature = backbone(x) if plain else backbone(x)[deepest]
        return jnp.square(feature.astype(jnp.float32)).mean()

    network: Any = PlainFlax(model) if plain else model
    return _gradients(
        network.backbone, loss, (_normalized(setting),), {} if plain else compiler_options()
    )


def compiled_step(step: train_step.Step, state: Any, batch: Any, options: Mapping[str, str]) -> Any:
    """Compile a training step and release the compiler's memory, as `fcn_jax.train.loop` does."""
    program = (
        jax.jit(step, donate_argnums=0, compiler_options=dict(options))
        .lower(state, batch)
        .compile()
    )
    trim_malloc()
    return program


def _training(setting: Setting, model: nnx.Module, options: Mapping[str, str]) -> Start:
    state, run = training_step(setting, model)
    # The training loop moves a batch to the device during the previous step.
    batch = jax.device_put({"image": setting.images(), "mask": setting.labels()})

    def call() -> jax.Array:
        nonlocal state, run
        # The first call compiles. It replaces the step function, because JAX keeps the traced
        # program as long as that function exists.
        if not isinstance(run, jax.stages.Compiled):
            run = compiled_step(run, state, batch, options)
        state, metrics = run(state, batch)
        return metrics["loss"]

    return call


def _batches(setting: Setting) -> tuple[Any, int]:
    # These imports require OpenCV, which a machine with a GPU may lack.
    from fcn_jax.data.pipeline import train_batches
    from fcn_jax.data.transforms import Augment

    source = registry.default().dataset("folder").open(Path(setting.data), "train")
    batches = train_batches(
        source, augment=Augment(setting.size, setting.scale), batch_size=setting.batch, seed=0
    )
    return batches, len(source) // setting.batch


def _pipeline(setting: Setting) -> Start:
    batches, steps = _batches(setting)
    return lambda: np.stack([batch["image"][0, 0, 0] for batch in itertools.islice(batches, steps)])


def _epoch(setting: Setting) -> Start:
    batches, steps = _batches(setting)
    state, run = training_step(setting, setting.build())

    def call() -> np.ndarray:
        nonlocal state, run
        losses = []
        for batch in itertools.islice(batches, steps):
            batch = jax.device_put(batch)
            if jax.default_backend() == "cpu":  # as in `fcn_jax.train.loop`
                wait((state, batch))
            if not isinstance(run, jax.stages.Compiled):
                run = compiled_step(run, state, batch, compiler_options())
            state, metrics = run(state, batch)
            losses.append(metrics["loss"])
        return np.asarray(jax.device_get(losses))

    return call


LIBRARY: dict[str, Callable[[Setting], Start]] = {
    "head": _head,
    "trunk": _backbone,
    "logits": lambda setting: _logits(setting, setting.build(), compiler_options()),
    "mask": _mask,
    "training": lambda setting: _training(setting, setting.build(), compiler_options()),
    "pipeline": _pipeline,
    "photographs": _pipeline,
    "epoch": _epoch,
}
"""Task -> function that prepares it with the library."""

PLAIN_FLAX: dict[str, Callable[[Setting], Start]] = {
    "head": lambda setting: _head(setting, plain=True),
    "trunk": lambda setting: _backbone(setting, plain=True),
    "logits": lambda setting: _logits(setting, PlainFlax(setting.build()), {}),
    "mask": _flax_mask,
    "training": lambda setting: _training(setting, PlainFlax(setting.build()), {}),
}
"""Task -> function that prepares it with plain Flax."""
