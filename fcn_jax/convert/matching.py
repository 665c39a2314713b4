"""Holding a file's tensors against a model's leaves: what fits, what was left out and why, and what is wrong with the rest."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np
from flax import nnx

from fcn_jax.convert.rules import Rule, Table
from fcn_jax.errors import listing

_WIDENED = ("float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LoadRecord:
    """What went where when weights were loaded; JSON-able by `dataclasses.asdict`.

    Attributes:
        source: the file, or "state dict".
        sha256: of the file, or None.
        names: naming scheme recognised, such as "torchvision" or "d2l".
        scope: "model", or "backbone" for a file of the backbone alone: the head then keeps its initial values.
        loaded: Flax path -> name in the file.
        dropped: name in the file -> reason.
        reinit: Flax paths left at their initial values because `--reinit` named them.
        absent: Flax paths of optional tensors that the file lacks.
        stripped: prefix that was taken off every name.
        cast: name in the file -> its dtype, where that is not the model's: float16 and bfloat16 are widened without loss, float64 is
            rounded.
    """

    source: str
    sha256: str | None
    names: str
    scope: str
    loaded: dict[str, str]
    dropped: dict[str, str]
    reinit: list[str]
    absent: list[str]
    stripped: str = ""
    cast: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """One line for a log."""
        without = f", without '{self.stripped}'" if self.stripped else ""
        parts = [f"{len(self.loaded)} tensors of {self.source} ({self.names} names{without}, {self.scope})"]
        for dtype, count in sorted(collections.Counter(self.cast.values()).items()):
            parts.append(f"{count} {'widened' if dtype in _WIDENED else 'rounded'} from {dtype}")
        if self.reinit:
            parts.append(f"{len(self.reinit)} kept at their initial values by --reinit")
        if self.dropped:
            parts.append(f"{len(self.dropped)} dropped: {listing(self.dropped)}")
        return "; ".join(parts)


@dataclasses.dataclass
class Problems:
    """What does not fit, each with its name and the reason."""

    missing: list[str] = dataclasses.field(default_factory=list)
    surplus: list[str] = dataclasses.field(default_factory=list)
    misshapen: list[str] = dataclasses.field(default_factory=list)
    unusable: list[str] = dataclasses.field(default_factory=list)
    unmatched_globs: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(getattr(self, field.name) for field in dataclasses.fields(self))


def match(
    tensors: Mapping[str, np.ndarray],
    targets: Mapping[str, nnx.Variable],
    table: Table,
    reinit: Sequence[str],
    record: LoadRecord,
) -> Problems:
    """Hold the tensors against the leaves `targets`, by name.

    Args:
        tensors: name in the file -> values, read when they are asked for, one at a time.
        targets: Flax path -> leaf, an array or its shape; nothing of it is changed.
        table: names the leaves as the file does.
        reinit: globs over names or paths, of what keeps its initial value.
        record: its scope says whether the file is meant to hold more than a backbone; what fits is written down in it.

    Returns:
        What does not fit.
    """
    problems = Problems()
    used_globs: set[str] = set()

    def is_reinit(name: str, path: str) -> bool:
        hits = {glob for glob in reinit if _glob(name, glob) or _glob(path, glob)}
        used_globs.update(hits)
        return bool(hits)

    for path, leaf in targets.items():
        if record.scope == "backbone" and not path.startswith("backbone."):
            is_reinit(path, path)  # it keeps its initial value in any case, but the glob is not a mistake
            continue
        found = table.to_torch(path)
        if found is None:
            problems.missing.append(f"{path} (no rule names it)")
            continue
        name, rule = found
        if is_reinit(name, path):
            record.reinit.append(path)
        elif name not in tensors:
            if rule.optional:
                record.absent.append(path)
            else:
                problems.missing.append(name)
        else:
            try:
                dtype = _checked(tensors[name], rule, leaf)
            except _MisshapenError as fault:
                problems.misshapen.append(f"{name}: {fault}")
            except _UnusableError as fault:
                problems.unusable.append(f"{name}: {fault}")
            else:
                record.loaded[path] = name
                if np.issubdtype(leaf.dtype, np.floating) and dtype != leaf.dtype:
                    record.cast[name] = dtype.name
    known = set(record.loaded.values())
    for name in tensors:
        if name in known:
            continue
        found_jax = table.to_jax(name)
        if found_jax is not None and found_jax[0] in targets:
            continue  # re-initialised, or already among the problems
        reason = table.dropped(name)
        if reason is not None:
            record.dropped[name] = reason
        else:
            problems.surplus.append(name)
    problems.unmatched_globs = [glob for glob in reinit if glob not in used_globs]
    return problems


def _glob(name: str, glob: str) -> bool:
    """A glob names a tensor or a module: `layer4.?.bn?` means all of what is below it too."""
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"{glob}.*")


class UnfitError(Exception):
    """A tensor is not what its leaf takes."""


# Which of the two it is decides the list in which it is reported.


class _MisshapenError(UnfitError):
    pass


class _UnusableError(UnfitError):
    pass


def _checked(value: np.ndarray, rule: Rule, leaf: nnx.Variable) -> np.dtype:
    """The dtype of a tensor that can be converted. A function of its own, so that the tensor is gone before the next is read."""
    as_leaf(value, rule, leaf)
    return value.dtype


def as_leaf(value: np.ndarray, rule: Rule, leaf: nnx.Variable) -> np.ndarray:
    """The tensor in its leaf's layout and dtype. Raises `UnfitError` with the reason."""
    shape, dtype = tuple(leaf.shape), leaf.dtype
    if np.issubdtype(dtype, np.integer):
        # Batch counts; averaged checkpoints hold them as floats.
        if not (value.dtype.kind in "iu" or (value.dtype.kind == "f" and bool((value == np.round(value)).all()))):
            raise _UnusableError(f"is {value.dtype.name} and no count")
    elif value.dtype.name not in ("float32", "float64", *_WIDENED):
        raise _UnusableError(f"is {value.dtype.name}; the model needs floats of 16, 32 or 64 bits")
    try:
        converted = rule.op.to_jax(value)
    except ValueError as error:
        raise _MisshapenError(str(error)) from error
    except OverflowError as error:
        raise _UnusableError(str(error)) from error
    if converted.shape != shape:
        expected = rule.op.to_torch(np.empty(shape, np.float32)).shape
        raise _MisshapenError(f"shape {value.shape}, the model needs {expected}")
    with np.errstate(over="ignore"):  # a float64 that is too large becomes infinite, and is refused
        converted = converted.astype(dtype, copy=False)
    if not bool(np.isfinite(converted).all()):
        raise _UnusableError("has values that are not finite" + (" in float32" if value.dtype == np.float64 else ""))
    return converted


def complaint(record: LoadRecord, what: str, problems: Problems) -> str:
    """All problems of fitting a file to `what`, in one line."""
    parts = [f"{record.source} does not fit {what}"]
    named = {
        "missing": problems.missing,
        "surplus": [_with_nearest(name, problems.missing) for name in problems.surplus],
        "misshapen": problems.misshapen,
        "unusable": problems.unusable,
    }
    parts += [f"{label} {len(names)}: {', '.join(names)}" for label, names in named.items() if names]
    if problems.unmatched_globs:
        parts.append(f"--reinit matches nothing: {', '.join(problems.unmatched_globs)}")
    advice = ""
    if problems.missing or problems.misshapen:
        renamed = problems.missing or problems.surplus
        cause = "another architecture, or other names?" if renamed else "another number of classes, or other options?"
        advice = f"; {cause} To keep initial values on purpose, name them with --reinit GLOB"
    return "; ".join(parts) + advice


def _with_nearest(name: str, missing: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, missing, n=1, cutoff=0.8)
    return f"{name} (is it {nearest[0]}?)" if nearest else name
