"""Training steps on both sides, compared after every step.

Rounding errors grow from step to step, in deep networks with batch normalization so fast that after
twenty steps nothing can be said about most tensors. There are three ways to compare nevertheless:

* `synced`: before each step all sides receive the same parameters and buffers, those of PyTorch in
  float64, rounded to float32. Each keeps its own state of the optimizer. An error cannot grow, so
  each tensor's change is held to the limit of gradients in every step.
* `free`: the sides start alike and go on alone. It shows what accumulates, over a short horizon.
* `seeds`: free runs on the batches of many seeds. JAX passes if the median and the 90 % quantile
  of its errors are within the limit of those of PyTorch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np

from fcn_jax.config import OptimConfig
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.plugins.api import Preprocess
from fcn_jax.verify import kinks
from fcn_jax.verify.criterion import (
    ATTEMPTS,
    FACTORS,
    FLOOR,
    LARGEST_LIMIT,
    NEGLIGIBLE,
    NEGLIGIBLE_BFLOAT16,
    NOT_FINITE,
    TORCH_NOT_FINITE,
    Comparison,
    ReferenceErrors,
    Section,
    better,
    compare_repeatedly,
)
from fcn_jax.verify.opening import open_units
from fcn_jax.verify.runs import (
    RECIPES,
    SGD,
    JaxRun,
    TorchRun,
    Values,
    frozen_batch_norm,
    recipe_problems,
)
from fcn_jax.verify.sides import train_mode
from fcn_jax.verify.torch_side import REFERENCE
from fcn_jax.verify.types import Advance, Pair

Mode = Literal["synced", "free", "seeds"]
MODES: tuple[Mode, ...] = get_args(Mode)

Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""(number of the step from 1, number of the attempt or seed from 0) -> u8[N,H,W,3] images and
u8[N,H,W] labels."""

Condition = Callable[[Any, Any], Any]
"""(PyTorch's network in float64 and in train mode, its input f64[N,3,H,W]); the result is ignored.
It may change the network's parameters, such as biases, so that no unit lies within rounding of a
kink."""

ADAM_NEGLIGIBLE = 1e-2
"""With AdamW, changes below this share of the average change per element are measured relative to
it. Adam divides each gradient by its size, and so enlarges those that are zero except for
rounding."""

_NEGLIGIBLE = {"float32": NEGLIGIBLE, "bfloat16": NEGLIGIBLE_BFLOAT16}
_STATISTICS = (".running_mean", ".running_var")
_COUNT = ".num_batches_tracked"
_PARAMETERS = "all parameters"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to compare training.

    Attributes:
        steps: number of steps, at least 1.
        mode: `synced`, `free` or `seeds`; see above.
        recipe: optimizer, schedule, weight decay, param groups and clipping of both sides.
        seeds: number of runs in the mode `seeds`, at least 2.
        condition: called before each step of the mode `synced`; all sides start from the parameters
            that it leaves. By default `kinks.clear` in float32, `open_units` in bfloat16.
    """

    steps: int
    mode: Mode = "synced"
    recipe: OptimConfig = SGD
    seeds: int = 8
    condition: Condition | None = None


def plan_problems(
    mode: str, recipes: Sequence[str | OptimConfig], learning_rate: float | None
) -> list[str]:
    """Invalid arguments of `verify_model` about training, one clause each."""
    problems = []
    if mode not in MODES:
        problems.append(f"train_mode is '{mode}': expected one of {', '.join(MODES)}")
    for recipe in recipes:
        if isinstance(recipe, OptimConfig):
            problems += recipe_problems(recipe)
        elif recipe not in RECIPES:
            expected = f"{', '.join(RECIPES)}, or an OptimConfig"
            problems.append(f"train_recipes has '{recipe}': expected {expected}")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        problems.append(f"train_lr is {learning_rate}: expected a number above 0")
    return problems


def compare_training(
    pair: Pair,
    model: Segmenter,
    draw: Draw,
    preprocess: Preprocess,
    plan: Plan,
    advance: Advance,
    attempts: int = ATTEMPTS,
) -> list[Section]:
    """Train both sides on the same batches and compare the change of every parameter and buffer.

    JAX's side is the step of `fcn-jax train`. PyTorch's side is its own optimizer, schedule, param
    groups and clipping. The change is compared and not the tensor, of which a wrong step is a small
    part.

    Args:
        pair: both sides.
        model: JAX's side of the pair; its arrays do not change.
        draw: makes the batches.
        preprocess: that of the backbone.
        plan: number of steps, mode and recipe.
        advance: called after every step.
        attempts: number of batches on which a step (`synced`) or the run (`free`) is compared at
            most, if a tensor is over its limit.
    """
    frozen = frozen_batch_norm(pair, bool(plan.recipe.freeze_batch_norm))
    with train_mode(pair), frozen:
        sides = _Sides(pair, model, preprocess, plan)
        model.eval()  # making the step has put it into train mode
        if plan.mode == "synced":
            return list(_synced(sides, draw, advance, attempts))
        if plan.mode == "free":
            return compare_repeatedly(lambda number: _free(sides, draw, number, advance), attempts)
        return [_over_seeds(sides, draw, advance)]


class _Sides:
    """PyTorch's reference, its correct runs, and JAX's run."""

    def __init__(self, pair: Pair, model: Segmenter, preprocess: Preprocess, plan: Plan) -> None:
        self.plan, self.dtype = plan, pair.dtype
        averaged = " and EMA" if plan.recipe.ema_decay is not None else ""
        self.title = f"training with {plan.recipe.name}{averaged}"
        settings = (preprocess, plan.recipe, plan.steps)
        self.reference, *self.runs = (
            TorchRun(pair, variant, *settings) for variant in (REFERENCE, *pair.torch.fused)
        )
        self.jax = JaxRun(pair, model, *settings)
        self.start = _copied(self.reference.values())
        # PyTorch may have a classifier for which the model here has no place.
        self._names = self.jax.values().keys()
        self._fresh = self.saved()

    def compared(self, values: Values) -> Values:
        """The tensors that JAX has, too."""
        return {name: value for name, value in values.items() if name in self._names}

    def changes(self, goal: Values, start: Values) -> ReferenceErrors:
        """Errors of the changes from `start` of the tensors that JAX has, too."""
        adam = self.plan.recipe.name == "adamw"
        return _changes(self.compared(goal), start, self.dtype, adam=adam)

    def every(self) -> tuple[TorchRun | JaxRun, ...]:
        """Reference, PyTorch's runs, JAX's run."""
        return (self.reference, *self.runs, self.jax)

    def saved(self) -> list[Any]:
        """States of all optimizers."""
        return [run.saved() for run in self.every()]

    def restore(self, saved: Sequence[Any] | None = None) -> None:
        """Go back to saved states of all optimizers, by default to the first ones."""
        for run, state in zip(self.every(), saved or self._fresh, strict=True):
            run.restore(state)


def _synced(sides: _Sides, draw: Draw, advance: Advance, attempts: int) -> Iterator[Section]:
    """One section for each step."""
    for number in range(1, sides.plan.steps + 1):
        saved = sides.saved() if attempts > 1 else None
        before = _rounded(sides.reference.values())
        section = best = _synced_step(sides, before, number, draw(number, 0))
        for attempt in range(1, attempts):
            # The next step continues from the last attempt, which should therefore be free of
            # errors of its own.
            if section.equal or any(c.fault for c in section.comparisons):
                break
            sides.restore(saved)
            section = _synced_step(sides, before, number, draw(number, attempt))
            best = better(best, section)
        yield best
        advance(f"training step {number}")


def _synced_step(
    sides: _Sides, before: Values, number: int, batch: tuple[np.ndarray, np.ndarray]
) -> Section:
    reference, factor = sides.reference, FACTORS["gradients"]
    reference.load(before)
    condition = sides.plan.condition or _CONDITIONS[sides.dtype]
    condition(reference.network, reference.inputs(batch[0]))
    start = _rounded(reference.values())
    loss, goal = reference.after(start, *batch)
    losses = ReferenceErrors({"loss": loss}, sides.dtype)
    changes = sides.changes(goal, start)
    for run in sides.runs:
        loss, values = run.after(start, *batch)
        losses.add({"loss": loss})
        changes.add(values)
    loss, values = sides.jax.after(start, *batch)
    found = (*losses.compare({"loss": loss}, factor), *changes.compare(values, factor))
    return Section(f"{sides.title}, step {number}", factor, found)


_CONDITIONS: dict[str, Condition] = {
    "float32": kinks.clear,
    "bfloat16": lambda network, x: open_units(network, lambda: network(x)),
}


def _changes(goal: Values, start: Values, dtype: str, *, adam: bool) -> ReferenceErrors:
    """Errors of the changes, which are stored as a part of float32 tensors."""
    norms = {name: float(np.linalg.norm(np.ravel(goal[name] - start[name]))) for name in goal}
    least = {}
    for kind, names in _kinds(goal).items():
        norm, size = math.hypot(*(norms[n] for n in names)), sum(goal[n].size for n in names)
        for name in names:
            share = _NEGLIGIBLE[dtype]
            if adam and kind == _PARAMETERS:
                share = max(share, ADAM_NEGLIGIBLE * math.sqrt(goal[name].size / size))
            least[name] = share * norm
    with np.errstate(invalid="ignore"):
        rounding = {
            name: float(np.linalg.norm(np.ravel(np.spacing(np.abs(start[name]))))) / math.sqrt(12)
            for name in goal
            if start[name].dtype.kind == "f"
        }
    return ReferenceErrors(goal, dtype, start=start, least_norm=least, rounding=rounding)


def _free_steps(
    sides: _Sides, draw: Draw, number: int, advance: Advance
) -> Iterator[tuple[int, list[tuple[np.ndarray, Values]]]]:
    """Number of the step, and loss and tensors of the reference, PyTorch's runs, and JAX."""
    sides.restore()
    runs = sides.every()
    held: list[tuple[np.ndarray, Values]] = [(np.zeros(()), sides.start)] * len(runs)
    for step in range(1, sides.plan.steps + 1):
        batch = draw(step, number)
        for i, run in enumerate(runs):
            loss, values = run.after(held[i][1], *batch)
            held[i] = np.asarray(loss), _copied(values)
        yield step, held
        advance(f"training step {step}")


def _free(sides: _Sides, draw: Draw, number: int, advance: Advance) -> list[Section]:
    """Every tensor after the first and the last step; their sums after each step."""
    steps, factor, first_factor = sides.plan.steps, FACTORS["training"], FACTORS["gradients"]
    first: tuple[Comparison, ...] = ()
    last: tuple[Comparison, ...] = ()
    between: list[Comparison] = []
    for step, ((loss, values), *runs, (our_loss, ours)) in _free_steps(
        sides, draw, number, advance
    ):
        goal, title = sides.compared(values), f"loss, step {step}"
        groups = {f"{kind}, step {step}": names for kind, names in _kinds(goal).items()}
        losses = ReferenceErrors({title: loss}, sides.dtype)
        whole = ReferenceErrors(goal, sides.dtype, start=sides.start, groups=groups)
        each = sides.changes(values if step in (1, steps) else {}, sides.start)
        for run_loss, run_values in runs:
            losses.add({title: run_loss})
            whole.add(run_values)
            each.add(run_values)
        between += [*losses.compare({title: our_loss}, factor), *whole.compare(ours, factor)]
        if step == 1:
            first = each.compare(ours, first_factor)
        if step == steps:
            last = each.compare(ours, factor)
    sections = [
        Section(f"{sides.title}, after step 1", first_factor, first),
        Section(f"{sides.title}, each step", factor, tuple(between)),
    ]
    if steps > 1:
        sections.append(Section(f"{sides.title}, after step {steps}", factor, last))
    return sections


def _over_seeds(sides: _Sides, draw: Draw, advance: Advance) -> Section:
    """Quantiles of the errors after the last step, by kind of tensor and of the loss."""
    plan, factor = sides.plan, FACTORS["gradients"]
    theirs: dict[str, list[float]] = {}
    ours: dict[str, list[float]] = {}
    for seed in range(plan.seeds):
        *_, (_, found) = _free_steps(sides, draw, seed, advance)
        (loss, goal), *others = found
        goal = sides.compared(goal)
        errors = [
            ReferenceErrors({"loss": loss}, sides.dtype),
            ReferenceErrors(goal, sides.dtype, start=sides.start, groups=_fine_kinds(goal)),
        ]
        for i, (run_loss, values) in enumerate(others):
            into = ours if i == len(others) - 1 else theirs
            compared = {name: values[name] for name in goal if name in values}
            for error, run in zip(errors, ({"loss": run_loss}, compared), strict=True):
                for c in error.compare(run, factor):
                    into.setdefault(c.name, []).append(c.error)
    floor = FLOOR[sides.dtype]
    comparisons = [
        _quantile(f"{kind}, {name}", share, errors, theirs[kind], factor, floor)
        for kind, errors in ours.items()
        for name, share in (("median", 0.5), ("90 % quantile", 0.9))
    ]
    return Section(
        f"{sides.title}, step {plan.steps} over {plan.seeds} seeds", factor, tuple(comparisons)
    )


def _quantile(
    name: str, share: float, ours: list[float], theirs: list[float], factor: float, floor: float
) -> Comparison:
    fault = TORCH_NOT_FINITE if not all(map(math.isfinite, theirs)) else ""
    if not fault and not all(map(math.isfinite, ours)):
        fault = NOT_FINITE
    if fault:
        return Comparison(name, (), math.inf, math.inf, 0.0, math.inf, fault)
    error, reference = (float(np.quantile(errors, share)) for errors in (ours, theirs))
    limit = min(factor * max(reference, floor), LARGEST_LIMIT)
    return Comparison(name, (), error, reference, limit, max(ours))


def _kinds(tensors: Iterable[str]) -> dict[str, list[str]]:
    """Names of all parameters and, if there are any, of all running statistics."""
    names = [name for name in tensors if not name.endswith(_COUNT)]
    return _grouped(
        names,
        lambda name: "all running statistics" if name.endswith(_STATISTICS) else _PARAMETERS,
    )


def _fine_kinds(tensors: Values) -> dict[str, list[str]]:
    """Names of kernels, vectors (scales of normalizations), biases and each running statistic."""

    def kind(name: str) -> str:
        last = name.rpartition(".")[2]
        if last != "weight":
            return last
        return "kernel" if tensors[name].ndim > 1 else "scale"

    return _grouped(tensors, kind)


def _grouped(names: Iterable[str], kind: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(kind(name), []).append(name)
    return groups


def _copied(values: Values) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in values.items()}


def _rounded(values: Values) -> dict[str, np.ndarray]:
    """Copies in float32; integers keep their dtype."""
    return {
        name: value.astype(np.float32) if value.dtype.kind == "f" else np.array(value)
        for name, value in values.items()
    }
