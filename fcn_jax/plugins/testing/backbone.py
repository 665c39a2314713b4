"""Compare a backbone with its descriptor."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Backbone, FeatureSpec, Preprocess
from fcn_jax.plugins.testing import contract
from fcn_jax.plugins.testing.subject import Network, Progress, Subject, ignore, normal
from fcn_jax.plugins.testing.torch_bridge import check_bridge
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
    subject = Subject(f"backbone '{descriptor.name}'", progress)
    chosen = contract.check_descriptor(subject, descriptor, options)
    strides = descriptor.output_strides
    if not strides or len(set(strides)) < len(strides):
        subject.fail(f"output_strides is {strides}; it must name at least one, and each once")
    _check_preprocess(subject, descriptor.preprocess)
    for stride in strides:
        _check_at(subject.part(f" at output stride {stride}"), descriptor, chosen, stride)


def _check_at(subject: Subject, backbone: Backbone, options: Any, stride: int) -> None:
    subject.start("features")
    specs = backbone.features(options, stride)
    _check_specs(subject, specs, backbone.features(options, stride), stride)
    legal = [hw for hw in contract.SIZES if all(spec.size(n) >= 1 for spec in specs for n in hw)]
    if not legal:
        subject.fail(f"by `size`, every image of {contract.SIZES} gives an empty feature")
    network = Network(
        subject,
        functools.partial(backbone.build, options, output_stride=stride),
        lambda module, inputs: module(*inputs),
    )
    for hw, batch, dtype in contract.variants(legal):
        image = jax.ShapeDtypeStruct((batch, *hw, 3), jnp.float32)
        contract.check_shapes(network, [image], contract.feature_shapes(specs, batch, hw), dtype)

    odd = (65, 97) if (65, 97) in legal else legal[0]
    images = normal(1, (3, *odd, 3))
    if stride == backbone.output_strides[0]:
        contract.check_eval_mode(network, [images])
        contract.check_gradients(network, [images])
    check_bridge(
        network,
        backbone.torch,
        [images],
        lambda reference, inputs: torch_features(reference, inputs[0], specs),
        options=options,
        output_stride=stride,
    )


def _check_preprocess(subject: Subject, preprocess: Preprocess) -> None:
    if preprocess.channel_order not in ("rgb", "bgr"):
        subject.fail(
            f"preprocess.channel_order is '{preprocess.channel_order}'; it must be 'rgb' or 'bgr'"
        )
    if not (
        len(preprocess.mean) == len(preprocess.std) == 3
        and min(preprocess.std) > 0
        and preprocess.scale > 0
    ):
        subject.fail(
            f"preprocess is {preprocess}; it needs three means, three deviations above 0 and a "
            "scale above 0"
        )


def _check_specs(
    subject: Subject, specs: Sequence[FeatureSpec], again: Sequence[FeatureSpec], stride: int
) -> None:
    """Check the specs without building the network; `again` comes from a second call."""
    if not specs:
        subject.fail("it has no features")
    if specs != again:
        subject.fail(
            f"two calls of `features` give specs that are not equal: {specs}, then {again}. It "
            "must be pure, and `size` the same function each time: use ceil_size, floor_size, or a "
            "function at module level with functools.cache"
        )
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        subject.fail(f"the features are named {names}; each name must occur once")
    strides = [spec.stride for spec in specs]
    if strides != sorted(strides):
        subject.fail(f"the features have strides {strides}; their order must be shallow to deep")
    if strides[-1] != stride:
        subject.fail(f"its deepest feature has stride {strides[-1]}")
    for spec in specs:
        _check_spec(subject.part(f": feature '{spec.name}'"), spec)


def _check_spec(subject: Subject, spec: FeatureSpec) -> None:
    stride, size = spec.stride, spec.size
    if spec.channels < 1 or stride < 1 or spec.offset < 0:
        subject.fail(f"{spec} is out of range")
    if any(size(n) > size(n + 1) for n in range(1, 1024)):
        subject.fail("`size` decreases for a larger image")
    for n in range(1, 2 * stride + 1):
        longest = n + 2 * stride - 1
        if not any(map(spec.covers, range(n, longest + 1))):
            subject.fail(
                f"it covers no image of {n} to {longest} pixels: for {longest} pixels it declares "
                f"{size(longest)} cells of {stride} pixels, the first of which begins "
                f"{spec.offset} pixels before the image"
            )
    # Independent of padding and cropping at the border, an image that is one stride longer makes
    # the feature one pixel longer.
    for n in range(512, 513 + stride):
        if size(n + stride) != size(n) + 1:
            subject.fail(
                f"the stride is {stride}, but size({n}) is {size(n)} and size({n + stride}) is "
                f"{size(n + stride)}; they must differ by 1"
            )
