"""Compares the tensors of a file with the leaves of a model, by a table of names."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from flax import nnx

from fcn_jax.convert.report import WIDENED, LoadReport, Problems, Sizes
from fcn_jax.models.channels import RGB, adapted_kernel
from fcn_jax.models.names import leaves
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch.rules import Rule, Table

Leaves = Mapping[str, nnx.Variable]
"""Flax path -> leaf, an array or its shape."""


def leaves_of(module: nnx.Module, spec: ModelSpec) -> Leaves:
    """A module's leaves by their paths in a complete model, also if it is a backbone alone."""
    prefix = "" if spec.head is not None else "backbone."
    return {prefix + path: leaf for path, leaf in leaves(module).items()}


def match(
    tensors: Mapping[str, np.ndarray],
    targets: Leaves,
    table: Table,
    report: LoadReport,
    reinit: Sequence[str] = (),
    drop: Sequence[str] = (),
    leftover: Callable[[str], str | None] | None = None,
    channels: int = 3,
) -> Problems:
    """Compare tensors with leaves by name, and write the matches into the report.

    Args:
        tensors: name in the file -> values, which are read one at a time.
        targets: the leaves; they are not changed.
        table: maps the leaves' paths to the names in the file.
        report: receives the matches. Its scope says whether the file must hold more than a
            backbone.
        reinit: globs over names or paths of leaves that keep their initial values.
        drop: globs over names of tensors that are dropped.
        leftover: name of a tensor that the model does not have -> the reason to drop it, or None,
            which makes it a problem. By default the reasons of the table.
        channels: input channels of the model; see `as_leaf`.

    Returns:
        The tensors that do not fit.
    """
    problems = Problems()
    dropped_by = {
        name: glob
        for glob in reversed(drop)  # the first that matches wins
        for name in tensors
        if is_named(glob, name, report.in_file(name))
    }
    names_of_leaves: list[tuple[str, ...]] = []  # all names that `reinit` may give
    backbone_modules = set()
    for path, leaf in targets.items():
        in_backbone = path.startswith("backbone.")
        if report.scope == "backbone" and not in_backbone:  # it keeps its value in any case
            names_of_leaves.append((path, report.in_file(path)))
            continue
        found = table.to_torch(path)
        if found is None:
            problems.missing.append(f"{path} (no rule names it)")
            continue
        name, rule = found
        if in_backbone:
            backbone_modules.add(_module(name))
        names_of_leaves.append(names := (name, path, report.in_file(name)))
        if any(is_named(glob, *names) for glob in reinit):
            report.reinit.append(path)
        elif name not in tensors or name in dropped_by:
            if rule.optional:
                report.absent.append(path)
            else:
                why = f" (dropped by --drop {dropped_by[name]})" if name in dropped_by else ""
                problems.missing.append(name + why)
        else:
            try:
                dtype, adapted = _check(tensors[name], rule, leaf, channels)
            except MisshapenError as fault:
                problems.misshapen.append(f"{name}: {fault}")
                if not in_backbone and fault.sizes:
                    problems.sizes.append(fault.sizes)
            except UnfitError as fault:
                problems.unusable.append(f"{name}: {fault}")
            else:
                report.loaded[path] = name
                if adapted:
                    report.adapted[name] = channels
                if np.issubdtype(leaf.dtype, np.floating) and dtype != leaf.dtype:
                    report.cast[name] = dtype.name
    known = set(report.loaded.values())
    for name in tensors:
        if name in known:
            continue
        if name in dropped_by:
            report.dropped[name] = f"dropped on purpose (--drop {dropped_by[name]})"
            continue
        found_jax = table.to_jax(name)
        if found_jax is not None and found_jax[0] in targets:
            continue  # re-initialized, or already among the problems
        reason = table.dropped(name) if leftover is None else leftover(name)
        if reason is not None:
            report.dropped[name] = reason
        else:
            problems.surplus.append(name)
            if _module(name) in backbone_modules:
                problems.in_backbone.append(name)
    problems.unmatched_reinit = _unmatched(reinit, [*names_of_leaves, report.dropped])
    names_in_file = [(name, report.in_file(name)) for name in tensors]
    problems.unmatched_drop = _unmatched(drop, names_in_file)
    return problems


def _unmatched(globs: Sequence[str], named: Sequence[Iterable[str]]) -> list[str]:
    """The globs that name no tensor."""
    return [glob for glob in globs if not any(is_named(glob, *names) for names in named)]


def _module(name: str) -> str:
    """The module of a tensor, such as "layer1" or "backbone.layer1"."""
    parts = name.split(".")[:-1]
    return ".".join(parts[: 2 if parts[:1] == ["backbone"] else 1])


def is_named(glob: str, *names: str) -> bool:
    """Whether a glob matches one of a tensor's names, or a module around it: `layer4.?.bn?`."""
    return any(
        fnmatch.fnmatchcase(name, pattern) for name in names for pattern in (glob, f"{glob}.*")
    )


class UnfitError(Exception):
    """A tensor has the wrong dtype or values for its leaf."""


class MisshapenError(UnfitError):
    """A tensor has the wrong shape. `sizes`: its shape and the shape that the model needs."""

    def __init__(self, message: str, sizes: Sizes | None = None) -> None:
        """Keep both shapes."""
        super().__init__(message)
        self.sizes = sizes


def _check(
    value: np.ndarray, rule: Rule, leaf: nnx.Variable, channels: int
) -> tuple[np.dtype, bool]:
    """The dtype of a tensor that can be converted, and whether its input channels are adapted.

    A separate function, so that the tensor is freed before the next one is read.
    """
    as_leaf(value, rule, leaf, channels)
    return value.dtype, value.size != math.prod(leaf.shape)


def as_leaf(value: np.ndarray, rule: Rule, leaf: nnx.Variable, channels: int = RGB) -> np.ndarray:
    """Convert a tensor to its leaf's layout and dtype.

    If the model has other than three input channels, the kernel of a first convolution for RGB is
    adapted to them; see `fcn_jax.models.channels.adapted_kernel`.

    Raises:
        UnfitError: with the reason.
    """
    shape, dtype = tuple(leaf.shape), leaf.dtype
    if np.issubdtype(dtype, np.integer):
        # Batch counts; averaged checkpoints hold them as floats.
        is_count = value.dtype.kind in "iu" or (
            value.dtype.kind == "f" and bool((value == np.round(value)).all())
        )
        if not is_count:
            raise UnfitError(f"is {value.dtype.name} and not a count")
    elif value.dtype.name not in ("float32", "float64", *WIDENED):
        raise UnfitError(f"is {value.dtype.name}; the model needs floats of 16, 32 or 64 bits")
    try:
        converted = rule.op.to_jax(value)
    except ValueError as error:
        raise MisshapenError(str(error)) from error
    except OverflowError as error:
        raise UnfitError(str(error)) from error
    if channels != RGB and converted.ndim == 4 and converted.shape[2] == RGB:
        adapted = (*converted.shape[:2], channels, converted.shape[3])
        if shape == adapted != converted.shape:
            converted = adapted_kernel(converted.astype(np.float32), channels)
    if converted.shape != shape:
        expected = rule.op.to_torch(np.empty(shape, np.float32)).shape
        raise MisshapenError(
            f"shape {value.shape}, the model needs {expected}", (value.shape, expected)
        )
    with np.errstate(over="ignore"):  # a float64 that is too large becomes infinite
        converted = converted.astype(dtype, copy=False)
    if not bool(np.isfinite(converted).all()):
        where = " in float32" if value.dtype == np.float64 else ""
        raise UnfitError(f"has values that are not finite{where}")
    if rule.jax.endswith(".var") and bool((converted < 0).any()):
        raise UnfitError("has negative values, which a variance cannot have")
    return converted
