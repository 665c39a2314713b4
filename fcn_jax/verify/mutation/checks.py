"""The checks of `verify` on a traced program; PyTorch's results are computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fcn_jax.verify import jax_side
from fcn_jax.verify.calls import named_alike, output_layout, state_errors, torch_call
from fcn_jax.verify.criterion import FACTORS, Comparison, ReferenceErrors
from fcn_jax.verify.layers import one_thread, probes
from fcn_jax.verify.layout import Layout, best_layout
from fcn_jax.verify.mutation.mutant import Mutant, owner
from fcn_jax.verify.program import Call, Program, Value
from fcn_jax.verify.torch_side import REFERENCE
from fcn_jax.verify.types import Advance, Pair

MISSING = "cannot be computed, because shapes do not fit"


@dataclasses.dataclass(frozen=True)
class Check:
    """One compared tensor.

    Attributes:
        name: the layer's path with the number of the call, or the tensor's name.
        path: of the module that computes it; "" for the network's outputs.
        value: in the program.
        errors: PyTorch's results.
        factor: allowed error in units of the reference error.
        convert: JAX's array -> numpy with PyTorch's axes.
    """

    name: str
    path: str
    value: Value
    errors: ReferenceErrors
    factor: float
    convert: Callable[[Any], np.ndarray]

    def compare(self, found: Any) -> Comparison:
        """Compare a result of JAX; None if there is none."""
        results = {} if found is None else {self.name: self.convert(found)}
        comparison = self.errors.compare(results, self.factor)[0]
        return comparison if results else dataclasses.replace(comparison, fault=MISSING)


@dataclasses.dataclass(frozen=True)
class Alone:
    """One call of a layer on PyTorch's own input.

    Attributes:
        check: of its output.
        start: the value that the input replaces.
        given: the input.
        equations: indices of the equations of the call.
        arguments: the leaves that it reads.
    """

    check: Check
    start: Value
    given: Any
    equations: frozenset[int]
    arguments: frozenset[Value]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the checks say of a changed program.

    Attributes:
        caught: the first check that fails: "layers", "outputs" or "train"; "" if nothing fails.
        first_failing: the first failing layer as reports name it; "" if nothing fails.
        right: whether that is where the fault is.
        identical: whether nothing fails because not a single bit of outputs and statistics differs.
    """

    caught: str = ""
    first_failing: str = ""
    right: bool = False
    identical: bool = False


class EvalChecks:
    """Layers in isolation, layers in the network, and outputs, in eval mode."""

    def __init__(
        self, pair: Pair, program: Program, inputs: Sequence[np.ndarray], advance: Advance
    ) -> None:
        """Run PyTorch in eval mode."""
        side = pair.torch
        self.program = program
        calls: dict[str, list[Call]] = {}
        for call in program.calls:
            calls.setdefault(call.path, []).append(call)
        modules = dict(side.network(REFERENCE).named_modules())
        # Values that a plain function names itself have the names of PyTorch's modules.
        named = {path: path for path in calls if path not in pair.port.layers and path in modules}
        paths = {name: path for path, name in {**pair.layers, **named}.items() if path in calls}
        seen_in, reference = side.watched(REFERENCE, inputs, tuple(paths))
        runs = [side.watched(variant, inputs, tuple(paths))[1] for variant in side.variants]
        advance("PyTorch's layers")
        self.layers: list[Check] = []
        self.alone: list[Alone] = []
        for name in seen_in:  # in the order in which the layers are done
            for number, call in enumerate(calls[paths[name]][: len(seen_in[name])]):
                label = call.path if number == 0 else f"{call.path} (call {number + 1})"
                found = [run[name][number] for run in runs]
                check = self._check(label, call, reference[name][number], found, pair)
                self.layers.append(check)
                for x in probes(seen_in[name][number]):
                    alone = self._alone(label, call, x, seen_in[name][number], name, pair)
                    self.alone += [alone] if alone is not None else []
            advance(paths[name])
        expected, *outputs = (
            torch_call(pair, variant, inputs)[0] for variant in (REFERENCE, *side.variants)
        )
        self.outputs = _outputs(program, expected, outputs, pair, FACTORS["outputs"])
        advance("PyTorch's outputs")

    def _check(
        self,
        label: str,
        call: Call,
        expected: np.ndarray,
        runs: Sequence[np.ndarray],
        pair: Pair,
    ) -> Check:
        errors = _errors(label, expected, runs, pair)
        convert = _converter(expected, self.program.base[call.output])
        return Check(label, call.path, call.output, errors, FACTORS["layers"], convert)

    def _alone(
        self, label: str, call: Call, x: np.ndarray, given: np.ndarray, name: str, pair: Pair
    ) -> Alone | None:
        """A layer on an input; None if JAX's input is not known, or of another shape.

        `given` is PyTorch's own input; it shows the order of JAX's axes.
        """
        start = call.input
        if start is None or start in self.program.known:
            return None
        layout = best_layout(given, jax_side.array(self.program.base[start]))
        if layout is None:
            return None
        fed = layout.to_jax(x).astype(start.aval.dtype)
        rounded = layout.to_torch(jax_side.array(fed))
        with one_thread(rounded.size):
            expected, *runs = (
                pair.torch.layer(variant, name, rounded)
                for variant in (REFERENCE, *pair.torch.variants)
            )
        check = self._check(label, call, expected, runs, pair)
        return Alone(check, start, fed, *self.program.between(start, call.output))

    def without(self, names: Mapping[str, set[str]]) -> None:
        """Forget checks by kind."""
        self.alone = [a for a in self.alone if a.check.name not in names["alone"]]
        self.layers = [c for c in self.layers if c.name not in names["layers"]]
        self.outputs = [c for c in self.outputs if c.name not in names["outputs"]]

    def failing(self) -> dict[str, set[str]]:
        """Names of the checks that the unchanged program fails, by kind."""
        base = self.program.base
        return {
            "alone": {
                a.check.name
                for a in self.alone
                if not a.check.compare(self._result(a, {}, {})).equal
            },
            "layers": {c.name for c in self.layers if not c.compare(base[c.value]).equal},
            "outputs": {c.name for c in self.outputs if not c.compare(base[c.value]).equal},
        }

    def find(self, mutant: Mutant) -> Finding:
        """Check a mutant: first the layers that hold it alone, then the network if they pass."""
        changed = mutant.changed(self.program)
        alone = next(self._failing_alone(mutant, changed), None)
        if alone is not None:
            right = any(_holds(alone.path, module) for module in mutant.layers)
            return Finding("layers", alone.name, right)
        found = self.program.run(changed, mutant.patches)
        affected = self.program.dependents(mutant.places(self.program))
        before = "the input"
        for check in self.layers:
            if _fails(check, found):
                right = check is next(c for c in self.layers if c.value in affected)
                return Finding("layers", f"between {before} and {check.name}", right)
            before = check.name
        for output in self.outputs:
            if _fails(output, found):
                right = not any(c.value in affected for c in self.layers)
                return Finding("outputs", f"output {output.name}", right)
        return Finding(identical=_identical(self.program, self.outputs, found))

    def _failing_alone(self, mutant: Mutant, changed: Mapping[Value, Any]) -> Iterator[Check]:
        for alone in self.alone:
            if not (
                alone.equations.isdisjoint(mutant.patches) and alone.arguments.isdisjoint(changed)
            ):
                result = self._result(alone, changed, mutant.patches)
                if not alone.check.compare(result).equal:
                    yield alone.check

    def _result(self, alone: Alone, changed: Mapping[Value, Any], patches: Any) -> Any:
        given = {**changed, alone.start: alone.given}
        found = self.program.run(given, patches, alone.equations, alone.start)
        output = alone.check.value
        return found[output] if output in found else self.program.base[output]


class TrainChecks:
    """Outputs and updated statistics in train mode."""

    def __init__(
        self, pair: Pair, program: Program, inputs: Sequence[np.ndarray], advance: Advance
    ) -> None:
        """Run PyTorch in train mode; its statistics are restored."""
        self.program = program
        buffers = dict(pair.torch.network(REFERENCE).named_buffers())
        (expected, state), *runs = (
            torch_call(pair, variant, inputs, train=True)
            for variant in (REFERENCE, *pair.torch.variants)
        )
        advance("PyTorch in train mode")
        outputs = [found for found, _ in runs]
        factor = FACTORS["gradients"]  # as in `compare_train_mode`
        self.outputs = _outputs(program, expected, outputs, pair, factor)
        self.updates = []
        ordered = sorted(program.updates.items(), key=lambda item: item[1].producer)
        for path, value in ordered:
            named = pair.table.to_torch(path)
            if named is None or named[0] not in buffers:
                continue
            name, rule = named
            errors = state_errors(pair, {path: state[name]}, {path: name})
            for _, run in runs:
                errors.add({path: run[name]})

            def convert(x: Any, rule: Any = rule) -> np.ndarray:
                return np.asarray(rule.op.to_torch(np.asarray(x)))

            check = Check(path, owner(path), value, errors, factor, convert)
            self.updates.append(check)

    def without(self, names: set[str]) -> None:
        """Forget checks."""
        self.outputs = [c for c in self.outputs if c.name not in names]
        self.updates = [c for c in self.updates if c.name not in names]

    def failing(self) -> set[str]:
        """Names of the checks that the unchanged program fails."""
        base, checks = self.program.base, (*self.outputs, *self.updates)
        return {c.name for c in checks if not c.compare(base[c.value]).equal}

    def find(self, mutant: Mutant) -> Finding:
        """Check a mutant."""
        found = self.program.run(mutant.changed(self.program), mutant.patches)
        affected = self.program.dependents(mutant.places(self.program))
        for check in self.updates:
            if _fails(check, found):
                first = next(c for c in self.updates if c.value in affected)
                right = first is check or any(_holds(check.path, m) for m in mutant.layers)
                return Finding("train", check.name, right)
        for output in self.outputs:
            if _fails(output, found):
                right = not any(c.value in affected for c in self.updates)
                return Finding("train", f"output {output.name}", right)
        checks = (*self.outputs, *self.updates)
        return Finding(identical=_identical(self.program, checks, found))


def _errors(
    label: str, expected: np.ndarray, runs: Sequence[np.ndarray], pair: Pair
) -> ReferenceErrors:
    errors = ReferenceErrors({label: expected}, pair.dtype)
    for run in runs:
        errors.add({label: run})
    return errors


def _converter(
    expected: np.ndarray, base: Any, choose: Callable[..., Layout | None] = best_layout
) -> Callable[[Any], np.ndarray]:
    """Converts JAX's axes to PyTorch's; arrays of other shapes are unchanged."""
    layout = choose(expected, jax_side.array(base))

    def convert(x: Any) -> np.ndarray:
        found = jax_side.array(x)
        return found if layout is None or found.shape != layout.jax else layout.to_torch(found)

    return convert


def _outputs(
    program: Program,
    expected: Mapping[str, np.ndarray],
    runs: Sequence[Mapping[str, np.ndarray]],
    pair: Pair,
    factor: float,
) -> list[Check]:
    return [
        Check(
            name,
            "",
            value,
            _errors(name, expected[name], [run[name] for run in runs], pair),
            factor,
            _converter(expected[name], program.base[value], output_layout),
        )
        for name, value in named_alike(expected, program.outputs).items()
        if name in expected
    ]


def _fails(check: Check, found: Mapping[Value, Any]) -> bool:
    return check.value in found and not check.compare(found[check.value]).equal


def _holds(path: str, module: str) -> bool:
    """Whether a module is another one, or a part of it."""
    return module == path or module.startswith(f"{path}.")


def _identical(program: Program, checks: Sequence[Check], found: Mapping[Value, Any]) -> bool:
    return all(
        c.value not in found
        or (found[c.value] is not None and np.array_equal(found[c.value], program.base[c.value]))
        for c in checks
    )
