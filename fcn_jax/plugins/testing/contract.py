"""Checks that backbones and heads share: of the descriptor, and of the network that it builds."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.errors import listing
from fcn_jax.models.names import leaves
from fcn_jax.plugins import options as plugin_options
from fcn_jax.plugins.api import Backbone, Descriptor, FeatureSpec, Head, Weights
from fcn_jax.plugins.entry import api_version_fault
from fcn_jax.plugins.testing.subject import (
    COMPILER_OPTIONS,
    TOLERANCE,
    Network,
    Subject,
    difference,
)

SIZES = ((64, 64), (65, 97), (33, 47), (96, 161), (224, 320))
"""Heights and widths of test images. Sizes at which a feature would be empty are skipped."""


def variants(sizes: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], int, Any]]:
    """Size, batch and dtype: each size once; the first in both dtypes and in batches of 1 and 3."""
    first = [(sizes[0], batch, dtype) for batch in (1, 3) for dtype in (jnp.float32, jnp.bfloat16)]
    return first + [(hw, 1, jnp.float32) for hw in sizes[1:]]


def feature_shapes(
    specs: Sequence[FeatureSpec], batch: int, hw: tuple[int, int]
) -> dict[str, tuple[int, int, int, int]]:
    """The shapes of features for a batch of images, by name."""
    return {spec.name: (batch, spec.size(hw[0]), spec.size(hw[1]), spec.channels) for spec in specs}


def check_registration(subject: Subject, descriptor: Descriptor) -> None:
    """Check what every descriptor has: a name, one line of summary, a contract version."""
    fault = api_version_fault(descriptor.api_version)
    if fault is not None:
        subject.fail(f"it {fault}")
    if re.fullmatch(r"[^\s:]+", descriptor.name) is None:
        subject.fail(
            f"its name is '{descriptor.name}'; it must be one word without a colon, which "
            "separates a distribution from a name"
        )
    if "\n" in descriptor.summary:
        subject.fail("the summary must be one line")


def check_descriptor(
    subject: Subject, descriptor: Backbone | Head, options: Mapping[str, Any] | None
) -> Any:
    """Check the fields that backbones and heads share, and return the validated options."""
    check_registration(subject, descriptor)
    kind = descriptor.options
    if not dataclasses.is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        subject.fail(f"options is {kind}; it must be a frozen dataclass")
    check_weights(subject, descriptor.torch.weights if descriptor.torch else {})
    return plugin_options.validate(descriptor, options or {})


def check_weights(subject: Subject, weights: Mapping[str, Weights]) -> None:
    """Check that each published file can be fetched, read and recognized."""
    for name, file in weights.items():
        if file.url.startswith("hf://"):
            if file.url != f"hf://{name}":
                subject.fail(
                    f"weights '{name}' have the url '{file.url}'; the name of weights on the "
                    f"Hugging Face Hub must be that of the repository, hf://{name}"
                )
            continue
        if re.fullmatch(r"[0-9a-f]{8,64}", file.sha256) is None:
            subject.fail(
                f"weights '{name}' have sha256 '{file.sha256}'; it must be at least 8 leading "
                "hexadecimal digits"
            )
        if re.fullmatch(r"(https?|file|pip)://.+\.(pth|pt|safetensors)", file.url) is None:
            subject.fail(
                f"weights '{name}' have the url '{file.url}'; it must be the address of a .pth or "
                ".safetensors file"
            )
        if re.search(r"[\s/\\.]", name) is not None:
            subject.fail(
                f"weights '{name}' have a name that looks like a file; use capitals, digits and "
                "underscores"
            )


def check_shapes(
    network: Network,
    inputs: Sequence[jax.ShapeDtypeStruct],
    expected: Mapping[str, tuple[int, ...]],
    dtype: Any,
) -> None:
    """Check names, order, shapes and dtypes of outputs and parameters. Nothing is computed."""
    fail, compute_dtype = network.subject.fail, jnp.dtype(dtype).name
    module = nnx.eval_shape(lambda: network.build(dtype))
    module.eval()
    graphdef, state = nnx.split(module)
    order: list[str] = []

    def run(state: Any, inputs: Sequence[Any]) -> Any:
        outputs = network.call(nnx.merge(graphdef, state), inputs)
        order[:] = outputs  # jax sorts the keys of a dict that leaves a traced function
        return outputs

    outputs = jax.eval_shape(run, state, inputs)
    if order != list(expected):
        fail(f"it returns {order}; its descriptor promises {list(expected)}, in that order")
    given = ", ".join(f"{x.shape}" for x in inputs)
    for name, shape in expected.items():
        found = outputs[name]
        if found.shape != shape:
            fail(f"for an input of {given}, '{name}' has shape {found.shape}; promised is {shape}")
        if found.dtype != dtype:
            fail(f"'{name}' is {found.dtype}; the compute dtype is {compute_dtype}")
    for path, leaf in leaves(module).items():
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != jnp.float32:
            fail(
                f"'{path}' is {leaf.dtype} with compute dtype {compute_dtype}; parameters must be "
                "float32"
            )


def eval_mode(network: Network) -> tuple[Callable[..., tuple[Any, Any]], Any]:
    """A compiled function (state, inputs) -> (outputs, next state), and the initial state."""
    module = network.build()
    module.eval()
    graphdef, state = nnx.split(module)

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def run(state: Any, inputs: Sequence[Any]) -> tuple[Any, Any]:
        module = nnx.merge(graphdef, state, copy=True)
        with jax.default_matmul_precision("highest"):
            outputs = network.call(module, inputs)
        return outputs, nnx.state(module)

    return run, state


def check_eval_mode(network: Network, inputs: Sequence[np.ndarray]) -> None:
    """Check eval mode on a batch of three images.

    It must be finite and deterministic, must not change any state, and the result for an image must
    not depend on the other images.
    """
    network.subject.start("eval mode")
    fail = network.subject.fail
    run, state = eval_mode(network)
    outputs, after = run(state, inputs)
    before, now = _values(state), _values(after)
    changed = [path for path in before | now if before.get(path) != now.get(path)]
    if changed:
        fail(f"in eval mode a call changes {listing(changed)}")
    again, _ = run(after, inputs)
    among_others, _ = run(state, [np.stack([3 * x[0], x[1], x[2] + 1]) for x in inputs])
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            fail(f"'{name}' has values that are not finite")
        if not np.array_equal(value, again[name]):
            fail(f"'{name}' differs between two calls in eval mode")
        off = difference(among_others[name][1], value[1])
        if not off < TOLERANCE:
            fail(
                f"in eval mode, '{name}' of an image depends on the rest of its batch (by "
                f"{off:.1e})"
            )


def _values(state: Any) -> dict[str, list[bytes]]:
    """The values of all variables by name, except random keys and their counts."""
    return {
        ".".join(map(str, path)): [
            np.asarray(leaf).tobytes()
            for leaf in jax.tree.leaves(variable)
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        ]
        for path, variable in nnx.to_flat_state(state)
        if not isinstance(variable, nnx.RngState)
    }


def check_gradients(network: Network, inputs: Sequence[np.ndarray]) -> None:
    """Check that every parameter's gradient in train mode is finite."""
    network.subject.start("gradients in train mode")
    module = network.build()
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    @jax.grad
    def gradient(params: Any, rest: Any, inputs: Sequence[Any]) -> Any:
        outputs = network.call(nnx.merge(graphdef, params, rest, copy=True), inputs)
        # Weighted, because batch normalization blocks the gradient of a plain sum.
        return sum(
            (value * jnp.sin(jnp.arange(value.size)).reshape(value.shape)).mean()
            for value in outputs.values()
        )

    bad = [
        ".".join(map(str, path))
        for path, leaf in nnx.to_flat_state(gradient(params, rest, inputs))
        if not np.isfinite(leaf[...]).all()
    ]
    if bad:
        network.subject.fail(f"in train mode the gradient is not finite at {listing(bad)}")
