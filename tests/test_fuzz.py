"""A short fuzz test, and tests that it finds faults. `make fuzz` runs the complete fuzz test."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fcn_jax.errors import DataError
from fuzz import product, report
from fuzz.cases import FAMILIES, Case, numbers, plan
from fuzz.encoders import by_pillow, exif, stored
from fuzz.oracle import Verdict, judge
from fuzz.workers import Worker

CASES = numbers(300)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_mutated_input_is_read_correctly_or_rejected_in_one_line(
    family: str, worker: Worker
) -> None:
    if family in ("weights", "commands"):
        pytest.importorskip("torch")
    faults = [
        verdict for verdict in map(worker.run, plan(family, CASES[family], seed=0)) if verdict.fault
    ]
    assert not faults, "\n".join(
        ["run one case with python -m fuzz --only FAMILY:MUTATION:SEED", *map(str, faults)]
    )


def test_cases_are_reproducible() -> None:
    cases = list(plan("images", 100, seed=5))
    assert cases == list(plan("images", 100, seed=5))
    assert len(set(cases)) == 100
    assert {case.seed for case in cases} >= {5, 6}
    assert Case.parse(str(cases[7])) == cases[7]
    assert cases[7].rng().integers(1 << 60) == Case.parse(str(cases[7])).rng().integers(1 << 60)
    assert sum(numbers(3000).values()) >= 3000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_match_exif_transpose(orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = by_pillow(stored(upright, orientation), "PNG", exif=exif(orientation))
    assert np.array_equal(
        np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))), upright
    )


_STUCK = """
import os, time
from fuzz.cases import Trial, mutation

@mutation("images")
def sleeping(rng, place):
    return Trial(call=lambda: time.sleep(100))

@mutation("images")
def aborting(rng, place):
    return Trial(call=os.abort)
"""


def test_records_hangs_and_crashes_and_runs_the_next_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_STUCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FUZZ_LIMIT", "2")
    worker = Worker()
    verdicts = [
        worker.run(Case("images", name, 0)) for name in ("sleeping", "aborting", "no-image-at-all")
    ]
    worker.close()
    assert [verdict.outcome for verdict in verdicts] == ["hang", "crash", "refused"]
    assert "sitecustomize.py" in verdicts[0].detail


PNG = Case("images", "names-and-wrong-endings", 0)


def _correctly(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _rejected(path: Path) -> np.ndarray:
    raise DataError(f"{path}: no")


def _in_two_lines(path: Path) -> np.ndarray:
    raise DataError(f"{path}: no\nno")


def _crashing(path: Path) -> np.ndarray:
    raise IndexError("out of range")


def _writing(path: Path) -> np.ndarray:
    path.with_name("left behind").touch()
    return _correctly(path)


def _changing(path: Path) -> np.ndarray:
    pixels = _correctly(path)
    path.write_bytes(b"")
    return pixels


@pytest.mark.parametrize(
    ("reader", "outcome"),
    [
        (_correctly, "right"),
        (lambda path: _correctly(path)[:, ::-1], "wrong"),
        (_rejected, "refused valid input"),
        (_in_two_lines, "message"),
        (_crashing, "traceback"),
        (_writing, "write"),
        (_changing, "write"),
    ],
)
def test_judges_every_kind_of_fault(
    reader: object, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "read_image", reader)
    assert judge(PNG).outcome == outcome


def test_finds_writes_outside_of_the_case(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))

    def read(path: Path) -> np.ndarray:
        (elsewhere / "file").write_text("x")
        return _correctly(path)

    monkeypatch.setattr(product, "read_image", read)
    verdict = judge(PNG)
    assert verdict.outcome == "write"
    assert "elsewhere" in verdict.detail


def test_table_replaces_only_the_previous_table(tmp_path: Path) -> None:
    path = tmp_path / "reliability.md"
    path.write_text("# Reliability\n\nBefore.\n")
    first = [Verdict(PNG, "right"), Verdict(PNG, "undetectable", "no checksum")]
    report.write(path, first, "python -m fuzz")
    path.write_text(path.read_text() + "\nAfter.\n")
    report.write(path, [*first, Verdict(PNG, "wrong", "turned")], "python -m fuzz --seed 1")
    text = path.read_text()
    assert text.startswith("# Reliability\n\nBefore.\n")
    assert text.endswith("\nAfter.\n")
    assert text.count("| family") == 1
    assert "`python -m fuzz --seed 1`" in text
    row = next(line for line in text.splitlines() if line.startswith("| images"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "images",
        "1",
        "3",
        "1",
        "0",
        "1",
        "1",
    ]
    assert "- images, 1: no checksum." in text
