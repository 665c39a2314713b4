"""Datasets that TFDS prepares once, as array_record files with random access, without TensorFlow.

They are prepared under `--data` if it is given, otherwise in the folder `tfds` of the cache
(`fcn_jax.runtime.cache`). A preparation writes into a temporary folder, which is renamed at the
end: an interrupted one leaves no dataset, and if two processes prepare at the same time, the first
result is kept and both continue. A split can be written in TFDS's way: `train`, `train+val`,
`train[:10%]`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.datasets.shapes import SHAPES_CLASSES
from fcn_jax.data.datasets.voc import VOC_CLASSES
from fcn_jax.data.source import Source
from fcn_jax.errors import DataError, UnknownSplitError, did_you_mean
from fcn_jax.plugins.api import Dataset, Record
from fcn_jax.runtime import cache

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class TfdsRecords(Sequence[Record]):
    """The records of a split that TFDS has prepared."""

    def __init__(self, stored: Sequence[dict[str, bytes]], where: Path) -> None:
        """Take TFDS's data source of encoded examples: {"id", "image", "mask"}, bytes each.

        Args:
            stored: the data source.
            where: the folder of the dataset, for messages.
        """
        self._stored, self._where = stored, where

    def __len__(self) -> int:
        """Number of images."""
        return len(self._stored)

    def __getitem__(self, index: Any) -> Any:
        """The record at `index`, 0 <= index < len. Raises `DataError` if it is damaged."""
        stored = read_stored(self._stored, index, self._where)
        return Record(stored["id"].decode(), stored["image"], stored["mask"])


def read_stored(stored: Sequence[Any], index: Any, where: Path) -> Any:
    """An example of a data source of TFDS.

    Args:
        stored: the data source.
        index: 0 <= index < len.
        where: the folder of the dataset, for messages.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        return stored[index]
    except (OSError, RuntimeError) as error:  # array_record's reader raises the latter
        reason = " ".join(str(error).split())
        raise DataError(
            f"{where}: the prepared dataset is damaged ({reason}); delete the folder and "
            "prepare it again"
        ) from error


def prepare(
    builder_class: type[tfds.core.DatasetBuilder], folder: Path, manual: Path | None = None
) -> tfds.core.DatasetBuilder:
    """Prepare a dataset, unless it is prepared already.

    Args:
        builder_class: the builder of the dataset.
        folder: the dataset goes to `folder/NAME/VERSION`, downloads to `folder/downloads`.
        manual: the folder in which the builder looks for files before it downloads them;
            `folder/downloads/manual` by default.

    Returns:
        A builder whose `as_data_source` can be called.

    Raises:
        DataError: the builder raises it, or the folder cannot be written.
    """
    import tensorflow_datasets as tfds

    try:
        builder = builder_class(data_dir=folder, file_format="array_record")
        if not builder.data_path.exists():
            config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
            # TFDS prints its progress to stdout, which is for results.
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    builder.download_and_prepare(download_config=config)
            except OSError:
                # Renaming fails if another process finished first; its data are the same.
                if not builder.data_path.exists():
                    raise
            # The builder that prepared the dataset keeps paths to its temporary folder.
            builder = builder_class(data_dir=folder)
    except (OSError, RuntimeError) as error:  # array_record's writer raises the latter
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(
            f"{folder}: cannot prepare the dataset here ({reason}); pass --data DIR, a folder with "
            "room to write"
        ) from error
    return builder


def _open(builder_class: Any, root: Path | None, split: str) -> Source:
    import tensorflow_datasets as tfds

    if root is not None and root.exists() and not root.is_dir():
        raise DataError(
            f"--data {root} is not a folder; pass the folder in which to prepare the dataset"
        )
    manual = root if root is not None and root.is_dir() else None
    builder = prepare(builder_class, root or cache.folder() / "tfds", manual)
    skip = tfds.decode.SkipDecoding()
    try:
        records: Any = builder.as_data_source(split, decoders={"image": skip, "mask": skip})
    except (ValueError, AssertionError) as error:
        available = did_you_mean(split, builder.info.splits)
        raise UnknownSplitError(
            f"{builder.data_path}: no split '{split}' ({str(error).splitlines()[0]}). {available}",
            builder.info.splits,
        ) from error
    if not len(records):
        raise DataError(
            f"{builder.data_path}: split '{split}' holds no images; delete the folder to prepare "
            "it again, or widen the split"
        )
    return DirectorySource(builder_class.CLASSES, TfdsRecords(records, Path(builder.data_path)))


def _open_shapes(root: Path | None, split: str) -> Source:
    from fcn_jax.data.datasets.tfds_builders import Shapes

    return _open(Shapes, root, split)


def _open_voc(root: Path | None, split: str) -> Source:
    from fcn_jax.data.datasets.tfds_builders import Voc2012Segmentation

    return _open(Voc2012Segmentation, root, split)


SHAPES = Dataset(
    name="shapes",
    summary="generated scenes of textured shapes, 7 classes, 1000 + 200 images, no download",
    open=_open_shapes,
    classes=SHAPES_CLASSES,
)

VOC2012_TFDS = Dataset(
    name="voc2012_tfds",
    summary="PASCAL VOC2012 segmentation through TFDS: downloaded, or from files in --data",
    open=_open_voc,
    classes=VOC_CLASSES,
    reference="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)
