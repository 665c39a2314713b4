"""Errors, signals and kills: completed steps are saved, and a resumed run is the same."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_jax import checkpoint, cli, recipes
from fcn_jax.data import pipeline
from fcn_jax.errors import CheckpointError, ConfigError, DataError, TrainingError, WriteError
from fcn_jax.plugins import registry
from fcn_jax.train import setup, validation
from fcn_jax.train.loop import Result
from fcn_jax.train.records import Records
from tests.helpers import scenes

# Four steps in each of three epochs.
STEPS = 12
RECIPE = scenes.RECIPE.replace("batch_size = 8", "batch_size = 4").replace(
    "epochs = 5", "epochs = 3"
)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile the programs of this module once: every run uses the same few."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=16, val=3)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_recipe(tmp_path_factory.mktemp("recipe"), RECIPE)


@pytest.fixture(scope="module")
def here(tiny_plugin: None, data: Path, recipe: Path) -> Callable[..., Result]:
    """Train in this process."""

    def run(directory: Path, *settings: str, root: Path = data) -> Result:
        return scenes.train_here(recipe, root, directory, *settings)

    return run


@pytest.fixture(scope="module")
def undisturbed(here: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return here(tmp_path_factory.mktemp("runs") / "undisturbed").run


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "data"))


def steps(run: Path) -> list[int]:
    return sorted(
        int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()
    )


def records(run: Path, event: str, *keys: str) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(record[key] for key in keys) for record in lines if record["event"] == event]


def assert_equal(run: Path, undisturbed: Path) -> None:
    """Parameters, optimizer, losses, scores and best checkpoint are equal, bit for bit."""
    for item in ("model", "train"):
        found, expected = (
            _arrays(directory / "checkpoints" / str(STEPS) / item)
            for directory in (run, undisturbed)
        )
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    for event, keys in (
        ("train", ("step", "loss", "grad_norm", "lr")),
        ("val", ("step", "miou", "pixel_accuracy")),
    ):
        assert records(run, event, *keys) == records(undisturbed, event, *keys)
    assert checkpoint.find(run).name == checkpoint.find(undisturbed).name


def _arrays(item: Path) -> dict[str, np.ndarray]:
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(item)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_saves_the_checkpoint_before_an_evaluation_that_fails(
    here: Callable[..., Result], copied: Path, undisturbed: Path, tmp_path: Path
) -> None:
    broken = copied / "images" / "val" / "2.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        here(tmp_path / "run", root=copied)
    message = str(caught.value)
    assert message.startswith(f"{broken}: ")
    assert (
        "Stopped after step 4: the work up to step 4 is saved; continue with: "
        f"fcn-jax train --workdir {tmp_path / 'run'}"
    ) in message
    assert steps(tmp_path / "run") == [4]
    # The evaluation fails again, before any further step.
    with pytest.raises(DataError, match="the work up to step 4 is saved"):
        here(tmp_path / "run", root=copied)
    broken.write_bytes(whole)
    here(tmp_path / "run", root=copied)
    assert_equal(tmp_path / "run", undisturbed)


def test_keeps_all_steps_if_a_training_file_is_damaged_during_the_run(
    here: Callable[..., Result],
    copied: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All files, because the next batches were read before.
    whole = {path: path.read_bytes() for path in (copied / "masks" / "train").iterdir()}
    write = Records.write

    def damage(self: Records, **record: Any) -> None:
        write(self, **record)
        if record["event"] == "train" and record["step"] == 5:
            for path, contents in whole.items():
                path.write_bytes(contents[:40])

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", damage)
        with pytest.raises(DataError, match=str(copied / "masks" / "train")) as caught:
            here(tmp_path / "run", root=copied)
    last = steps(tmp_path / "run")[-1]
    assert last >= 5
    assert f"the work up to step {last} is saved" in str(caught.value)
    for path, contents in whole.items():
        path.write_bytes(contents)
    here(tmp_path / "run", root=copied)
    assert_equal(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("the plugin's\nown error"), TrainingError, "ValueError: the plugin's"),
        pytest.param(
            MemoryError(),
            TrainingError,
            "out of memory: lower data.batch_size",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            OSError(errno.EIO, "I/O error", "/data/a.png"),
            TrainingError,
            "OSError",
            marks=pytest.mark.slow,
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted"),
    ],
)
def test_saves_the_last_completed_step_on_any_error(
    here: Callable[..., Result],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[BaseException],
    message: str,
) -> None:
    following = pipeline.TrainIterator.__next__

    def fail(self: pipeline.TrainIterator) -> pipeline.Batch:
        if self.get_state()["next_batch"] == 6:
            raise error
        return following(self)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.TrainIterator, "__next__", fail)
        with pytest.raises(kind) as caught:
            here(tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "Stopped after step 6: the work up to step 6 is saved" in str(caught.value)
    assert steps(tmp_path / "run") == [4, 6]
    here(tmp_path / "run")
    assert_equal(tmp_path / "run", undisturbed)


def test_leaves_no_run_after_an_error_before_the_first_step(
    here: Callable[..., Result], copied: Path, tmp_path: Path
) -> None:
    for path in (copied / "images" / "train").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError):
        here(tmp_path / "above" / "run", root=copied)
    assert not (tmp_path / "above").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError):
        here(tmp_path / "mine", root=copied)
    assert list((tmp_path / "mine").iterdir()) == []


def test_rejects_settings_that_fail_to_compile_and_leaves_no_run(
    recipe: Path, data: Path, tiny_plugin: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "model.aux_head=fcn",
        "model.aux_feature=deep",
        "data.batch_size=1",
        "data.crop_size=[8,8]",
    ]
    more = [part for setting in settings for part in ("--set", setting)]
    status = cli.main(scenes.arguments(recipe, data, tmp_path / "run", *more))
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert error.startswith(
        "fcn-jax: error: the training step cannot be compiled with model.backbone = tiny"
    )
    assert "data.batch_size = 1" in error
    assert "data.crop_size = [8, 8]" in error
    assert not (tmp_path / "run").exists()


def test_never_saves_parameters_that_are_not_finite(
    here: Callable[..., Result], tmp_path: Path
) -> None:
    # The loss of step 1 is finite; the parameters after it are not.
    with pytest.raises(TrainingError, match=r"after it .* parameters are not finite") as caught:
        here(
            tmp_path / "run",
            "optim.lr=3e38",
            "train.checkpoint_every_steps=1",
            "optim.weight_decay=1e30",
        )
    assert steps(tmp_path / "run") == []
    assert "there is no checkpoint to continue from" in str(caught.value)
    assert (tmp_path / "run" / "nonfinite" / "report.json").exists()


# ---------------------------------------------------------------------------------------- disk full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or shutil.which("mount") is None:
        pytest.skip("no tmpfs here")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    recipe: Path, data: Path, undisturbed: Path, small_disk: Path
) -> None:
    run = small_disk / "run"
    settings = ("--set", "train.num_visualizations=0", "--set", "train.epochs=400")
    process = scenes.start(recipe, data, run, *settings)
    scenes.wait_until(lambda: run.is_dir() and (run / "checkpoints" / "8").is_dir(), process)
    fill(small_disk)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    said = [line for line in err.splitlines() if "fcn-jax: error" in line]
    assert len(said) == 1
    assert "no space left on" in said[0].lower()
    assert "Traceback" not in err
    assert len(err.splitlines()) < 50
    kept = steps(run)
    assert f"the work up to step {kept[-1]} is saved" in said[0]
    assert not list((run / "checkpoints").glob("*tmp*"))
    for step in kept:
        assert checkpoint.read_arrays(run / "checkpoints" / str(step))
    (small_disk / "ballast").unlink()


def fill(folder: Path) -> None:
    """Write until the disk is full."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        for block in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                continue


@pytest.mark.slow
def test_failed_save_ends_the_run_and_keeps_the_last_checkpoint(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_files = checkpoint.files.list_files

    def full(directory: Path) -> None:
        if directory.name.startswith("8."):
            raise OSError(errno.ENOSPC, "No space left on device", str(directory))
        list_files(directory)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.files, "list_files", full)
        with pytest.raises(TrainingError) as caught:
            here(tmp_path / "run")
    assert "checkpoints/8: the checkpoint cannot be written (no space left on the disk)" in str(
        caught.value
    )
    last = steps(tmp_path / "run")[-1]
    assert f"the work up to step {last} is saved" in str(caught.value)
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))
    here(tmp_path / "run")
    assert_equal(tmp_path / "run", undisturbed)


def test_failed_metrics_record_ends_the_run_and_saves_its_steps(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Records.write

    def full(self: Records, **record: Any) -> None:
        if record["step"] == 6:
            raise WriteError("metrics.jsonl: cannot be written (No space left on device)")
        write(self, **record)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", full)
        with pytest.raises(TrainingError, match="work up to step 6 is saved"):
            here(tmp_path / "run")
    # The record of step 6 itself could not be written; everything else is the same.
    here(tmp_path / "run")
    expected = [
        record for record in records(undisturbed, "train", "step", "loss") if record[0] != 6
    ]
    assert records(tmp_path / "run", "train", "step", "loss") == expected


def test_warns_once_if_sample_pictures_cannot_be_written(
    here: Callable[..., Result],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path, image: np.ndarray) -> None:
        raise WriteError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(validation.draw, "write_image", full)
    here(tmp_path / "run")
    assert capfd.readouterr().err.count("goes on without sample pictures") == 1
    assert_equal(tmp_path / "run", undisturbed)


# ------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_repeats_an_evaluation_that_a_signal_stopped(
    here: Callable[..., Result],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    seen: list[str] = []
    evaluate = validation.score_each

    def interrupted(*args: Any, **more: Any) -> Iterator[Any]:
        for example, mask in evaluate(*args, **more):
            seen.append(example.id)
            if len(seen) == 5:  # the second of the second evaluation
                os.kill(os.getpid(), number)
            yield example, mask

    with monkeypatch.context() as patch:
        patch.setattr(validation, "score_each", interrupted)
        result = here(tmp_path / "run")
    assert (result.stopped_by, result.step, result.saved) == (number.name, 8, 8)
    assert len(seen) == 5
    assert records(tmp_path / "run", "val", "step") == [(4,)]
    assert here(tmp_path / "run").stopped_by is None
    assert_equal(tmp_path / "run", undisturbed)


def test_repeats_the_last_evaluation_that_a_signal_stopped(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = validation.score_each, []

    def interrupted(*args: Any, **more: Any) -> Iterator[Any]:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from evaluate(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "score_each", interrupted)
        result = here(tmp_path / "run")
    assert (result.stopped_by, result.step) == ("SIGTERM", STEPS)
    resumed = here(tmp_path / "run")
    assert not resumed.was_finished
    assert resumed.scores is not None
    assert_equal(tmp_path / "run", undisturbed)
    assert here(tmp_path / "run").was_finished


def test_finishes_a_save_after_a_signal(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_files = checkpoint.files.list_files

    def slow(directory: Path) -> None:
        if directory.name.startswith("6."):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        list_files(directory)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.files, "list_files", slow)
        result = here(tmp_path / "run", "train.checkpoint_every_steps=6")
    assert result.stopped_by == "SIGTERM"
    assert result.saved == result.step
    assert 6 in steps(tmp_path / "run")
    here(tmp_path / "run", "train.checkpoint_every_steps=6")
    assert_equal(tmp_path / "run", undisturbed)


def test_leaves_no_run_after_a_signal_before_the_first_step(
    here: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(model: Any, *rest: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("the signal was not seen")

    monkeypatch.setattr(setup.train_step, "make", stopped)
    result = here(tmp_path / "run")
    assert (result.stopped_by, result.step, result.saved) == ("SIGTERM", 0, None)
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ------------------------------------------------------------------------------------------ workers


@pytest.mark.slow
def test_replaces_a_killed_input_worker(recipe: Path, data: Path, tmp_path: Path) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    # In a separate process as well, because its XLA settings differ from those of the tests.
    assert scenes.train(recipe, data, undisturbed).returncode == 0
    process = scenes.start(recipe, data, run, "--set", "data.num_workers=2")
    scenes.wait_until(lambda: bool(workers_of(process.pid)), process)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert (
        len(
            [
                line
                for line in err.splitlines()
                if "fcn-jax: warning: an input worker was killed by SIGKILL" in line
            ]
        )
        == 1
    )
    assert "Traceback" not in err
    assert_equal(run, undisturbed)


def workers_of(parent: int) -> list[int]:
    """Return the processes that Python's multiprocessing started for another process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            line = (folder / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if started_by == parent and b"spawn_main" in line:
            found.append(int(folder.name))
    return sorted(found)


# -------------------------------------------------------------------------------------- checkpoints


def damaged_in_every_way(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    for file in sorted(
        path
        for item in ("model", "train", "data", "spec")
        for path in (directory / item).rglob("*")
    ):
        if file.is_file() and file.name != "commit_success.txt":
            contents = file.read_bytes()
            flipped = bytearray(contents)
            flipped[len(flipped) // 2] ^= 16
            yield f"{file.name} removed", file.unlink
            yield f"{file.name} emptied", lambda file=file: file.write_bytes(b"")
            yield (
                f"{file.name} cut",
                lambda file=file, contents=contents: file.write_bytes(contents[:-1]),
            )
            yield (
                f"{file.name} flipped",
                lambda file=file, flipped=flipped: file.write_bytes(flipped),
            )


def test_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(
    here: Callable[..., Result],
    undisturbed: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    manifest = json.loads((run / "checkpoints" / str(STEPS) / "files.json").read_text())
    largest = max(
        (name for name in manifest if name.startswith("model/")), key=lambda name: manifest[name][0]
    )
    file = run / "checkpoints" / str(STEPS) / largest
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
    here(run)
    said = capfd.readouterr().err
    assert f"checkpoint {STEPS} is damaged ({largest} was changed after it was written)" in said
    assert "it is set aside, and that of step 8 is used" in said
    assert (run / "checkpoints" / f"{STEPS}.damaged").is_dir()
    assert_equal(run, undisturbed)


def test_detects_damage_of_any_checkpoint_file(
    undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = undisturbed / "checkpoints" / str(STEPS)
    ways = [way for way, _ in damaged_in_every_way(newest)]
    assert len(ways) > 40
    for number, way in enumerate(ways):
        directory = Path(shutil.copytree(newest, tmp_path / "run" / "checkpoints" / str(STEPS)))
        list(damaged_in_every_way(directory))[number][1]()
        assert checkpoint.files.fault(directory, ("model", "train", "data", "spec")), way
        shutil.rmtree(directory)


def test_resume_rejects_a_run_without_undamaged_checkpoint(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    for step in steps(run):
        shutil.rmtree(run / "checkpoints" / str(step) / "train")
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint can be restored: checkpoint 12: train is missing; .*backup",
    ) as caught:
        here(run)
    assert "\n" not in str(caught.value)
    assert "<bound method" not in str(caught.value)
    assert set(steps(run)) == set(steps(undisturbed))


def test_uses_the_next_best_checkpoint_if_the_best_is_damaged(
    undisturbed: Path, tiny_plugin: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    best = checkpoint.find(run)
    shutil.rmtree(best / "model")
    with pytest.raises(CheckpointError, match=r"damaged: model is missing; undamaged: ") as caught:
        checkpoint.load_model(best)
    other = checkpoint.find(run)
    assert other != best
    assert f"{best} (mIoU" in caplog.text
    assert f"using {other} (mIoU" in caplog.text
    assert str(other) in str(caught.value)
    shutil.rmtree(other / "model")
    for directory in (run / "checkpoints").iterdir():
        shutil.rmtree(directory / "model", ignore_errors=True)
    with pytest.raises(CheckpointError, match="all checkpoints of this run are damaged"):
        checkpoint.find(run)


def test_starts_a_run_that_was_killed_before_its_first_checkpoint(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.0123abcd.json").write_text("{")  # killed while it wrote the recipe
    here(run)
    assert_equal(run, undisturbed)
    assert not (run / ".config.0123abcd.json").exists()
    # Killed after some steps, and before a checkpoint.
    for name in ("checkpoints", "samples", "evaluations"):
        shutil.rmtree(run / name)
    here(run)
    assert_equal(run, undisturbed)


def test_removes_leftovers_of_killed_saves_and_no_other_files(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    leftovers = [
        run / "checkpoints" / f"{STEPS}.orbax-checkpoint-tmp",
        run / "checkpoints" / "4.deleted",
    ]
    for folder in leftovers:
        (folder / "model").mkdir(parents=True)
    files = [
        run / ".config.0123abcd.json",
        run / ".metrics.89abcdef.jsonl",
        run / "samples" / ".0.0123abcd.png",
        run / "checkpoints" / "8" / ".score.0123abcd.json",
    ]
    mine = [
        run / "samples" / ".0.png",
        run / "notes.txt",
        run / ".config.json",
        run / "checkpoints" / "best-so-far",
        run / "config.0123abcd.json",
    ]
    for file in (*files, *mine):
        file.write_text("x")
    here(run)
    assert not any(path.exists() for path in (*leftovers, *files))
    assert all(path.read_text() == "x" for path in mine)
    assert_equal(run, undisturbed)


# ------------------------------------------------------------------------------------------- resume


@pytest.mark.slow
def test_resume_with_more_epochs_matches_a_longer_run(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path
) -> None:
    constant = 'optim.schedule="constant"'
    here(tmp_path / "long", constant)
    here(tmp_path / "run", constant, "train.epochs=2")
    assert here(tmp_path / "run", constant, "train.epochs=2").was_finished
    assert here(tmp_path / "run", constant).step == STEPS
    assert_equal(tmp_path / "run", tmp_path / "long")
    with pytest.raises(
        ConfigError,
        match=r"train\.epochs cannot change from 3 to 5.*'poly'.*--weights .*train\.epochs=5",
    ):
        here(undisturbed, "train.epochs=5")


def test_a_finished_run_says_how_to_train_more(
    recipe: Path,
    data: Path,
    undisturbed: Path,
    tiny_plugin: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (undisturbed / "metrics.jsonl").read_text()
    assert cli.main(["train", "--workdir", str(undisturbed)]) == 0
    out = capsys.readouterr().out
    assert f"{undisturbed} is finished (step {STEPS})" in out
    assert f"--weights {undisturbed} --workdir NEW" in out
    assert (undisturbed / "metrics.jsonl").read_text() == before


def test_resumes_without_the_initial_weights(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = Path(shutil.copytree(checkpoint.find(undisturbed), tmp_path / "start"))
    settings = (
        "init.weights=./start",
        "train.epochs=2",
        'optim.schedule="constant"',
    )
    here(tmp_path / "run", *settings)
    shutil.rmtree(start)
    longer = tuple(
        "train.epochs=3" if setting.startswith("train.epochs") else setting for setting in settings
    )
    assert here(tmp_path / "run", *longer).step == STEPS
    spec = checkpoint.read_spec(tmp_path / "run" / "checkpoints" / str(STEPS))
    assert spec.weights is not None
    assert spec.weights["source"] == str(start)


def test_records_absolute_paths(
    here: Callable[..., Result], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    here(tmp_path / "run", "train.epochs=1", root=Path(data.name))
    assert recipes.read_run(tmp_path / "run").data.root == str(data)
    monkeypatch.chdir(tmp_path)
    assert here(tmp_path / "run", "train.epochs=1").was_finished


def test_rejects_a_run_directory_in_use(
    here: Callable[..., Result], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[BaseException] = []
    write = Records.write

    def meanwhile() -> None:
        try:
            here(tmp_path / "run")
        except ConfigError as error:
            refused.append(error)

    def second(self: Records, **record: Any) -> None:
        write(self, **record)
        if record["step"] == 5:
            other = threading.Thread(target=meanwhile)
            other.start()
            other.join()

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", second)
        here(tmp_path / "run")
    assert len(refused) == 1
    assert f"another process (pid {os.getpid()} on host " in str(refused[0])
    assert_equal(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("x"), "this is a file"),
        (lambda path: path.symlink_to("nowhere"), "dangling symbolic link"),
        (
            lambda path: (path.mkdir(), (path / "notes.txt").write_text("x")),
            "holds no run .it has no config.json.; name another directory",
        ),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text("{")),
            "config.json.*cannot be read",
        ),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_bytes("{}".encode("utf-16"))),
            "UTF-16",
        ),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text('{"net": 3}')),
            "unknown key 'net'.*another version",
        ),
    ],
)
def test_rejects_paths_that_are_not_runs(
    here: Callable[..., Result], tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    path = tmp_path / "run"
    make(path)
    with pytest.raises((ConfigError, CheckpointError), match=message) as caught:
        here(path)
    assert "\n" not in str(caught.value)


def test_rejects_an_unwritable_run_directory_before_any_work(
    here: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != tmp_path / "locked" and access(path, mode)
    )
    monkeypatch.setattr(registry.default(), "dataset", lambda name: pytest.fail("data were opened"))
    with pytest.raises(WriteError, match=f"{tmp_path / 'locked'}.*no permission to write"):
        here(tmp_path / "locked" / "run")


def test_resume_rejects_changed_training_images(
    here: Callable[..., Result], copied: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    here(run, "train.epochs=1", root=copied)
    before = (run / "metrics.jsonl").read_bytes()
    image = sorted((copied / "images" / "train").iterdir())[3]
    mask = copied / "masks" / "train" / f"{image.stem}.png"
    image.rename(tmp_path / image.name)
    mask.rename(tmp_path / "mask.png")
    with pytest.raises(
        ConfigError,
        match=r"split 'train' has 15 images, and the run was started with 16.*--weights",
    ):
        here(run, "train.epochs=1", root=copied)
    (tmp_path / image.name).rename(image.with_stem("other"))
    (tmp_path / "mask.png").rename(mask.with_stem("other"))
    with pytest.raises(ConfigError, match=r"split 'train' has other images"):
        here(run, "train.epochs=1", root=copied)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_resume_skips_damaged_files_on_request(
    here: Callable[..., Result], copied: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    here(run, "train.epochs=1", "optim.schedule=constant", root=copied)
    image = sorted((copied / "images" / "train").iterdir())[3]
    image.write_bytes(image.read_bytes()[:-40])
    skip = ("optim.schedule=constant", "data.damaged=skip")
    assert here(run, *skip, root=copied).step == STEPS
    assert [step for step, _ in records(run, "train", "step", "loss")][-1] == STEPS


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("init.key=model_ema", "init.key: given without init.weights"),
        ('init.reinit=["head"]', "init.reinit: given without init.weights"),
        ("model.aux_feature=layer3", "model.aux_feature: given without model.aux_head"),
        ("optim.warmup_steps=12", "optim.warmup_steps is 12, and the run has 12 steps"),
    ],
)
def test_rejects_settings_without_effect_and_leaves_no_run(
    setting: str, named: str, here: Callable[..., Result], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        here(tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()
