"""What a run directory says about its run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcn_jax.errors import CheckpointError, ConfigError
from fcn_jax.eval import stored
from fcn_jax.runtime.text_file import read_text

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Shown:
    """The evaluation of a run that the page shows.

    Attributes:
        title: what was scored, such as "camvid val, protocol native, step 230, 101 images".
        iou: IoU by class; None where it is undefined.
        pixels: pixels of the ground truth by class.
        miou: their mean, or None.
        protocol: split, protocol and image count, equal for evaluations that can be compared.
        confusion: pixels by true class (rows) and predicted class; None if it is not stored.
        pictures: "best" and "worst" images; empty if none are stored.
        palette: RGB of each class; empty if it is not stored.
        folder: folder of the pictures, or None.
        notes: limits of the scores.
    """

    title: str
    iou: Mapping[str, float | None]
    pixels: Mapping[str, int]
    miou: float | None
    protocol: str
    confusion: Sequence[Sequence[int]] | None = None
    pictures: Mapping[str, Sequence[Record]] = dataclasses.field(default_factory=dict)
    palette: Sequence[Sequence[int]] = ()
    folder: Path | None = None
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: the directory.
        name: its name, different for each run of a page.
        config: the settings, as `config.json` has them; empty if it cannot be read.
        versions: `versions.json`; empty if it cannot be read.
        records: the objects of `metrics.jsonl` in their order.
        evaluations: folders and tables of stored evaluations, the newest last.
        problems: what could not be read.
    """

    path: Path
    name: str
    config: Record
    versions: Record
    records: Sequence[Record]
    evaluations: Sequence[tuple[Path, Record]]
    problems: Sequence[str]

    def events(self, kind: str) -> list[Record]:
        """Return the records of one kind: "train", "val", "compile", "checkpoint" or "end"."""
        return [record for record in self.records if record.get("event") == kind]

    @property
    def step(self) -> int:
        """The last step with a record."""
        return max((int(record["step"]) for record in self.records), default=0)

    @property
    def best(self) -> Record | None:
        """The record of the evaluation during training with the best mIoU; None without any."""
        scored = [record for record in self.events("val") if record.get("miou") is not None]
        return max(scored, key=lambda record: float(record["miou"]), default=None)

    @property
    def status(self) -> str:
        """How far the run is."""
        if not self.records:
            return "no step is recorded yet"
        last, epochs = self.records[-1], self.config.get("train", {}).get("epochs")
        epoch = max((float(record.get("epoch") or 0) for record in self.records), default=0.0)
        of = f" of {epochs}" if epochs else ""
        where = f"step {self.step}, epoch {epoch:.4g}{of}"
        if last.get("event") == "end":
            if last.get("finished"):
                early = "ended early" if last.get("early") else "finished"
                return f"{early} after {where}"
            if last.get("stopped_by"):
                by = last["stopped_by"]
                return f"stopped by {by} after {where}; the same command continues it"
        elif epochs and epoch >= epochs and self.records[-1].get("event") == "val":
            return f"finished after {where}"  # runs of older versions have no end record
        return f"not finished: {where}"

    @property
    def shown(self) -> Shown | None:
        """The newest evaluation by `fcn-jax eval`, else the best one during training."""
        others = [pair for pair in self.evaluations if pair[0].name != stored.TRAINING]
        if found := (others or list(self.evaluations))[-1:]:
            return _shown(*found[0])
        if self.best is None:
            return None
        data = self.config.get("data", {})
        split = " ".join(filter(None, (data.get("dataset"), data.get("val_split"))))
        return Shown(
            title=f"{split}, step {self.best['step']}, during training".lstrip(", "),
            iou=self.best.get("iou") or {},
            pixels=self.best.get("pixels") or {},
            miou=self.best["miou"],
            protocol=split,
        )


def _shown(folder: Path, table: Record) -> Shown:
    protocol = table.get("protocol") or {}
    settings = ", ".join(f"{k} {v}" for k, v in protocol.items() if k != "name" and v is not None)
    what = " ".join(filter(None, (table.get("dataset"), table.get("split"))))
    how = f"{protocol.get('name')}" + (f" ({settings})" if settings else "")
    compared = f"{what}, protocol {how}, {table.get('images')} images"
    step = "" if table.get("step") is None else f", step {table['step']}"
    weights = " (ema)" if table.get("weights") == "ema" else ""
    during = ", during training" if folder.name == stored.TRAINING else ""
    return Shown(
        title=f"{compared}{step}{weights}{during}",
        iou=table.get("iou") or {},
        pixels=table.get("pixels") or {},
        miou=table.get("miou"),
        protocol=compared,
        confusion=table.get("confusion"),
        pictures=table.get("pictures") or {},
        palette=table.get("palette") or (),
        folder=folder,
        notes=table.get("notes") or (),
    )


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run directories.

    Raises:
        CheckpointError: some are not runs; all are named.
        ConfigError: a run is named twice.
    """
    problems = [problem for path in paths if (problem := _not_a_run(path))]
    if problems:
        raise CheckpointError("; ".join(problems))
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise ConfigError(f"{path}: named twice; name each run once")
    return [_read(path, name) for path, name in zip(paths, _names(resolved), strict=True)]


def _not_a_run(path: Path) -> str | None:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        return f"{path}: {what}; expected a run directory (fcn-jax train --workdir)"
    if not (path / "config.json").is_file() and not (path / "metrics.jsonl").is_file():
        return f"{path}: no run (it has neither config.json nor metrics.jsonl)"
    return None


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that differ from each other."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _read(path: Path, name: str) -> Run:
    problems: list[str] = []

    def table(file: str) -> Record:
        try:
            value = json.loads(read_text(path / file))
            if isinstance(value, dict):
                return value
            reason = "not a table"
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        problems.append(f"{file} cannot be read ({reason})")
        return {}

    config, versions = table("config.json"), table("versions.json")
    records, damaged = [], 0
    try:
        lines = (path / "metrics.jsonl").read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        lines = []
        problems.append(f"metrics.jsonl cannot be read ({error.strerror})")
    for line in lines:
        try:
            record = json.loads(line)
            int(record["step"])
            records.append(record)
        except (ValueError, KeyError, TypeError):
            damaged += 1  # such as a line that a kill cut off
    if damaged:
        problems.append(f"metrics.jsonl: {damaged} of {len(lines)} lines are damaged, left out")
    return Run(path, name, config, versions, records, stored.read(path), problems)
