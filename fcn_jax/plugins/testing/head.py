"""Compare a head with its descriptor, on the features of made-up backbones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.errors import ConfigError
from fcn_jax.models.spec import select_features
from fcn_jax.plugins import options as plugin_options
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import FeatureSpec, Head, ceil_size, floor_size
from fcn_jax.plugins.testing.contract import (
    SIZES,
    check_descriptor,
    check_eval_mode,
    check_gradients,
    check_shapes,
    variants,
)
from fcn_jax.plugins.testing.subject import (
    COMPILER_OPTIONS,
    TOLERANCE,
    Progress,
    Subject,
    difference,
    ignore,
    normal,
    require,
)
from fcn_jax.plugins.testing.torch_bridge import check_reference, check_tables
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
    label = f"head '{descriptor.name}'"
    check_descriptor(label, descriptor)
    chosen = plugin_options.validate(descriptor, options or {})
    families, refusals = _families(), []
    for family, specs in families.items():
        try:
            _check_names(label, tuple(descriptor.select(chosen, specs)), specs)
            selected = select_features(descriptor, chosen, specs)
        except ConfigError as error:
            refusals.append(f"{family}: {error}")
        else:
            on = f"{label} on {family}"
            _check_on(on, descriptor, chosen, specs[-1], selected, progress)
    require(
        len(refusals) < len(families),
        f"{label} does not accept the features of any backbone: {'; '.join(refusals)}",
    )


def _check_names(label: str, selected: Sequence[str], specs: Sequence[FeatureSpec]) -> None:
    names = tuple(spec.name for spec in specs)
    require(
        bool(selected) and len(set(selected)) == len(selected) and set(selected) <= set(names),
        f"{label}: select returned {selected}; it must name some of {names}, each once",
    )


def _check_on(
    label: str,
    head: Head,
    chosen: Any,
    deepest: FeatureSpec,
    selected: tuple[FeatureSpec, ...],
    progress: Progress,
) -> None:
    def build(specs: tuple[FeatureSpec, ...], num_classes: int, dtype: Any) -> nnx.Module:
        return head.build(
            chosen,
            specs,
            num_classes=num_classes,
            dtype=dtype,
            param_dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )

    def subject(num_classes: int, hw: tuple[int, int]) -> Subject:
        return Subject(
            label,
            lambda dtype: build(selected, num_classes, dtype),
            lambda module, inputs: {"logits": module(inputs, out_hw=hw)},
            progress,
        )

    def shapes(batch: int, hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        # As in `Segmenter`: the smallest input whose deepest feature covers the image.
        rows, cols = (next(filter(deepest.covers, range(size, 9 * size))) for size in hw)
        return {
            spec.name: (batch, spec.size(rows), spec.size(cols), spec.channels) for spec in selected
        }

    subject(1, SIZES[0]).start("shapes")
    for hw, batch, dtype in variants(SIZES):
        inputs = {
            name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes(batch, hw).items()
        }
        num_classes = 1 if batch == 3 else 7
        check_shapes(subject(num_classes, hw), inputs, {"logits": (batch, *hw, num_classes)}, dtype)

    hw = SIZES[1]
    if any(spec.offset for spec in selected):
        _check_offset(label, lambda specs: build(specs, 7, jnp.float32), selected, hw)
        return
    whole = subject(7, hw)
    features = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes(3, hw).items())}
    check_eval_mode(whole, features)
    check_gradients(whole, features)
    if head.torch is not None:
        check_tables(whole, head.torch, chosen)
        check_reference(
            whole,
            head.torch,
            chosen,
            features,
            lambda build_reference: build_reference(
                options=chosen, features=selected, num_classes=7
            ),
            lambda reference, inputs: {
                "logits": head_logits(reference, list(inputs.values()), hw),
            },
        )


def _check_offset(
    label: str,
    build: Callable[[tuple[FeatureSpec, ...]], nnx.Module],
    selected: tuple[FeatureSpec, ...],
    hw: tuple[int, int],
) -> None:
    """Check that a head with `handles_offset` crops features that begin before the image."""
    shapes = {
        spec.name: (1, spec.size(hw[0]), spec.size(hw[1]), spec.channels) for spec in selected
    }
    features = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}

    def logits(specs: tuple[FeatureSpec, ...], out_hw: tuple[int, int]) -> np.ndarray:
        module = build(specs)
        module.eval()
        graphdef, state = nnx.split(module)
        run = jax.jit(
            lambda state, x: nnx.merge(graphdef, state)(x, out_hw=out_hw),
            compiler_options=COMPILER_OPTIONS,
        )
        with jax.default_matmul_precision("highest"):
            return np.asarray(run(state, features))

    deepest = selected[-1]
    found = logits(selected, hw)
    plain = tuple(dataclasses.replace(spec, offset=0) for spec in selected)
    if deepest.offset:
        # With the offset set to 0, it is the same head on a larger image, of which the image is a
        # part.
        top, whole = deepest.offset, tuple(deepest.size(side) * deepest.stride for side in hw)
        larger = logits(plain, (whole[0], whole[1]))
        off = difference(found, larger[:, top : top + hw[0], top : top + hw[1]])
        require(
            off < TOLERANCE,
            f"{label}: its logits do not begin at the image's corner (they differ by {off:.1e})",
        )
    else:
        require(
            difference(found, logits(plain, hw)) > TOLERANCE,
            f"{label}: it ignores a feature's `offset`; crop by it, or do not set `handles_offset`",
        )


@functools.cache
def _padded_size(stride: int, less: int = 0) -> Callable[[int], int]:
    return lambda length: ceil_size(stride)(length + 2 * _OFFSET) - less


def _families() -> dict[str, tuple[FeatureSpec, ...]]:
    """Features of made-up backbones, whose names tell a head nothing."""

    def family(
        strides: Sequence[int], size: Callable[[int], Callable[[int], int]], offset: int = 0
    ) -> tuple[FeatureSpec, ...]:
        return tuple(
            FeatureSpec(f"feature{i}", 8 + 4 * i, stride, size(stride), offset)
            for i, stride in enumerate(strides)
        )

    padded = family((4, 8, 16, 32), _padded_size, _OFFSET)
    # As after a 3x3 convolution without padding, whose first pixel is the second of its input.
    unpadded = dataclasses.replace(padded[-1], size=_padded_size(32, 2), offset=0)
    return {
        "strides 4 to 32, rounded up": family((4, 8, 16, 32), ceil_size),
        "strides 2 to 32, rounded down": family((2, 4, 8, 16, 32), floor_size),
        "strides 4 to 16, rounded up, dilated": family((4, 8, 16, 16), ceil_size),
        "strides 4 to 8, rounded up, dilated": family((4, 8, 8, 8), ceil_size),
        f"strides 4 to 32, all with offset {_OFFSET}": padded,
        f"strides 4 to 32, all except the deepest with offset {_OFFSET}": (*padded[:-1], unpadded),
    }
