"""The checks of `verify` on a traced program; PyTorch's results are computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fcn_jax.verify.compare import FACTORS, Comparison, ReferenceErrors
from fcn_jax.verify.jax_side import array as in_torch_layout
from fcn_jax.verify.modules import train_mode
from fcn_jax.verify.mutation.mutant import Mutant, owner
from fcn_jax.verify.program import Call, Program, Value
from fcn_jax.verify.torch_side import REFERENCE, array, import_torch
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
        convert: JAX's array -> numpy in PyTorch's layout.
    """

    name: str
    path: str
    value: Value
    errors: ReferenceErrors
    factor: float
    convert: Callable[[Any], np.ndarray] = in_torch_layout

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
        caught: "layers", "outputs" and "train": those that fail.
        blamed: the first failing layer as reports name it; "" if nothing fails.
        right: whether that is where the fault is.
        identical: whether not a single bit of outputs and statistics differs.
    """

    caught: tuple[str, ...]
    blamed: str
    right: bool
    identical: bool


class EvalChecks:
    """Layers in isolation, layers in the network, and outputs, in eval mode."""

    def __init__(
        self, pair: Pair, program: Program, inputs: Sequence[np.ndarray], advance: Advance
    ) -> None:
        """Run PyTorch. Both sides are in eval mode."""
        torch, side = import_torch(), pair.torch
        self.program = program
        calls = {(call.path, call.number): call for call in program.calls}
        paths = {name: path for path, name in pair.layers.items() if (path, 0) in calls}
        seen_in, reference = side.watched(REFERENCE, inputs, tuple(paths))
        runs = [side.watched(variant, inputs, tuple(paths))[1] for variant in side.variants]
        advance("PyTorch's layers")
        self.layers: list[Check] = []
        self.alone: list[Alone] = []
        for name in seen_in:  # in the order in which the layers are done
            for number, given in enumerate(seen_in[name]):
                call = calls.get((paths[name], number))
                if call is None:
                    continue
                label = call.path if number == 0 else f"{call.path} (call {number + 1})"
                found = [run[name][number] for run in runs]
                self.layers.append(_check(label, call, reference[name][number], found, pair))
                if call.input.shape != given.shape or call.input in program.known:
                    continue
                x = jnp.asarray(given, call.input.aval.dtype)
                expected, *found = (
                    side.layer(variant, name, np.asarray(x, np.float32))
                    for variant in (REFERENCE, *side.variants)
                )
                self.alone.append(
                    Alone(
                        _check(label, call, expected, found, pair),
                        call.input,
                        x,
                        *program.between(call.input, call.output),
                    )
                )
            advance(paths[name])
        with torch.no_grad():
            expected, *found = (
                {key: array(value) for key, value in side.outputs(variant, inputs).items()}
                for variant in (REFERENCE, *side.variants)
            )
        self.outputs = _outputs(program, expected, found, pair.dtype)
        advance("PyTorch's outputs")

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
        """Check a mutant."""
        changed = mutant.changed(self.program)
        found = self.program.run(changed, mutant.patches)
        alone = next(self._failing_alone(mutant, changed), None)
        layer = next(_failing(self.layers, found), None)
        output = next(_failing(self.outputs, found), None)
        caught = [*["layers"] * bool(alone or layer), *["outputs"] * bool(output)]
        affected = self.program.dependents(mutant.places(self.program))
        blamed, right = "", False
        if alone is not None:
            blamed = alone.name
            right = any(_holds(alone.path, module) for module in mutant.layers)
        elif layer is not None:
            before = "the input"
            for check in self.layers:
                if check is layer:
                    break
                before = check.name
            blamed = f"between {before} and {layer.name}"
            first = next(c for c in self.layers if c.value in affected)
            right = first is layer
        elif output is not None:
            blamed = f"output {output.name}"
            right = not any(c.value in affected for c in self.layers)
        return Finding(tuple(caught), blamed, right, _identical(self.program, self.outputs, found))

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
        with train_mode(pair):
            (expected, buffers), *runs = (
                _torch_step(pair, variant, inputs) for variant in (REFERENCE, *pair.torch.variants)
            )
        advance("PyTorch in train mode")
        outputs = [found for found, _ in runs]
        self.outputs = _outputs(program, expected, outputs, pair.dtype)
        self.updates = []
        ordered = sorted(program.updates.items(), key=lambda item: item[1].producer)
        for path, value in ordered:
            named = pair.table.to_torch(path)
            if named is None or named[0] not in buffers:
                continue
            name, rule = named
            errors = ReferenceErrors({path: buffers[name]}, pair.dtype)
            for _, found in runs:
                errors.add({path: found[name]})

            def convert(x: Any, rule: Any = rule) -> np.ndarray:
                return np.asarray(rule.op.to_torch(np.asarray(x)))

            check = Check(path, owner(path), value, errors, FACTORS["outputs"], convert)
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
        update = next(_failing(self.updates, found), None)
        output = next(_failing(self.outputs, found), None)
        affected = self.program.dependents(mutant.places(self.program))
        blamed, right = "", False
        if update is not None:
            blamed = update.name
            first = next(c for c in self.updates if c.value in affected)
            right = first is update or any(_holds(update.path, m) for m in mutant.layers)
        elif output is not None:
            blamed = f"output {output.name}"
            right = not any(c.value in affected for c in self.updates)
        caught = ("train",) if update or output else ()
        checks = (*self.outputs, *self.updates)
        return Finding(caught, blamed, right, _identical(self.program, checks, found))


def _torch_step(
    pair: Pair, variant: Any, inputs: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs and buffers after one call in train mode; buffers are restored."""
    torch, network = import_torch(), pair.torch.network(variant)
    saved = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.no_grad():
        outputs = {k: array(v) for k, v in pair.torch.outputs(variant, inputs).items()}
        buffers = {name: array(buffer) for name, buffer in network.named_buffers()}
        for name, buffer in network.named_buffers():
            buffer.copy_(saved[name])
    return outputs, buffers


def _check(
    label: str, call: Call, expected: np.ndarray, found: Sequence[np.ndarray], pair: Pair
) -> Check:
    errors = ReferenceErrors({label: expected}, pair.dtype)
    for run in found:
        errors.add({label: run})
    return Check(label, call.path, call.output, errors, FACTORS["layers"])


def _outputs(
    program: Program,
    expected: Mapping[str, np.ndarray],
    found: Sequence[Mapping[str, np.ndarray]],
    dtype: str,
) -> list[Check]:
    checks = []
    for name, value in program.outputs.items():
        errors = ReferenceErrors({name: expected[name]}, dtype)
        for run in found:
            errors.add({name: run[name]})
        checks.append(Check(name, "", value, errors, FACTORS["outputs"]))
    return checks


def _failing(checks: Sequence[Check], found: Mapping[Value, Any]) -> Iterator[Check]:
    return (c for c in checks if c.value in found and not c.compare(found[c.value]).equal)


def _holds(path: str, module: str) -> bool:
    """Whether a module is another one, or a part of it."""
    return module == path or module.startswith(f"{path}.")


def _identical(program: Program, checks: Sequence[Check], found: Mapping[Value, Any]) -> bool:
    return all(
        c.value not in found
        or (found[c.value] is not None and np.array_equal(found[c.value], program.base[c.value]))
        for c in checks
    )
