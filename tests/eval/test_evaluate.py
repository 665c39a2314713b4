"""`eval`: which data is read, which classes are compared, and the limits of the scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax import checkpoint
from fcn_jax.api import Classes, ModelSpec
from fcn_jax.config import Config, parse
from fcn_jax.errors import CheckpointError, ConfigError, DataError
from fcn_jax.eval.evaluate import evaluate, evaluate_checkpoint, score_each
from fcn_jax.eval.meter import Meter
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import D2L, Native, Sliding
from fcn_jax.models.build import build
from fcn_jax.plugins import registry
from fcn_jax.runtime import json_text
from tests.helpers import scenes

SPEC = ModelSpec("tiny", "fcn32s", 3, backbone_options={"width": 4})
NAMES = ("background", "road", "car")


@pytest.fixture(scope="module")
def network(tiny_plugin):
    return build(SPEC, rngs=nnx.Rngs(0))


def write_model(directory: Path, network, names: tuple[str, ...] | None = NAMES) -> Path:
    classes = Classes(names, ((0, 0, 0), (1, 0, 0), (2, 0, 0))) if names else None
    checkpoint.save_model(
        directory, checkpoint.make_spec(SPEC, classes), checkpoint.arrays(network)
    )
    return directory


def write_run(run: Path, network, root: str, **section) -> Path:
    """A run with one checkpoint that recorded `root` as the folder of its data."""
    write_model(run / "checkpoints" / "1", network)
    table = {"data": {"dataset": "folder", "root": root, "crop_size": [16, 24]}, "eval": section}
    config: Config = parse(table)
    (run / "config.json").write_text(config.to_json())
    return run / "checkpoints" / "1"


def write_data(root: Path, values: list[int], names: tuple[str, ...] = NAMES) -> Path:
    """A dataset with one validation mask, which has stripes of the values."""
    for folder in ("images", "masks"):
        (root / folder / "val").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)).save(
        root / "images/val/0.png"
    )
    mask = np.resize(np.asarray(values, np.uint8), 24)
    Image.fromarray(np.repeat(mask[:, None], 40, axis=1)).save(root / "masks/val/0.png")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root


def score(model: Path, data: Path):
    return evaluate_checkpoint(model, dataset="folder", data=data)


# -------------------------------------------------------------------------------- where the data is


def test_finds_data_recorded_by_a_relative_path_from_any_folder(network, tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    data = write_data(project / "data", [0, 1, 2])
    step = write_run(project / "runs" / "x", network, "data")

    monkeypatch.chdir(project)
    here = evaluate_checkpoint(Path("runs/x/checkpoints/1"))
    assert here.notes == ()
    monkeypatch.chdir(elsewhere)
    there = evaluate_checkpoint(step)
    assert there.scores.miou == here.scores.miou
    note = (
        "the run recorded its data as 'data', a relative path; read from {} "
        "(--data DIR names another)"
    )
    assert there.notes == (note.format(data),)
    (elsewhere / "link").symlink_to(project / "runs")
    assert evaluate_checkpoint(Path("link/x/checkpoints/1")).scores.miou == here.scores.miou

    # Data of that name in the current folder comes first, with a note.
    other = write_data(elsewhere / "data", [2])
    found = evaluate_checkpoint(step)
    np.testing.assert_array_equal(found.scores.pixels, [0, 0, 24 * 40])
    assert found.notes[0] == note.format(other)
    assert evaluate_checkpoint(step, data=data).notes == ()


def test_prefers_data_in_the_folder_above_runs(network, tmp_path, monkeypatch):
    step = write_run(tmp_path / "a" / "runs" / "x", network, "data")
    write_data(tmp_path / "a" / "runs" / "data", [0])
    write_data(tmp_path / "a" / "data", [1])
    write_data(tmp_path / "data", [2])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = evaluate_checkpoint(step)
    np.testing.assert_array_equal(outcome.scores.pixels, [0, 24 * 40, 0])
    assert f"read from {tmp_path / 'a' / 'data'} " in outcome.notes[0]
    monkeypatch.chdir(tmp_path)  # also above the run, but not the only place
    outcome = evaluate_checkpoint(step)
    np.testing.assert_array_equal(outcome.scores.pixels, [0, 0, 24 * 40])
    assert f"read from {tmp_path / 'data'} " in outcome.notes[0]


def test_missing_data_error_names_folder_and_option(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = write_run(tmp_path / "runs" / "x", network, "gone/data")
    with pytest.raises(
        DataError, match=r"runs/x: was trained on 'gone/data', relative to .* pass --data DIR"
    ):
        evaluate_checkpoint(step)
    step = write_run(tmp_path / "runs" / "y", network, str(tmp_path / "gone"))
    with pytest.raises(
        DataError, match=r"runs/y: was trained on .*/gone, which does not exist; pass --data DIR"
    ):
        evaluate_checkpoint(step)


def test_unreadable_data_error_names_the_folder_read(network, tmp_path, monkeypatch):
    step = write_run(tmp_path / "runs" / "x", network, ".")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(
        DataError,
        match=r"recorded its data as '\.', a relative path; read from .*--data DIR names another",
    ):
        evaluate_checkpoint(step)


def test_rejects_unreadable_config(network, tmp_path):
    step = write_run(tmp_path / "x", network, "data")
    for contents in (b"{", b"\xff\xfe", b"[]", b'{"data": {"dataset": 3}}'):
        (tmp_path / "x" / "config.json").write_bytes(contents)
        with pytest.raises((CheckpointError, ConfigError), match=r"config\.json"):
            evaluate_checkpoint(step)


# -------------------------------------------------------------------------------------- the classes


def test_rejects_classes_in_another_order(network, tmp_path):
    model = write_model(tmp_path / "model", network)
    data = write_data(tmp_path / "data", [0, 1, 2], ("background", "car", "road"))
    with pytest.raises(CheckpointError) as error:
        score(model, data)
    assert (
        "'road' is 1 in the checkpoint and 2 in the dataset, "
        "'car' is 2 in the checkpoint and 1 in the dataset" in str(error.value)
    )


def test_scores_renamed_classes_with_a_note(network, tmp_path):
    model = write_model(tmp_path / "model", network)
    outcome = score(
        model, write_data(tmp_path / "data", [0, 1, 2], ("Back_ground", "street", "Car"))
    )
    note = (
        "1 of 3 classes have different names, check that they mean the same: 1 is 'road' in the "
        "checkpoint and 'street' in the dataset"
    )
    assert outcome.notes == (note,)
    assert outcome.to_dict()["notes"] == [note]
    assert f"note: {note}" in str(outcome)


def test_scores_weights_without_class_names_without_a_note(network, tmp_path):
    model = write_model(tmp_path / "model", network, None)
    assert score(model, write_data(tmp_path / "data", [0, 1, 2])).notes == ()


def test_rejects_another_number_of_classes(network, tmp_path):
    model = write_model(tmp_path / "model", network, None)
    with pytest.raises(CheckpointError, match="predicts 3 classes, but dataset 'folder' has 2"):
        score(model, write_data(tmp_path / "data", [0, 1], ("a", "b")))


# ----------------------------------------------------------------------------- limits of the scores


def test_split_without_labeled_pixels_has_no_scores(network, tmp_path):
    outcome = score(write_model(tmp_path / "model", network), write_data(tmp_path / "data", [255]))
    table = json.loads(json_text.dumps(outcome.to_dict()))
    assert [table[name] for name in ("miou", "pixel_accuracy", "class_accuracy", "fwiou")] == [
        None
    ] * 4
    assert table["notes"] == [
        "no pixel has a class: all 960 are ignored (label 255), so there are no scores"
    ]
    text = str(outcome)
    assert "nan" not in text.lower()
    lines = {line.split("  ")[0]: line.split()[-1] for line in text.splitlines() if line}
    assert lines["pixel accuracy"] == lines["class accuracy"] == lines["fwIoU"] == "-"
    assert "mIoU                 - (over 0 of 3 classes)" in text
    assert "100.00% of all pixels are ignored" in text
    assert (
        "note: no pixel has a class: all 960 are ignored (label 255), so there are no scores"
        in text
    )


def test_table_shows_number_of_classes_in_the_mean(network, tmp_path):
    outcome = score(
        write_model(tmp_path / "model", network), write_data(tmp_path / "data", [1, 255])
    )
    scores = outcome.scores
    assert outcome.to_dict()["absent"] == ["background", "car"]
    text = str(outcome)
    assert f"{scores.miou:.4f} (over {scores.classes_scored} of 3 classes)" in text
    assert "50.00% of all pixels are ignored" in text
    assert "2 of 3 classes have no pixel in the ground truth: background, car" in text


# -------------------------------------------------------------------------------- many image sizes


def test_many_image_sizes_are_padded_and_recorded(network, tmp_path):
    data = write_data(tmp_path / "data", [0, 1, 2])
    rng = np.random.default_rng(0)
    for number in range(1, 9):
        shape = (24, 40 + number)
        image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
        Image.fromarray(image).save(data / f"images/val/{number}.png")
        mask = np.full(shape, number % 3, np.uint8)
        Image.fromarray(mask).save(data / f"masks/val/{number}.png")
    kernel = network.head.transpose_conv.kernel
    varied = rng.standard_normal(kernel[...].shape, np.float32)
    arrays = checkpoint.arrays(network)
    (path,) = (path for path in arrays if path.endswith("transpose_conv.kernel"))
    spec = checkpoint.make_spec(SPEC, Classes(NAMES, ((0, 0, 0), (1, 0, 0), (2, 0, 0))))
    checkpoint.save_model(tmp_path / "model", spec, {**arrays, path: varied})
    source = registry.default().dataset("folder").open(data, "val")

    def scores(multiple):
        predictor = Predictor.from_checkpoint(tmp_path / "model", pad_to_multiple=multiple)
        meter = Meter(3)
        seen = list(score_each(predictor, source, meter))
        assert [example.id for example, _ in seen] == [str(number) for number in range(9)]
        for example, mask in seen:
            np.testing.assert_array_equal(mask, predictor(example.image))
        return meter.scores().to_dict(source.classes)

    padded = score(tmp_path / "model", data).to_dict()
    assert padded["padded_to_multiple"] == 64
    assert padded["notes"] == [
        "9 image sizes: padded to multiples of 64 pixels, so that 1 program is compiled; "
        "--exact-sizes compiles one for each size"
    ]
    assert padded["iou"] == scores(64)["iou"]
    exact = evaluate_checkpoint(
        tmp_path / "model", dataset="folder", data=data, exact_sizes=True
    ).to_dict()
    assert (exact["padded_to_multiple"], exact["notes"]) == (None, [])
    assert exact["iou"] == scores(1)["iou"]
    assert exact["iou"] != padded["iou"]


# ---------------------------------------------------------------------------------------- protocols


def add_images(data: Path, *sizes: tuple[int, int]) -> Path:
    """Add images of sizes to the validation split of `write_data`."""
    rng = np.random.default_rng(1)
    for number, size in enumerate(sizes, start=1):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(image).save(data / f"images/val/{number}.png")
        Image.fromarray(image[..., 0] % 3).save(data / f"masks/val/{number}.png")
    return data


def test_recipe_names_the_protocol_and_arguments_change_it(network, tmp_path):
    data = write_data(tmp_path / "data", [0, 1, 2])
    step = write_run(
        tmp_path / "x", network, str(data), protocol="sliding", overlap=0.25, metrics=["ece"]
    )
    table = evaluate_checkpoint(step).to_dict()
    assert table["protocol"] == Sliding((16, 24), overlap=0.25).to_dict()
    assert 0 <= table["ece"] <= 1
    assert table["ece_bins"] == 15
    assert "boundary_iou" not in table

    changed = evaluate_checkpoint(step, settings={"overlap": 0.0}, metrics=["boundary_iou"])
    assert changed.protocol == Sliding((16, 24), overlap=0.0)
    table = changed.to_dict()
    assert "ece" not in table
    assert table["boundary_dilation_ratio"] == 0.02
    assert set(table["boundary_iou"]) == set(NAMES)
    assert evaluate_checkpoint(step, protocol="native").protocol == Native()


def test_result_records_protocol_and_counts(network, tmp_path):
    data = add_images(write_data(tmp_path / "data", [0, 255]), (20, 30), (8, 8), (20, 20))
    step = write_run(tmp_path / "x", network, str(data))
    outcome = evaluate_checkpoint(
        step, protocol="d2l", settings={"crop": (16, 16), "drop_last": 1, "seed": 5}
    )
    table = outcome.to_dict()
    assert table["schema"] == "fcn_jax.evaluation/1"
    assert table["protocol"] == {"name": "d2l", "crop": [16, 16], "drop_last": 1, "seed": 5}
    assert (table["images"], table["images_skipped"]) == (3, 1)
    # The ignored pixels count as background.
    assert (table["pixels_scored"], table["pixels_ignored"]) == (3 * 16 * 16, 0)
    assert np.sum(table["confusion"]) == 3 * 16 * 16
    assert "3 images (1 left out), protocol d2l (crop 16x16, drop_last 1, seed 5)" in str(outcome)


def test_rejects_unknown_metrics_before_reading_data(network, tmp_path):
    step = write_run(tmp_path / "x", network, str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"no metric 'ecee'\. Did you mean 'ece'"):
        evaluate_checkpoint(step, metrics=["ecee"])


def test_d2l_without_a_whole_batch_is_an_error(network, tmp_path):
    data = write_data(tmp_path / "data", [0, 1, 2])
    step = write_run(tmp_path / "x", network, str(data))
    with pytest.raises(DataError, match=r"protocol d2l .* leaves out all 1 images: .* drop_last"):
        evaluate_checkpoint(step, protocol=D2L(crop=(8, 8)))


def test_evaluates_models_in_memory(network, tmp_path):
    data = add_images(write_data(tmp_path / "data", [0, 1, 2]), (20, 30))
    source = registry.default().dataset("folder").open(data, "val")
    protocol = Sliding((16, 16))
    outcome = evaluate(network, source, protocol=protocol, metrics=["ece"])
    assert (outcome.checkpoint, outcome.dataset, outcome.split) == (None, None, None)
    assert (outcome.images, outcome.protocol) == (2, protocol)
    again = evaluate(Predictor(network, protocol=protocol), source, metrics=["ece"])
    assert again.to_dict() == outcome.to_dict()
    assert str(outcome).startswith("2 images, protocol sliding (window 16x16, ")
    assert evaluate(network, source).protocol == Native()
    with pytest.raises(ConfigError, match="a Predictor has its own protocol"):
        evaluate(Predictor(network), source, protocol="native")
    other = write_data(tmp_path / "other", [0, 1], ("a", "b"))
    source = registry.default().dataset("folder").open(other, "val")
    with pytest.raises(ConfigError, match="the model predicts 3 classes, but the source has 2"):
        evaluate(network, source)


DEVICES = """
import json, sys
from pathlib import Path
import jax
import numpy as np
from flax import nnx
from fcn_jax.api import ModelSpec
from fcn_jax.eval.evaluate import evaluate
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import make
from fcn_jax.models.build import build
from fcn_jax.plugins import registry

assert jax.device_count() == 2
model = build(ModelSpec("tiny", "fcn32s", 3, backbone_options={"width": 4}), rngs=nnx.Rngs(0))
kernel = model.head.transpose_conv.kernel
kernel[...] = np.random.default_rng(0).standard_normal(kernel[...].shape, np.float32)
source = registry.default().dataset("folder").open(Path(sys.argv[1]), "val")
found = []
for devices in ((), jax.devices()):
    tables = []
    for name, settings in json.loads(sys.argv[2]):
        pairs = settings.items()
        protocol = make(name, {k: tuple(v) if isinstance(v, list) else v for k, v in pairs})
        predictor = Predictor(model, protocol=protocol, devices=devices)
        table = evaluate(predictor, source, metrics=["ece"]).to_dict()
        tables.append({key: table[key] for key in ("images", "confusion", "ece")})
    found.append(tables)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_devices(tmp_path):
    data = add_images(write_data(tmp_path / "data", [0, 1, 2]), (24, 40), (20, 30), (9, 9))
    protocols = [
        ("native", {}),
        ("sliding", {"window": [16, 16]}),
        ("multiscale", {"scales": [1.0]}),
        ("d2l", {"crop": [8, 8], "drop_last": 1}),
    ]
    environment = scenes.environment(2)
    environment["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(data), json.dumps(protocols)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout.splitlines()[-1])
    assert one == two
    assert [table["images"] for table in one] == [4, 4, 4, 4]
    assert len({json.dumps(table["confusion"]) for table in one}) > 1
