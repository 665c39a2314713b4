"""Runs on pictures of one pixel, and on masks that hold nothing but ignored pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax import cli
from fcn_jax.errors import DataError
from tests.helpers import scenes

pytestmark = pytest.mark.usefixtures("tiny_plugin")


def write(root: Path, pairs: dict[str, np.ndarray]) -> Path:
    """Write masks, and images of their sizes, by `split/name`; the classes are a and b."""
    root.mkdir()
    (root / "classes.txt").write_text("a\nb\n")
    rng = np.random.default_rng(0)
    for name, mask in pairs.items():
        image = rng.integers(0, 256, (*mask.shape, 3)).astype(np.uint8)
        for kind, array in (("images", image), ("masks", mask.astype(np.uint8))):
            path = root / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return root


def train(tmp_path: Path, pairs: dict[str, np.ndarray]) -> Path:
    recipe = scenes.write_recipe(tmp_path)
    settings = ("data.batch_size=2", "data.crop_size=[16,16]", "train.epochs=2")
    scenes.train_here(recipe, write(tmp_path / "data", pairs), tmp_path / "run", *settings)
    return tmp_path / "run"


def records(run: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


HALVES = np.repeat([[0, 1]], 8, axis=1).repeat(16, axis=0)


def test_trains_evaluates_and_predicts_pictures_of_one_pixel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = np.zeros((1, 1))
    run = train(tmp_path, {"train/0": one, "train/1": one + 1, "val/2": one, "val/3": one + 1})
    losses = [record["loss"] for record in records(run, "train")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert cli.main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pixels_scored"] == 2
    image = tmp_path / "data/images/val/2.png"
    assert cli.main(["predict", str(run), str(image), "-o", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out/2.png").size == (1, 1)


def test_a_batch_of_ignored_pixels_changes_no_weight_but_by_decay(tmp_path: Path) -> None:
    ignored = np.full((16, 16), 255)
    pairs = {f"train/{k}": ignored for k in range(5)} | {"train/9": HALVES, "val/2": HALVES}
    run = train(tmp_path, pairs)
    steps = records(run, "train")
    empty = [record for record in steps if record["loss"] == 0]
    assert len(steps) == 6
    assert len(empty) == 4  # of three batches of an epoch, one holds the labeled image
    assert all(record["grad_norm"] == 0 for record in empty)
    assert all(np.isfinite(record["loss"]) for record in steps)


def test_refuses_a_split_without_a_labeled_pixel(tmp_path: Path) -> None:
    pairs = {f"train/{k}": HALVES for k in range(2)} | {"val/2": np.full((16, 16), 255)}
    with pytest.raises(DataError, match="all pixels of val are void, so that nothing counts"):
        train(tmp_path, pairs)
    assert not (tmp_path / "run").exists()
