"""The fuzz test's short form, and that it finds what is wrong: `make fuzz` runs the whole."""

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
def test_no_mutated_input_is_read_wrong_or_ends_in_anything_but_one_line(
    family: str, worker: Worker
) -> None:
    if family in ("weights", "commands"):
        pytest.importorskip("torch")
    faults = [
        verdict for verdict in map(worker.run, plan(family, CASES[family], seed=0)) if verdict.fault
    ]
    assert not faults, "\n".join(
        ["run one alone with python -m fuzz --only FAMILY:MUTATION:SEED", *map(str, faults)]
    )


def test_cases_are_the_same_wherever_they_run() -> None:
    cases = list(plan("images", 100, seed=5))
    assert cases == list(plan("images", 100, seed=5))
    assert len(set(cases)) == 100
    assert {case.seed for case in cases} >= {5, 6}
    assert Case.parse(str(cases[7])) == cases[7]
    assert cases[7].rng().integers(1 << 60) == Case.parse(str(cases[7])).rng().integers(1 << 60)
    assert sum(numbers(3000).values()) >= 3000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_are_what_viewers_turn_upright(orientation: int) -> None:
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


def test_a_case_that_hangs_or_crashes_is_recorded_and_the_next_one_runs(
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


def _rightly(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _refused(path: Path) -> np.ndarray:
    raise DataError(f"{path}: no")


def _in_two_lines(path: Path) -> np.ndarray:
    raise DataError(f"{path}: no\nno")


def _crashing(path: Path) -> np.ndarray:
    raise IndexError("out of range")


def _writing(path: Path) -> np.ndarray:
    path.with_name("left behind").touch()
    return _rightly(path)


def _changing(path: Path) -> np.ndarray:
    pixels = _rightly(path)
    path.write_bytes(b"")
    return pixels


@pytest.mark.parametrize(
    ("reader", "outcome"),
    [
        (_rightly, "right"),
        (lambda path: _rightly(path)[:, ::-1], "wrong"),
        (_refused, "refused valid input"),
        (_in_two_lines, "message"),
        (_crashing, "traceback"),
        (_writing, "write"),
        (_changing, "write"),
    ],
)
def test_every_kind_of_fault_is_called_so(
    reader: object, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "read_image", reader)
    assert judge(PNG).outcome == outcome


def test_a_write_outside_of_the_case_is_found(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))

    def read(path: Path) -> np.ndarray:
        (elsewhere / "file").write_text("x")
        return _rightly(path)

    monkeypatch.setattr(product, "read_image", read)
    verdict = judge(PNG)
    assert verdict.outcome == "write"
    assert "elsewhere" in verdict.detail


def test_the_table_replaces_the_last_one_and_leaves_the_rest_of_the_document(
    tmp_path: Path,
) -> None:
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
