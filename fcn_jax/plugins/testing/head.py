"""Compare a head with its descriptor, on the features of made-up backbones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.models.spec import select_features
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import FeatureSpec, Head, ceil_size, floor_size
from fcn_jax.plugins.testing import contract
from fcn_jax.plugins.testing.subject import (
    TOLERANCE,
    Network,
    Progress,
    Subject,
    difference,
    ignore,
    normal,
)
from fcn_jax.plugins.testing.torch_bridge import check_bridge
from fcn_jax.verify.reference import head_logits

_OFFSET = 32
"""Offset of the features of some made-up backbones, in pixels: a multiple of all their strides."""


def check_head(
    head: str | Head, options: Mapping[str, Any] | None = None, *, progress: Progress = ignore
) -> None:
    """Compare a head with its descriptor.

    On features of backbones that round sizes up, round them down or pad the image: that it takes
    only features that it selected, and crops features with an offset if it says so; the logits'
    size, classes and dtype at odd and even image sizes; that eval mode is deterministic, changes no
    state and treats each image separately; that every parameter's gradient in train mode is finite;
    that the PyTorch tables name every parameter once and are invertible; the names, shapes and
    outputs of the PyTorch reference.

    Args:
        head: a descriptor, or the name of a registered one.
        options: table of its options; None for the defaults.
        progress: called with each check's name before it runs.

    Raises:
        AssertionError: a promise is broken.
    """
    descriptor = registry.default().head(head) if isinstance(head, str) else head
    subject = Subject(f"head '{descriptor.name}'", progress)
    chosen = contract.check_descriptor(subject, descriptor, options)
    families, refusals = _families(), []
    for family, specs in families.items():
        names = tuple(spec.name for spec in specs)
        try:
            taken = tuple(descriptor.select(chosen, specs))
            if not taken or len(set(taken)) < len(taken) or not set(taken) <= set(names):
                subject.fail(f"select returned {taken}; it must name some of {names}, each once")
            selected = select_features(descriptor, chosen, specs)
        except ConfigError as error:
            refusals.append(f"{family}: {error}")
        else:
            _check_on(subject.part(f" on {family}"), descriptor, chosen, specs[-1], selected)
    if len(refusals) == len(families):
        subject.fail(f"it does not accept the features of any backbone: {'; '.join(refusals)}")


def _check_on(
    subject: Subject,
    head: Head,
    options: Any,
    deepest: FeatureSpec,
    selected: tuple[FeatureSpec, ...],
) -> None:
    def network(
        hw: tuple[int, int], num_classes: int = 7, specs: tuple[FeatureSpec, ...] = selected
    ) -> Network:
        names = [spec.name for spec in specs]
        return Network(
            subject,
            functools.partial(head.build, options, specs, num_classes=num_classes),
            lambda module, inputs: {
                "logits": module(dict(zip(names, inputs, strict=True)), out_hw=hw)
            },
        )

    def shapes(batch: int, hw: tuple[int, int]) -> list[tuple[int, ...]]:
        # As in `Segmenter`: the smallest input whose deepest feature covers the image.
        rows, cols = (next(filter(deepest.covers, range(size, 9 * size))) for size in hw)
        return list(contract.feature_shapes(selected, batch, (rows, cols)).values())

    subject.start("shapes")
    for hw, batch, dtype in contract.variants(contract.SIZES):
        inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes(batch, hw)]
        num_classes = 1 if batch == 3 else 7
        contract.check_shapes(
            network(hw, num_classes), inputs, {"logits": (batch, *hw, num_classes)}, dtype
        )

    hw = contract.SIZES[1]
    features = [normal(i, shape) for i, shape in enumerate(shapes(3, hw))]
    if any(spec.offset for spec in selected):
        _check_offset(network, selected, hw, features)
        return
    contract.check_eval_mode(network(hw), features)
    contract.check_gradients(network(hw), features)
    check_bridge(
        network(hw),
        head.torch,
        features,
        lambda reference, inputs: {"logits": head_logits(reference, inputs, hw)},
        options=options,
        features=selected,
        num_classes=7,
    )


def _check_offset(
    network: Callable[..., Network],
    selected: tuple[FeatureSpec, ...],
    hw: tuple[int, int],
    features: Sequence[np.ndarray],
) -> None:
    """Check that a head with `handles_offset` crops features that begin before the image."""
    fail = network(hw).subject.fail

    def logits(hw: tuple[int, int], specs: tuple[FeatureSpec, ...]) -> np.ndarray:
        run, state = contract.eval_mode(network(hw, specs=specs))
        return np.asarray(run(state, features)[0]["logits"])

    deepest = selected[-1]
    found = logits(hw, selected)
    plain = tuple(dataclasses.replace(spec, offset=0) for spec in selected)
    if deepest.offset:
        # With the offset set to 0, it is the same head on a larger image, of which the image is a
        # part.
        top, whole = deepest.offset, tuple(deepest.size(side) * deepest.stride for side in hw)
        larger = logits((whole[0], whole[1]), plain)
        off = difference(found, larger[:, top : top + hw[0], top : top + hw[1]])
        if not off < TOLERANCE:
            fail(f"its logits do not begin at the image's corner (they differ by {off:.1e})")
    elif not difference(found, logits(hw, plain)) > TOLERANCE:
        fail("it ignores a feature's `offset`; crop by it, or do not set `handles_offset`")


@functools.cache
def _padded_size(stride: int, less: int = 0) -> Callable[[int], int]:
    return lambda length: ceil_size(stride)(length + 2 * _OFFSET) - less


def _families() -> dict[str, tuple[FeatureSpec, ...]]:
    """Features of made-up backbones, whose names tell a head nothing."""

    def family(
        *strides: int, size: Callable[[int], Callable[[int], int]] = ceil_size, offset: int = 0
    ) -> tuple[FeatureSpec, ...]:
        return tuple(
            FeatureSpec(f"feature{i}", 8 + 4 * i, stride, size(stride), offset)
            for i, stride in enumerate(strides)
        )

    padded = family(4, 8, 16, 32, size=_padded_size, offset=_OFFSET)
    # As after a 3x3 convolution without padding, whose first pixel is the second of its input.
    unpadded = dataclasses.replace(padded[-1], size=_padded_size(32, 2), offset=0)
    return {
        "strides 4 to 32, rounded up": family(4, 8, 16, 32),
        "strides 2 to 32, rounded down": family(2, 4, 8, 16, 32, size=floor_size),
        "strides 4 to 16, rounded up, dilated": family(4, 8, 16, 16),
        "strides 4 to 8, rounded up, dilated": family(4, 8, 8, 8),
        f"strides 4 to 32, all with offset {_OFFSET}": padded,
        f"strides 4 to 32, all except the deepest with offset {_OFFSET}": (*padded[:-1], unpadded),
    }
