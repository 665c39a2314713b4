"""Score a checkpoint on a data set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fcn_jax import checkpoint, registry
from fcn_jax.api import Classes
from fcn_jax.config import parse
from fcn_jax.data.pipeline import eval_examples
from fcn_jax.errors import CheckpointError, ConfigError
from fcn_jax.infer.metrics import ConfusionMatrix, Scores
from fcn_jax.infer.predictor import Predictor, evaluate


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a checkpoint on a split.

    Attributes:
        checkpoint: the directory that was read.
        dataset: registered name.
        split: name of the split.
        images: number of images in it; all count.
        classes: names and colors.
        scores: over all pixels of the split that are not void.
    """

    checkpoint: Path
    dataset: str
    split: str
    images: int
    classes: Classes
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        where = {"checkpoint": str(self.checkpoint), "dataset": self.dataset, "split": self.split, "images": self.images}
        return {**where, **self.scores.to_dict(self.classes)}


def evaluate_checkpoint(
    path: str | Path, *, dataset: str | None = None, data: str | Path | None = None, split: str | None = None
) -> Evaluation:
    """Score a run or checkpoint: one confusion matrix over the whole split, whole images at their own size.

    Args:
        path: a run (its best checkpoint), one of its checkpoints, or a converted model.
        dataset: registered name; the run's own if not given.
        data: folder of the data set; the run's own if not given.
        split: the run's validation split if not given.

    Raises:
        CheckpointError: not a checkpoint, or of another number of classes than the data set.
        ConfigError: the path is of no run, and no data set is named.
        DataError: as the data set says.
    """
    directory = checkpoint.find(path)
    recipe = _recipe_of(directory)
    if recipe is not None:
        own = recipe.data
        data = data or (own.root if dataset in (None, own.dataset) else None)
        dataset, split = dataset or own.dataset, split or own.val_split
    if dataset is None:
        raise ConfigError(f"{path}: not a run's checkpoint, so name the data set to score it on with --dataset NAME")
    source = registry.default().dataset(dataset).open(Path(data) if data else None, split or "val")
    predictor = Predictor.from_checkpoint(directory)
    if predictor.num_classes != len(source.classes):
        raise CheckpointError(
            f"{directory}: predicts {predictor.num_classes} classes, but data set '{dataset}' has {len(source.classes)}"
        )
    matrix = ConfusionMatrix(len(source.classes))
    for _ in evaluate(predictor, eval_examples(source), matrix):
        pass
    return Evaluation(directory, dataset, split or "val", len(source), source.classes, matrix.scores())


def _recipe_of(directory: Path) -> Any:
    """The recipe of the run that a checkpoint lies in, or None where it lies in none."""
    path = directory.absolute().parent.parent / "config.json"
    if directory.absolute().parent.name != checkpoint.STEPS or not path.exists():
        return None
    try:
        return parse(json.loads(path.read_text()), str(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a run's configuration ({error})") from error
