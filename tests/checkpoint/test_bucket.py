"""Checkpoints in an object store, which is imitated; see `tests.helpers.bucket`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fcn_jax import checkpoint
from fcn_jax.checkpoint import place
from fcn_jax.errors import CheckpointError, ConfigError
from tests.checkpoint import saves_and_restores as both
from tests.checkpoint.test_topology import here
from tests.helpers import bucket

RUN = "gs://bucket/runs/streets"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the run in the imitated store."""
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with bucket.served(tmp_path / "store"):
        yield tmp_path / "store" / "bucket" / "runs" / "streets"


def save(*steps: int, **retention: int) -> None:
    spec = checkpoint.make_spec(both.SPEC, both.CLASSES)
    checkpoints = checkpoint.Checkpoints(place.place(RUN), checkpoint.Retention(**retention))
    trees = both.trees(here(), filled=True)
    for step in steps:
        checkpoints.save(step, **trees, data={"next_batch": both.STEP}, spec=spec)
        checkpoints.score(step, 0.5 if step == 2 else 0.25)
    checkpoints.close()


def kept(store: Path) -> set[str]:
    return {path.name for path in (store / "checkpoints").iterdir() if any(path.rglob("*.*"))}


def test_saves_restores_deletes_and_copies(store: Path, tmp_path: Path) -> None:
    save(2, 4, both.STEP, latest=1)
    assert kept(store) == {"2", str(both.STEP)}
    both.check(place.place(RUN), here())
    assert checkpoint.is_evaluated(place.place(RUN), 2)
    copy = checkpoint.find(RUN)
    assert copy.name == "2"
    assert copy.is_relative_to(tmp_path / "cache")
    np.testing.assert_array_equal(
        checkpoint.read_arrays(copy, "raw")["backbone.kernel"], both.values("backbone.kernel")
    )
    assert checkpoint.find(f"{RUN}/checkpoints/{both.STEP}").name == str(both.STEP)
    # The same copy is used again, and one that does not match is made again.
    kernel = next(path for path in (copy / "model").rglob("*") if path.is_file())
    kernel.write_bytes(b"x")
    again = checkpoint.find(RUN)
    assert (again, kernel.read_bytes() == b"x") == (copy, False)
    assert not (tmp_path / "gs:").exists()


def test_a_run_directory_names_the_store(store: Path, tmp_path: Path) -> None:
    save(2)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"train": {"checkpoint_dir": RUN}}))
    assert checkpoint.find(run) == run / "checkpoints" / "2"


def test_an_unfinished_save_is_no_checkpoint_and_is_removed(store: Path) -> None:
    save(2)
    save(4)
    (store / "checkpoints" / "4" / place.COMMIT).unlink()  # Orbax writes it last
    assert checkpoint.find(RUN).name == "2"
    assert checkpoint.latest_spec(place.place(RUN))[0] == 2
    save(both.STEP)
    assert kept(store) == {"2", str(both.STEP)}


def test_a_damaged_checkpoint_is_set_aside(store: Path) -> None:
    save(2, both.STEP)
    array = next(p for p in (store / "checkpoints/6/train/d").iterdir())
    array.write_bytes(array.read_bytes()[:-1])
    checkpoints = checkpoint.Checkpoints(place.place(RUN))
    found = checkpoints.restore(**both.trees(here(), filled=False))
    checkpoints.close()
    assert found.step == 2
    assert "checkpoint 6 is damaged (train/d/" in found.skipped[0]
    assert kept(store) == {"2", "6.damaged"}


def test_other_stores_and_missing_paths_are_refused(store: Path) -> None:
    with pytest.raises(ConfigError, match="s3://a/b: expected a local folder or gs://"):
        checkpoint.find("s3://a/b")
    with pytest.raises(CheckpointError, match="gs://bucket/none: no such run or checkpoint"):
        checkpoint.find("gs://bucket/none")


def test_the_package_for_the_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(place.fsspec, "get_filesystem_class", missing)
    with pytest.raises(ConfigError, match="gs://bucket/run: needs a package: pip install gcsfs"):
        place.place("gs://bucket/run")
