"""Two steps of each shipped recipe, on tiny data in the layout of its dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fcn_jax import config, recipes
from fcn_jax.errors import ConfigError
from fcn_jax.plugins import registry
from fcn_jax.train import loop
from tests.helpers import recipe_data

SMALL = (
    "data.crop_size=[32, 48]",
    "data.batch_size=2",
    "data.num_workers=0",
    "train.epochs=1",
    "optim.warmup_steps=0",
    "train.eval_every_epochs=1",
    "train.log_every_steps=1",
    "train.num_visualizations=1",
)
D2L = ("data.batch_size=1", "eval.crop=[32, 48]", "eval.drop_last=1", "train.epochs=1")
TINY = {"backbone": "tiny", "head": "fcn32s"}


def train(name: str, folder: Path, **sections: Any) -> list[dict[str, Any]]:
    """Train a recipe with changed sections on tiny data, and return its records."""
    table = recipes.read_recipe(name) | {"init": {}} | sections
    dataset = table["data"]["dataset"].rpartition(":")[2]
    if dataset not in {entry.name for entry in registry.default().entries("datasets")}:
        pytest.skip(f"no dataset {dataset} is installed")
    small = list(SMALL)
    if dataset != "shapes":
        recipe_data.WRITERS[dataset](folder / "data")
        small.append(f"data.root={json.dumps(str(folder / 'data'))}")
    table = recipes.override(table, [*small, *(D2L if name == "d2l" else ())])
    loop.train(config.parse(table, name), folder / "run")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(found: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in found if record["event"] == "train"]


def scores(found: list[dict[str, Any]]) -> dict[str, Any]:
    return [record for record in found if record["event"] == "val"][-1]


@pytest.mark.parametrize(
    "name", [name for name in recipes.names() if name not in ("d2l", "shapes")]
)
def test_recipe_trains_and_evaluates(name, tmp_path, tiny_plugin, monkeypatch):
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    found = train(name, tmp_path, model=TINY)
    assert steps(found) == [1, 2]
    assert 0 <= scores(found)["miou"] <= 1


def test_d2l_scores_crops_and_whole_images_in_one_run(tmp_path, tiny_plugin, capfd):
    found = train("d2l", tmp_path, model=TINY)
    said = capfd.readouterr().err
    assert "1 of 4 training images are smaller than the crop 32x48 and are left out" in said
    assert steps(found) == [1, 2, 3]
    crops, whole = scores(found), scores(found)["also"]["native"]
    pixels = [sum(table["pixels"].values()) for table in (crops, whole)]
    assert crops["ignored_share"] == 0
    assert pixels[0] == recipe_data.VAL * 32 * 48
    assert whole["ignored_share"] > 0
    ignored = round(pixels[1] * whole["ignored_share"] / (1 - whole["ignored_share"]))
    assert pixels[1] + ignored == recipe_data.VAL * 40 * 56
    assert "epoch 1: val by native: mIoU" in said


@pytest.mark.slow
def test_shapes_trains_and_evaluates(tmp_path, tiny_plugin):
    assert steps(train("shapes", tmp_path, model=TINY))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "shapes"])
def test_recipe_trains_its_own_model(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    backbone = recipes.read_recipe(name)["model"]["backbone"]
    try:
        registry.default().find("backbones", backbone)
    except ConfigError:
        pytest.skip(f"no backbone {backbone} is installed")
    found = train(name, tmp_path)
    assert steps(found)[:2] == [1, 2]
    assert 0 <= scores(found)["miou"] <= 1
