"""A backbone held against its descriptor."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Backbone, FeatureSpec
from fcn_jax.plugins.testing.contract import (
    SIZES,
    check_descriptor,
    check_eval_mode,
    check_gradients,
    check_masked,
    check_shapes,
    check_sizes_known,
    large,
    variants,
)
from fcn_jax.plugins.testing.subject import Subject, normal, require
from fcn_jax.plugins.testing.torch_bridge import check_reference, check_tables
from fcn_jax.verify.reference import torch_features


def check_backbone(backbone: str | Backbone, options: Mapping[str, Any] | None = None) -> None:
    """Hold a backbone against its descriptor.

    Checked, for every output stride: names, order, channels, sizes and strides of the features at
    odd and even sizes and batches of one and three; that they cover the image; float32 and bfloat16
    outputs over float32 parameters; that the PyTorch tables name every leaf once, and are
    invertible; the names, shapes and outputs of the PyTorch reference. For the default stride: that
    eval mode is deterministic, changes no state and treats each image alone; that every parameter's
    gradient in train mode is finite.

    Args:
        backbone: a descriptor, or the name of a registered one.
        options: table of its options; None takes the defaults.

    Raises:
        AssertionError: a promise is broken.
    """
    descriptor = registry.default().backbone(backbone) if isinstance(backbone, str) else backbone
    label = f"backbone '{descriptor.name}'"
    check_descriptor(label, descriptor)
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
        return backbone.build(
            chosen, output_stride=stride, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
        )

    subject = Subject(label, build, lambda module, inputs: module(inputs["image"]))
    specs = backbone.features(chosen, stride)
    _check_specs(label, specs, backbone.features(chosen, stride), stride)
    legal = [hw for hw in SIZES if all(spec.size(n) >= 1 for spec in specs for n in hw)]
    require(bool(legal), f"{label}: by `size`, every image of {SIZES} gives an empty feature")
    for hw, batch, dtype in variants(legal):
        expected = {
            spec.name: (batch, spec.size(hw[0]), spec.size(hw[1]), spec.channels) for spec in specs
        }
        check_shapes(
            subject, {"image": jax.ShapeDtypeStruct((batch, *hw, 3), jnp.float32)}, expected, dtype
        )

    odd = (65, 97) if (65, 97) in legal else legal[0]
    images = {"image": normal(1, (3, *odd, 3))}
    if stride == backbone.output_strides[0]:
        check_eval_mode(subject, images)
        inner = next((hw for hw in legal if hw[0] < odd[0] and hw[1] < odd[1]), None)
        if backbone.maskable and inner is not None:
            check_masked(
                subject,
                subject,
                {"image": normal(2, (1, *inner, 3))},
                {"image": (1, *odd, 3)},
                {odd: inner},
            )
        if backbone.maskable:
            check_sizes_known(subject, large(stride), {"image": (1, *large(stride), 3)})
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
        f"{label}: preprocess.channel_order is '{preprocess.channel_order}'; it must be 'rgb' or 'bgr'",
    )
    require(
        len(preprocess.mean) == len(preprocess.std) == 3
        and min(preprocess.std) > 0
        and preprocess.scale > 0,
        f"{label}: preprocess is {preprocess}; it needs three means, three deviations above 0 and a scale above 0",
    )


def _check_specs(
    label: str, specs: Sequence[FeatureSpec], again: Sequence[FeatureSpec], output_stride: int
) -> None:
    """Check what the specs promise among themselves; `again` comes from a second call."""

    def plain(specs: Sequence[FeatureSpec]) -> list[tuple[Any, ...]]:
        return [(s.name, s.channels, s.stride, s.offset, s.size(224)) for s in specs]

    require(len(specs) > 0, f"{label}: it has no features")
    require(
        plain(specs) == plain(again),
        f"{label}: features gave {plain(specs)}, then {plain(again)}; it must be pure",
    )
    names = [spec.name for spec in specs]
    require(
        len(set(names)) == len(names),
        f"{label}: features are named {names}; each name must be there once",
    )
    strides = [spec.stride for spec in specs]
    require(
        strides == sorted(strides),
        f"{label}: features have strides {strides}; they go from shallow to deep",
    )
    require(strides[-1] == output_stride, f"{label}: its deepest feature has stride {strides[-1]}")
    for spec in specs:
        where = f"{label}: feature '{spec.name}'"
        require(
            spec.channels > 0 and spec.stride > 0 and spec.offset >= 0,
            f"{where}: {spec} is out of range",
        )
        sizes = [spec.size(n) for n in range(1, 1025)]
        require(
            all(small <= large for small, large in itertools.pairwise(sizes)),
            f"{where}: size shrinks where the image grows",
        )
        for n in range(1, 2 * spec.stride + 1):
            require(
                any(map(spec.covers, range(n, n + 2 * spec.stride))),
                f"{where} covers no image of {n} to {n + 2 * spec.stride - 1} pixels; of the longest it has, it says, "
                f"{spec.size(n + 2 * spec.stride - 1)} cells of {spec.stride} pixels, the first {spec.offset} pixels before the image",
            )
        # Whatever is padded or cropped at the border, one stride more of image is one pixel more of
        # feature.
        for n in range(512, 513 + spec.stride):
            require(
                spec.size(n + spec.stride) == spec.size(n) + 1,
                f"{where}: stride is {spec.stride}, but size({n}) is {spec.size(n)} and size({n + spec.stride}) is "
                f"{spec.size(n + spec.stride)}; they must be 1 apart",
            )
