"""The splits of a dataset as training and evaluation use them.

Images are scaled alike, damaged records are skipped if the setting says so, and masks are checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data import damage, inspection, multilabel, overlap
from fcn_jax.data import value_range as ranges
from fcn_jax.data.labels.remap import Remap
from fcn_jax.data.relabel import relabeled
from fcn_jax.data.source import Source
from fcn_jax.data.value_range import Scaling
from fcn_jax.errors import ConfigError, DamagedError, PluginError
from fcn_jax.plugins.api import Dataset, Task
from fcn_jax.runtime.progress import Progress


@dataclasses.dataclass(frozen=True)
class Splits:
    """Checked splits of one dataset.

    Attributes:
        sources: source by the name of its split.
        value_range: how the values of images become those of batches.
        notes: assumptions, skipped records and oddities, one line each.
        identity: the number of images of the first split, and a digest of their IDs, which together
            determine their order in training.
        class_pixels: i64[K], pixels of each class in the first split, without skipped records.
        image_pixels: i64[K], labeled pixels of its images in which each class occurs.
    """

    sources: Mapping[str, Source]
    value_range: Scaling
    notes: tuple[str, ...]
    identity: Mapping[str, Any]
    class_pixels: np.ndarray
    image_pixels: np.ndarray


def open_splits(
    dataset: Dataset,
    root: Path | None,
    names: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    value_range: Scaling | None = None,
    channels: int = 3,
    keep_stored: bool = False,
    damaged: str = "refuse",
    remap: Remap | None = None,
    training: bool = True,
    task: Task = "multiclass",
) -> Splits:
    """Open splits of a dataset, and check them before they are used.

    Args:
        dataset: the dataset.
        root: its folder, or None.
        names: the splits; for training, the split that is trained on comes first.
        classes: the setting `data.classes`; None for the dataset's own classes.
        value_range: the stored values that become 0 and 255 in images of more than 8 bits; None
            assumes them from the images of all splits (`fcn_jax.data.value_range.assumed`).
        channels: number of channels of the images; see `fcn_jax.data.decode.read_image`.
        keep_stored: whether images keep their stored values, if `value_range` is None.
        damaged: with "refuse", damaged files are errors when they are read; "skip" decodes all
            files once and skips records whose image or mask is damaged.
        remap: other classes; None for those of the dataset.
        training: False for an evaluation, which has fewer requirements; see
            `fcn_jax.data.inspection.inspect`.
        task: the model's. With "multilabel", masks have a channel for each class; see
            `fcn_jax.data.multilabel`.

    Raises:
        DataError: files are missing, all files of a split are damaged, images are in both splits,
            or masks and classes do not belong together.
        ConfigError: `value_range` is set, and the dataset scales its images itself; `remap`
            contradicts itself or the dataset's classes; or `classes` is set, and the dataset's
            classes are fixed; or the task does not fit the dataset.
        PluginError: the dataset opens something else than a `fcn_jax.plugins.api.Source`.
    """
    sources = {
        name: open_source(dataset, root, name, classes=classes, remap=remap)
        for name in dict.fromkeys(names)
    }
    if task == "multilabel":
        sources = {name: multilabel.multilabel(s, dataset.name) for name, s in sources.items()}
    if training:
        overlap.refuse_overlaps(sources, names[0])
    notes = [note for source in sources.values() for note in source.notes]
    sources, value_range, more_notes = scaled(
        sources, value_range, channels=channels, keep_stored=keep_stored
    )
    notes += more_notes
    identity = _identity(sources[names[0]])
    if damaged == "skip":
        for name, source in sources.items():
            with Progress(f"decoding {name}", len(source)) as progress:
                sources[name], faults = damage.without_damaged(
                    source, progress.update, replace=training and name == names[0]
                )
            if faults:
                notes.append(damage.note(faults, len(source), name))
    # Damaged records are skipped already, unless the source decodes masks with their images.
    skip = (DamagedError,) if damaged == "skip" else ()
    if task == "multilabel":
        found = multilabel.inspect(sources)
    else:
        found = inspection.inspect(sources, training=names[0] if training else None, skip=skip)
    return Splits(
        sources,
        value_range,
        tuple(dict.fromkeys([*notes, *found.notes])),
        identity,
        found.counts[names[0]][:-1],
        found.image_counts[names[0]],
    )


def open_source(
    dataset: Dataset,
    root: Path | None,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    remap: Remap | None = None,
) -> Source:
    """Open one split with the classes that a recipe asks for.

    The arguments and errors are those of `open_splits`.
    """
    if classes is None:
        source = dataset.open(root, split)
    elif dataset.open_with_classes is None:
        raise ConfigError(
            f"data.classes is set, but dataset '{dataset.name}' has classes of its own; remove the "
            "setting"
        )
    else:
        source = dataset.open_with_classes(root, split, classes)
    if not isinstance(source, Source):
        raise PluginError(
            f"dataset '{dataset.name}' opens split '{split}' as a {type(source).__name__}; it "
            "must be an fcn_jax.api.Source"
        )
    return relabeled(source, remap or Remap())


def scaled(
    sources: Mapping[str, Source],
    value_range: Scaling | None,
    *,
    channels: int = 3,
    keep_stored: bool = False,
    skip_faulty: bool = False,
) -> tuple[dict[str, Source], Scaling, list[str]]:
    """Give all sources of a dataset the same scaling of images.

    Args:
        sources: sources by the name of their split.
        value_range: see `open_splits`.
        channels: see `open_splits`.
        keep_stored: see `open_splits`.
        skip_faulty: see `fcn_jax.data.value_range.assumed`.

    Returns:
        The sources, their scaling, and notes on what was assumed.

    Raises:
        DataError, ConfigError: as in `open_splits`.
    """
    notes = []
    if value_range is None and keep_stored:
        value_range = ranges.stored(sources.values())
    if value_range is None:
        with Progress("reading bit depths", sum(map(len, sources.values()))) as progress:
            value_range = ranges.assumed(
                _images(sources.values()),
                progress=progress.update,
                skip_faulty=skip_faulty,
                channels=channels,
            )
        if value_range.note:
            notes.append(f"{value_range.note}; data.value_range sets another range")
    changed = {
        name: ranges.with_range(source, value_range, channels) for name, source in sources.items()
    }
    return changed, value_range, notes


def _identity(source: Source) -> dict[str, Any]:
    ids = "\0".join(record.id for record in source)
    digest = hashlib.blake2b(ids.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return {"images": len(source), "digest": digest}


def _images(sources: Iterable[Source]) -> Iterator[Path | bytes]:
    """Image files. Sources that hold the contents of files scale each image alone."""
    for source in sources:
        if isinstance(source[0].image, Path):
            yield from (record.image for record in source)
