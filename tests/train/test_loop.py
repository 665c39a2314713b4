"""The training loop as a user runs it, on a small dataset."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fcn_jax import checkpoint
from fcn_jax.errors import ConfigError, TrainingError
from fcn_jax.eval import stored
from fcn_jax.train.loop import Result
from tests.helpers import scenes

STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_recipe(tmp_path_factory.mktemp("recipe"))


Trainer = Callable[..., Result]


@pytest.fixture(scope="module")
def here(data: Path, recipe: Path) -> Trainer:
    """Train in this process: run directory, settings -> result."""
    return functools.partial(scenes.train_here, recipe, data)


@pytest.fixture(scope="module")
def finished(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    outcome = scenes.train(recipe, data, run)
    assert outcome.returncode == 0, outcome.stderr
    return run


def records(run: Path, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in lines if record["event"] == event]


def final(run: Path) -> dict[str, np.ndarray]:
    return checkpoint.read_arrays(run / "checkpoints" / str(STEPS))


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_records_settings_versions_and_metrics(finished: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["data"]["batch_size"] == 8
    assert config["optim"]["momentum"] == 0.9  # a default
    versions = json.loads((finished / "versions.json").read_text())
    assert versions["packages"]["jax"]
    assert versions["plugins"]["backbone"]["distribution"] == "fcn-jax-tiny"
    train = records(finished, "train")
    assert [record["step"] for record in train] == list(range(1, STEPS + 1))
    assert {
        "loss",
        "lr",
        "images_per_second",
        "step_seconds",
        "input_wait_seconds",
        "peak_memory_gib",
    } <= train[0].keys()
    assert records(finished, "compile")[0]["compile_seconds"] > 0
    assert len(records(finished, "val")) == 5
    assert len(list((finished / "samples").glob("step_*/*.png"))) == 5


def test_training_lowers_the_loss(finished: Path) -> None:
    losses = [record["loss"] for record in records(finished, "train")]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


def test_keeps_the_last_two_and_the_best_checkpoint(finished: Path) -> None:
    scores = {record["step"]: record["miou"] for record in records(finished, "val")}
    best = int(checkpoint.find(finished).name)
    assert scores[best] == max(scores.values())
    assert {int(path.name) for path in (finished / "checkpoints").iterdir()} == {
        best,
        STEPS - 4,
        STEPS,
    }


def test_keeps_the_best_evaluation_with_scores_of_each_image(finished: Path) -> None:
    ((folder, table),) = stored.read(finished)
    assert folder == finished / "evaluations" / "training"
    best = max(records(finished, "val"), key=lambda record: (record["miou"], record["step"]))
    assert (table["step"], table["miou"]) == (best["step"], best["miou"])
    assert table["iou"] == best["iou"]
    assert {score["id"] for score in table["per_image"]} == {"0", "1", "2"}
    assert len(list(folder.glob("*_prediction.png"))) == 3


def test_records_the_time_of_all_work(finished: Path) -> None:
    (start,), (end,) = records(finished, "compile"), records(finished, "end")
    assert start["setup_seconds"] > 0
    saves = records(finished, "checkpoint")
    assert [save["step"] for save in saves] == [r["step"] for r in records(finished, "val")]
    assert (end["step"], end["finished"], end["stopped_by"]) == (STEPS, True, None)
    parts = [start["setup_seconds"], start["compile_seconds"], *(s["seconds"] for s in saves)]
    parts += [record["seconds"] for record in records(finished, "val")]
    parts += [record["step_seconds"] for record in records(finished, "train")]
    assert sum(parts) < end["seconds"] < sum(parts) + 30


@pytest.mark.slow
def test_resumes_a_killed_run_with_workers_bit_for_bit(
    finished: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    more = ("--set", "train.checkpoint_every_steps=3", "--set", "data.num_workers=1")
    process = scenes.start(recipe, data, run, *more)
    scenes.wait_until(
        lambda: (run / "checkpoints" / "9").is_dir() and _last_step(run) >= 10, process
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert _last_step(run) < STEPS
    outcome = scenes.train(recipe, data, run, *more)
    assert outcome.returncode == 0, outcome.stderr
    assert_same(final(finished), final(run))
    assert [record["loss"] for record in records(run, "train")] == [
        record["loss"] for record in records(finished, "train")
    ]


def _last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


@pytest.mark.slow  # tests/train/test_faults.py stops trainings of its own process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_resumes_a_run_that_a_signal_stopped_bit_for_bit(
    finished: Path, data: Path, recipe: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "stopped"
    process = scenes.start(recipe, data, run)
    scenes.wait_until(lambda: _last_step(run) >= 5, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert f"continue with: fcn-jax train --workdir {run}" in out
    assert "Traceback" not in err
    stopped = max(int(path.name) for path in (run / "checkpoints").iterdir())
    assert stopped < STEPS
    outcome = scenes.train(recipe, data, run)
    assert outcome.returncode == 0, outcome.stderr
    assert_same(final(finished), final(run))


@pytest.mark.slow
def test_eight_devices_match_the_losses_of_one(data: Path, recipe: Path, tmp_path: Path) -> None:
    def losses(name: str, *settings: str, devices: int = 8) -> np.ndarray:
        more = [f"--set={setting}" for setting in ("model.backbone_options.dropout=0", *settings)]
        outcome = scenes.train(recipe, data, tmp_path / name, *more, devices=devices)
        assert outcome.returncode == 0, outcome.stderr
        assert f"{devices} x cpu" in outcome.stderr
        found = [record["loss"] for record in records(tmp_path / name, "train")]
        assert len(found) == STEPS
        return np.array(found)

    one = losses("one", devices=1)
    # Sums over the batch have another order: a few ulps per step, which grow over twenty steps.
    np.testing.assert_allclose(losses("eight"), one, rtol=2e-4)
    split = losses("split", "mesh.fsdp=2", "mesh.spatial=2", "mesh.fsdp_min_mib=0")
    np.testing.assert_allclose(split, one, rtol=2e-4)


@pytest.mark.slow
def test_continues_on_one_device_what_eight_began(
    finished: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("--set", "optim.schedule=constant", "--set", "model.backbone_options.dropout=0")
    for epochs, devices in ((2, 8), (4, 1), (5, 8)):
        epochs_of = ("--set", f"train.epochs={epochs}")
        outcome = scenes.train(recipe, data, run, *more, *epochs_of, devices=devices)
        assert outcome.returncode == 0, outcome.stderr
        assert f"{devices} x cpu" in outcome.stderr
    alone = scenes.train(recipe, data, tmp_path / "alone", *more)
    assert alone.returncode == 0, alone.stderr
    expected, found = (
        np.array([[r["step"], r["loss"]] for r in records(tmp_path / name, "train")])
        for name in ("alone", "run")
    )
    np.testing.assert_array_equal(found[:, 0], np.arange(1, STEPS + 1))
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=2e-4)


def test_reports_a_loss_that_is_not_finite_with_evidence(here: Trainer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="loss of step"):
        here(tmp_path / "run", "optim.lr=1e30")
    report = json.loads((tmp_path / "run" / "nonfinite" / "report.json").read_text())
    assert report["nonfinite_parameters_after"]
    with np.load(tmp_path / "run" / "nonfinite" / "batch.npz") as batch:
        assert batch["image"].shape == (8, 48, 48, 3)
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_rejects_a_run_with_other_settings(here: Trainer, finished: Path) -> None:
    before = (finished / "config.json").read_bytes()
    free = ("train.keep_latest=1", "train.log_every_steps=7")
    with pytest.raises(ConfigError) as caught:
        here(finished, "optim.lr=0.1", "optim.clip_norm=1.5", *free)
    message = str(caught.value)
    assert (
        "these settings differ: optim.clip_norm = 1.5 (in the run: not set), "
        "optim.lr = 0.1 (in the run: 0.05); "
    ) in message
    assert f"--weights {finished} --workdir NEW" in message
    assert (finished / "config.json").read_bytes() == before


def test_the_same_command_leaves_a_finished_run_as_it_is(here: Trainer, finished: Path) -> None:
    before = final(finished)
    outcome = here(finished)
    assert outcome.was_finished
    assert outcome.step == STEPS
    assert_same(before, final(finished))


def test_rejects_a_batch_larger_than_the_split_and_leaves_no_run(
    here: Trainer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="lower it"):
        here(tmp_path / "run", "data.batch_size=64")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_trains_in_bfloat16(here: Trainer, tmp_path: Path) -> None:
    here(tmp_path / "run", "model.dtype=bfloat16")
    losses = [record["loss"] for record in records(tmp_path / "run", "train")]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert all(value.dtype != "bfloat16" for value in final(tmp_path / "run").values())


def test_starts_from_a_checkpoint(here: Trainer, finished: Path, tmp_path: Path) -> None:
    # A frozen model that starts from the finished run keeps its parameters.
    start = finished / "checkpoints" / str(STEPS)
    here(
        tmp_path / "tuned",
        "train.epochs=1",
        'optim.param_groups=[{match="*", lr_mult=0.0}]',
        f"init.weights={json.dumps(str(start))}",
    )
    stored = checkpoint.read_arrays(tmp_path / "tuned" / "checkpoints" / "4")
    np.testing.assert_array_equal(
        stored["head.final_conv.kernel"], final(finished)["head.final_conv.kernel"]
    )


@pytest.mark.slow
def test_trains_and_saves_an_auxiliary_head(here: Trainer, tmp_path: Path) -> None:
    settings = [
        "model.aux_head=fcn",
        "model.aux_feature=deep",
        "train.epochs=1",
        'optim.param_groups=[{match="aux_head.*", lr_mult=10}]',
    ]
    run = here(tmp_path / "run", *settings).run
    best = checkpoint.find(run)
    assert checkpoint.read_spec(best).plugins["aux_head"]["name"] == "fcn"
    model, _ = checkpoint.load_model(run)
    assert model.aux_head is not None
    assert np.isfinite(checkpoint.read_arrays(best)["aux_head.conv2.kernel"]).all()
    resumed = here(tmp_path / "run", *settings)
    assert resumed.step == 4
    with pytest.raises(ConfigError, match=r"model\.aux_head"):
        here(tmp_path / "run", *settings, "model.aux_head=fcn32s")
