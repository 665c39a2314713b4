"""Compare a registered model with its descriptor."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.convert.load import import_weights
from fcn_jax.convert.tables import tables
from fcn_jax.errors import ConfigError, FcnJaxError, PluginError
from fcn_jax.models.build import build
from fcn_jax.models.spec import resolve
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import IGNORE_INDEX, Model, ModelSpec
from fcn_jax.plugins.testing.contract import check_registration, check_shapes, check_weights
from fcn_jax.plugins.testing.subject import Network, Progress, Subject, ignore


def check_model(model: str | Model, *, progress: Progress = ignore) -> None:
    """Compare a registered model with its descriptor. Only shapes are computed.

    Checked: that its parts are registered and fit together; names and sizes of the logits at odd
    image sizes in both compute dtypes; that its weights have valid names and the parts have the
    tables to load them; that the PyTorch reference, if torch is installed, has exactly the tensors
    of the model. `fcn_jax.verify_model` compares the values.

    Args:
        model: a descriptor, or the name of a registered one.
        progress: called with each check's name before it runs.

    Raises:
        AssertionError: a promise is broken.
    """
    descriptor = registry.default().model(model) if isinstance(model, str) else model
    subject, spec = Subject(f"model '{descriptor.name}'", progress), descriptor.spec
    check_registration(subject, descriptor)
    check_weights(subject, descriptor.weights)
    if not 1 <= spec.num_classes <= IGNORE_INDEX:
        subject.fail(f"num_classes is {spec.num_classes}; it must be from 1 to {IGNORE_INDEX}")
    try:
        outputs = tuple(resolve(spec).heads)
        abstract = nnx.eval_shape(lambda: build(spec, rngs=nnx.Rngs(0)))
    except (ConfigError, PluginError) as error:
        subject.fail(f"its parts do not make a model: {error}")
    _check_logits(subject, spec, outputs)
    reference_model, key_format = descriptor.reference_model, descriptor.key_format
    if (descriptor.weights or reference_model) and ("model", key_format) not in tables(spec):
        subject.fail(
            "it has weights or a reference_model, but not all of its parts have a table for the "
            f"key format '{key_format}'"
        )
    if reference_model is None or importlib.util.find_spec("torch") is None:
        return
    subject.start("tensors of the PyTorch reference")
    reference: Any = reference_model(num_classes=spec.num_classes, aux=spec.aux_head is not None)
    try:
        import_weights(abstract, spec, reference.state_dict())
    except FcnJaxError as error:
        subject.fail(f"against its PyTorch reference: {error}")


def _check_logits(subject: Subject, spec: ModelSpec, outputs: tuple[str, ...]) -> None:
    def builder(*, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return build(dataclasses.replace(spec, dtype=jnp.dtype(dtype).name), rngs=rngs)

    network = Network(subject, builder, lambda module, inputs: module.outputs(*inputs))
    subject.start("shapes")
    for batch, hw, dtype in ((1, (65, 97), jnp.float32), (2, (33, 47), jnp.bfloat16)):
        images = jax.ShapeDtypeStruct((batch, *hw, 3), jnp.float32)
        expected = dict.fromkeys(outputs, (batch, *hw, spec.num_classes))
        check_shapes(network, [images], expected, dtype)
