"""The report of loading weights, and the error for weights that do not fit."""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Iterable, Sequence

from fcn_jax.errors import listing

WIDENED = ("float16", "bfloat16")
_SHOWN = 12

Sizes = tuple[tuple[int, ...], tuple[int, ...]]
"""The shape of a tensor, and the shape that the model needs."""


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The use of each tensor when weights were loaded; JSON-able by `dataclasses.asdict`.

    Attributes:
        source: the file, or "state dict".
        sha256: of the file, or None.
        key_format: naming scheme of the tensors, such as "torchvision" or "d2l".
        scope: "model", or "backbone" for the backbone alone: the head then keeps its initial
            values.
        loaded: Flax path -> name in the file, without `stripped`.
        dropped: name in the file -> reason.
        reinit: Flax paths that keep their initial values, because `--reinit` names them or because
            they are in `resized`.
        absent: Flax paths of optional tensors that the file lacks.
        stripped: prefix that was removed from the names of the network.
        cast: name in the file -> its dtype, if it is not the model's: float16 and bfloat16 are
            widened without loss, float64 is rounded.
        key: the keys that lead to the state dict in the file, joined by dots; "" for the top.
        also_fits: keys and prefixes of other tensors in the file with the same names and sizes,
            such as "model_ema".
        not_weights: keys of the file without weights, such as "epoch".
        other_weights: keys of the file with other weights, which were not loaded.
        renamed: name -> name in the file, if more than `stripped` was removed, such as
            `_orig_mod` within the name.
        resized: Flax paths whose shapes depend on the number of classes, which is another one in
            the checkpoint.
        classes: number of classes of the checkpoint and of the model, if `resized` is not empty.
        adapted: name in the file of a first convolution for RGB -> the model's input channels, to
            which its kernel is adapted.
        license: of published weights, if it is known.
    """

    source: str
    sha256: str | None = None
    key_format: str = "torchvision"
    scope: str = "model"
    loaded: dict[str, str] = dataclasses.field(default_factory=dict)
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)
    reinit: list[str] = dataclasses.field(default_factory=list)
    absent: list[str] = dataclasses.field(default_factory=list)
    stripped: str = ""
    cast: dict[str, str] = dataclasses.field(default_factory=dict)
    key: str = ""
    also_fits: list[str] = dataclasses.field(default_factory=list)
    not_weights: list[str] = dataclasses.field(default_factory=list)
    other_weights: list[str] = dataclasses.field(default_factory=list)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    resized: list[str] = dataclasses.field(default_factory=list)
    classes: tuple[int, int] | None = None
    adapted: dict[str, int] = dataclasses.field(default_factory=dict)
    license: str = ""

    def in_file(self, name: str) -> str:
        """The complete name in the file of a tensor that the report names."""
        return self.renamed.get(name, self.stripped + name)

    def how_read(self) -> str:
        """How the names were read, in a few words."""
        under = f", under '{self.key}'" if self.key else ""
        without = f", without '{self.stripped}'" if self.stripped else ""
        inner = {
            part
            for name, raw in self.renamed.items()
            for part in set(raw.split(".")) - set(name.split("."))
        } - set(self.stripped.split("."))
        within = f", without {', '.join(sorted(inner))} within names" if inner else ""
        return f"{self.key_format} names{under}{without}{within}, {self.scope}"

    def __str__(self) -> str:
        """One line for a log."""
        parts = [f"{len(self.loaded)} tensors of {self.source} ({self.how_read()})"]
        if self.license:
            parts.append(f"license {self.license}")
        if self.also_fits:
            first, read = self.also_fits[0], self.key or self.stripped.rstrip(".") or "the top"
            parts.append(
                f"loaded '{read}'; '{listing(self.also_fits, 4)}' has the same names: "
                f"--key {first} loads it"
            )
        for dtype, count in sorted(collections.Counter(self.cast.values()).items()):
            parts.append(f"{count} {'widened' if dtype in WIDENED else 'rounded'} from {dtype}")
        for name, channels in self.adapted.items():
            how = "summed over RGB" if channels == 1 else f"repeated, times 3/{channels}"
            parts.append(
                f"{self.in_file(name)} adapted from 3 to {channels} input channels "
                f"(its kernels are {how})"
            )
        if self.resized and self.classes:
            old, new = self.classes
            parts.append(
                f"{len(self.resized)} re-initialized, because the weights are for {old} classes, "
                f"and the model has {new}: {listing(self.resized)}"
            )
        if chosen := len(set(self.reinit) - set(self.resized)):
            parts.append(f"{chosen} kept at their initial values by --reinit")
        if self.dropped:
            reasons = list(dict.fromkeys(self.dropped.values()))
            why = "; ".join(reasons) if len(reasons) < 4 else f"{len(reasons)} reasons"
            parts.append(f"{len(self.dropped)} dropped: {listing(self.dropped)} ({why})")
        if self.other_weights:
            parts.append(f"other weights, not loaded: {listing(self.other_weights, 6)}")
        if self.not_weights:
            parts.append(f"not weights: {listing(self.not_weights, 6)}")
        return "; ".join(parts)


@dataclasses.dataclass
class Problems:
    """The tensors that do not fit, each with its name and the reason.

    Attributes:
        missing: names that the model needs and the file lacks.
        surplus: names that the file has and the model does not.
        misshapen: tensors of another shape.
        unusable: tensors of other dtypes, or with impossible values.
        unmatched_reinit: globs of `--reinit` that match nothing.
        unmatched_drop: globs of `--drop` that match nothing.
        in_backbone: names of `surplus` in modules that the backbone has: the file is of a larger
            one.
        sizes: the shapes of tensors of `misshapen` in a head.
    """

    missing: list[str] = dataclasses.field(default_factory=list)
    surplus: list[str] = dataclasses.field(default_factory=list)
    misshapen: list[str] = dataclasses.field(default_factory=list)
    unusable: list[str] = dataclasses.field(default_factory=list)
    unmatched_reinit: list[str] = dataclasses.field(default_factory=list)
    unmatched_drop: list[str] = dataclasses.field(default_factory=list)
    in_backbone: list[str] = dataclasses.field(default_factory=list)
    sizes: list[Sizes] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(getattr(self, field.name) for field in dataclasses.fields(self))


def complaint(
    report: LoadReport,
    what: str,
    problems: Problems,
    looks_like: str | None = None,
    num_classes: int | None = None,
    backbone: str | None = None,
) -> str:
    """All problems of a file with a model, in one line.

    Args:
        report: of the attempt.
        what: the model, and how the file was read.
        problems: at least one.
        looks_like: the architecture that the file seems to be of, or None.
        num_classes: of the model, if it has a head.
        backbone: the registered backbone that the file seems to be of, if it is not the model's.
    """
    parts = [f"{report.source} does not fit {what}"]
    if looks_like and (problems.missing or (problems.surplus and report.scope == "backbone")):
        parts[0] += f": it looks like {looks_like}"
    for label in ("missing", "surplus", "misshapen", "unusable"):
        if names := getattr(problems, label):
            if label == "surplus":
                shown = [_with_nearest(name, problems.missing) for name in names[:_SHOWN]]
                names = [*shown, *names[_SHOWN:]]
            parts.append(f"{label} {len(names)}: {listing(names, _SHOWN)}")
    separate_head = False
    for key in report.other_weights:
        if count := sum(name.startswith(f"{key}.") for name in problems.surplus):
            separate_head = report.key_format == "torchvision"
            plural = "s" if count > 1 else ""
            parts.append(f"it also holds weights under '{key}' ({count} tensor{plural})")
    if problems.unmatched_reinit:
        parts.append(f"--reinit matches nothing: {listing(problems.unmatched_reinit)}")
    if problems.unmatched_drop:
        parts.append(f"--drop matches nothing: {listing(problems.unmatched_drop)}")
    if report.key_format == "given" and not reparametrized(problems.surplus):
        advice = ["correct the rules of the table (drop(NAME, REASON) leaves out a tensor)"]
    else:
        advice = _advice(problems, report.scope, num_classes, backbone, separate_head)
    return "; ".join([*parts, *advice])


def _advice(
    problems: Problems,
    scope: str,
    num_classes: int | None,
    backbone: str | None,
    separate_head: bool,
) -> list[str]:
    if how := reparametrized(problems.surplus):
        return [how]
    if problems.in_backbone and not problems.missing:
        if backbone:
            return [
                f"another architecture: choose the backbone of the file, {backbone} "
                "(setting model.backbone, --model of convert)"
            ]
        return [
            "surplus within the backbone: another architecture? To drop tensors on purpose, name "
            "them with --drop GLOB"
        ]
    if not (problems.missing or problems.surplus):
        classes = _other_classes(problems, num_classes)
        if classes is not None:
            return [
                f"the file has {classes} classes, the model {num_classes}: give --num-classes "
                f"{classes} (num_classes={classes}), or, to start another head, --reinit head"
            ]
    if problems.missing or problems.misshapen:
        renamed = problems.missing or problems.surplus
        cause = (
            "another architecture, or other names?"
            if renamed
            else "another number of classes, or other options?"
        )
        return [f"{cause} To keep initial values on purpose, name them with --reinit GLOB"]
    if problems.surplus and scope == "backbone":
        advice = [
            "the backbone is complete: to start another head from it, give --reinit head; to drop "
            "tensors, --drop GLOB"
        ]
        if separate_head:
            advice.append(
                "if the file has the model's head, save both in one dict, under the keys "
                "'backbone' and 'classifier'"
            )
        return advice
    if problems.surplus:
        return ["the model is complete: to drop the surplus on purpose, name it with --drop GLOB"]
    return []


def _other_classes(problems: Problems, num_classes: int | None) -> int | None:
    """The file's number of classes, if the shapes differ in nothing else; otherwise None."""
    if num_classes is None or not problems.sizes or len(problems.sizes) < len(problems.misshapen):
        return None
    found: set[int] = set()
    for shape, expected in problems.sizes:
        if len(shape) != len(expected):
            return None
        pairs = {pair for pair in zip(shape, expected, strict=True) if pair[0] != pair[1]}
        if any(needed != num_classes for _, needed in pairs):
            return None
        found |= {size for size, _ in pairs}
    return found.pop() if len(found) == 1 else None


def _with_nearest(name: str, missing: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, missing, n=1, cutoff=0.8)
    return f"{name} (is it {nearest[0]}?)" if nearest else name


_PRUNED = "pruned by torch.nn.utils.prune: call torch.nn.utils.prune.remove(MODULE, 'weight')"
_WEIGHT_NORM = "reparametrized by weight_norm: call torch.nn.utils.remove_weight_norm(MODULE)"
_REPARAMETRIZED = {
    "weight_orig": _PRUNED,
    "weight_mask": _PRUNED,
    "weight_g": _WEIGHT_NORM,
    "weight_v": _WEIGHT_NORM,
}


def reparametrized(names: Iterable[str]) -> str | None:
    """Advice for a file with the parts that weights are computed from; None for other files."""
    for name in names:
        how = _REPARAMETRIZED.get(name.rpartition(".")[2])
        if ".parametrizations." in f".{name}":
            how = (
                "reparametrized by torch.nn.utils.parametrize: call "
                "torch.nn.utils.parametrize.remove_parametrizations(MODULE, 'weight')"
            )
        if how:
            return f"its weights are {how} for each module, then save"
    return None
