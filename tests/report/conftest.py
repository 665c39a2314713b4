"""Made-up run directories."""

import json

import numpy as np
import pytest

from fcn_jax.api import Classes, Example
from fcn_jax.config import parse
from fcn_jax.eval import stored
from fcn_jax.eval.evaluation import Evaluation
from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.eval.protocols import make

CLASSES = Classes(("road", "car <b>", "tree"), ((9, 9, 9), (250, 10, 20), (30, 200, 40)))


def train(step, **more):
    figures = {"loss": 2.0 / step, "lr": 0.1, "grad_norm": 1.0, "images_per_second": 8.0}
    times = {"step_seconds": 0.5, "input_wait_seconds": 0.125, "peak_memory_gib": 1.5}
    return {"step": step, "event": "train", "epoch": step / 4, **figures, **times, **more}


def val(step, miou, **more):
    iou = dict(zip(CLASSES.names, (miou, 0.25, None), strict=True))
    pixels = dict(zip(CLASSES.names, (60, 40, 0), strict=True))
    scores = {"miou": miou, "pixel_accuracy": 0.9, "iou": iou, "pixels": pixels}
    return {"step": step, "event": "val", "epoch": step / 4, "seconds": 3.0, **scores, **more}


START = {"step": 0, "event": "compile", "compile_seconds": 10.0, "setup_seconds": 2.0}
END = {"step": 8, "event": "end", "finished": True, "stopped_by": None, "early": False}
RECORDS = (
    START,
    train(2),
    train(4),
    {"step": 4, "event": "checkpoint", "seconds": 1.0},
    val(4, 0.5),
    train(8),
    val(8, 0.75),
    {**END, "seconds": 30.0},
)


@pytest.fixture
def make_run(tmp_path):
    """Name, records, settings -> a run directory."""

    def make(name="run", records=RECORDS, **settings):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        table = {"data": {"dataset": "camvid"}, "train": {"epochs": 2}, **settings}
        (folder / "config.json").write_text(parse(table).to_json())
        versions = {
            "python": "3.11.9",
            "platform": "Linux",
            "devices": ["cpu: cpu"],
            "packages": {"jax": "0.10.2", "torch": None},
            "plugins": {"backbone": {"distribution": "fcn-jax", "version": "0.1.0"}},
        }
        (folder / "versions.json").write_text(json.dumps(versions))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
        return folder

    return make


def evaluated(run, name="camvid-val-native", images=3):
    """Store an evaluation with pictures in a run."""
    matrix, each = ConfusionMatrix(3), stored.ImageScores()
    for number in range(images):
        truth, prediction = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
        truth[:, 10:], prediction[:, 10 + number :] = 1, 1
        each.add(Example(f"street/{number}", np.full((20, 30, 3), 99, np.uint8), truth), prediction)
        matrix.add(truth, prediction)
    evaluation = Evaluation(
        run / "checkpoints" / "8", "camvid", "val", images, CLASSES, matrix.scores(), make("native")
    )
    each.store(run / stored.FOLDER / name, evaluation)
    return matrix.counts
