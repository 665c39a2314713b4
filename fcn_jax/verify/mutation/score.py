"""The mutation score: the share of planted faults that the checks of `verify` catch."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_jax.errors import listing
from fcn_jax.verify.mutation import activations, norms, tensors, windows, wiring
from fcn_jax.verify.mutation.checks import EvalChecks, Finding, TrainChecks
from fcn_jax.verify.mutation.mutant import Find, Mutant
from fcn_jax.verify.mutation.trace import trace
from fcn_jax.verify.program import Program
from fcn_jax.verify.types import Pair

if TYPE_CHECKING:
    from fcn_jax.verify.report import Report

KINDS: tuple[Find, ...] = (
    tensors.swapped,
    tensors.transposed,
    tensors.flipped,
    tensors.dropped,
    tensors.channel_order,
    norms.eps,
    norms.momentum,
    norms.frozen_statistics,
    norms.biased_variance,
    windows.padding_mode,
    windows.stride,
    windows.dilation,
    windows.pool_window,
    windows.ceil_mode,
    windows.count_include_pad,
    windows.resizing,
    activations.gelu_form,
    activations.relu6,
    activations.missing_activation,
    wiring.wrong_residual,
    wiring.in_place_relu,
    wiring.wrong_feature,
    wiring.softmax_axis,
    wiring.head_order,
)
"""All kinds of faults."""

CHECKS = ("layers", "outputs", "train")
"""What may catch a fault: layers and outputs in eval mode; outputs and statistics in train mode.
They run in this order, layers alone before layers in the network, until one fails."""

SYMMETRIC = "the change maps a fixed tensor to itself"

Progress = Callable[[int, int, str], None]
"""(finished steps, all steps, name of the step)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one planted fault.

    Attributes:
        kind: the kind of fault.
        what: the change, in a few words.
        fault: kind, place and change, in one line.
        layers: paths of the modules that hold it.
        caught: the first check that fails, of `CHECKS`; "" if none does. The others are not run.
        first_failing: the layer that the report names; "" if nothing fails.
        right: whether the fault is there.
        identical: whether it is not caught because not a single bit of the results differs.
        equivalent: why the change cannot have an effect; "" if it can. Equivalent changes are not
            planted.
    """

    kind: str
    what: str
    fault: str
    layers: tuple[str, ...]
    caught: str = ""
    first_failing: str = ""
    right: bool = False
    identical: bool = False
    equivalent: str = ""


@dataclasses.dataclass(frozen=True)
class MutationScore:
    """The result for one network.

    Attributes:
        outcomes: of every fault.
        shapes: shapes of the inputs, as f[N,H,W,C] for images.
        unusable: tensors that the right port fails when it is run equation by equation. They are
            not used as checks.
        seconds: time that it took.
        left_out: number of faults that could be planted, but were not, by request.
    """

    outcomes: tuple[Outcome, ...]
    shapes: tuple[tuple[int, ...], ...]
    unusable: tuple[str, ...]
    seconds: float
    left_out: int = 0

    @property
    def planted(self) -> tuple[Outcome, ...]:
        """The faults that can have an effect."""
        return tuple(o for o in self.outcomes if not o.equivalent)

    @property
    def survivors(self) -> tuple[Outcome, ...]:
        """The planted faults that no check catches."""
        return tuple(o for o in self.planted if not o.caught)

    @property
    def caught(self) -> float:
        """Share of the planted faults that some check catches, 0 to 1."""
        return 1 - len(self.survivors) / len(self.planted) if self.planted else 1.0

    @property
    def right_layer(self) -> float:
        """Share of the caught faults for which the right layer is named, 0 to 1."""
        caught = [o for o in self.planted if o.caught]
        return sum(o.right for o in caught) / len(caught) if caught else 1.0

    def table(self) -> list[tuple[str, ...]]:
        """Counts by kind, with a header and a line of sums, as text."""
        kinds: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            kinds.setdefault(outcome.kind, []).append(outcome)
        header = ("planted fault", "number", "caught", *CHECKS, "right layer", "equivalent")
        return [
            header,
            *(_row(kind, outcomes) for kind, outcomes in kinds.items()),
            _row("all", self.outcomes),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "planted": len(self.planted),
            "caught": self.caught,
            "right_layer": self.right_layer,
            "shapes": [list(shape) for shape in self.shapes],
            "unusable": list(self.unusable),
            "seconds": round(self.seconds, 1),
            "left_out": self.left_out,
            "outcomes": [dataclasses.asdict(outcome) for outcome in self.outcomes],
        }

    def __str__(self) -> str:
        """One line of result, a table by kind, survivors, and faults with another layer named."""
        planted, survivors = self.planted, self.survivors
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        lines = [
            f"mutation score: {len(planted) - len(survivors)} of {len(planted)} planted faults "
            f"caught ({self.caught:.1%}), the right layer named in {self.right_layer:.1%} of them; "
            f"inputs {shapes}; {self.seconds:.0f} s",
            *[f"{self.left_out} more of the same kinds could be planted"] * bool(self.left_out),
            "",
        ]
        rows = self.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        if survivors:
            lines += ["", f"{len(survivors)} survived:"]
            same = " (not a bit differs)"
            lines += [f"  {o.fault}{same * o.identical}" for o in survivors]
        wrong = [o for o in planted if o.caught and not o.right]
        if wrong:
            lines += ["", f"{len(wrong)} caught, but another layer named:"]
            lines += [f"  {o.fault}: {o.first_failing}" for o in wrong]
        reasons = collections.Counter(o.equivalent for o in self.outcomes if o.equivalent)
        if reasons:
            lines += ["", "not planted, because they cannot have an effect:"]
            lines += [f"  {number}: {reason}" for reason, number in reasons.items()]
        if self.unusable:
            lines += ["", f"not used as checks: {listing(self.unusable)}"]
        return "\n".join(lines)


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    planted = [o for o in outcomes if not o.equivalent]
    caught = [sum(check == o.caught for o in planted) for check in CHECKS]
    numbers = (
        len(planted),
        sum(bool(o.caught) for o in planted),
        *caught,
        sum(o.right for o in planted),
        len(outcomes) - len(planted),
    )
    return (name, *map(str, numbers))


def add_mutation(
    report: Report,
    pair: Pair,
    inputs: Sequence[np.ndarray],
    mutate: bool | int,
    progress: Progress | None,
) -> None:
    """Plant faults; `mutate` is True for all, or the largest number of each kind."""
    if not report.equal:
        report.notes.append("no faults were planted, because the port is not equal without them")
        return
    most = None if mutate is True else int(mutate)
    report.mutation = score(pair, inputs, most=most, progress=progress)


def score(
    pair: Pair,
    inputs: Sequence[np.ndarray],
    *,
    kinds: Sequence[Find] = KINDS,
    most: int | None = None,
    progress: Progress | None = None,
) -> MutationScore:
    """Plant faults in JAX's side, one at a time, and count those that the checks catch.

    JAX's side is traced and run equation by equation, with each platform-dependent operation in its
    plainest form. The faults are changed weights and changed equations; see the modules of
    `fcn_jax.verify.mutation`. PyTorch runs once.

    Args:
        pair: both sides.
        inputs: the network's inputs, images as f32[N,H,W,C]. The time grows with their size.
        kinds: the kinds of faults.
        most: plant at most so many faults of each kind, spread over the network; None for all.
        progress: called after every step.
    """
    start = time.perf_counter()
    steps = 0
    total = len(pair.layers) + 4

    def advance(step: str) -> None:
        nonlocal steps
        steps += 1
        if progress is not None:
            progress(steps, max(total, steps), step)

    in_eval, in_train = trace(pair, inputs), trace(pair, inputs, train=True)
    eval_checks = EvalChecks(pair, in_eval, inputs, advance)
    train_checks = TrainChecks(pair, in_train, inputs, advance)
    unusable = _drop_failing(eval_checks, train_checks)
    advance("JAX")
    possible = _merged(in_eval, in_train, kinds, _fixed(pair, in_train))
    mutants = [pair for group in possible for pair in _spread(group, most)]
    total = steps + len(mutants)
    outcomes = []
    for mutant, train_mutant in mutants:
        outcomes.append(_outcome(mutant, train_mutant, eval_checks, train_checks))
        advance(outcomes[-1].kind)
    shapes = tuple(tuple(x.shape) for x in inputs)
    left_out = sum(map(len, possible)) - len(mutants)
    seconds = time.perf_counter() - start
    return MutationScore(tuple(outcomes), shapes, unusable, seconds, left_out)


def _drop_failing(eval_checks: EvalChecks, train_checks: TrainChecks) -> tuple[str, ...]:
    """Remove the checks that the unchanged programs fail, and return their names."""
    failing, in_train = eval_checks.failing(), train_checks.failing()
    eval_checks.without(failing)
    train_checks.without(in_train)
    return (
        *(f"{name} ({kind})" for kind, names in failing.items() for name in sorted(names)),
        *(f"{name} (train)" for name in sorted(in_train)),
    )


def _fixed(pair: Pair, in_train: Program) -> frozenset[str]:
    """Leaves that training does not change, such as bilinear kernels."""
    others = in_train.arguments.keys() - pair.port.parameters - set(in_train.inputs)
    return frozenset(
        path
        for path in others
        if in_train.updates.get(path, in_train.arguments[path]) is in_train.arguments[path]
    )


_Planted = tuple["Mutant | None", "Mutant | None"]
"""A fault in the program of eval mode, and in that of train mode."""


def _merged(
    in_eval: Program, in_train: Program, kinds: Sequence[Find], fixed: Collection[str]
) -> list[list[_Planted]]:
    """The faults in both programs by kind; those with the same description are the same fault."""
    found: dict[str, dict[tuple[Any, ...], list[Mutant | None]]] = {}
    for find in kinds:
        for side, program in enumerate((in_eval, in_train)):
            count: collections.Counter[tuple[Any, ...]] = collections.Counter()
            for mutant in find(program):
                if not mutant.equivalent and mutant.is_identity(program, fixed):
                    mutant = dataclasses.replace(mutant, equivalent=SYMMETRIC)
                key = (mutant.what, mutant.layers)
                count[key] += 1
                group = found.setdefault(mutant.kind, {})
                group.setdefault((*key, count[key]), [None, None])[side] = mutant
    return [[(a, b) for a, b in group.values()] for group in found.values()]


def _spread(faults: Sequence[_Planted], most: int | None) -> list[_Planted]:
    """At most so many, at equal distances."""
    if most is None or len(faults) <= most:
        return list(faults)
    return [faults[i * len(faults) // most] for i in range(most)]


def _outcome(
    mutant: Mutant | None,
    train_mutant: Mutant | None,
    eval_checks: EvalChecks,
    train_checks: TrainChecks,
) -> Outcome:
    found = [m for m in (mutant, train_mutant) if m is not None]
    outcome = Outcome(found[0].kind, found[0].what, str(found[0]), found[0].layers)
    if all(m.equivalent for m in found):
        return dataclasses.replace(outcome, equivalent=found[0].equivalent)
    finding = Finding(identical=True)
    for checks, planted in ((eval_checks, mutant), (train_checks, train_mutant)):
        if planted is not None and not finding.caught:
            new = checks.find(planted)
            finding = dataclasses.replace(new, identical=new.identical and finding.identical)
    return dataclasses.replace(outcome, **dataclasses.asdict(finding))
