"""Losses and tasks of a recipe, from training to evaluation and prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax import checkpoint
from fcn_jax.errors import ConfigError
from fcn_jax.eval.evaluate import evaluate_checkpoint
from fcn_jax.eval.predictor import Predictor
from fcn_jax.plugins import registry
from tests.helpers import scenes

pytestmark = pytest.mark.skipif(
    not registry.default().entries("losses"), reason="fcn-jax was installed before it had losses"
)

SETTINGS = (
    "loss.cross_entropy.class_weights=median_frequency",
    "loss.dice.weight=0.5",
    "train.epochs=1",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=16)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def run(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory, tiny_plugin) -> Path:
    return scenes.train_here(recipe, data, tmp_path_factory.mktemp("runs") / "run", *SETTINGS).run


def train_records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in lines if record["event"] == "train"]


def test_run_records_its_losses(run: Path, data: Path) -> None:
    settings = json.loads((run / "config.json").read_text())["loss"]
    assert settings == {
        "cross_entropy": {"weight": 1.0, "class_weights": "median_frequency"},
        "dice": {"weight": 0.5},
    }
    recorded = checkpoint.read_spec(checkpoint.find(run)).losses
    assert recorded["dice"]["weight"] == 0.5
    versions = json.loads((run / "versions.json").read_text())
    assert versions["losses"]["dice"]["distribution"] == "fcn-jax"
    for record in train_records(run):
        each = record["losses"]
        assert record["loss"] == pytest.approx(each["cross_entropy"] + 0.5 * each["dice"], rel=1e-6)

    # The weights are those of the masks.
    masks = [np.array(Image.open(path)) for path in (data / "masks" / "train").iterdir()]
    classes = len(recorded["cross_entropy"]["class_weights"])
    frequency = np.full(classes, np.nan)
    for label in range(classes):
        of_images = sum((mask != 255).sum() for mask in masks if (mask == label).any())
        if of_images:
            frequency[label] = sum((mask == label).sum() for mask in masks) / of_images
    expected = np.nan_to_num(np.nanmedian(frequency) / frequency)
    assert recorded["cross_entropy"]["class_weights"] == pytest.approx(expected.tolist())


def test_resume_rejects_other_losses(run: Path, data: Path, recipe: Path) -> None:
    assert scenes.train_here(recipe, data, run, *SETTINGS).was_finished
    for change in ("loss.dice.weight=2", "loss.lovasz.weight=1"):
        name = change.split(".weight")[0]
        with pytest.raises(ConfigError, match=f"these settings differ: {name}"):
            scenes.train_here(recipe, data, run, *SETTINGS, change)


def test_rejects_wrong_losses_before_anything_is_written(
    data: Path, recipe: Path, tmp_path: Path, tiny_plugin
) -> None:
    for settings, message in (
        (["loss.dcie.weight=1"], "Did you mean 'dice'"),
        (["loss.cross_entropy.class_weights=[1.0]"], "class_weights has 1 numbers; expected"),
        (["loss.lovasz.weight=1", "optim.accumulate_steps=2"], "with lovasz; set"),
        (["model.task=binary"], r"the dataset has \d+ classes .*expected two"),
        (["model.task=multilabel"], "'cross_entropy' does not support model.task = 'multilabel'"),
    ):
        with pytest.raises(ConfigError, match=message):
            scenes.train_here(recipe, data, tmp_path / "run", *settings)
        assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a bright square, whose masks are 1 there and 255 along the top."""
    root, rng = tmp_path_factory.mktemp("two"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 3)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            top, left = rng.integers(4, 24, 2)
            mask = np.zeros((48, 48), np.uint8)
            mask[top : top + 20, left : left + 20] = 1
            image = rng.integers(0, 60, (48, 48, 3)) + 180 * mask[..., None]
            mask[0] = 255
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    (root / "classes.txt").write_text("background\nsquare\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_entropy", "dice"])
def test_binary_task_trains_evaluates_and_predicts_one_logit(
    two_classes: Path, recipe: Path, tmp_path: Path, tiny_plugin, name: str
) -> None:
    settings = ("model.task=binary", f"loss.{name}.weight=1", "train.epochs=80", "optim.lr=0.1")
    settings += ("train.eval_every_epochs=80", "optim.momentum=0.9")
    result = scenes.train_here(recipe, two_classes, tmp_path / "run", *settings)
    best = checkpoint.find(result.run)
    spec = checkpoint.read_spec(best)
    assert (spec.model.task, spec.model.num_classes) == ("binary", 1)
    assert checkpoint.read_arrays(best)["head.final_conv.bias"].shape == (1,)
    evaluation = evaluate_checkpoint(best)
    assert evaluation.scores.iou[1] > 0.7
    assert evaluation.scores.pixels.shape == (2,)

    image = np.array(Image.open(two_classes / "images" / "val" / "0.png"))
    predictor = Predictor.from_checkpoint(best)
    assert predictor.num_classes == 2
    found = predictor(image)
    assert set(np.unique(found)) == {0, 1}
    model, _ = checkpoint.load_model(best)
    np.testing.assert_array_equal(Predictor(model, blocks=True)(image), found)
