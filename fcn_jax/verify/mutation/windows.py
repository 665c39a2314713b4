"""Faults of convolutions, pools and resizing: padding, strides, dilation, borders, alignment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fcn_jax.verify.mutation.mutant import Mutant
from fcn_jax.verify.program import Equation, Patch, Program, Value

_POOLS = {"reduce_window_max": -np.inf, "reduce_window_min": np.inf, "reduce_window_sum": 0.0}


def padding_mode(program: Program) -> list[Mutant]:
    """A convolution pads with its border pixels, or with their reflection, instead of zeros."""
    found = []
    for index, equation in enumerate(program.equations):
        if equation.name == "conv_general_dilated" and _is_plain(equation):
            widths = _by_axis(equation, equation.params["padding"])
            change: dict[str, Any] = {"padding": ((0, 0),) * len(equation.params["padding"])}
        elif equation.name == "pad" and _pads_convolution(program, equation):
            widths = [(low, high) for low, high, _ in equation.params["padding_config"]]
            change = {}
        else:
            continue
        if not any(low > 0 or high > 0 for low, high in widths):
            continue
        for mode in ("edge", "reflect"):
            run = _padded(equation if change else None, widths, mode, change)
            inputs = equation.inputs if change else equation.inputs[:1]
            what = f"{mode} for zeros"
            found.append(_mutant("padding mode", what, index, equation, run, inputs))
    return found


def _padded(
    equation: Equation | None, widths: Sequence[tuple[int, int]], mode: str, change: dict[str, Any]
) -> Callable[..., Any]:
    def run(x: Any, *kernel: Any) -> Any:
        positive = [(max(low, 0), max(high, 0)) for low, high in widths]
        padded = np.pad(x, positive, mode=mode)  # type: ignore[call-overload]
        return (padded,) if equation is None else equation.run(padded, *kernel, **change)

    return run


def _pads_convolution(program: Program, equation: Equation) -> bool:
    """Whether an equation pads the images of a convolution with zeros."""
    plain = all(
        low >= 0 and high >= 0 and inner == 0
        for low, high, inner in equation.params["padding_config"]
    )
    return (
        plain
        and equation.inputs[0] in program.of_inputs
        and program.scalar(equation.inputs[1]) == 0
        and any(
            reader.name == "conv_general_dilated" and reader.inputs[0] is equation.outputs[0]
            for reader in program.readers(equation.outputs[0])
        )
    )


def stride(program: Program) -> list[Mutant]:
    """A strided convolution starts one pixel later, or its input is thinned out instead."""
    found = []
    for index, equation in _convolutions(program):
        strides = equation.params["window_strides"]
        spread = equation.params["lhs_dilation"]
        if max(strides) == 1 and max(spread) == 1:
            continue
        axes = _spatial(equation)
        shifted = _shifted(equation, axes, 0.0)
        found.append(_mutant("stride", "one pixel later", index, equation, shifted))
        thinned, taps = _thinned(equation), _taps(equation)
        if max(spread) == 1 and max(taps) > 1 and _fits(equation, thinned):
            what = "in the layer before, not in this one"
            found.append(_mutant("stride", what, index, equation, thinned))
    return found


def _thinned(equation: Equation) -> Callable[..., Any]:
    steps = dict(zip(_spatial(equation), equation.params["window_strides"], strict=True))

    def run(x: Any, kernel: Any) -> Any:
        part = x[tuple(slice(None, None, steps.get(axis, 1)) for axis in range(x.ndim))]
        return equation.run(part, kernel, window_strides=(1,) * len(steps))

    return run


def dilation(program: Program) -> list[Mutant]:
    """The taps of a kernel are further apart, or next to each other; the size stays."""
    found = []
    for index, equation in _convolutions(program):
        taps = _taps(equation)
        old = equation.params["rhs_dilation"]
        if max(taps) == 1 or not _is_plain(equation):
            continue
        new = tuple(2 if d == 1 else 1 for d in old)
        growth = [(k - 1) * (b - a) for k, a, b in zip(taps, old, new, strict=True)]
        padding = tuple(
            (low + more // 2, high + more - more // 2)
            for (low, high), more in zip(equation.params["padding"], growth, strict=True)
        )
        if any(low < 0 or high < 0 for low, high in padding):
            continue

        def run(
            x: Any, kernel: Any, equation: Any = equation, new: Any = new, padding: Any = padding
        ) -> Any:
            return equation.run(x, kernel, rhs_dilation=new, padding=padding)

        what = f"{max(new)} for {max(old)}"
        found.append(_mutant("dilation", what, index, equation, run))
    return found


def pool_window(program: Program) -> list[Mutant]:
    """The windows of a pool start one pixel later."""
    return [
        _mutant("pool window", "one pixel later", index, equation, _shifted(equation, axes, fill))
        for index, equation, axes, fill in _pools(program)
    ]


def ceil_mode(program: Program) -> list[Mutant]:
    """A pool has one more row and column of windows, or one less, where sizes do not divide."""
    found = []
    for index, equation, axes, _ in _pools(program):
        size, steps, padding = (
            equation.params[key] for key in ("window_dimensions", "window_strides", "padding")
        )
        shape = equation.inputs[0].shape
        ends = list(padding)
        for axis in axes:
            low, high = padding[axis]
            rest = (shape[axis] + low + high - size[axis]) % steps[axis]
            if high > low:  # ceil mode has added to this side
                ends[axis] = (low, low)
            elif rest and steps[axis] - rest < size[axis] - high:
                ends[axis] = (low, high + steps[axis] - rest)

        def run(x: Any, equation: Equation = equation, ends: Any = tuple(ends)) -> Any:
            return equation.run(x, padding=ends)

        if not _fits(equation, run):
            ceil = any(new[1] > old[1] for new, old in zip(ends, padding, strict=True))
            what = "ceil for floor" if ceil else "floor for ceil"
            found.append(_mutant("ceil mode", what, index, equation, run))
    return found


def count_include_pad(program: Program) -> list[Mutant]:
    """An average pool divides by the number of pixels instead of the window's size, or reverse."""
    found = []
    for _, pool, axes, _ in _pools(program):
        padding = pool.params["padding"]
        window = float(np.prod(pool.params["window_dimensions"]))
        if pool.name != "reduce_window_sum" or not any(any(padding[axis]) for axis in axes):
            continue
        for index in program.consumers.get(pool.outputs[0], ()):
            division = program.equations[index]
            count = division.inputs[-1]
            if division.name != "div" or count not in program.known:
                continue
            if program.scalar(count) is None:
                what, divisor = "counted for not counted", np.asarray(window)
            else:
                ones = np.ones((1, *pool.inputs[0].shape[1:]), np.float32)
                what, divisor = "not counted for counted", np.asarray(pool.run(ones)[0])

            def run(total: Any, divisor: Any = divisor) -> Any:
                return (total / np.asarray(divisor, total.dtype),)

            inputs = (pool.outputs[0],)
            found.append(_mutant("count_include_pad", what, index, division, run, inputs))
    return found


def resizing(program: Program) -> list[Mutant]:
    """Resizing by products with matrices of weights, whose pixels are aligned in another way."""
    found = []
    for index, equation in enumerate(program.equations):
        if equation.name != "dot_general":
            continue
        (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = equation.params["dimension_numbers"]
        sides = ((0, lhs_axes, lhs_batch), (1, rhs_axes, rhs_batch))
        for side, axes, batch in sides:
            matrix, other = equation.inputs[side], equation.inputs[1 - side]
            if matrix not in program.known or len(axes) != 1:
                continue
            weights = np.asarray(program.known[matrix])
            if weights.ndim != 2 + len(batch):
                continue
            plain = _oriented(weights, axes[0], batch)
            if plain is None:
                continue
            is_position = other not in program.of_inputs
            for what, new in _alternatives(plain).items():
                kind = "position interpolation" if is_position else "resizing"
                changed = _restored(new, weights, axes[0], batch).astype(weights.dtype)
                run = _multiplied(equation, side, changed)
                found.append(_mutant(kind, what, index, equation, run, (other,)))
    return found


def _multiplied(equation: Equation, side: int, matrix: Any) -> Callable[[Any], Any]:
    return lambda x: equation.run(matrix, x) if side == 0 else equation.run(x, matrix)


def _oriented(weights: np.ndarray, old: int, batch: Sequence[int]) -> np.ndarray | None:
    """The matrix [new, old] of an interpolation; None if it is none or differs in the batch."""
    moved = np.moveaxis(weights, (*batch, old), (*range(len(batch)), weights.ndim - 1))
    flat = moved.reshape(-1, *moved.shape[-2:])
    first = flat[0].astype(np.float64)
    if (flat != flat[0]).any() or not np.allclose(first.sum(1), 1, atol=1e-3):
        return None
    return first


def _restored(
    matrix: np.ndarray, weights: np.ndarray, old: int, batch: Sequence[int]
) -> np.ndarray:
    moved = np.moveaxis(weights, (*batch, old), (*range(len(batch)), weights.ndim - 1))
    full = np.broadcast_to(matrix, moved.shape)
    return np.moveaxis(full, (*range(len(batch)), weights.ndim - 1), (*batch, old))


def _alternatives(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Matrices of other interpolations, by what is changed."""
    new, old = matrix.shape
    forms = {
        "half pixels": np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1),
        "align_corners": np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0),
        "corners": np.clip(np.arange(new) * old / new, 0, old - 1),
    }
    linear = {name: _linear(position, old) for name, position in forms.items()}
    if (matrix < -1e-3).any():
        return {"bilinear for bicubic": linear["half pixels"]}
    here = [name for name, other in linear.items() if np.allclose(other, matrix, atol=4e-3)]
    if not here or new == old:
        return {}
    return {f"{name} for {here[0]}": other for name, other in linear.items() if name not in here}


def _linear(position: np.ndarray, old: int) -> np.ndarray:
    matrix = np.zeros((len(position), old))
    rows, left = np.arange(len(position)), position.astype(int)
    matrix[rows, left] = 1 - (position - left)
    matrix[rows, np.minimum(left + 1, old - 1)] += position - left
    return matrix


def _convolutions(program: Program) -> Iterator[tuple[int, Equation]]:
    for index, equation in enumerate(program.equations):
        if equation.name == "conv_general_dilated" and equation.inputs[0] in program.of_inputs:
            yield index, equation


def _pools(program: Program) -> Iterator[tuple[int, Equation, list[int], float]]:
    """Index, equation, pooled axes, and the value of padding."""
    for index, equation in enumerate(program.equations):
        if equation.name in _POOLS and equation.inputs[0] in program.of_inputs:
            size = equation.params["window_dimensions"]
            axes = [axis for axis, length in enumerate(size) if length > 1]
            yield index, equation, axes, _POOLS[equation.name]


def _is_plain(equation: Equation) -> bool:
    """Whether a convolution is not a transposed one, nor crops its input."""
    return max(equation.params["lhs_dilation"]) == 1 and all(
        low >= 0 and high >= 0 for low, high in equation.params["padding"]
    )


def _spatial(equation: Equation) -> tuple[int, ...]:
    """A convolution's spatial axes in its input."""
    return tuple(equation.params["dimension_numbers"].lhs_spec[2:])


def _taps(equation: Equation) -> list[int]:
    """Height and width of a convolution's kernel."""
    spatial = equation.params["dimension_numbers"].rhs_spec[2:]
    return [equation.inputs[1].shape[axis] for axis in spatial]


def _by_axis(equation: Equation, padding: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Padding of every axis of a convolution's input."""
    widths = [(0, 0)] * len(equation.inputs[0].shape)
    for axis, width in zip(_spatial(equation), padding, strict=True):
        widths[axis] = width
    return widths


def _shifted(equation: Equation, axes: Sequence[int], fill: float) -> Callable[..., Any]:
    """The equation on images that are moved up and left by a pixel."""

    def run(x: Any, *others: Any) -> Any:
        moved = np.full(x.shape, fill, x.dtype)
        later = tuple(slice(1, None) if axis in axes else slice(None) for axis in range(x.ndim))
        earlier = tuple(slice(-1) if axis in axes else slice(None) for axis in range(x.ndim))
        moved[earlier] = x[later]
        return equation.run(moved, *others)

    return run


def _fits(equation: Equation, run: Callable[..., Any]) -> bool:
    """Whether a changed equation has the shape of the unchanged one."""
    shapes = [jax.ShapeDtypeStruct(v.shape, v.aval.dtype) for v in equation.inputs]
    try:
        found = jax.eval_shape(run, *shapes)
    except (TypeError, ValueError):
        return False
    return tuple(found[0].shape) == equation.outputs[0].shape


def _mutant(
    kind: str,
    what: str,
    index: int,
    equation: Equation,
    run: Callable[..., Any],
    inputs: Sequence[Value] | None = None,
) -> Mutant:
    patch = Patch(equation.inputs if inputs is None else tuple(inputs), run)
    return Mutant(kind, what, (equation.module,), {}, {index: patch})
