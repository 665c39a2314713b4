"""Evaluations that a run keeps: scores of each image, and pictures of the best and the worst.

`evaluations/NAME/scores.json` in a run directory is `Evaluation.to_dict` with the scores of each
image. The pictures are next to it. `fcn-jax report` shows them without the dataset.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fcn_jax import checkpoint
from fcn_jax.data.images.picture import as_rgb
from fcn_jax.errors import WriteError
from fcn_jax.eval.draw import NO_CLASS, colorize, one_label
from fcn_jax.eval.evaluation import Evaluation
from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.eval.multilabel import MultilabelCounts
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Example
from fcn_jax.runtime import atomic, distributed, json_text

FOLDER = "evaluations"
TRAINING = "training"
"""Name of the best evaluation during training."""

_SCORES = "scores.json"
_LONGEST = 640
"""Longest side of a stored picture, in pixels."""


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """Scores of one image, NaN if all its pixels are ignored.

    Attributes:
        id: id of the example.
        miou: mean IoU of the classes that occur in the image or in its prediction.
        pixel_accuracy: share of the pixels with the right class.
        pixels: number of pixels that are not ignored.
    """

    id: str
    miou: float
    pixel_accuracy: float
    pixels: int

    @classmethod
    def of(cls, example: Example, prediction: np.ndarray) -> ImageScore:
        """Score a predicted mask u8[H,W], or u8[H,W,K] of the task "multilabel"."""
        if prediction.ndim == 3:
            counts = MultilabelCounts(prediction.shape[2])
            counts.add(example.mask, prediction)
            found = counts.scores()
            return cls(example.id, found.miou, found.pixel_accuracy, found.num_labeled)
        valid = example.mask != IGNORE_INDEX
        largest = max(example.mask.max(where=valid, initial=0), prediction.max(initial=0))
        matrix = ConfusionMatrix(int(largest) + 1)
        matrix.add(example.mask, prediction)
        scores = matrix.scores()
        return cls(example.id, scores.miou, scores.pixel_accuracy, int(scores.pixels.sum()))


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A scored image at no more than `_LONGEST` pixels: u8[h,w,3], u8[h,w] and u8[h,w]."""

    score: ImageScore
    order: tuple[float, int]
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    def moved(self, images: int) -> _Picture:
        """Return the picture with this number of images before those of its process."""
        score, number = self.order
        return dataclasses.replace(self, order=(score, number - images))


class ImageScores:
    """Collects the scores of each image, and pictures of those with the best and worst mIoU."""

    def __init__(self, keep: int = 4) -> None:
        """Start without images; `keep` pictures of the best ones are kept, and of the worst."""
        self._keep, self._scores = keep, list[ImageScore]()
        self._best, self._worst = list[_Picture](), list[_Picture]()

    def add(self, example: Example, prediction: np.ndarray) -> None:
        """Score a predicted mask u8[H,W]."""
        score = ImageScore.of(example, prediction)
        order = (score.miou, -len(self._scores))  # the first one of equal images is better
        self._scores.append(score)
        if math.isnan(score.miou):
            return
        is_best = len(self._best) < self._keep or order > self._best[-1].order
        is_worst = len(self._worst) < self._keep or order < self._worst[-1].order
        if is_best or is_worst:
            masks = (
                _smaller(one_label(mask), cv2.INTER_NEAREST) for mask in (example.mask, prediction)
            )
            picture = _Picture(
                score, order, _smaller(as_rgb(example.image), cv2.INTER_AREA), *masks
            )
            for kept, belongs, largest_first in (
                (self._best, is_best, True),
                (self._worst, is_worst, False),
            ):
                if belongs:
                    kept.append(picture)
                    kept.sort(key=lambda one: one.order, reverse=largest_first)
                    del kept[self._keep :]

    def gather(self) -> None:
        """Collect the scores and pictures of all processes in the first one. All must call it."""
        if distributed.count() == 1:
            return
        kept = [*self._best, *(one for one in self._worst if one not in self._best)]
        orders = [one.order for one in kept]
        found = distributed.exchange([len(self._scores), orders])
        # From here on, an image's number counts those of the processes before.
        starts = np.cumsum([0, *(count for count, _ in found)]).tolist()
        ranked = sorted(
            (score, number - start)
            for start, (_, others) in zip(starts, found, strict=False)
            for score, number in others
        )
        wanted = {*ranked[: self._keep], *ranked[-self._keep :]}
        mine = [one.moved(starts[distributed.index()]) for one in kept]
        scores = distributed.gather(json.dumps([vars(one) for one in self._scores]).encode())
        parts = distributed.gather(_packed([one for one in mine if one.order in wanted]))
        if scores is None or parts is None:
            return
        self._scores = [ImageScore(**one) for part in scores for one in json.loads(part)]
        pictures = sorted(
            (one for part in parts for one in _unpacked(part)), key=lambda one: one.order
        )
        self._worst, self._best = pictures[: self._keep], pictures[: -self._keep - 1 : -1]

    def store(self, folder: Path, evaluation: Evaluation) -> None:
        """Write an evaluation of these images to `scores.json` in a folder, with the pictures.

        What the folder holds of an earlier evaluation is replaced.

        Raises:
            WriteError: the folder cannot be written.
        """
        worst = [picture for picture in self._worst if picture not in self._best]
        with atomic.write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Pictures of one evaluation must not be taken for those of another.
            (folder / _SCORES).unlink(missing_ok=True)
            for path in folder.glob("[0-9]*.*"):
                path.unlink(missing_ok=True)
        names = iter(range(2 * self._keep))
        step = evaluation.checkpoint.name if evaluation.checkpoint else ""
        table = {
            **evaluation.to_dict(),
            "step": int(step) if step.isdecimal() else None,
            "time": time.time(),
            "class_names": list(evaluation.classes.names),
            "palette": [list(color) for color in evaluation.classes.palette],
            "per_image": [dataclasses.asdict(score) for score in self._scores],
            "pictures": {
                kind: [
                    {
                        **dataclasses.asdict(picture.score),
                        "files": list(
                            _write(folder / str(next(names)), picture, evaluation.classes)
                        ),
                    }
                    for picture in pictures
                ]
                for kind, pictures in (("best", self._best), ("worst", worst))
            },
        }
        atomic.write_text(folder / _SCORES, json_text.dumps(table) + "\n")


def keep(evaluation: Evaluation, images: ImageScores) -> str | None:
    """Store an evaluation in the run of its checkpoint, if it is of a run. All processes call it.

    Returns:
        A note if the run directory cannot be written, None otherwise.
    """
    if evaluation.protocol.by_image:
        images.gather()
    directory = evaluation.checkpoint
    if directory is None or not distributed.is_first():
        return None
    steps = directory.absolute().parent
    if steps.name != checkpoint.STEPS or not (steps.parent / "config.json").exists():
        return None
    parts = (evaluation.dataset, evaluation.split, evaluation.protocol.name)
    name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part)
    try:
        images.store(steps.parent / FOLDER / name, evaluation)
    except WriteError as error:
        return f"the scores are not kept for `fcn-jax report`: {error}"
    return None


def read(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the folders and tables of the evaluations in a run directory, the newest last.

    The newest is that of the latest step; among those of one step, the one that was written last.
    The clock may jump, and steps do not. Unreadable ones are left out.
    """
    found = []
    for path in sorted((run / FOLDER).glob(f"*/{_SCORES}")):
        try:
            table = json.loads(path.read_text("utf-8"))
            step = -1 if table["step"] is None else int(table["step"])
            found.append(((step, float(table["time"])), path.parent, table))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [(folder, table) for _, folder, table in sorted(found, key=lambda one: one[0])]


def _write(path: Path, picture: _Picture, classes: Classes) -> Iterator[str]:
    """Write image, ground truth and prediction, and yield the names of the files."""
    with atomic.replacing(path.with_suffix(".jpg")) as temporary:
        Image.fromarray(picture.image).save(temporary, "JPEG", quality=85)
    yield f"{path.name}.jpg"
    palette = colorize(np.arange(256, dtype=np.uint8), classes).tobytes()
    # A black class 0 is a background, which the page leaves transparent.
    opacity = bytearray([0 if classes.palette[0] == (0, 0, 0) else 255]) + b"\xff" * 255
    if len(classes) <= NO_CLASS and (picture.prediction == NO_CLASS).any():
        opacity[NO_CLASS] = 0
    for kind, mask in (("truth", picture.truth), ("prediction", picture.prediction)):
        indexed = Image.fromarray(mask)
        indexed.putpalette(palette)
        name = f"{path.name}_{kind}.png"
        with atomic.replacing(path.with_name(name)) as temporary:
            indexed.save(temporary, "PNG", transparency=bytes(opacity))
        yield name


def _packed(pictures: list[_Picture]) -> bytes:
    """Return pictures in the format of `numpy.savez_compressed`."""
    buffer = io.BytesIO()
    about = json.dumps([(vars(one.score), one.order) for one in pictures])
    arrays = [array for one in pictures for array in (one.image, one.truth, one.prediction)]
    np.savez_compressed(buffer, np.frombuffer(about.encode(), np.uint8), *arrays)
    return buffer.getvalue()


def _unpacked(data: bytes) -> Iterator[_Picture]:
    with np.load(io.BytesIO(data)) as arrays:
        for number, (score, order) in enumerate(json.loads(arrays["arr_0"].tobytes())):
            parts = (arrays[f"arr_{3 * number + part}"] for part in (1, 2, 3))
            yield _Picture(ImageScore(**score), (order[0], order[1]), *parts)


def _smaller(array: np.ndarray, interpolation: int) -> np.ndarray:
    height, width = array.shape[:2]
    scale = _LONGEST / max(height, width)
    if scale >= 1:
        return array.copy()  # not a view of a large batch
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(cv2.resize(array, size, interpolation=interpolation))
