"""What the contract asks of backbones and heads alike: a sound descriptor, and a network that is what it promises to be."""

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
from fcn_jax.nn import _valid
from fcn_jax.plugins.api import Backbone, FeatureSpec, Head, Weights
from fcn_jax.plugins.registry import Descriptor, api_version_fault
from fcn_jax.plugins.testing.subject import (
    COMPILER_OPTIONS,
    TOLERANCE,
    Subject,
    difference,
    normal,
    require,
)

SIZES = ((64, 64), (65, 97), (33, 47), (96, 161), (224, 320))
"""Heights and widths that are tried. A backbone is spared those at which, by its own word, a feature would have no pixels."""


def variants(sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int, Any]]:
    """Height and width, batch and dtype: every size once, and the first in both dtypes and as a batch of three."""
    yield from (
        (sizes[0], batch, dtype) for batch in (1, 3) for dtype in (jnp.float32, jnp.bfloat16)
    )
    yield from ((hw, 1, jnp.float32) for hw in sizes[1:])


def check_registration(label: str, descriptor: Descriptor) -> None:
    """Check what every descriptor has: a name, one line of summary, the version of the contract."""
    fault = api_version_fault(descriptor.api_version)
    require(fault is None, f"{label}: it {fault}")
    require(
        re.fullmatch(r"[^\s:]+", descriptor.name) is not None,
        f"{label}: its name is '{descriptor.name}'; it must be one word without a colon, which parts a distribution from a name",
    )
    require("\n" not in descriptor.summary, f"{label}: the summary must be one line")


def check_descriptor(label: str, descriptor: Backbone | Head) -> None:
    """Check what a backbone and a head have in common: the registration, the type of the options, the weights."""
    check_registration(label, descriptor)
    require(
        dataclasses.is_dataclass(descriptor.options)
        and descriptor.options.__dataclass_params__.frozen,  # type: ignore[attr-defined]
        f"{label}: options is {descriptor.options}; it must be a frozen dataclass",
    )
    check_weights(label, descriptor.torch.weights if descriptor.torch else {})


def check_weights(label: str, weights: Mapping[str, Weights]) -> None:
    """Check that each published file can be fetched, read and known again."""
    for name, file in weights.items():
        require(
            re.fullmatch(r"[0-9a-f]{8,64}", file.sha256) is not None,
            f"{label}: weights {name} have sha256 '{file.sha256}'; it must be at least 8 leading hexadecimal digits",
        )
        require(
            re.fullmatch(r"(https?|file)://.+\.(pth|pt|safetensors)", file.url) is not None,
            f"{label}: weights {name} are at '{file.url}'; it must be the address of a .pth or .safetensors file",
        )
        require(
            re.search(r"[\s/\\.]", name) is None,
            f"{label}: weights are named '{name}', which reads as a file; use capitals, digits and underscores",
        )


def check_shapes(
    subject: Subject, inputs: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], dtype: Any
) -> None:
    """Check names, order, shapes and dtypes of the outputs, and the dtype of parameters, without computing anything."""
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
        f"{subject.label}: it returns {order}, its descriptor promises {list(expected)}, in that order",
    )
    for name, shape in expected.items():
        found = outputs[name]
        require(
            found.shape == shape,
            f"{subject.label}: '{name}' of an input of {given} has shape {found.shape}, promised is {shape}",
        )
        require(
            found.dtype == dtype,
            f"{subject.label}: '{name}' is {found.dtype} where the compute dtype is {jnp.dtype(dtype).name}",
        )
    for path, leaf in leaves(module).items():
        require(
            not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.float32,
            f"{subject.label}: '{path}' is {leaf.dtype} with compute dtype {jnp.dtype(dtype).name}; parameters are float32",
        )


def check_eval_mode(subject: Subject, inputs: Mapping[str, Any]) -> None:
    """Check that eval mode is finite and deterministic, changes no state and treats each image alone; `inputs` are batches of three."""
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
            f"{subject.label}: '{name}' of an image depends on the rest of its batch in eval mode (by {off:.1e})",
        )


def _values(state: Any) -> dict[str, list[bytes]]:
    """What a module's variables hold, of whatever kind they are, by name; but for random keys and their counts."""
    return {
        ".".join(map(str, path)): [
            np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variable) if not _is_key(leaf)
        ]
        for path, variable in nnx.to_flat_state(state)
        if not isinstance(variable, nnx.RngState)
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def check_masked(
    alone: Subject,
    within: Subject,
    inputs: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    known: Mapping[tuple[int, int], tuple[int, int]],
) -> None:
    """Check that images that fill a part of their array give there what they give alone, whatever lies beside them."""

    def run(subject: Subject, inputs: Mapping[str, np.ndarray]) -> Any:
        module = subject.build(jnp.float32)
        module.eval()
        graphdef, state = nnx.split(module)
        return jax.jit(lambda state, inputs: subject.call(nnx.merge(graphdef, state), inputs))(
            state, dict(inputs)
        )

    wanted = run(alone, inputs)
    beside = {name: 100 + normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    for name, x in inputs.items():
        beside[name][:, : x.shape[1], : x.shape[2]] = x
    try:
        with _valid.sizes(known):
            found = run(within, beside)
    except ValueError as error:
        raise AssertionError(f"{alone.label}: {error}") from error
    for name, value in wanted.items():
        off = difference(found[name][:, : value.shape[1], : value.shape[2]], value)
        require(
            off < TOLERANCE,
            f"{alone.label}: it says that it is maskable, but '{name}' of an image depends on what lies beside it in its array "
            f"(by {off:.1e})",
        )


def check_sizes_known(
    subject: Subject,
    hw: tuple[int, int],
    inputs: Mapping[str, tuple[int, ...]],
    features: Sequence[FeatureSpec] = (),
) -> None:
    """Check, by shapes alone, that every size is known where it is asked for when images of any size share one array, as in prediction.

    Args:
        subject: what is `maskable`.
        hw: height and width of the array. Even multiples of all strides are hardest: there, what
            rounds up and what rounds down have one shape.
        inputs: shapes by name.
        features: what `inputs` are of an image in that array; none if it is the image.
    """
    module = nnx.eval_shape(lambda: subject.build(jnp.float32))
    module.eval()
    graphdef, state = nnx.split(module)

    def run(state: Any, image: Any, inputs: Mapping[str, Any], inner: tuple[Any, Any]) -> Any:
        with _valid.sizes({hw: inner}):
            for spec in features:
                _valid.derive(image, inputs[spec.name], spec.size)
            return subject.call(nnx.merge(graphdef, state), inputs)

    image, length = (
        jax.ShapeDtypeStruct((1, *hw, 3), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    given = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in inputs.items()}
    try:
        jax.eval_shape(run, state, image, given, (length, length))
    except ValueError as error:
        raise AssertionError(
            f"{subject.label}: of images of many sizes in an array of {hw[0]}x{hw[1]}, {error}"
        ) from error


def large(stride: int) -> tuple[int, int]:
    """Height and width of an array for `check_sizes_known`, by the stride of the deepest feature."""
    step = max(64, 2 * stride)
    return 2 * step, 3 * step


def check_gradients(subject: Subject, inputs: Mapping[str, Any]) -> None:
    """Check that every parameter's gradient in train mode is finite."""
    module = subject.build(jnp.float32)
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    def run(params: Any, rest: Any, inputs: Mapping[str, Any]) -> Any:
        return subject.call(nnx.merge(graphdef, params, rest, copy=True), inputs)

    # Weights that differ from value to value: the gradient of a plain sum does not pass through
    # batch normalization.
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
