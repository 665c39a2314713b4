"""A whole model held against its descriptor."""

from __future__ import annotations

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.convert.load import import_weights
from fcn_jax.convert.tables import tables
from fcn_jax.errors import ConfigError, FcnJaxError, PluginError
from fcn_jax.models.segmenter import ModelSpec, build, plan_heads, spec_of
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import IGNORE_INDEX, Model
from fcn_jax.plugins.testing.contract import check_registration, check_shapes, check_weights
from fcn_jax.plugins.testing.subject import Subject, require


def check_model(model: str | Model) -> None:
    """Hold a whole model against its descriptor. Nothing is computed: the numbers are for `fcn_jax.verify_model` to compare.

    Checked: that its parts are registered, take their options and go together at the output stride;
        names and sizes of the logits,
    the auxiliary ones too, at odd image sizes in both compute dtypes; that weights are published
    under sound names, and the parts' tables compose, so that they can be loaded; that the PyTorch
    original, if it names one and torch is installed, has exactly the tensors that the model has.

    Args:
        model: a descriptor, or the name of a registered one.

    Raises:
        AssertionError: a promise is broken.
    """
    descriptor = registry.default().model(model) if isinstance(model, str) else model
    label = f"model '{descriptor.name}'"
    check_registration(label, descriptor)
    check_weights(label, descriptor.weights)
    require(
        1 <= descriptor.num_classes <= IGNORE_INDEX,
        f"{label}: num_classes is {descriptor.num_classes}; it must be from 1 to {IGNORE_INDEX}",
    )
    spec = spec_of(descriptor)
    try:
        outputs = tuple(plan_heads(spec))
        abstract = nnx.eval_shape(lambda: build(spec, rngs=nnx.Rngs(0)))
    except (ConfigError, PluginError) as error:
        raise AssertionError(f"{label}: its parts do not make a model: {error}") from error
    _check_logits(label, spec, outputs)
    if descriptor.weights or descriptor.original is not None:
        require(
            ("model", descriptor.names) in tables(spec),
            f"{label}: it names weights or an original, but not all of its parts have a table of PyTorch's names ('{descriptor.names}')",
        )
    if descriptor.original is None or importlib.util.find_spec("torch") is None:
        return
    original = descriptor.original(num_classes=spec.num_classes, aux=spec.aux_head is not None)
    try:
        import_weights(abstract, spec, original.state_dict())
    except FcnJaxError as error:
        raise AssertionError(f"{label} against its PyTorch original: {error}") from error


def _check_logits(label: str, spec: ModelSpec, outputs: tuple[str, ...]) -> None:
    subject = Subject(
        label,
        lambda dtype: build(
            dataclasses.replace(spec, dtype=jnp.dtype(dtype).name), rngs=nnx.Rngs(0)
        ),
        lambda module, inputs: module.outputs(inputs["image"]),
    )
    for batch, hw, dtype in ((1, (65, 97), jnp.float32), (2, (33, 47), jnp.bfloat16)):
        images = {"image": jax.ShapeDtypeStruct((batch, *hw, 3), jnp.float32)}
        check_shapes(subject, images, dict.fromkeys(outputs, (batch, *hw, spec.num_classes)), dtype)
