"""TensorBoard's event files and Weights & Biases, as a run writes them."""

from __future__ import annotations

import functools
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax import config
from fcn_jax.errors import ConfigError
from fcn_jax.train import logs
from tests.helpers import scenes

pytest.importorskip("tensorboardX")


def events(folder: Path) -> list[tuple[int, str, object]]:
    """Step, tag and value of all that TensorBoard's event files of a folder hold."""
    from tensorboardX.record_writer import masked_crc32c

    from fcn_jax.train.logs.tensorboard import read_events

    found = []
    for path in sorted(folder.iterdir()):
        size = 0
        for stored, event in read_events(path):
            size += len(stored)
            body = stored[12:-4]
            assert stored[8:12] == masked_crc32c(stored[:8]).to_bytes(4, "little")
            assert stored[-4:] == masked_crc32c(body).to_bytes(4, "little")
            for value in event.summary.value:
                found.append((event.step, value.tag, getattr(value, value.WhichOneof("value"))))
        assert size == path.stat().st_size
    return found


def scalars(folder: Path, tag: str) -> dict[int, float]:
    return {step: value for step, name, value in events(folder) if name == tag}


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny_plugin):
    data = scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=16)
    recipe = scenes.write_recipe(tmp_path_factory.mktemp("recipe"))
    return functools.partial(scenes.train_here, recipe, data)


TENSORBOARD = ("log.tensorboard=true", "log.histograms_every_steps=2")


@pytest.fixture(scope="module")
def run(here, tmp_path_factory) -> Path:
    """A run of two epochs with two steps each."""
    path = tmp_path_factory.mktemp("runs") / "run"
    losses = ("loss.cross_entropy.weight=1", "loss.dice.weight=1")
    return here(path, "train.epochs=2", *losses, *TENSORBOARD).run


def test_event_files_have_the_numbers_of_the_records(run):
    folder = run / "tensorboard"
    train = [record for record in records(run) if record["event"] == "train"]
    assert scalars(folder, "train/loss") == pytest.approx({r["step"]: r["loss"] for r in train})
    for key in ("lr", "grad_norm", "images_per_second"):
        assert scalars(folder, f"train/{key}") == pytest.approx({r["step"]: r[key] for r in train})
    assert scalars(folder, "train/losses/dice") == pytest.approx(
        {r["step"]: r["losses"]["dice"] for r in train}
    )
    val = [record for record in records(run) if record["event"] == "val"]
    assert scalars(folder, "val/miou") == pytest.approx({r["step"]: r["miou"] for r in val})
    for name, iou in val[-1]["iou"].items():
        found = scalars(folder, f"val/iou/{name}")
        assert found.get(4) == (None if iou is None else pytest.approx(iou))


def test_event_files_have_the_sample_pictures(run):
    for step in (2, 4):
        (written,) = (run / "samples" / f"step_{step:07d}").glob("*.png")
        (image,) = (
            value
            for number, tag, value in events(run / "tensorboard")
            if number == step and tag == f"samples/{written.stem}"
        )
        found = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(found, np.asarray(Image.open(written)))
        assert (image.height, image.width) == found.shape[:2]


def test_histograms_count_all_parameters(run):
    found = [one for one in events(run / "tensorboard") if one[1].startswith("parameters/")]
    assert {step for step, _, _ in found} == {2, 4}
    names = {tag.removeprefix("parameters/") for _, tag, _ in found}
    assert names == json.loads((run / "parameters.json").read_text()).keys()
    from fcn_jax import checkpoint

    arrays = checkpoint.read_arrays(run / "checkpoints" / "4")
    for step, tag, histogram in found:
        if step == 4:
            values = arrays[tag.removeprefix("parameters/")]
            assert histogram.num == sum(histogram.bucket) == values.size
            assert histogram.min == pytest.approx(values.min())
            assert histogram.sum == pytest.approx(values.sum(dtype=np.float64), abs=1e-4)


def test_resumed_run_writes_no_step_twice(here, tmp_path):
    """The first process writes step 3, for which it has no checkpoint, and is killed."""
    from fcn_jax.train.logs.tensorboard import EventFiles

    settings = ("train.epochs=3", *TENSORBOARD)
    run = here(tmp_path / "run", *settings, "train.early_stopping={patience=1,min_delta=1}").run
    steps = {record["step"] for record in records(run)}
    assert max(steps) == 4, "early stopping ends it after two evaluations"
    folder = run / "tensorboard"
    writer = EventFiles(folder, 4, evaluate_again=False)
    writer.scalars(5, {"train/loss": 99.0})
    writer.close(failed=True)
    with sorted(folder.iterdir())[-1].open("ab") as file:
        file.write(b"cut off")
    here(run, *settings)
    found = events(folder)
    assert len(list(folder.iterdir())) == 3
    pairs = [(step, tag) for step, tag, _ in found]
    assert len(set(pairs)) == len(pairs)
    assert sorted(scalars(folder, "train/loss")) == [1, 2, 3, 4, 5, 6]
    assert 99.0 not in scalars(folder, "train/loss").values()
    assert sorted(scalars(folder, "val/miou")) == [2, 4, 6]


def test_evaluation_that_is_done_again_replaces_the_earlier_one(tmp_path):
    from fcn_jax.train.logs.tensorboard import EventFiles

    def write(step, evaluate_again, tag):
        files = EventFiles(tmp_path, step, evaluate_again)
        files.scalars(step, {tag: 1.0})
        files.close(failed=False)

    write(2, False, "train/loss")
    write(2, False, "val/miou")
    write(2, True, "val/other")
    assert [tag for _, tag, _ in events(tmp_path)] == ["train/loss", "val/other"]


def test_event_files_are_read_by_tensorboard(run):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = accumulators.EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    tags = accumulator.Tags()
    assert {"train/loss", "train/lr", "val/miou"} <= set(tags["scalars"])
    assert [event.step for event in accumulator.Scalars("train/loss")] == [1, 2, 3, 4]
    assert tags["images"]
    assert tags["histograms"]


WANDB = '''
"""A stand-in for wandb that records the calls, by its documented interface."""
import json, pathlib


class Image:
    def __init__(self, data, caption=None):
        self.shape = data.shape


class Histogram:
    def __init__(self, sequence):
        self.count = len(sequence)


class Run:
    def __init__(self, **settings):
        self.path = pathlib.Path(settings["dir"]) / "calls.jsonl"
        self.write("init", settings)

    def write(self, name, value):
        def plain(value):
            return value if isinstance(value, (int, float, str)) else vars(value)

        with self.path.open("a") as file:
            file.write(json.dumps([name, value], default=plain) + "\\n")

    def define_metric(self, name, step_metric=None):
        self.write("define_metric", [name, step_metric])

    def log(self, data):
        self.write("log", data)

    def finish(self, exit_code=None):
        self.write("finish", exit_code)


def init(*, project, entity, name, group, tags, id, resume, dir, config):
    if project == "refused":
        raise RuntimeError("api_key not configured (no-tty).\\nMore lines")
    return Run(**{k: v for k, v in locals().items()})
'''


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("wandb", None)


def test_weights_and_biases_receives_each_step_once(here, tmp_path, wandb):
    settings = (
        "train.epochs=3",
        "log.wandb={project='streets', tags=['tiny']}",
        "log.histograms_every_steps=3",
    )
    run = here(tmp_path / "run", *settings, "train.early_stopping={patience=1,min_delta=1}").run
    # The first process went on to step 5, for which it has no checkpoint.
    path = run / "wandb.json"
    state = json.loads(path.read_text())
    assert state["sent"] == {"train": 4, "samples": 4, "val": 4, "parameters": 3}
    path.write_text(json.dumps({**state, "sent": {**state["sent"], "train": 5}}))
    here(run, *settings)

    calls = [json.loads(line) for line in (run / "calls.jsonl").read_text().splitlines()]
    first, second = (value for name, value in calls if name == "init")
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["project"] == "streets"
    assert first["name"] == "run"
    assert first["tags"] == ["tiny"]
    assert first["id"] == state["id"]
    assert first["config"]["train"]["epochs"] == 3
    assert ["define_metric", ["*", "step"]] in calls
    assert [value for name, value in calls if name == "finish"] == [0, 0]
    logged = [value for name, value in calls if name == "log"]
    pairs = [(row["step"], tag) for row in logged for tag in row if tag != "step"]
    assert len(set(pairs)) == len(pairs)
    assert [row["step"] for row in logged if "train/loss" in row] == [1, 2, 3, 4, 6]
    assert [row["step"] for row in logged if "val/miou" in row] == [2, 4, 6]
    losses = {r["step"]: r["loss"] for r in records(run) if r["event"] == "train"}
    for row in logged:
        if "train/loss" in row:
            assert row["train/loss"] == pytest.approx(losses[row["step"]])
    (picture,) = {tag for row in logged for tag in row if tag.startswith("samples/")}
    assert next(row[picture] for row in logged if picture in row)["shape"][2] == 3
    kernels = next(row for row in logged if any(tag.startswith("parameters/") for tag in row))
    assert kernels["step"] == 3
    assert all(value["count"] > 0 for tag, value in kernels.items() if tag != "step")


def test_run_that_wandb_refuses_leaves_nothing(here, tmp_path, wandb):
    with pytest.raises(
        ConfigError, match=r"log\.wandb: .*api_key not configured \(no-tty\)\. \(log"
    ):
        here(tmp_path / "run", "log.wandb={project='refused'}", "train.epochs=1")
    assert not (tmp_path / "run").exists()


def test_missing_packages_are_named_together(here, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_is_installed", lambda package: False)
    with pytest.raises(ConfigError) as caught:
        here(tmp_path / "run", "log.tensorboard=true", "log.wandb={project='x'}")
    assert str(caught.value) == (
        "log.tensorboard needs the package tensorboardX, which is not installed: pip install "
        "'fcn-jax[tensorboard]', or leave the setting out; log.wandb needs the package wandb, "
        "which is not installed: pip install 'wandb', or leave the setting out"
    )
    assert not (tmp_path / "run").exists()


def test_folder_named_wandb_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb_runs_only").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not logs._is_installed("wandb_runs_only")
    assert not logs._is_installed("no_such_package")
    assert logs._is_installed("json")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"wandb": "x"}, r"log\.wandb is 'x': expected a table, such as \[log\.wandb\]"),
        ({"wandb": {}}, r"log\.wandb\.project is missing"),
        ({"wandb": {"projekt": "x"}}, r"'log\.wandb\.projekt'\. Did you mean 'project'"),
        ({"tensorbord": True}, "Did you mean 'tensorboard'"),
    ],
)
def test_rejects_bad_settings_with_their_path(table, message):
    with pytest.raises(ConfigError, match=message):
        config.parse({"log": table})


def test_histograms_need_a_destination():
    with pytest.raises(ConfigError, match=r"histograms_every_steps: given without"):
        logs.require_installed(config.parse({"log": {"histograms_every_steps": 5}}).log)


def test_failing_destination_is_a_warning():
    class Full:
        calls = 0

        def scalars(self, step, values):
            self.calls += 1
            raise OSError(28, "No space left on device")

        def close(self, *, failed):
            raise AssertionError("it is no longer used")

    said, full = [], Full()
    with logs.Logs({"TensorBoard": full}, said.append) as log:
        log.record({"step": 1, "event": "train", "loss": 0.5})
        log.record({"step": 2, "event": "train", "loss": 0.5})
    assert full.calls == 1
    (line,) = said
    assert line.startswith("warning: TensorBoard: OSError: [Errno 28] No space left")
    assert line.endswith("the training goes on without it")


def test_scalars_are_the_finite_numbers_of_a_record():
    record = {
        **{"step": 3, "event": "val", "miou": 0.5, "ece": None, "weights": "ema", "classes": 2},
        **{"iou": {"road": 0.25, "sky": None}, "pixels": {"road": 7}, "absent": ["sky"]},
    }
    assert logs.scalars_of(record) == {"val/miou": 0.5, "val/iou/road": 0.25}
    assert logs.scalars_of({"step": 0, "event": "compile", "compile_seconds": 3.0}) == {}
    assert logs.scalars_of({"step": 1, "event": "train", "loss": float("nan")}) == {}
