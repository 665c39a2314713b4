"""Weights and inputs for which no unit lies at a kink, so that gradients can be compared tightly.

The gradient of a network jumps where a ReLU's input is zero, or where two pixels of a pooling
window are equal. A unit that is within rounding of such a point falls on either side of it in one
correct float32 run or another, and among a network's millions of units there are a few. Each moves
the gradients by 1e-3 to 1e-2, a thousand times more than rounding does.

So PyTorch runs in float64 and train mode, and each operation with a kink is watched. Where a unit
of a channel is too near, the bias of the last layer with as many channels is moved to the middle of
the largest gap between the channel's values. Where the maximum of a pooling window is tied, the
channel's kernel is changed a little. The last pass changes nothing: it checks that every unit keeps
its distance, a multiple of the largest rounding error that PyTorch's float32 run makes at that
operation.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fcn_jax.verify.kink_watch import Layer, Operation, Visit, watch
from fcn_jax.verify.torch_side import REFERENCE, TorchSide, import_torch

if TYPE_CHECKING:
    import torch

MARGIN = 4.0
"""Distance to a kink that every unit keeps, in units of the largest error of PyTorch's float32 run
at that operation. JAX's error may be twice as large as PyTorch's."""

REACHES = (0.1, 0.5, 2.0)
"""Largest shift of a channel, in standard deviations of its values. The next one is tried if there
is no gap of twice the margin: fewer values lie far from the mean, and their gaps are larger."""

NUDGE = 0.01
"""Relative change of a kernel, or of inputs, that breaks ties."""

INPUT_NOISE = 0.3
"""Noise on inputs whose flat areas tie whole pooling windows, in their standard deviations."""

PASSES = 24
"""Largest number of passes. Most end early, at the operation whose kernel has to change."""

_LEAST_ERROR = 2.0**-23
_SAMPLE = 2**17


@dataclasses.dataclass(frozen=True)
class Leftover:
    """Units at a kink that could not be moved.

    Attributes:
        operation: name and number among the operations with a kink, in the order of the calls.
        units: number of units or pooling windows.
        upstream: names of the parameters that were used before it: their gradients may jump.
    """

    operation: str
    units: int
    upstream: frozenset[str]

    def __str__(self) -> str:
        """For messages."""
        return f"{self.units} units of {self.operation}"


@dataclasses.dataclass(frozen=True)
class Conditioned:
    """Result of `condition`.

    Attributes:
        parameters: the changed parameters by name, with values that float32 represents.
        inputs: the inputs, with noise if that was needed.
        left: units that are still at a kink.
        passes: number of float64 passes.
    """

    parameters: dict[str, torch.Tensor]
    inputs: tuple[np.ndarray, ...]
    left: tuple[Leftover, ...]
    passes: int


def condition(side: TorchSide, inputs: Sequence[np.ndarray]) -> Conditioned:
    """Move units away from kinks.

    The parameters of the reference change in place; so do the statistics of its BatchNorm and of a
    float32 copy, since the passes run in train mode. The caller restores them.

    Args:
        side: PyTorch's side in train mode and float32.
        inputs: the network's inputs, NHWC.
    """
    given = tuple(inputs)
    networks = [(side.network(variant), variant) for variant in (side.variants[0], REFERENCE)]

    def run(number: int, visit: Visit) -> None:
        network, variant = networks[number]
        with watch(network, visit):
            side.outputs(variant, given)

    def add_noise() -> None:
        nonlocal given
        given = _with_noise(given)

    changed, left, passes = _move(side.network(REFERENCE), run, add_noise)
    return Conditioned(changed, given, left, passes)


def clear(network: torch.nn.Module, x: torch.Tensor) -> tuple[Leftover, ...]:
    """Move the units of a single network, in place.

    Args:
        network: in float64 and train mode. Only parameters change.
        x: its input.

    Returns:
        What could not be moved.
    """
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    networks = (copy.deepcopy(network).float(), network)

    def run(number: int, visit: Visit) -> None:
        with watch(networks[number], visit):
            networks[number](x.float() if number == 0 else x.clone())

    _, left, _ = _move(network, run, None)
    network.load_state_dict(buffers, strict=False)
    return left


def _move(
    network: torch.nn.Module,
    run: Callable[[int, Visit], None],
    add_noise: Callable[[], None] | None,
) -> tuple[dict[str, torch.Tensor], tuple[Leftover, ...], int]:
    """Changed parameters, what is left, and the number of float64 passes.

    Args:
        network: in float64.
        run: runs the float32 network (0) or this one (1) with a visitor.
        add_noise: adds noise to the inputs; None if they must not change.
    """
    torch = import_torch()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    rounded, exact = _Sampler(), _Sampler()
    with torch.no_grad():
        run(0, rounded)
        run(1, exact)
        fixer = _Fixer(exact.errors(rounded), may_need_noise=add_noise is not None)
        for passes in itertools.count(2):
            fixer.start(may_change=passes < PASSES)
            try:
                run(1, fixer)
            except _ChangedError:
                continue
            except _NeedsNoiseError:
                assert add_noise is not None
                add_noise()
                continue
            if not fixer.changed:
                break
    changed = {
        name: p.detach().float()
        for name, p in network.named_parameters()
        if not torch.equal(p.detach(), before[name])
    }
    return changed, tuple(fixer.left), passes + 1


def _with_noise(inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(
        (x + INPUT_NOISE * x.std() * rng.standard_normal(x.shape)).astype(x.dtype)
        if np.issubdtype(x.dtype, np.floating)
        else x
        for x in inputs
    )


class _ChangedError(Exception):
    """A kernel has changed: this pass is out of date."""


class _NeedsNoiseError(Exception):
    """So many windows are tied that the inputs need noise."""


class _Sampler:
    """Records some values, or windows, of each channel at each operation."""

    def __init__(self) -> None:
        self._values: list[torch.Tensor] = []

    def __call__(self, operation: Operation) -> None:
        if operation.windows is None:
            values = operation.by_channel(operation.x, operation.layer(kernel=False))[..., None]
        else:
            values = operation.windows()
        channels, count, _ = values.shape
        step = max(1, count // max(16, _SAMPLE // channels))
        self._values.append(values[:, ::step].double().clone())

    def errors(self, rounded: _Sampler) -> list[torch.Tensor]:
        """Largest error of a float32 run in each channel of each operation.

        For windows, it is the error of the difference between their two largest values. A channel
        of which only a few values are known has at least the error of the median one.
        """
        torch = import_torch()
        found = []
        for exact, other in zip(self._values, rounded._values, strict=True):
            error = other - exact
            if exact.shape[-1] > 1:
                top, places = exact.topk(2)
                error = error.gather(-1, places).diff()
                # Two that are zero or outside of the image are no tie.
                counts = top[..., 1:].isfinite() & (top[..., 1:] != 0)
                error = error.where(counts, torch.zeros_like(error))
            largest = error.abs().flatten(1).amax(1)
            size = exact[exact.isfinite()].square().mean().sqrt()
            least = torch.maximum(largest.median(), _LEAST_ERROR * size)
            found.append(torch.maximum(largest, least))
        return found


class _Fixer:
    """Moves biases and changes kernels until every unit keeps its distance."""

    TRIES = 8

    def __init__(self, errors: Sequence[torch.Tensor], *, may_need_noise: bool) -> None:
        self._margins = [MARGIN * error for error in errors]
        self._tries: dict[int, int] = {}
        self._moved: set[int] = set()
        self._may_need_noise = may_need_noise
        self._generator = import_torch().Generator().manual_seed(0)
        self.start(may_change=True)

    def start(self, *, may_change: bool) -> None:
        """Begin a pass."""
        self._may_change = may_change
        self.changed = False
        self.left: list[Leftover] = []

    def __call__(self, operation: Operation) -> torch.Tensor | None:
        """The shift to add to the operation's input, if any.

        Raises:
            _ChangedError: a kernel has changed.
            _NeedsNoiseError: the inputs need noise.
        """
        if operation.points is None:
            self._part_ties(operation)
            return None
        return self._move_units(operation)

    def _move_units(self, operation: Operation) -> torch.Tensor | None:
        torch = import_torch()
        layer = operation.layer(kernel=False)
        values = operation.by_channel(operation.x, layer)
        deviation = values.std(1, unbiased=False)
        margin = self._margins[operation.number][:, None]
        near = torch.zeros_like(values, dtype=torch.bool)
        exact = torch.zeros_like(near)
        for point in operation.points or ():
            distance = (values - point).abs()
            near |= distance < margin
            exact |= distance == 0
        # What cannot be moved from there was put there: by a ReLU before, whose gradient is zero.
        jumps = near & ~exact
        if operation.number in self._moved:
            near = jumps
        channels = near.any(1).nonzero().flatten().tolist()
        if not channels:
            return None
        if layer is None or not self._may_try(operation):
            self._leave(operation, int(jumps.sum()))
            return None
        self._moved.add(operation.number)
        if layer.bias is None:
            self._redraw(operation, layer, channels)
            self._leave(operation, int(jumps.sum()))
            return None
        shift = torch.zeros(len(values), dtype=values.dtype)
        for channel in channels:
            for reach in REACHES:
                longest = max(reach * float(deviation[channel]), 100 * float(margin[channel]))
                best, room = _best_shift(values[channel], operation.points or (), longest)
                shift[channel] = best
                if room >= 2 * float(margin[channel]):
                    break
        moved = (layer.bias.data + shift).float().to(shift.dtype)
        shift = moved - layer.bias.data
        layer.bias.data.copy_(moved)
        self.changed = True
        shape = [1] * operation.x.ndim
        shape[layer.axis] = len(shift)
        return shift.view(shape)

    def _part_ties(self, operation: Operation) -> None:
        assert operation.windows is not None
        layer = operation.layer(kernel=True)
        windows = operation.windows()
        if windows.shape[-1] < 2:
            return
        top = windows.topk(2, dim=-1).values
        margins = self._margins[operation.number]
        if len(margins) != len(top):
            margins = margins.max()[None]
        gap = top[..., 0] - top[..., 1]
        # Equal zeros are those of a ReLU or of padding: no gradient passes them.
        tied = (gap < margins[:, None]) & ~((gap == 0) & (top[..., 0] == 0))
        channels = tied.any(1).nonzero().flatten().tolist()
        if not channels:
            return
        if self._may_need_noise and self._may_change and int(tied.sum()) > 4 * len(top):
            self._may_need_noise = False
            raise _NeedsNoiseError
        if layer is not None and self._may_try(operation):
            self._redraw(operation, layer, channels if len(top) == layer.channels else None)
        self._leave(operation, int(tied.sum()))

    def _may_try(self, operation: Operation) -> bool:
        """Count the attempts at one operation."""
        tried = self._tries.get(operation.number, 0)
        self._tries[operation.number] = tried + 1
        return self._may_change and tried < self.TRIES

    def _redraw(self, operation: Operation, layer: Layer, channels: list[int] | None) -> None:
        """Change the kernels of some output channels a little, and start again."""
        torch = import_torch()
        rows = layer.rows
        if rows is None:
            return
        for channel in range(len(rows)) if channels is None else channels:
            row = rows[channel]
            noise = torch.randn(row.shape, generator=self._generator, dtype=row.dtype)
            row.copy_((row + NUDGE * row.square().mean().sqrt() * noise).float().to(row.dtype))
        # The operations before see new values in these channels.
        self._tries = {k: n for k, n in self._tries.items() if k >= operation.number}
        raise _ChangedError

    def _leave(self, operation: Operation, units: int) -> None:
        if units:
            self.left.append(Leftover(operation.name, units, frozenset(operation.used)))


def _best_shift(values: torch.Tensor, points: Sequence[float], reach: float) -> tuple[float, float]:
    """The shift up to `reach` that moves a channel's values farthest from all points; how far."""
    torch = import_torch()
    ends = torch.tensor([-reach, reach], dtype=values.dtype)
    wrong = torch.cat([point - values for point in points])  # these shifts hit a point
    wrong = torch.cat([ends, wrong[wrong.abs() < reach]]).sort().values
    gaps = wrong.diff()
    widest = int(gaps.argmax())
    return float(wrong[widest] + gaps[widest] / 2), float(gaps[widest] / 2)
