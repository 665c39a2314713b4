"""Training, evaluation and prediction with any number of classes per pixel."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax import checkpoint, cli, config, recipes
from fcn_jax.data.multilabel import read_multilabel_mask
from fcn_jax.errors import ConfigError
from fcn_jax.eval.predictor import Predictor
from fcn_jax.train.settings import require_valid
from tests.helpers import scenes

pytestmark = pytest.mark.usefixtures("tiny_plugin")

SETTINGS = (
    "model.task=multilabel",
    "loss.bce={}",
    "loss.dice={}",
    "data.batch_size=4",
    "data.crop_size=[16, 16]",
    "augment.rotate={probability = 0.5, degrees = 10.0}",
    "optim={name = 'adamw', lr = 0.02, weight_decay = 0.0}",
    "train.epochs=30",
    "train.eval_every_epochs=30",
    "model.backbone_options={width = 4, dropout = 0.0}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a red and a green part, which overlap in yellow."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((24, 24, 2), np.uint8)
            mask[: rng.integers(10, 16), :, 0] = 1
            mask[:, : rng.integers(10, 16), 1] = 1
            image = np.concatenate([mask * 200, np.zeros_like(mask[..., :1])], -1)
            image += rng.integers(0, 20, image.shape).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{number}.png")
            mask[0, 0] = 255
            np.save(root / "masks" / split / f"{number}.npy", mask)
    (root / "classes.txt").write_text("red\ngreen\n")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    recipe = scenes.write_recipe(folder)
    return scenes.train_here(recipe, data, folder / "run", *SETTINGS).run


def test_learns_classes_that_overlap(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (scores,) = [line for line in lines if line["event"] == "val"]
    assert scores["miou"] > 0.6
    assert set(scores["iou"]) == {"red", "green"}
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    assert losses[-1] < losses[0] / 2
    assert checkpoint.read_spec(checkpoint.find(run)).model.task == "multilabel"
    assert list((run / "samples").rglob("*.png"))


def test_evaluates_as_in_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = json.loads((run / "evaluations" / "training" / "scores.json").read_text())
    assert found["miou"] == pytest.approx(last["miou"])
    assert found["confusion"] is None
    assert np.shape(found["confusion_by_class"]) == (2, 2, 2)
    assert cli.main(["eval", str(run), "--window", "8x8"]) != 0
    assert "the protocol sliding needs one class per pixel" in capsys.readouterr().err


def test_predicts_a_page_for_each_class(run: Path, data: Path, tmp_path: Path) -> None:
    images, out = data / "images" / "val", tmp_path / "out"
    arguments = ["predict", str(run), str(images), "-o", str(out)]
    assert cli.main(arguments) == 0
    predictor = Predictor.from_checkpoint(run)
    for path in images.iterdir():
        mask = read_multilabel_mask(out / f"{path.stem}.tif", 2)
        np.testing.assert_array_equal(predictor(path), mask)
        truth = np.load(data / "masks" / "val" / f"{path.stem}.npy")
        assert np.mean(mask == truth) > 0.8
        assert (out / f"{path.stem}_overlay.png").exists()
    assert cli.main(arguments) != 0  # results are kept
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert cli.main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 0


def test_settings_for_one_class_per_pixel_are_rejected_together() -> None:
    given = (
        "model.task=multilabel",
        "loss.bce={}",
        "data.ignore_classes=['red']",
        "data.void_as_background=true",
        "eval.metrics=['ece']",
        "eval.window=[8, 8]",
    )
    table = recipes.override(recipes.read_recipe("shapes"), given)
    with pytest.raises(ConfigError) as caught:
        require_valid(config.parse(table))
    for said in ("ignore_classes", "data.void_as_background", "['ece']", "the protocol sliding"):
        assert said in str(caught.value)
    with pytest.raises(ConfigError, match="cross_entropy"):
        require_valid(config.parse(recipes.override(recipes.read_recipe("shapes"), given[:1])))
