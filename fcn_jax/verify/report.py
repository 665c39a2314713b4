"""The result of a comparison: verdict, text for a terminal, JSON."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from fcn_jax.convert.report import LoadReport
from fcn_jax.errors import ConfigError, listing
from fcn_jax.verify import evidence
from fcn_jax.verify.criterion import (
    ATTEMPTS,
    INCONCLUSIVE,
    LAYER_GRADIENTS,
    LAYERS,
    NOT_FINITE,
    TORCH_NOT_FINITE,
    Comparison,
    Section,
)
from fcn_jax.verify.layers import Layers
from fcn_jax.verify.predictions import Agreement, Pictures
from fcn_jax.verify.report_table import (
    GENERATOR,
    SCHEMA,
    VERSION,
    check_table,
    finite,
    plain,
    with_numbers,
)
from fcn_jax.verify.sensitivity import Sensitivity
from fcn_jax.verify.series import grouped
from fcn_jax.verify.third_opinion import ThirdOpinion

_NOT_FINITE = (NOT_FINITE, TORCH_NOT_FINITE)

_LISTED_FAILURES = 8
"""Number of lines about failing tensors in each section."""


@dataclasses.dataclass
class Report:
    """The comparisons and their verdict.

    Attributes:
        subject: what was verified.
        dtype: compared precision.
        environment: versions, devices, and the precision of matrix products.
        sections: the comparisons by kind.
        coverage: which tensor of the state dict went where.
        first_failing_layer: the first layer that fails, and how; "" if none does.
        agreement: of the predictions, by image size; empty for networks without classes.
        skipped: layers with tensors of their own that were not compared one by one -> the reason.
        weights: the weights' file or name, or the seed of random ones; SHA-256 of the file
            (`sha256`) and of the PyTorch state dict that both sides received (`state_sha256`).
        settings: arguments of the run.
        sources: SHA-256 of each source file that defines the networks.
        criterion: the numbers that decide the verdict.
        sensitivity: how far the outputs depend on each tensor; empty if it was not measured.
        mutation: which planted faults were caught, or None if none were planted.
        third_opinion: errors of the PyTorch module run by torchax, or None if not asked for.
        pictures: of the first image, or None.
        notes: what was decided about the inputs.
    """

    subject: str
    dtype: str
    environment: Mapping[str, Any] = dataclasses.field(default_factory=evidence.environment)
    sections: list[Section] = dataclasses.field(default_factory=list)
    coverage: LoadReport | None = None
    first_failing_layer: str = ""
    agreement: list[Agreement] = dataclasses.field(default_factory=list)
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    criterion: Mapping[str, Any] = dataclasses.field(default_factory=evidence.criterion)
    sensitivity: tuple[Sensitivity, ...] = ()
    mutation: Any = None
    third_opinion: ThirdOpinion | None = None
    pictures: Pictures | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def add_layers(self, layers: Layers) -> None:
        """Append the comparison of layers."""
        self.sections += layers.sections
        self.first_failing_layer, self.skipped = layers.first_failing, layers.skipped

    @property
    def equal(self) -> bool:
        """The verdict: whether every tensor is within its limit."""
        by_layers = self.by_layers
        return bool(self.sections) and all(s.equal or s in by_layers for s in self.sections)

    @property
    def by_layers(self) -> tuple[Section, ...]:
        """Noisy sections in bfloat16 that do not matter, since each layer is compared alone.

        Gradients and training steps need the gradients of single layers, too, and of the changes
        in a training step at least half must be conclusive, because no layer shows the optimizer.
        """
        alone = {section.title: section for section in self.sections}

        def proven(title: str) -> bool:
            return title in alone and alone[title].equal and not alone[title].inconclusive

        if self.dtype != "bfloat16" or self.skipped or not proven(LAYERS):
            return ()
        found = []
        for section in self.sections:
            is_training = section.title.startswith("training")
            backward = is_training or section.title == "gradients"
            most = 0.5 if is_training else 1.0
            if (
                section.noisy
                and (proven(LAYER_GRADIENTS) or not backward)
                and len(section.inconclusive) <= most * len(section.comparisons)
            ):
                found.append(section)
        return tuple(found)

    @property
    def attempts(self) -> int:
        """Inputs on which gradients and steps may be compared: one if something differs already."""
        return ATTEMPTS if self.equal else 1

    @property
    def not_proven(self) -> tuple[Sensitivity, ...]:
        """Tensors about which equal outputs prove nothing."""
        return tuple(entry for entry in self.sensitivity if entry.reason)

    @property
    def inconclusive(self) -> int:
        """Number of inconclusive tensors, over all sections."""
        return sum(len(s.inconclusive) for s in self.sections)

    @property
    def trained(self) -> tuple[int, int]:
        """Number of tensors compared after training steps, and how many are inconclusive."""
        sections = [section for section in self.sections if section.title.startswith("training")]
        return (
            sum(len(section.comparisons) for section in sections),
            sum(len(section.inconclusive) for section in sections),
        )

    @property
    def failures(self) -> list[Comparison]:
        """Tensors over their limit. Those that are not finite come first, as they affect others."""
        failed = [c for section in self.sections for c in section.failures]
        return sorted(failed, key=lambda c: c.fault not in _NOT_FINITE)

    @property
    def failure(self) -> str:
        """One line about the first failure; "" if there is none."""
        first = next(iter(self.failures), None)
        if self.first_failing_layer and (first is None or first.fault not in _NOT_FINITE):
            return self.first_failing_layer
        if first is not None:
            return str(first)
        empty = [s.title for s in self.sections if not s.comparisons and not s.reason]
        return f"nothing was compared in: {', '.join(empty)}" if empty else ""

    @property
    def verdict(self) -> str:
        """One line."""
        subject = f"{self.subject} in {self.dtype}"
        by_layers = self.by_layers
        doubts = [s.doubt for s in self.sections if s.doubt and s not in by_layers]
        if doubts and not self.failure:
            return f"INCONCLUSIVE: {subject}: {'; '.join(doubts)}"
        if not self.equal:
            return f"NOT EQUAL: {subject}: {self.failure}"
        unproven = listing([entry.name for entry in self.not_proven], 3)
        reserve = f", except {len(self.not_proven)} tensors that are not proven: {unproven}"
        layers = ", layer by layer" if by_layers else ""
        subject = f"EQUAL{layers}{reserve if self.not_proven else ''}: {subject}"
        number = self.inconclusive
        noisy = f" ({number} tensors are inconclusive: too noisy in PyTorch)" if number else ""
        return f"{subject} is the same function in JAX and PyTorch{noisy}"

    def not_alone(self) -> list[str]:
        """Lines that name the layers that were not compared one by one, by the reason."""
        layers = collections.defaultdict(list)
        for layer, reason in self.skipped.items():
            layers[reason].append(layer)
        return [
            f"not compared one by one: {listing(names, 6)} ({reason})"
            for reason, names in layers.items()
        ]

    def remarks(self) -> list[str]:
        """Lines about predictions, weights, inconclusive tensors and the third opinion."""
        lines = [
            f"{a.size[0]}x{a.size[1]}: argmax agrees on {a.argmax:.4%} of the pixels (PyTorch "
            f"{self.dtype} on {a.torch_argmax:.4%}), mIoU between the two sides {a.miou:.4f}"
            for a in self.agreement
        ]
        if self.weights:
            digest = self.weights.get("sha256")
            suffix = f", SHA-256 {digest}" if digest else ""
            lines.append(f"weights: {self.weights['source']}{suffix}")
        lines += self.notes
        if self.coverage:
            lines.append(f"loaded: {self.coverage}")
        if self.third_opinion:
            lines.append(str(self.third_opinion))
        reasons = {entry.reason: 0 for entry in self.not_proven}
        for reason in reasons:
            names = [entry.name for entry in self.not_proven if entry.reason == reason]
            lines.append(f"not proven, since {reason}: {listing(names, 10)}")
        compared, inconclusive = self.trained
        if compared:
            lines.append(
                f"training: {compared} changes are compared, {inconclusive} of them "
                f"inconclusive ({inconclusive / compared:.1%})"
            )
        for section in self.sections:
            lines += section.remarks
            if section.attempts > 1:
                lines.append(
                    f"{section.title}: compared on {section.attempts} inputs, each tensor with its "
                    "best result, because a correct gradient jumps if a unit is within rounding of "
                    "a ReLU's zero or of a tie in a pooling window"
                )
            if section.unstable:
                unstable = listing(section.unstable, 6)
                lines.append(f"{section.title}: over their limits, but inconclusive: {unstable}")
            if section in self.by_layers:
                lines.append(
                    f"{section.title}: in {self.dtype}, PyTorch's own whole network is too noisy; "
                    "the verdict rests on the layers, each compared alone"
                )
            if noisy := section.inconclusive:
                lines.append(
                    f"{section.title}: {len(noisy)} of {len(section.comparisons)} inconclusive, "
                    f"since PyTorch's own error is {INCONCLUSIVE:g} or more (a larger batch or "
                    f"size may help): {listing(noisy, 6)}"
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as docs/evidence.md describes it; without the pictures."""
        fields = {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in ("subject", "dtype", "sections", "pictures")
        }
        return {
            "generator": GENERATOR,
            "schema": SCHEMA,
            "version": VERSION,
            "verdict": self.verdict.partition(":")[0].partition(",")[0].lower(),
            "subject": self.subject,
            "dtype": self.dtype,
            "failure": self.failure,
            **fields,
            "not_proven": [entry.name for entry in self.not_proven],
            "training": dict(zip(("compared", "inconclusive"), self.trained, strict=True)),
            "sections": [
                {
                    **plain(vars(section)),
                    "equal": section.equal,
                    "inconclusive": len(section.inconclusive),
                    "worst_factor": finite(section.worst_factor),
                }
                for section in self.sections
            ],
        }

    @classmethod
    def from_dict(cls, table: Any, source: str = "the report") -> Report:
        """The inverse of `to_dict`.

        Args:
            table: a JSON value.
            source: the file's name for messages.

        Raises:
            ConfigError: not a report, one of a newer version, or a damaged one.
        """
        check_table(table, source)
        try:
            report = pydantic.TypeAdapter(cls).validate_python(
                {
                    **table,
                    "pictures": None,
                    "sensitivity": with_numbers(table.get("sensitivity", ())),
                    "sections": [
                        {**section, "comparisons": with_numbers(section["comparisons"])}
                        for section in table["sections"]
                    ],
                }
            )
            damage = "" if report.to_dict()["verdict"] == table["verdict"] else "verdict"
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            damage = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (KeyError, TypeError, AttributeError) as error:
            damage = f"sections: {type(error).__name__} {error}"
        if damage == "verdict":
            damage = f"its verdict '{table['verdict']}' does not follow from its numbers"
        if damage:
            raise ConfigError(f"{source}: a damaged report ({damage}); write it again")
        return report

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """Read a report's JSON file.

        Raises:
            ConfigError: the file cannot be read, or is not such a report.
        """
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{path}: not a readable report of fcn-jax verify ({reason}); is it complete?"
            ) from error
        return cls.from_dict(table, str(path))

    def summary(self) -> list[tuple[str, ...]]:
        """The rows of the table of sections, as text. The first is its head."""
        head = ("", "tensors", "worst", "JAX", "PyTorch", "factor", "allowed")
        rows = [head, *map(_summary_row, self.sections)]
        if self.third_opinion and not self.third_opinion.skipped:
            found = [self.third_opinion.at_worst(section) for section in self.sections]
            rows = [(*row, cell) for row, cell in zip(rows, ("torchax", *found), strict=True)]
        return rows

    def __str__(self) -> str:
        """The verdict, the layers not compared alone, a table of sections, remarks, failures."""
        rows = self.summary()
        marks = ["", *(f"  {section.mark}" for section in self.sections)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        align = (str.ljust, str.rjust, str.ljust, *[str.rjust] * (len(widths) - 3))
        table = [
            "  ".join(place(cell, w) for place, cell, w in zip(align, row, widths, strict=True))
            + mark
            for row, mark in zip(rows, marks, strict=True)
        ]
        lines = [self.verdict, *self.not_alone(), "", *map(str.rstrip, table), "", *self.remarks()]
        if failures := self.failures:
            lines += ["", f"{len(failures)} tensors over their limit:", *self._listed_failures()]
        if self.mutation:
            lines += ["", _mutation_text(self.mutation), ""]
        lines.append(
            "errors are relative L2 distances to PyTorch float64; factor: JAX's error in units of "
            "PyTorch's own (at least a few roundings), at the worst tensor"
        )
        return "\n".join(lines)

    def _listed_failures(self) -> list[str]:
        """The failing tensors by section; those of repeated blocks share a line."""
        lines: list[str] = []
        for section in self.sections:
            failed = grouped(section.failures)
            if failed:
                lines.append(f"  {section.title}:")
            lines += [f"    {series}" for series in failed[:_LISTED_FAILURES]]
            if len(failed) > _LISTED_FAILURES:
                lines.append(f"    and {len(failed) - _LISTED_FAILURES} more")
        return lines


def _mutation_text(mutation: Any) -> str:
    """A mutation score as text; a report that was read holds its JSON value."""
    if not isinstance(mutation, Mapping):
        return str(mutation)
    return (
        f"mutation score: {mutation['caught']:.1%} of {mutation['planted']} planted faults caught, "
        f"the right layer named in {mutation['right_layer']:.1%} of them"
    )


def _summary_row(section: Section) -> tuple[str, ...]:
    """Title, tensors, worst tensor, error, reference error, factor and allowed factor, as text."""
    worst, count = section.worst, str(len(section.comparisons))
    numbers = ("", "", "", "")
    if worst is not None:
        errors = (f"{worst.error:.1e}", f"{worst.reference_error:.1e}")
        numbers = (worst.name, *errors, f"{section.worst_factor:.2f}")
    return (section.title, count, *numbers, f"{section.factor:g}")
