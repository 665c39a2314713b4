"""Compares a file's tensors with a model's leaves: what fits, what is left out and why, and what is wrong with the rest."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from flax import nnx

from fcn_jax.errors import listing
from fcn_jax.pytorch.rules import Rule, Table

_WIDENED = ("float16", "bfloat16")
_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What went where when weights were loaded; JSON-able by `dataclasses.asdict`.

    Attributes:
        source: the file, or "state dict".
        sha256: of the file, or None.
        names: naming scheme recognized, such as "torchvision" or "d2l".
        scope: "model", or "backbone" for the backbone alone: the head then keeps its initial
            values.
        loaded: Flax path -> name in the file, without `stripped`.
        dropped: name in the file -> reason. Only names that the file holds.
        reinit: Flax paths left at their initial values because `--reinit` named them.
        absent: Flax paths of optional tensors that the file lacks.
        stripped: prefix that was taken off the names of the network.
        cast: name in the file -> its dtype, where that is not the model's: float16 and bfloat16 are
            widened without loss, float64 is rounded.
        key: the keys under which the state dict lies in the file, joined by dots; "" for the top.
        also_fits: keys and prefixes under which the file holds other tensors of the same names and
            sizes, such as "model_ema".
        beside: keys of the file that hold no weights, such as "epoch".
        others: keys of the file that hold other weights, such as "model_ema", which were left.
        renamed: name -> name in the file, where more than `stripped` was taken off, such as
            `_orig_mod` within the name.
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
    key: str = ""
    also_fits: list[str] = dataclasses.field(default_factory=list)
    beside: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)

    def in_file(self, name: str) -> str:
        """What a file calls a tensor that the record names."""
        return self.renamed.get(name, self.stripped + name)

    def how_read(self) -> str:
        """How the names were read, in a few words."""
        under = f", under '{self.key}'" if self.key else ""
        without = f", without '{self.stripped}'" if self.stripped else ""
        inner = sorted(
            {
                part
                for name, raw in self.renamed.items()
                for part in set(raw.split(".")) - set(name.split("."))
            }
            - set(self.stripped.split("."))
        )
        within = f", without {', '.join(inner)} within names" if inner else ""
        return f"{self.names} names{under}{without}{within}, {self.scope}"

    def __str__(self) -> str:
        """One line for a log."""
        parts = [f"{len(self.loaded)} tensors of {self.source} ({self.how_read()})"]
        if self.also_fits:
            first, read = self.also_fits[0], self.key or self.stripped.rstrip(".") or "the top"
            parts.append(
                f"read '{read}'; '{listing(self.also_fits, 4)}' holds the same names: --key {first} takes it"
            )
        for dtype, count in sorted(collections.Counter(self.cast.values()).items()):
            parts.append(f"{count} {'widened' if dtype in _WIDENED else 'rounded'} from {dtype}")
        if self.reinit:
            parts.append(f"{len(self.reinit)} kept at their initial values by --reinit")
        if self.dropped:
            parts.append(f"{len(self.dropped)} dropped: {listing(self.dropped)}")
            reasons = collections.Counter(self.dropped.values())
            parts[-1] += (
                f" ({'; '.join(reasons) if len(reasons) < 4 else f'{len(reasons)} reasons'})"
            )
        if self.others:
            parts.append(f"other weights, left: {listing(self.others, 6)}")
        if self.beside:
            parts.append(f"not weights: {listing(self.beside, 6)}")
        return "; ".join(parts)


@dataclasses.dataclass
class Problems:
    """What does not fit, each with its name and the reason.

    Attributes:
        missing: names that the model needs and the file lacks.
        surplus: names that the file has and the model does not.
        misshapen: tensors of another shape.
        unusable: tensors of other dtypes, or with values that cannot be.
        unmatched_globs: globs of `--reinit` that name nothing.
        unmatched_drops: globs of `--drop` that name nothing.
        in_backbone: those of `surplus` that lie in modules of the backbone: the file is of a larger
            one.
        sizes: of those tensors of `misshapen` that lie in a head: (shape, the model's).
    """

    missing: list[str] = dataclasses.field(default_factory=list)
    surplus: list[str] = dataclasses.field(default_factory=list)
    misshapen: list[str] = dataclasses.field(default_factory=list)
    unusable: list[str] = dataclasses.field(default_factory=list)
    unmatched_globs: list[str] = dataclasses.field(default_factory=list)
    unmatched_drops: list[str] = dataclasses.field(default_factory=list)
    in_backbone: list[str] = dataclasses.field(default_factory=list)
    sizes: list[tuple[tuple[int, ...], tuple[int, ...]]] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(getattr(self, field.name) for field in dataclasses.fields(self))


def match(
    tensors: Mapping[str, np.ndarray],
    targets: Mapping[str, nnx.Variable],
    table: Table,
    reinit: Sequence[str],
    record: LoadReport,
    drop: Sequence[str] = (),
    leftover: Callable[[str], str | None] | None = None,
) -> Problems:
    """Compare tensors with the leaves `targets`, by name.

    Args:
        tensors: name in the file -> values, read when they are looked up, one at a time.
        targets: Flax path -> leaf, an array or its shape; nothing of it is changed.
        table: names the leaves as the file does.
        reinit: globs over names or paths, of what keeps its initial value.
        record: its scope says whether the file is meant to hold more than a backbone; what fits is
            written down in it.
        drop: globs over names, of what the file holds and the model shall not have.
        leftover: name of a tensor for which the model has no place -> the reason to leave it out,
            or None, which makes it a problem. By default the reasons of the table.

    Returns:
        What does not fit.
    """
    problems = Problems()
    used_globs: set[str] = set()
    used_drops: set[str] = set()

    def is_reinit(name: str, path: str) -> bool:
        hits = {glob for glob in reinit if named_by(glob, name, path, record.in_file(name))}
        used_globs.update(hits)
        return bool(hits)

    dropped_by = {}
    for name in tensors:
        hits = [glob for glob in drop if named_by(glob, name, record.in_file(name))]
        used_drops.update(hits)
        if hits:
            dropped_by[name] = hits[0]
    for path, leaf in targets.items():
        if record.scope == "backbone" and not path.startswith("backbone."):
            is_reinit(
                path, path
            )  # it keeps its initial value in any case, but the glob is not a mistake
            continue
        found = table.to_torch(path)
        if found is None:
            problems.missing.append(f"{path} (no rule names it)")
            continue
        name, rule = found
        if is_reinit(name, path):
            record.reinit.append(path)
        elif name not in tensors or name in dropped_by:
            if rule.optional:
                record.absent.append(path)
            else:
                why = f" (dropped by --drop {dropped_by[name]})" if name in dropped_by else ""
                problems.missing.append(name + why)
        else:
            try:
                dtype = _checked(tensors[name], rule, leaf)
            except _MisshapenError as fault:
                problems.misshapen.append(f"{name}: {fault}")
                if not path.startswith("backbone.") and fault.sizes:
                    problems.sizes.append(fault.sizes)
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
        if name in dropped_by:
            record.dropped[name] = f"left out on purpose (--drop {dropped_by[name]})"
            continue
        found_jax = table.to_jax(name)
        if found_jax is not None and found_jax[0] in targets:
            continue  # re-initialized, or already among the problems
        reason = table.dropped(name) if leftover is None else leftover(name)
        if reason is not None:
            record.dropped[name] = reason
        else:
            problems.surplus.append(name)
    trunk = {
        _module(place[0])
        for path in targets
        if path.startswith("backbone.") and (place := table.to_torch(path)) is not None
    }
    problems.in_backbone = [name for name in problems.surplus if _module(name) in trunk]
    problems.unmatched_globs = [
        glob
        for glob in reinit
        if glob not in used_globs and not any(named_by(glob, name) for name in record.dropped)
    ]
    problems.unmatched_drops = [glob for glob in drop if glob not in used_drops]
    return problems


def _module(name: str) -> str:
    """The module of a network that a tensor lies in, such as "layer1" or "backbone.layer1"."""
    parts = name.split(".")[:-1]
    return ".".join(parts[: 2 if parts[:1] == ["backbone"] else 1])


def other_classes(problems: Problems, num_classes: int | None) -> int | None:
    """The number of classes of a file whose tensors differ from the model's in that number only; None if it is not that."""
    if num_classes is None or not problems.sizes or len(problems.sizes) < len(problems.misshapen):
        return None
    found: set[int] = set()
    for shape, expected in problems.sizes:
        if len(shape) != len(expected):
            return None
        pairs = {pair for pair in zip(shape, expected, strict=True) if pair[0] != pair[1]}
        if any(wanted != num_classes for _, wanted in pairs):
            return None
        found |= {size for size, _ in pairs}
    return found.pop() if len(found) == 1 else None


def named_by(glob: str, *names: str) -> bool:
    """Whether a glob names a tensor by any of its names. A glob names a module too: `layer4.?.bn?` means all of what is below it."""
    return any(
        fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"{glob}.*") for name in names
    )


class UnfitError(Exception):
    """A tensor is not what its leaf takes."""


# Which of the two it is decides the list in which it is reported.


class _MisshapenError(UnfitError):
    def __init__(
        self, message: str, sizes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    ) -> None:
        super().__init__(message)
        self.sizes = sizes


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
        if not (
            value.dtype.kind in "iu"
            or (value.dtype.kind == "f" and bool((value == np.round(value)).all()))
        ):
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
        raise _MisshapenError(
            f"shape {value.shape}, the model needs {expected}", (value.shape, expected)
        )
    with np.errstate(over="ignore"):  # a float64 that is too large becomes infinite, and is refused
        converted = converted.astype(dtype, copy=False)
    if not bool(np.isfinite(converted).all()):
        raise _UnusableError(
            "has values that are not finite" + (" in float32" if value.dtype == np.float64 else "")
        )
    if rule.jax.endswith(".var") and bool((converted < 0).any()):
        raise _UnusableError("has negative values, and a variance has none")
    return converted


_REPARAMETRIZED = {
    "weight_orig": "pruned by torch.nn.utils.prune: call torch.nn.utils.prune.remove(MODULE, 'weight') for each module, then save",
    "weight_mask": "pruned by torch.nn.utils.prune: call torch.nn.utils.prune.remove(MODULE, 'weight') for each module, then save",
    "weight_g": "reparametrized by weight_norm: call torch.nn.utils.remove_weight_norm(MODULE) for each module, then save",
    "weight_v": "reparametrized by weight_norm: call torch.nn.utils.remove_weight_norm(MODULE) for each module, then save",
}


def reparametrized(names: Iterable[str]) -> str | None:
    """What to do about weights that a file holds in the parts that they are computed from; None where it does not."""
    for name in names:
        if ".parametrizations." in f".{name}":
            return (
                "its weights are reparametrized by torch.nn.utils.parametrize: call "
                "torch.nn.utils.parametrize.remove_parametrizations(MODULE, 'weight') for each module, then save"
            )
        if how := _REPARAMETRIZED.get(name.rpartition(".")[2]):
            return f"its weights are {how}"
    return None


def complaint(
    record: LoadReport,
    what: str,
    problems: Problems,
    looks_like: str | None = None,
    num_classes: int | None = None,
    backbone: str | None = None,
) -> str:
    """All problems of fitting a file to `what`, in one line.

    Args:
        record: of the attempt.
        what: the model, and how the file was read.
        problems: at least one.
        looks_like: what the file seems to hold, or None.
        num_classes: of the model, if it has a head.
        backbone: the registered one that the file seems to hold, if it is not the model's;
            otherwise None.
    """
    parts = [f"{record.source} does not fit {what}"]
    if looks_like and (problems.missing or (problems.surplus and record.scope == "backbone")):
        parts[0] += f": it looks like {looks_like}"
    named = {
        "missing": problems.missing,
        "surplus": problems.surplus,
        "misshapen": problems.misshapen,
        "unusable": problems.unusable,
    }
    for label, names in named.items():
        if names:
            shown = (
                [_with_nearest(name, problems.missing) for name in names[:_SHOWN]]
                if label == "surplus"
                else names[:_SHOWN]
            )
            parts.append(f"{label} {len(names)}: {listing([*shown, *names[_SHOWN:]], _SHOWN)}")
    apart = False
    for key in record.others:
        if count := sum(name.startswith(f"{key}.") for name in problems.surplus):
            apart = record.names == "torchvision"
            parts.append(
                f"it also holds weights under '{key}' ({count} tensor{'s' if count > 1 else ''})"
            )
    if problems.unmatched_globs:
        parts.append(f"--reinit matches nothing: {listing(problems.unmatched_globs)}")
    if problems.unmatched_drops:
        parts.append(f"--drop matches nothing: {listing(problems.unmatched_drops)}")
    advice = ""
    how = reparametrized(problems.surplus)
    classes = None if problems.missing or problems.surplus else other_classes(problems, num_classes)
    if how:
        advice = f"; {how}"
    elif problems.in_backbone and not problems.missing:
        if backbone:
            advice = f"; another architecture: choose the backbone of the file, {backbone} (setting model.backbone, --model of convert)"
        else:
            advice = "; surplus within the backbone: another architecture? To leave tensors out on purpose, name them with --drop GLOB"
    elif classes is not None:
        advice = (
            f"; the file has {classes} classes, the model {num_classes}: give --num-classes {classes} (num_classes={classes}), or, to "
            "start another head, --reinit head"
        )
    elif problems.missing or problems.misshapen:
        renamed = problems.missing or problems.surplus
        cause = (
            "another architecture, or other names?"
            if renamed
            else "another number of classes, or other options?"
        )
        advice = f"; {cause} To keep initial values on purpose, name them with --reinit GLOB"
    elif problems.surplus and record.scope == "backbone":
        advice = "; the backbone is all there: to start another head from it, give --reinit head; to leave tensors out, --drop GLOB"
        if apart:
            advice += "; where it is the head of the model, save both in one dict, under the keys 'backbone' and 'classifier'"
    elif problems.surplus:
        advice = "; all of the model is there: to leave the surplus out on purpose, name it with --drop GLOB"
    return "; ".join(parts) + advice


def _with_nearest(name: str, missing: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, missing, n=1, cutoff=0.8)
    return f"{name} (is it {nearest[0]}?)" if nearest else name
