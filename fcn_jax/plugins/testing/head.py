"""A head held against its descriptor."""

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
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import FeatureSpec, Head, ceil_size
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
from fcn_jax.plugins.testing.subject import (
    COMPILER_OPTIONS,
    TOLERANCE,
    Subject,
    difference,
    normal,
    require,
)
from fcn_jax.plugins.testing.torch_bridge import check_reference, check_tables
from fcn_jax.verify.reference import fitted

_OFFSET = 32
"""By how many pixels the features of some made-up backbones begin before the image: whole cells of all of them."""


def check_head(head: str | Head, options: Mapping[str, Any] | None = None) -> None:
    """Hold a head against its descriptor, on the features of made-up backbones that round sizes up and down, or pad the image.

    Checked: that it takes only features it selected, and refuses those that begin before the image
        or accounts for it; the logits'
    size, classes and dtype at odd and even image sizes; that eval mode is deterministic, changes no
    state and treats each image alone; that logits in blocks, where it offers them, are its logits;
    that every parameter's gradient in train mode is finite; that the PyTorch tables name every leaf
    once, and are invertible; the names, shapes and outputs of the PyTorch reference.

    Args:
        head: a descriptor, or the name of a registered one.
        options: table of its options; None takes the defaults.

    Raises:
        AssertionError: a promise is broken.
    """
    descriptor = registry.default().head(head) if isinstance(head, str) else head
    label = f"head '{descriptor.name}'"
    check_descriptor(label, descriptor)
    chosen = registry.options(descriptor, options or {})
    refusals = []
    for family, specs in _families().items():
        try:
            wanted = descriptor.select(chosen, specs)
        except ConfigError as error:
            refusals.append(f"{family}: {error}")
            continue
        _check_head_on(f"{label} on {family}", descriptor, chosen, specs, wanted)
    require(
        len(refusals) < len(_families()), f"{label} refuses every backbone: {'; '.join(refusals)}"
    )


def _check_head_on(
    label: str, head: Head, chosen: Any, specs: Sequence[FeatureSpec], wanted: Sequence[str]
) -> None:
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
                chosen,
                selected,
                num_classes=num_classes,
                dtype=dtype,
                param_dtype=jnp.float32,
                rngs=nnx.Rngs(0),
            ),
            lambda module, inputs: {"logits": module(inputs, out_hw=hw)},
        )

    def shapes(batch: int, hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        # As the segmenter does: the smallest input of which the deepest feature covers the image.
        rows, cols = (next(filter(deepest.covers, range(size, 9 * size))) for size in hw)
        return {
            spec.name: (batch, spec.size(rows), spec.size(cols), spec.channels) for spec in selected
        }

    for hw, batch, dtype in variants(SIZES):
        inputs = {
            name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes(batch, hw).items()
        }
        num_classes = 1 if batch == 3 else 7
        check_shapes(subject(num_classes, hw), inputs, {"logits": (batch, *hw, num_classes)}, dtype)

    hw = SIZES[1]
    if any(spec.offset for spec in specs):
        types: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": jnp.float32}
        _check_offset(
            label,
            lambda specs: head.build(chosen, specs, num_classes=7, rngs=nnx.Rngs(0), **types),
            selected,
            hw,
        )
        return
    whole = subject(7, hw)
    features = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes(3, hw).items())}
    check_eval_mode(whole, features)
    _check_blocks(whole, features, hw)
    if head.maskable:
        inner, outer = shapes(1, SIZES[2]), shapes(1, hw)
        known: dict[Any, Any] = {outer[name][1:3]: inner[name][1:3] for name in inner} | {
            hw: SIZES[2]
        }
        check_masked(
            subject(7, SIZES[2]),
            whole,
            {name: normal(i, inner[name]) for i, name in enumerate(inner)},
            outer,
            known,
        )
        whole_cells = large(deepest.stride)
        check_sizes_known(subject(7, whole_cells), whole_cells, shapes(1, whole_cells), selected)
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
            lambda reference, inputs: {"logits": fitted(reference(*inputs.values()), hw)},
        )


def _check_blocks(subject: Subject, features: Mapping[str, Any], hw: tuple[int, int]) -> None:
    """Check that logits in blocks, which a head may offer for GPUs and TPUs, are its logits."""
    module = subject.build(jnp.float32)
    if not hasattr(module, "logits_in_blocks"):
        return
    module.eval()
    graphdef, state = nnx.split(module)

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def run(state: Any, features: Mapping[str, Any]) -> tuple[jax.Array, Any]:
        network = nnx.merge(graphdef, state)
        blocks = network.logits_in_blocks(features, out_hw=hw)
        require(
            blocks is None or isinstance(blocks, SubpixelLogits),
            f"{subject.label}: logits_in_blocks gives {type(blocks).__name__}; it must give fcn_jax.nn._subpixel.SubpixelLogits or None",
        )
        return subject.call(network, features)["logits"], None if blocks is None else blocks.images

    with jax.default_matmul_precision("highest"):
        logits, found = run(state, dict(features))
    if found is None:
        return
    require(
        found.shape == logits.shape,
        f"{subject.label}: logits_in_blocks gives {found.shape}, the head itself {logits.shape}",
    )
    off = difference(found, logits)
    require(
        off < TOLERANCE,
        f"{subject.label}: logits_in_blocks differs from the head's logits (by {off:.1e})",
    )


def _check_offset(
    label: str,
    build: Callable[[tuple[FeatureSpec, ...]], nnx.Module],
    selected: tuple[FeatureSpec, ...],
    hw: tuple[int, int],
) -> None:
    """Check that a head which takes features that begin before the image accounts for it, whole cells of all of them."""
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
        # On features of all that the cells lie on, it is the same head; the image is a part of
        # that.
        top, whole = deepest.offset, tuple(deepest.size(side) * deepest.stride for side in hw)
        wanted = logits(plain, (whole[0], whole[1]))[:, top : top + hw[0], top : top + hw[1]]
        off = difference(found, wanted)
        require(
            off < TOLERANCE,
            f"{label}: its logits are not those of the image, but begin elsewhere (they differ by {off:.1e})",
        )
    else:
        require(
            all(spec.offset == 0 for spec in selected)
            or difference(found, logits(plain, hw)) > TOLERANCE,
            f"{label}: where a feature begins makes no difference to it; it must account for `offset`, or refuse it in `select`",
        )


def _families() -> dict[str, tuple[FeatureSpec, ...]]:
    """Features of made-up backbones, whose names tell a head nothing."""

    def family(
        strides: Sequence[int], size: Callable[[int, int], int], offset: int = 0
    ) -> tuple[FeatureSpec, ...]:
        return tuple(
            FeatureSpec(f"feature{i}", 8 + 4 * i, stride, functools.partial(size, stride), offset)
            for i, stride in enumerate(strides)
        )

    def up(stride: int, n: int) -> int:
        return ceil_size(stride)(n)

    def of_padded(stride: int, n: int) -> int:
        return ceil_size(stride)(n + 2 * _OFFSET)

    padded = family((4, 8, 16, 32), of_padded, _OFFSET)
    # As of an unpadded 3x3 convolution, whose first cell is the second of what it sees.
    unpadded = dataclasses.replace(padded[-1], size=lambda n: of_padded(32, n) - 2, offset=0)

    def down(stride: int, n: int) -> int:
        return n // stride

    return {
        "strides 4 to 32, rounded up": family((4, 8, 16, 32), up),
        "strides 2 to 32, rounded down": family((2, 4, 8, 16, 32), down),
        "strides 4 to 16, rounded up, dilated": family((4, 8, 16, 16), up),
        "strides 4 to 8, rounded up, dilated": family((4, 8, 8, 8), up),
        f"strides 4 to 32, all of which begin {_OFFSET} pixels before the image": padded,
        f"strides 4 to 32, of which all but the deepest begin {_OFFSET} pixels before the image": (
            *padded[:-1],
            unpadded,
        ),
    }
