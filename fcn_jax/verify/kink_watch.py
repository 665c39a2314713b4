"""Operations of a PyTorch network whose derivative jumps, watched while it runs.

Seen are the functions of `_KINKS`, max pooling in one and two dimensions, `max` and `amax`. The
elementwise maximum of two tensors, sorting and `where` are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_jax.verify.torch_side import import_torch

if TYPE_CHECKING:
    import torch


def _argument(args: Sequence[Any], kwargs: Any, position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _at(*points: float) -> Callable[..., list[float]]:
    return lambda args, kwargs: list(points)


def _bounds(low: str, high: str, *default: float | None) -> Callable[..., list[float]]:
    def points(args: Sequence[Any], kwargs: Any) -> list[float]:
        found = (
            _argument(args, kwargs, 1, low, default[0]),
            _argument(args, kwargs, 2, high, default[1]),
        )
        return [float(x) for x in found if isinstance(x, (int, float))]

    return points


def _bound(name: str) -> Callable[..., list[float]]:
    return lambda args, kwargs: [
        float(x) for x in [_argument(args, kwargs, 1, name, None)] if isinstance(x, (int, float))
    ]


_KINKS: dict[str, Callable[..., list[float]]] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "rrelu", "selu", "abs", "absolute"), _at(0)),
    "relu6": _at(0, 6),
    "hardswish": _at(-3, 3),
    "hardsigmoid": _at(-3, 3),
    "hardtanh": _bounds("min_val", "max_val", -1.0, 1.0),
    "clamp": _bounds("min", "max", None, None),
    "clip": _bounds("min", "max", None, None),
    "clamp_min": _bound("min"),
    "clamp_max": _bound("max"),
    "threshold": _bound("threshold"),
}
"""Functions of one tensor whose derivative jumps, and where."""

_POOLS = ("max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d")
_MAXIMA = ("max", "amax")

# Function -> position of its bias, and the axis of its channels.
_LAYERS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (2, 1)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (2, 1)),
    "linear": (2, -1),
    "batch_norm": (4, 1),
    "layer_norm": (3, -1),
    "group_norm": (3, 1),
    "instance_norm": (4, 1),
}
_WEIGHT = {"batch_norm": 3, "layer_norm": 2, "group_norm": 2, "instance_norm": 3}
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that was called: its parameters, and where its channels are."""

    weight: Any
    bias: Any
    axis: int
    channels: int
    transposed: bool

    @property
    def rows(self) -> torch.Tensor | None:
        """A view of the kernel whose first axis is the output channel; None if there is none."""
        weight = self.weight
        if weight is None or weight.ndim < 2:
            return None
        rows: torch.Tensor = weight.data.transpose(0, 1) if self.transposed else weight.data
        return rows if len(rows) == self.channels else None  # not in groups


@dataclasses.dataclass(frozen=True)
class Operation:
    """A call of a function with a kink.

    Attributes:
        name: with its number.
        number: from 0, in the order of the calls.
        x: the input.
        points: kinks of an elementwise function; None for a maximum.
        windows: of a maximum, () -> [C, windows, elements of a window].
        layers: the layers that were called before.
        used: the parameters that were used before, by name.
        inplace: whether the function overwrites its input.
    """

    name: str
    number: int
    x: torch.Tensor
    points: list[float] | None
    windows: Callable[[], torch.Tensor] | None
    layers: list[Layer]
    used: dict[str, None]
    inplace: bool

    def layer(self, *, kernel: bool) -> Layer | None:
        """The last layer whose output has the channels of the input."""
        for layer in reversed(self.layers):
            fits = self.x.ndim > 1 and self.x.shape[layer.axis] == layer.channels
            if fits and not (kernel and layer.rows is None):
                return layer
        return None

    def by_channel(self, x: torch.Tensor, layer: Layer | None) -> torch.Tensor:
        """[C, values of the channel]."""
        axis = layer.axis if layer else (1 if x.ndim > 1 else 0)
        return x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x[None]


Visit = Callable[[Operation], "torch.Tensor | None"]


def watch(network: Any, visit: Visit) -> Any:
    """A mode that calls `visit` before each function with a kink.

    `visit` may return a tensor to add to the input.
    """
    torch = import_torch()
    names = {id(p): name for name, p in network.named_parameters()}
    layers: list[Layer] = []
    used: dict[str, None] = {}
    count = 0

    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[name-defined]
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            nonlocal count
            kwargs = kwargs or {}
            full = getattr(func, "__name__", "")
            name = full.strip("_").removesuffix("_with_indices")
            for value in (*args, *kwargs.values()):
                if id(value) in names:
                    used[names[id(value)]] = None
            if name in _LAYERS:
                position, axis = _LAYERS[name]
                weight = _argument(args, kwargs, _WEIGHT.get(name, 1), "weight", None)
                bias = _argument(args, kwargs, position, "bias", None)
                result = func(*args, **kwargs)
                layers.append(
                    Layer(
                        weight if id(weight) in names else None,
                        bias if id(bias) in names else None,
                        axis,
                        result.shape[axis],
                        name in _TRANSPOSED,
                    )
                )
                return result
            x = args[0] if args else kwargs.get("input")
            watched = name in _KINKS or name in _POOLS or name in _MAXIMA
            if not (watched and isinstance(x, torch.Tensor) and x.is_floating_point() and used):
                return func(*args, **kwargs)
            points = _KINKS[name](args, kwargs) if name in _KINKS else None
            windows = None if points is not None else _windows(name, x, args, kwargs)
            if not points and windows is None:
                return func(*args, **kwargs)
            inplace = full.endswith("_") or bool(kwargs.get("inplace"))
            operation = Operation(
                f"{name} {count + 1}", count, x, points, windows, layers, used, inplace
            )
            count += 1
            shift = visit(operation)
            if shift is not None:
                x = x.add_(shift) if inplace else x + shift
                args, kwargs = ((x, *args[1:]), kwargs) if args else ((), {**kwargs, "input": x})
            return func(*args, **kwargs)

    return Mode()


def _windows(name: str, x: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """A function that returns the elements of each window, [C, windows, elements]; or None."""
    torch = import_torch()
    functional = torch.nn.functional
    if name in _MAXIMA:
        dim = _argument(args, kwargs, 1, "dim", None)
        if isinstance(dim, torch.Tensor) or "other" in kwargs:
            return None  # the elementwise maximum of two tensors

        def reduced() -> Any:
            axes = range(x.ndim) if dim is None or dim == () else np.atleast_1d(dim)
            last = sorted(int(axis) % x.ndim for axis in axes)
            kept = [axis for axis in range(x.ndim) if axis not in last]
            y = x.permute(*kept, *last).flatten(len(kept))
            by_channel = y.transpose(0, 1) if kept[:2] == [0, 1] else y[None]
            return by_channel.reshape(len(by_channel), -1, y.shape[-1])

        return reduced
    flat = name.endswith("1d")
    if x.ndim != (3 if flat else 4):
        return None
    image = x[:, :, None] if flat else x

    def pair(value: Any) -> tuple[int, int]:
        given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if flat:
            return (1, int(given[0]))
        return (int(given[0]), int(given[-1]))

    if name.startswith("adaptive"):
        size = _argument(args, kwargs, 1, "output_size", None)
        height, width = image.shape[-2:]
        rows, cols = pair(size)
        if height % rows or width % cols:
            return None  # windows of several sizes
        kernel = stride = (height // rows, width // cols)
        padding, dilation, ceil = (0, 0), (1, 1), False
    else:
        kernel = pair(_argument(args, kwargs, 1, "kernel_size", None))
        given = _argument(args, kwargs, 2, "stride", None)
        stride = kernel if given is None or given == [] else pair(given)
        padding = pair(_argument(args, kwargs, 3, "padding", 0))
        dilation = pair(_argument(args, kwargs, 4, "dilation", 1))
        ceil = bool(_argument(args, kwargs, 5, "ceil_mode", False))
    if flat:
        stride, padding, dilation = (1, stride[1]), (0, padding[1]), (1, dilation[1])

    def pooled() -> Any:
        more = (stride[0] - 1, stride[1] - 1) if ceil else (0, 0)
        wide = functional.pad(
            image,
            (padding[1], padding[1] + more[1], padding[0], padding[0] + more[0]),
            value=-torch.inf,
        )
        for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
            wide = wide.unfold(2 + axis, d * (k - 1) + 1, s)
        wide = wide[..., :: dilation[0], :: dilation[1]]
        return wide.transpose(0, 1).flatten(4).flatten(1, 3)

    return pooled
