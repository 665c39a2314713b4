"""The plugin contract as a test suite, for whoever writes a backbone or a head.

    from fcn_jax.testing import check_backbone

    def test_my_backbone_keeps_its_promises():
        check_backbone("my_backbone")

Each function builds the plugin, runs it, and holds what comes out against what the descriptor says. It returns nothing, or raises
an `AssertionError` that says which promise is broken and by what. `options` can make a large network smaller. With torch
installed, the network is also compared with its PyTorch reference: a backbone's must return its features by name when it is called
with NCHW images, or have a submodule of each feature's name; a head's is called with the features it selected, in order.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax import registry
from fcn_jax.api import API_VERSION, Backbone, FeatureSpec, Head
from fcn_jax.errors import ConfigError, listing
from fcn_jax.models.names import leaves
from fcn_jax.nn import valid
from fcn_jax.testing.subject import COMPILER_OPTIONS, TOLERANCE, Subject, difference, normal, require
from fcn_jax.testing.torch_bridge import check_reference, check_tables
from fcn_jax.verify.reference import fitted, torch_features

__all__ = ["SIZES", "check_backbone", "check_head"]

SIZES = ((64, 64), (65, 97), (33, 47), (96, 161), (224, 320))
"""Heights and widths that are tried. A backbone is spared those at which, by its own word, a feature would have no pixels."""


def check_backbone(backbone: str | Backbone, options: Mapping[str, Any] | None = None) -> None:
    """Hold a backbone against its descriptor.

    Checked, for every output stride: names, order, channels, sizes and strides of the features at odd and even sizes and batches
    of one and three; float32 and bfloat16 outputs over float32 parameters; that the PyTorch tables name every leaf once, and are
    invertible; the names, shapes and outputs of the PyTorch reference. For the default stride: that eval mode is deterministic,
    changes no state and treats each image alone; that every parameter's gradient in train mode is finite.

    Args:
        backbone: a descriptor, or the name of a registered one.
        options: table of its options; None takes the defaults.

    Raises:
        AssertionError: a promise is broken.
    """
    descriptor = registry.default().backbone(backbone) if isinstance(backbone, str) else backbone
    label = f"backbone '{descriptor.name}'"
    _check_descriptor(label, descriptor)
    require(
        len(set(descriptor.output_strides)) == len(descriptor.output_strides) > 0,
        f"{label}: output_strides is {descriptor.output_strides}; it must name at least one, and each once",
    )
    _check_preprocess(label, descriptor)
    chosen = registry.options(descriptor, options or {})

    for stride in descriptor.output_strides:
        _check_backbone_at(f"{label} at output stride {stride}", descriptor, chosen, stride)


def _check_backbone_at(label: str, backbone: Backbone, chosen: Any, stride: int) -> None:
    def build(dtype: Any) -> nnx.Module:
        return backbone.build(chosen, output_stride=stride, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    subject = Subject(label, build, lambda module, inputs: module(inputs["image"]))
    specs = backbone.features(chosen, stride)
    _check_specs(label, specs, backbone.features(chosen, stride), stride)
    legal = [hw for hw in SIZES if all(spec.size(n) >= 1 for spec in specs for n in hw)]
    require(bool(legal), f"{label}: by `size`, every image of {SIZES} gives an empty feature")
    for hw, batch, dtype in _variants(legal):
        expected = {spec.name: (batch, spec.size(hw[0]), spec.size(hw[1]), spec.channels) for spec in specs}
        _check_shapes(subject, {"image": jax.ShapeDtypeStruct((batch, *hw, 3), jnp.float32)}, expected, dtype)

    odd = (65, 97) if (65, 97) in legal else legal[0]
    images = {"image": normal(1, (3, *odd, 3))}
    if stride == backbone.output_strides[0]:
        _check_eval_mode(subject, images)
        inner = next((hw for hw in legal if hw[0] < odd[0] and hw[1] < odd[1]), None)
        if backbone.maskable and inner is not None:
            _check_masked(subject, subject, {"image": normal(2, (1, *inner, 3))}, {"image": (1, *odd, 3)}, {odd: inner})
        _check_gradients(subject, images)
    if backbone.torch is not None:
        check_tables(subject, backbone.torch, chosen)
        check_reference(
            subject,
            backbone.torch,
            chosen,
            images,
            lambda build_reference: build_reference(options=chosen, output_stride=stride),
            lambda reference, inputs: torch_features(reference, inputs["image"], specs),
        )


def check_head(head: str | Head, options: Mapping[str, Any] | None = None) -> None:
    """Hold a head against its descriptor, on the features of made-up backbones that round sizes up and down.

    Checked: that it takes only features it selected; the logits' size, classes and dtype at odd and even image sizes; that eval
    mode is deterministic, changes no state and treats each image alone; that every parameter's gradient in train mode is finite;
    that the PyTorch tables name every leaf once, and are invertible; the names, shapes and outputs of the PyTorch reference.

    Args:
        head: a descriptor, or the name of a registered one.
        options: table of its options; None takes the defaults.

    Raises:
        AssertionError: a promise is broken.
    """
    descriptor = registry.default().head(head) if isinstance(head, str) else head
    label = f"head '{descriptor.name}'"
    _check_descriptor(label, descriptor)
    chosen = registry.options(descriptor, options or {})
    refusals = []
    for family, specs in _families().items():
        try:
            wanted = descriptor.select(chosen, specs)
        except ConfigError as error:
            refusals.append(f"{family}: {error}")
            continue
        _check_head_on(f"{label} on {family}", descriptor, chosen, specs, wanted)
    require(len(refusals) < len(_families()), f"{label} refuses every backbone: {'; '.join(refusals)}")


def _check_head_on(label: str, head: Head, chosen: Any, specs: Sequence[FeatureSpec], wanted: Sequence[str]) -> None:
    names = [spec.name for spec in specs]
    require(
        bool(wanted) and len(set(wanted)) == len(wanted) and set(wanted) <= set(names),
        f"{label}: select gave {tuple(wanted)}; it must name some of {tuple(names)}, each once",
    )
    selected = tuple(spec for spec in specs if spec.name in wanted)
    deepest = specs[-1]

    def subject(num_classes: int, hw: tuple[int, int]) -> Subject:
        return Subject(
            label,
            lambda dtype: head.build(
                chosen, selected, num_classes=num_classes, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
            ),
            lambda module, inputs: {"logits": module(inputs, out_hw=hw)},
        )

    def shapes(batch: int, hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        # As the segmenter does: the smallest input of which the deepest feature covers the image.
        rows, cols = (next(n for n in range(size, 9 * size) if deepest.size(n) * deepest.stride >= size) for size in hw)
        return {spec.name: (batch, spec.size(rows), spec.size(cols), spec.channels) for spec in selected}

    for hw, batch, dtype in _variants(SIZES):
        inputs = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes(batch, hw).items()}
        num_classes = 1 if batch == 3 else 7
        _check_shapes(subject(num_classes, hw), inputs, {"logits": (batch, *hw, num_classes)}, dtype)

    hw = SIZES[1]
    whole = subject(7, hw)
    features = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes(3, hw).items())}
    _check_eval_mode(whole, features)
    if head.maskable:
        inner, outer = shapes(1, SIZES[2]), shapes(1, hw)
        known: dict[Any, Any] = {outer[name][1:3]: inner[name][1:3] for name in inner} | {hw: SIZES[2]}
        _check_masked(subject(7, SIZES[2]), whole, {name: normal(i, inner[name]) for i, name in enumerate(inner)}, outer, known)
    _check_gradients(whole, features)
    if head.torch is not None:
        check_tables(whole, head.torch, chosen)
        check_reference(
            whole,
            head.torch,
            chosen,
            features,
            lambda build_reference: build_reference(options=chosen, features=selected, num_classes=7),
            lambda reference, inputs: {"logits": fitted(reference(*inputs.values()), hw)},
        )


def _variants(sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int, Any]]:
    """Height and width, batch and dtype: every size once, and the first in both dtypes and as a batch of three."""
    yield from ((sizes[0], batch, dtype) for batch in (1, 3) for dtype in (jnp.float32, jnp.bfloat16))
    yield from ((hw, 1, jnp.float32) for hw in sizes[1:])


def _families() -> dict[str, tuple[FeatureSpec, ...]]:
    """Features of made-up backbones, whose names tell a head nothing."""

    def family(strides: Sequence[int], size: Callable[[int, int], int]) -> tuple[FeatureSpec, ...]:
        return tuple(
            FeatureSpec(f"feature{i}", 8 + 4 * i, stride, functools.partial(size, stride)) for i, stride in enumerate(strides)
        )

    def up(stride: int, n: int) -> int:
        return -(-n // stride)

    def down(stride: int, n: int) -> int:
        return n // stride

    return {
        "strides 4 to 32, rounded up": family((4, 8, 16, 32), up),
        "strides 2 to 32, rounded down": family((2, 4, 8, 16, 32), down),
        "strides 4 to 16, rounded up, dilated": family((4, 8, 16, 16), up),
        "strides 4 to 8, rounded up, dilated": family((4, 8, 8, 8), up),
    }


def _check_descriptor(label: str, descriptor: Backbone | Head) -> None:
    theirs = descriptor.api_version
    require(
        theirs[0] == API_VERSION[0] and theirs[1] <= API_VERSION[1],
        f"{label}: api_version is {theirs}; this fcn-jax understands {API_VERSION[0]}.0 to {API_VERSION[0]}.{API_VERSION[1]}",
    )
    require("\n" not in descriptor.summary, f"{label}: the summary must be one line")
    require(
        dataclasses.is_dataclass(descriptor.options) and descriptor.options.__dataclass_params__.frozen,  # type: ignore[attr-defined]
        f"{label}: options is {descriptor.options}; it must be a frozen dataclass",
    )
    for name, weights in (descriptor.torch.weights if descriptor.torch else {}).items():
        require(
            re.fullmatch(r"[0-9a-f]{8,64}", weights.sha256) is not None,
            f"{label}: weights {name} have sha256 '{weights.sha256}'; it must be at least 8 leading hexadecimal digits",
        )


def _check_preprocess(label: str, backbone: Backbone) -> None:
    preprocess = backbone.preprocess
    require(
        preprocess.channel_order in ("rgb", "bgr"),
        f"{label}: preprocess.channel_order is '{preprocess.channel_order}'; it must be 'rgb' or 'bgr'",
    )
    require(
        len(preprocess.mean) == len(preprocess.std) == 3 and min(preprocess.std) > 0 and preprocess.scale > 0,
        f"{label}: preprocess is {preprocess}; it needs three means, three deviations above 0 and a scale above 0",
    )


def _check_specs(label: str, specs: Sequence[FeatureSpec], again: Sequence[FeatureSpec], output_stride: int) -> None:
    """Check what the specs promise among themselves; `again` comes from a second call."""

    def plain(specs: Sequence[FeatureSpec]) -> list[tuple[Any, ...]]:
        return [(s.name, s.channels, s.stride, s.offset, s.size(224)) for s in specs]

    require(len(specs) > 0, f"{label}: it has no features")
    require(plain(specs) == plain(again), f"{label}: features gave {plain(specs)}, then {plain(again)}; it must be pure")
    names = [spec.name for spec in specs]
    require(len(set(names)) == len(names), f"{label}: features are named {names}; each name must be there once")
    strides = [spec.stride for spec in specs]
    require(strides == sorted(strides), f"{label}: features have strides {strides}; they go from shallow to deep")
    require(strides[-1] == output_stride, f"{label}: its deepest feature has stride {strides[-1]}")
    for spec in specs:
        where = f"{label}: feature '{spec.name}'"
        require(spec.channels > 0 and spec.stride > 0 and spec.offset >= 0, f"{where}: {spec} is out of range")
        sizes = [spec.size(n) for n in range(1, 1025)]
        require(
            all(small <= large for small, large in itertools.pairwise(sizes)),
            f"{where}: size shrinks where the image grows",
        )
        # Whatever is padded or cropped at the border, one stride more of image is one pixel more of feature.
        for n in range(512, 513 + spec.stride):
            require(
                spec.size(n + spec.stride) == spec.size(n) + 1,
                f"{where}: stride is {spec.stride}, but size({n}) is {spec.size(n)} and size({n + spec.stride}) is "
                f"{spec.size(n + spec.stride)}; they must be 1 apart",
            )


def _check_shapes(subject: Subject, inputs: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], dtype: Any) -> None:
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
        order == list(expected), f"{subject.label}: it returns {order}, its descriptor promises {list(expected)}, in that order"
    )
    for name, shape in expected.items():
        found = outputs[name]
        require(
            found.shape == shape, f"{subject.label}: '{name}' of an input of {given} has shape {found.shape}, promised is {shape}"
        )
        require(
            found.dtype == dtype, f"{subject.label}: '{name}' is {found.dtype} where the compute dtype is {jnp.dtype(dtype).name}"
        )
    for path, leaf in leaves(module).items():
        require(
            not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.float32,
            f"{subject.label}: '{path}' is {leaf.dtype} with compute dtype {jnp.dtype(dtype).name}; parameters are float32",
        )


def _check_eval_mode(subject: Subject, inputs: Mapping[str, Any]) -> None:
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
        again, _ = run(after, inputs)
        among_others, _ = run(state, {name: np.stack([3 * x[0], x[1], x[2] + 1]) for name, x in inputs.items()})
    before = {path: np.asarray(leaf[...]) for path, leaf in leaves(module).items()}
    nnx.update(module, after)
    changed = [path for path, leaf in leaves(module).items() if not np.array_equal(leaf[...], before[path])]
    require(not changed, f"{subject.label}: in eval mode a call changes {listing(changed)}")
    for name, value in outputs.items():
        require(bool(np.isfinite(value).all()), f"{subject.label}: '{name}' has values that are not finite")
        require(np.array_equal(value, again[name]), f"{subject.label}: '{name}' differs between two calls in eval mode")
        off = difference(among_others[name][1], value[1])
        require(
            off < TOLERANCE,
            f"{subject.label}: '{name}' of an image depends on the rest of its batch in eval mode (by {off:.1e})",
        )


def _check_masked(
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
        return jax.jit(lambda state, inputs: subject.call(nnx.merge(graphdef, state), inputs))(state, dict(inputs))

    wanted = run(alone, inputs)
    beside = {name: 100 + normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    for name, x in inputs.items():
        beside[name][:, : x.shape[1], : x.shape[2]] = x
    try:
        with valid.sizes(known):
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


def _check_gradients(subject: Subject, inputs: Mapping[str, Any]) -> None:
    module = subject.build(jnp.float32)
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    def run(params: Any, rest: Any, inputs: Mapping[str, Any]) -> Any:
        return subject.call(nnx.merge(graphdef, params, rest, copy=True), inputs)

    # Weights that differ from value to value: the gradient of a plain sum does not pass through batch normalisation.
    shapes = jax.eval_shape(run, params, rest, dict(inputs))
    weights = {name: normal(i, value.shape) for i, (name, value) in enumerate(shapes.items())}

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    @jax.grad
    def gradient(params: Any, rest: Any, inputs: Mapping[str, Any], weights: Mapping[str, Any]) -> jax.Array:
        outputs = run(params, rest, inputs)
        return jnp.stack([(outputs[name] * weight).mean() for name, weight in weights.items()]).sum()

    grads = gradient(params, rest, dict(inputs), weights)
    bad = [".".join(map(str, path)) for path, leaf in nnx.to_flat_state(grads) if not np.isfinite(leaf[...]).all()]
    require(not bad, f"{subject.label}: in train mode the gradient is not finite at {listing(bad)}")
