"""Parser of XLA's optimized programs in text form."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_MOVES = {
    "parameter",
    "constant",
    "bitcast",
    "copy",
    "transpose",
    "reshape",
    "pad",
    "slice",
    "concatenate",
    "tuple",
}
_MOVES |= {"get-tuple-element", "broadcast", "convert"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: unique in the program.
        arrays: dtype and shape of the result, or of each element of a tuple.
        opcode: XLA's name of the operation.
        rest: operands and attributes, as text.
    """

    name: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def results(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The elements of `arrays` that are results.

        The start of an asynchronous collective also returns its operands.
        """
        count = len(self.operands)
        return (
            self.arrays[count : 2 * count]
            if self.opcode.endswith("-start") and len(self.arrays) > count
            else self.arrays
        )

    @property
    def size(self) -> int:
        """Number of elements of the largest array in the result."""
        return max((math.prod(shape) for _, shape in self.arrays), default=0)

    @property
    def estimated_cycles(self) -> int:
        """The compiler's estimate; 0 if it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found.group(1)) if found else 0


class Program:
    """A compiled program."""

    def __init__(self, text: str) -> None:
        """Parse `compiled.as_text()`."""
        self.computations: dict[str, list[Instruction]] = {}
        body: list[Instruction] = []
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                body = self.computations.setdefault(found.group(1), [])
            elif found := _INSTRUCTION.match(line):
                name, shape, opcode, rest = found.groups()
                arrays = tuple(
                    (dtype, tuple(map(int, filter(None, dims.split(",")))))
                    for dtype, dims in _ARRAY.findall(shape)
                )
                body.append(Instruction(name, arrays, opcode, rest))
        self._types = {instruction.name: instruction.arrays for instruction in self.instructions()}
        self._fused = set(re.findall(r"kind=k\w+, calls=%([\w.\-]+)", text))

    def instructions(self) -> Iterator[Instruction]:
        """Yield all instructions, including those in fusions."""
        for body in self.computations.values():
            yield from body

    def stored(self) -> Iterator[Instruction]:
        """Yield the instructions whose results are stored. Those in fusions stay in registers."""
        for name, body in self.computations.items():
            if name not in self._fused:
                yield from body

    def convolution_dtypes(self) -> set[str]:
        """Return the dtypes of the operands of convolutions and matrix products."""
        return {
            dtype
            for instruction in self.instructions()
            if instruction.opcode in ("convolution", "dot")
            for operand in instruction.operands
            for dtype, _ in self._types.get(operand, ())
        }

    def moved(self, size: int) -> list[str]:
        """Return the instructions that only move or rearrange at least `size` elements."""
        found = []
        for instruction in self.stored():
            if instruction.size >= size and instruction.opcode not in (
                "bitcast",
                "get-tuple-element",
                "tuple",
                "parameter",
            ):
                opcodes = {instruction.opcode}
                if called := re.search(r"kind=k\w+, calls=%([\w.\-]+)", instruction.rest):
                    opcodes = {inner.opcode for inner in self.computations[called.group(1)]}
                if opcodes <= _MOVES:
                    found.append(instruction.name)
        return found

    def widest(self, dtype: str, size: int) -> list[str]:
        """Return the instructions that store at least `size` elements of this dtype."""
        return [
            instruction.name
            for instruction in self.stored()
            if instruction.opcode != "bitcast"
            if any(
                found == dtype and math.prod(shape) >= size for found, shape in instruction.arrays
            )
        ]

    def collectives(self) -> dict[str, dict[str, int]]:
        """Return kind -> number of collectives, and bytes of their results on one device.

        TPUs fuse some with the slice that follows, and repeat one in each fusion that is computed
        while it runs. The repetitions have its channel, and count once.
        """
        found: dict[str, dict[str, int]] = {}
        seen = set[tuple[str, str]]()
        for instruction in self.instructions():
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                key = kind, channel.group(1) if channel else instruction.name
                if key in seen:
                    continue
                seen.add(key)
                row = found.setdefault(kind, {"count": 0, "bytes": 0})
                row["count"] += 1
                row["bytes"] += sum(
                    math.prod(shape) * _width(dtype) for dtype, shape in instruction.results
                )
        return found

    def estimated_cycles(self) -> int:
        """Return the sum of the estimates of the stored instructions."""
        return sum(instruction.estimated_cycles for instruction in self.stored())


def _width(dtype: str) -> int:
    """Return the bytes of one element."""
    digits = re.search(r"\d+", dtype)
    return max(1, int(digits.group()) // 8) if digits else 1
