"""What a program reads and writes, and what it must keep, if elementwise operations are fused.

The model of the compiler: an elementwise operation is computed where its result is used. Stored are
the results of convolutions, matrix products, reductions and other operations that no compiler
fuses, and what these read. Each stored value is written once, and read once by each operation that
needs it. A real compiler stores more, so that the bytes are a lower bound.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from fcn_jax.plan.equations import Operation, Program
from fcn_jax.plan.flops import MATRIX, flops, operands
from fcn_jax.plan.kinds import Kind

_REDUCTIONS = ("reduce", "argmax", "argmin", "cum")
"""Beginnings of the names of operations that read their operands where those are computed."""

_WINDOWS = ("reduce_window", "reduce_precision")
"""Names that begin like those of reductions."""

_STORED = (*MATRIX, "select_and_", "scatter", "sort", "top_k", "fft", "optimization_barrier")
"""Beginnings of the names of operations whose operands are stored."""

_PARTS = ("slice", "dynamic_slice", "gather")
"""Operations that read a part of their operand."""


@dataclasses.dataclass
class Kernel:
    """One unit of work of the device.

    Attributes:
        reads: bytes that it reads of each stored value.
        writes: the values that it stores.
        bytes: that it moves.
        flops: of its matrix products.
        operands: their dtype and precision.
        backward: whether it belongs to the backward pass.
        inner: kernels that it repeats, for a loop.
        times: how often.
        held: what the loop's body keeps for its backward pass, and its further temporaries, bytes.
    """

    reads: dict[int, int]
    writes: tuple[int, ...]
    bytes: int
    flops: int = 0
    operands: tuple[str, str] = ("float32", "default")
    backward: bool = False
    inner: tuple[Kernel, ...] = ()
    times: int = 1
    held: tuple[int, int] = (0, 0)

    def seconds(self, kind: Kind) -> float:
        """The least time: that of its FLOPs or of its bytes, whichever is longer."""
        if self.inner:
            return self.times * sum(kernel.seconds(kind) for kernel in self.inner)
        return max(self.flops / kind.peak(*self.operands), self.bytes / kind.bandwidth)


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a program.

    Attributes:
        kernels: in order.
        flops: FLOPs by dtype and precision of the operands.
        bytes: read and written.
        activations: bytes, results of the forward pass when most is held.
        workspace: bytes of other temporary values at that time, without gradients of parameters.
    """

    kernels: tuple[Kernel, ...]
    flops: Mapping[tuple[str, str], int]
    bytes: int
    activations: int
    workspace: int

    def seconds(self, kind: Kind) -> float:
        """The least time on a device, which runs one kernel after the other."""
        return sum(kernel.seconds(kind) for kernel in self.kernels)

    def compute_seconds(self, kind: Kind) -> float:
        """The time of the FLOPs alone, at the peak speed."""
        return sum(count / kind.peak(*key) for key, count in self.flops.items())


def work(program: Program) -> Work:
    """Return the work of a program whose results replace its arguments, which are donated."""
    storage = _Storage(program)
    for operation in program.operations:
        storage.add(operation)
    kernels = storage.finish(program.outputs)
    total: Counter[tuple[str, str]] = Counter()
    _count(kernels, 1, total)
    held = _most_held(program, kernels)
    return Work(tuple(kernels), dict(total), _moved(kernels), *held)


class _Storage:
    """Decides which values are stored, operation by operation."""

    def __init__(self, program: Program) -> None:
        self._sizes = program.sizes
        self._sources: dict[int, dict[int, int]] = {}
        """By value that is not stored, the bytes of stored values that it is computed from."""
        self._born = dict.fromkeys(program.arguments, -1)
        """By stored value, the number of the kernel that stores it; -1 for arguments."""
        self._kernels: list[Kernel] = []
        self._reductions: list[int] = []

    def add(self, operation: Operation) -> None:
        name = operation.name
        if operation.body is not None:
            self._loop(operation)
        elif name == "optimization_barrier":
            for source, result in zip(operation.inputs, operation.outputs, strict=False):
                self._store(source, operation.backward)
                self._sources[result] = {source: self._sizes[source]}
        elif name.startswith(_REDUCTIONS) and not name.startswith(_WINDOWS):
            self._reduce(operation)
        elif name.startswith((*_STORED, "reduce_window")):
            for source in operation.inputs:
                self._store(source, operation.backward)
            kernel = self._kernel(
                {source: self._sizes[source] for source in operation.inputs},
                operation.outputs,
                operation.backward,
            )
            if name in MATRIX:
                kernel.flops = flops(operation.equation)
                kernel.operands = operands(operation.equation)
        else:
            sources = self._all_sources(operation.inputs)
            for result in operation.outputs:
                self._sources[result] = (
                    {key: min(size, self._sizes[result]) for key, size in sources.items()}
                    if name.startswith(_PARTS)
                    else sources
                )

    def finish(self, outputs: Iterable[int]) -> list[Kernel]:
        """Store the results, which one kernel computes together, and return all kernels."""
        missing = [value for value in dict.fromkeys(outputs) if value not in self._born]
        if missing:
            self._kernel(self._all_sources(missing), tuple(missing), backward=False)
        return self._kernels

    def _all_sources(self, values: Iterable[int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for value in values:
            stored = {value: self._sizes[value]} if value in self._born else {}
            for key, size in (stored or self._sources.get(value, {})).items():
                found[key] = min(found.get(key, 0) + size, self._sizes[key])
        return found

    def _kernel(self, reads: dict[int, int], writes: tuple[int, ...], backward: bool) -> Kernel:
        moved = sum(reads.values()) + sum(self._sizes[value] for value in writes)
        kernel = Kernel(reads, writes, moved, backward=backward)
        self._born.update(dict.fromkeys(writes, len(self._kernels)))
        self._kernels.append(kernel)
        return kernel

    def _store(self, value: int, backward: bool) -> None:
        if value in self._born:
            return
        sources = self._sources.get(value)
        if not sources:  # a constant, which takes no reading
            self._born[value] = len(self._kernels) - 1
            return
        self._kernel(dict(sources), (value,), backward)

    def _reduce(self, operation: Operation) -> None:
        """Add a reduction to an earlier one that reads the same values, or as a new kernel."""
        sources = self._all_sources(operation.inputs)
        for number in reversed(self._reductions[-4:]):
            kernel = self._kernels[number]
            alike = sources.keys() <= kernel.reads.keys() or kernel.reads.keys() <= sources.keys()
            early = all(self._born[key] < number for key in sources)
            if sources and kernel.reads and alike and early:
                kernel.reads = sources | kernel.reads
                kernel.writes += operation.outputs
                kernel.bytes = sum(kernel.reads.values()) + sum(
                    self._sizes[value] for value in kernel.writes
                )
                self._born.update(dict.fromkeys(operation.outputs, number))
                return
        self._reductions.append(len(self._kernels))
        self._kernel(sources, operation.outputs, operation.backward)

    def _loop(self, operation: Operation) -> None:
        assert operation.body is not None
        for source in operation.inputs:
            self._store(source, operation.backward)
        inner = work(operation.body)
        reads = {source: self._sizes[source] for source in operation.inputs}
        kernel = self._kernel(reads, operation.outputs, operation.backward)
        kernel.inner, kernel.times = inner.kernels, operation.times
        kernel.held = inner.activations, inner.workspace
        kernel.backward |= any(each.backward for each in inner.kernels)


def _moved(kernels: Iterable[Kernel]) -> int:
    """The bytes that kernels read and write. What a loop's body moves counts at each turn."""
    return sum(
        kernel.times * _moved(kernel.inner) if kernel.inner else kernel.bytes for kernel in kernels
    )


def _count(kernels: Iterable[Kernel], times: int, total: Counter[tuple[str, str]]) -> None:
    for kernel in kernels:
        if kernel.flops:
            total[kernel.operands] += times * kernel.flops
        _count(kernel.inner, times * kernel.times, total)


def _most_held(program: Program, kernels: list[Kernel]) -> tuple[int, int]:
    """The bytes of values of the forward and the backward pass when their sum is largest.

    Arguments, results (which take the arguments' memory) and gradients of parameters are left out:
    those are values of the backward pass that are used after it.
    """
    last_use: dict[int, int] = {}
    for number, kernel in enumerate(kernels):
        last_use.update(dict.fromkeys(kernel.reads, number))
    end = max((i for i, kernel in enumerate(kernels) if kernel.backward), default=-1)
    left_out = {*program.arguments, *program.outputs}
    changes = [[0, 0] for _ in range(len(kernels) + 1)]
    for number, kernel in enumerate(kernels):
        for value in kernel.writes:
            last = last_use.get(value, number)
            is_gradient = kernel.backward and last > end
            if value not in left_out and not is_gradient:
                changes[number][kernel.backward] += program.sizes[value]
                changes[last + 1][kernel.backward] -= program.sizes[value]
    forward = backward = 0
    most = (0, 0)
    for change, kernel in zip(changes, kernels, strict=False):
        forward, backward = forward + change[0], backward + change[1]
        now = forward + kernel.held[0], backward + kernel.held[1]
        most = max(most, now, key=sum)
    return most
