"""Compare a backbone with its descriptor."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.plugins import options as plugin_options
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Backbone, FeatureSpec
from fcn_jax.plugins.testing.contract import (
    SIZES,
    check_descriptor,
    check_eval_mode,
    check_gradients,
    check_shapes,
    variants,
)
from fcn_jax.plugins.testing.subject import Progress, Subject, ignore, normal, require
from fcn_jax.plugins.testing.torch_bridge import check_reference, check_tables
from fcn_jax.verify.reference import torch_features


def check_backbone(
    backbone: str | Backbone,
    options: Mapping[str, Any] | None = None,
    *,
    progress: Progress = ignore,
) -> None:
    """Compare a backbone with its descriptor.

    For every output stride: the features' names, order, channels, sizes and strides at odd and even
    sizes and batches of one and three; that equal arguments give equal specs; that the features
    cover the image; float32 and bfloat16 outputs with float32 parameters; that the PyTorch tables
    name every parameter once and are invertible; the names, shapes and outputs of the PyTorch
    reference. For the default stride: that eval mode is deterministic, changes no state and treats
    each image separately; that every parameter's gradient in train mode is finite.

    Args:
        backbone: a descriptor, or the name of a registered one.
        options: table of its options; None for the defaults.
        progress: called with each check's name before it runs.

    Raises:
        AssertionError: a promise is broken.
    """
    descriptor = registry.default().backbone(backbone) if isinstance(backbone, str) else backbone
    label = f"backbone '{descriptor.name}'"
    check_descriptor(label, descriptor)
    strides = descriptor.output_strides
    require(
        len(set(strides)) == len(strides) > 0,
        f"{label}: output_strides is {strides}; it must name at least one, and each once",
    )
    _check_preprocess(label, descriptor)
    chosen = plugin_options.validate(descriptor, options or {})
    for stride in strides:
        _check_at(f"{label} at output stride {stride}", descriptor, chosen, stride, progress)


def _check_at(label: str, backbone: Backbone, chosen: Any, stride: int, progress: Progress) -> None:
    def build(dtype: Any) -> nnx.Module:
        return backbone.build(
            chosen, output_stride=stride, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
        )

    subject = Subject(label, build, lambda module, inputs: module(inputs["image"]), progress)
    subject.start("features")
    specs = backbone.features(chosen, stride)
    _check_specs(label, specs, backbone.features(chosen, stride), stride)
    legal = [hw for hw in SIZES if all(spec.size(n) >= 1 for spec in specs for n in hw)]
    require(bool(legal), f"{label}: by `size`, every image of {SIZES} gives an empty feature")
    for hw, batch, dtype in variants(legal):
        expected = {
            spec.name: (batch, spec.size(hw[0]), spec.size(hw[1]), spec.channels) for spec in specs
        }
        image = jax.ShapeDtypeStruct((batch, *hw, 3), jnp.float32)
        check_shapes(subject, {"image": image}, expected, dtype)

    odd = (65, 97) if (65, 97) in legal else legal[0]
    images = {"image": normal(1, (3, *odd, 3))}
    if stride == backbone.output_strides[0]:
        check_eval_mode(subject, images)
        check_gradients(subject, images)
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


def _check_preprocess(label: str, backbone: Backbone) -> None:
    preprocess = backbone.preprocess
    require(
        preprocess.channel_order in ("rgb", "bgr"),
        f"{label}: preprocess.channel_order is '{preprocess.channel_order}'; it must be 'rgb' or "
        "'bgr'",
    )
    require(
        len(preprocess.mean) == len(preprocess.std) == 3
        and min(preprocess.std) > 0
        and preprocess.scale > 0,
        f"{label}: preprocess is {preprocess}; it needs three means, three deviations above 0 and "
        "a scale above 0",
    )


def _check_specs(
    label: str, specs: Sequence[FeatureSpec], again: Sequence[FeatureSpec], output_stride: int
) -> None:
    """Check the specs without building the network; `again` comes from a second call."""
    require(len(specs) > 0, f"{label}: it has no features")
    require(
        specs == again,
        f"{label}: two calls of `features` give specs that are not equal: {specs}, then {again}. "
        "It must be pure, and `size` the same function each time: use ceil_size, floor_size, or a "
        "function at module level with functools.cache",
    )
    names = [spec.name for spec in specs]
    require(
        len(set(names)) == len(names),
        f"{label}: the features are named {names}; each name must occur once",
    )
    strides = [spec.stride for spec in specs]
    require(
        strides == sorted(strides),
        f"{label}: the features have strides {strides}; their order must be shallow to deep",
    )
    require(strides[-1] == output_stride, f"{label}: its deepest feature has stride {strides[-1]}")
    for spec in specs:
        _check_spec(f"{label}: feature '{spec.name}'", spec)


def _check_spec(where: str, spec: FeatureSpec) -> None:
    require(
        spec.channels > 0 and spec.stride > 0 and spec.offset >= 0,
        f"{where}: {spec} is out of range",
    )
    sizes = [spec.size(n) for n in range(1, 1025)]
    require(
        all(small <= large for small, large in itertools.pairwise(sizes)),
        f"{where}: `size` decreases for a larger image",
    )
    for n in range(1, 2 * spec.stride + 1):
        longest = n + 2 * spec.stride - 1
        require(
            any(map(spec.covers, range(n, longest + 1))),
            f"{where} covers no image of {n} to {longest} pixels: for {longest} pixels it has "
            f"{spec.size(longest)} cells of {spec.stride} pixels, and its offset is {spec.offset}",
        )
    # Independent of padding and cropping at the border, an image that is one stride longer makes
    # the feature one pixel longer.
    for n in range(512, 513 + spec.stride):
        require(
            spec.size(n + spec.stride) == spec.size(n) + 1,
            f"{where}: the stride is {spec.stride}, but size({n}) is {spec.size(n)} and "
            f"size({n + spec.stride}) is {spec.size(n + spec.stride)}; they must differ by 1",
        )
