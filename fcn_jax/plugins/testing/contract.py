"""Checks that backbones and heads share: of the descriptor, and of the network that it builds."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.errors import listing
from fcn_jax.models.names import leaves
from fcn_jax.plugins.api import Backbone, Descriptor, Head, Weights
from fcn_jax.plugins.registry import api_version_fault
from fcn_jax.plugins.testing.subject import (
    COMPILER_OPTIONS,
    TOLERANCE,
    Subject,
    difference,
    normal,
    require,
)

SIZES = ((64, 64), (65, 97), (33, 47), (96, 161), (224, 320))
"""Heights and widths of test images. Sizes at which a feature would be empty are skipped."""


def variants(sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int, Any]]:
    """Size, batch and dtype: each size once; the first in both dtypes and in batches of 1 and 3."""
    yield from (
        (sizes[0], batch, dtype) for batch in (1, 3) for dtype in (jnp.float32, jnp.bfloat16)
    )
    yield from ((hw, 1, jnp.float32) for hw in sizes[1:])


def check_registration(label: str, descriptor: Descriptor) -> None:
    """Check what every descriptor has: a name, one line of summary, a contract version."""
    fault = api_version_fault(descriptor.api_version)
    require(fault is None, f"{label}: it {fault}")
    require(
        re.fullmatch(r"[^\s:]+", descriptor.name) is not None,
        f"{label}: its name is '{descriptor.name}'; it must be one word without a colon, which "
        "separates a distribution from a name",
    )
    require("\n" not in descriptor.summary, f"{label}: the summary must be one line")


def check_descriptor(label: str, descriptor: Backbone | Head) -> None:
    """Check the fields that backbones and heads share."""
    check_registration(label, descriptor)
    require(
        dataclasses.is_dataclass(descriptor.options)
        and descriptor.options.__dataclass_params__.frozen,  # type: ignore[attr-defined]
        f"{label}: options is {descriptor.options}; it must be a frozen dataclass",
    )
    check_weights(label, descriptor.torch.weights if descriptor.torch else {})


def check_weights(label: str, weights: Mapping[str, Weights]) -> None:
    """Check that each published file can be fetched, read and recognized."""
    for name, file in weights.items():
        where = f"{label}: weights '{name}'"
        require(
            re.fullmatch(r"[0-9a-f]{8,64}", file.sha256) is not None,
            f"{where} have sha256 '{file.sha256}'; it must be at least 8 leading hexadecimal "
            "digits",
        )
        require(
            re.fullmatch(r"(https?|file)://.+\.(pth|pt|safetensors)", file.url) is not None,
            f"{where} have the url '{file.url}'; it must be the address of a .pth or .safetensors "
            "file",
        )
        require(
            re.search(r"[\s/\\.]", name) is None,
            f"{where} have a name that looks like a file; use capitals, digits and underscores",
        )


def check_shapes(
    subject: Subject, inputs: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], dtype: Any
) -> None:
    """Check names, order, shapes and dtypes of outputs and parameters. Nothing is computed."""
    module = nnx.eval_shape(lambda: subject.build(dtype))
    module.eval()
    graphdef, state = nnx.split(module)
    order: list[str] = []

    def run(state: Any, inputs: Mapping[str, Any]) -> Any:
        outputs = subject.call(nnx.merge(graphdef, state), inputs)
        order[:] = outputs  # jax sorts the keys of a dict that leaves a traced function
        return outputs

    outputs = jax.eval_shape(run, state, dict(inputs))
    given = ", ".join(f"{tuple(x.shape)}" for x in inputs.values())
    require(
        order == list(expected),
        f"{subject.label}: it returns {order}; its descriptor promises {list(expected)}, in that "
        "order",
    )
    for name, shape in expected.items():
        found = outputs[name]
        require(
            found.shape == shape,
            f"{subject.label}: for an input of {given}, '{name}' has shape {found.shape}; promised "
            f"is {shape}",
        )
        require(
            found.dtype == dtype,
            f"{subject.label}: '{name}' is {found.dtype}; the compute dtype is "
            f"{jnp.dtype(dtype).name}",
        )
    for path, leaf in leaves(module).items():
        require(
            not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.float32,
            f"{subject.label}: '{path}' is {leaf.dtype} with compute dtype "
            f"{jnp.dtype(dtype).name}; parameters must be float32",
        )


def check_eval_mode(subject: Subject, inputs: Mapping[str, Any]) -> None:
    """Check eval mode on a batch of three images.

    It must be finite and deterministic, must not change any state, and the result for an image must
    not depend on the other images.
    """
    subject.start("eval mode")
    module = subject.build(jnp.float32)
    module.eval()
    graphdef, state = nnx.split(module)

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def run(state: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        network = nnx.merge(graphdef, state, copy=True)
        outputs = subject.call(network, inputs)
        return outputs, nnx.state(network)

    with jax.default_matmul_precision("highest"):
        outputs, after = run(state, inputs)
        before, now = _values(state), _values(after)
        changed = [path for path in before | now if before.get(path) != now.get(path)]
        require(not changed, f"{subject.label}: in eval mode a call changes {listing(changed)}")
        again, _ = run(after, inputs)
        among_others, _ = run(
            state, {name: np.stack([3 * x[0], x[1], x[2] + 1]) for name, x in inputs.items()}
        )
    for name, value in outputs.items():
        require(
            bool(np.isfinite(value).all()),
            f"{subject.label}: '{name}' has values that are not finite",
        )
        require(
            np.array_equal(value, again[name]),
            f"{subject.label}: '{name}' differs between two calls in eval mode",
        )
        off = difference(among_others[name][1], value[1])
        require(
            off < TOLERANCE,
            f"{subject.label}: in eval mode, '{name}' of an image depends on the rest of its batch "
            f"(by {off:.1e})",
        )


def _values(state: Any) -> dict[str, list[bytes]]:
    """The values of all variables by name, except random keys and their counts."""
    return {
        ".".join(map(str, path)): [
            np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variable) if not _is_key(leaf)
        ]
        for path, variable in nnx.to_flat_state(state)
        if not isinstance(variable, nnx.RngState)
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def check_gradients(subject: Subject, inputs: Mapping[str, Any]) -> None:
    """Check that every parameter's gradient in train mode is finite."""
    subject.start("gradients in train mode")
    module = subject.build(jnp.float32)
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    def run(params: Any, rest: Any, inputs: Mapping[str, Any]) -> Any:
        return subject.call(nnx.merge(graphdef, params, rest, copy=True), inputs)

    # Weights that differ from value to value: batch normalization blocks the gradient of a plain
    # sum.
    shapes = jax.eval_shape(run, params, rest, dict(inputs))
    weights = {name: normal(i, value.shape) for i, (name, value) in enumerate(shapes.items())}

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    @jax.grad
    def gradient(
        params: Any, rest: Any, inputs: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> jax.Array:
        outputs = run(params, rest, inputs)
        return jnp.stack(
            [(outputs[name] * weight).mean() for name, weight in weights.items()]
        ).sum()

    grads = gradient(params, rest, dict(inputs), weights)
    bad = [
        ".".join(map(str, path))
        for path, leaf in nnx.to_flat_state(grads)
        if not np.isfinite(leaf[...]).all()
    ]
    require(not bad, f"{subject.label}: in train mode the gradient is not finite at {listing(bad)}")
