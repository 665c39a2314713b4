"""Any dataset of TFDS, by its name and the names of its image and mask features.

    tfds:NAME                as tfds:oxford_iiit_pet; NAME may have a config and a version, as in
                             tfds:cityscapes/semantic_segmentation:1.0.0
    tfds:NAME:IMAGE:MASK     with the names of the features; nested ones as annotations/mask

`--data` is the folder of the prepared dataset, or TFDS's data folder above it; without it, the
folder `tfds` of the cache and TFDS's own (`~/tensorflow_datasets`) are searched. It is read without
TensorFlow, so it must be prepared as array_record files (`tfds build NAME
--file_format=array_record`). A dataset that is not prepared is prepared if its builder does without
TensorFlow.

The classes are those of the mask feature, if it is a `LabeledImage`. Otherwise they come from a
list of classes in `--data` (`fcn_jax.data.labels.class_list`); and otherwise they are the values
that the masks hold, except 255.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.datasets.tfds_datasets import read_stored
from fcn_jax.data.decode import read_stored_mask
from fcn_jax.data.labels.class_list import FILE_NAMES, find_class_list
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.data.source import Source
from fcn_jax.data.threads import on_threads
from fcn_jax.errors import ConfigError, DataError, UnknownSplitError, did_you_mean, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Dataset, Record
from fcn_jax.runtime import cache
from fcn_jax.runtime.progress import Progress

_FORM = "tfds:NAME or tfds:NAME:IMAGE:MASK, with the names of the image and mask features"
_VERSION = re.compile(r"[\d*]+\.[\d*]+\.[\d*]+")
_BUILD = "prepare it with `tfds build {} --file_format=array_record` and pass --data DIR"
_MAX_CLASSES = 255


def named(rest: str) -> Dataset:
    """The dataset `tfds:REST`; see the module's docstring.

    Raises:
        ConfigError: it is not of one of the two forms.
    """
    name, *features = rest.split(":")
    if features and _VERSION.fullmatch(features[0]):
        name += f":{features.pop(0)}"
    if not name or len(features) not in (0, 2) or not all(features):
        raise ConfigError(f"data.dataset = 'tfds:{rest}': expected {_FORM}")
    image, mask = features or ("", "")
    return Dataset(
        name=f"tfds:{rest}",
        summary=f"{name} of TFDS",
        open=functools.partial(_open, name=name, image=image, mask=mask),
    )


def _open_unnamed(root: Path | None, split: str) -> Source:
    raise DataError(f"dataset 'tfds' needs a name: write {_FORM}")


TFDS = Dataset(
    name="tfds",
    summary="any dataset of TFDS, as tfds:NAME or tfds:NAME:IMAGE_FEATURE:MASK_FEATURE",
    open=_open_unnamed,
    variant=named,
    reference="https://www.tensorflow.org/datasets/catalog/overview",
)


class NamedRecords(Sequence[Record]):
    """The records of a split, from TFDS's data source of undecoded images."""

    def __init__(
        self, stored: Sequence[Any], where: Path, split: str, image: str, mask: str
    ) -> None:
        """Take a data source, the dataset's folder, and the names of the features."""
        self._stored, self._where = stored, where
        self._split, self._image, self._mask = split, image, mask

    def __len__(self) -> int:
        """Number of images."""
        return len(self._stored)

    def __getitem__(self, index: Any) -> Any:
        """The record at `index`, 0 <= index < len. Raises `DataError` if it is damaged."""
        stored = read_stored(self._stored, index, self._where)
        name = stored.get("file_name", stored.get("image/filename", b""))
        given = name.decode(errors="replace") if isinstance(name, bytes) else ""
        # Names may occur twice, and IDs must not.
        return Record(
            f"{self._split}/{int(index):06d}{given and f' {given}'}",
            _encoded(_value(stored, self._image)),
            _encoded(_value(stored, self._mask)),
        )


def _value(stored: Any, path: str) -> Any:
    return functools.reduce(lambda value, key: value[key], path.split("/"), stored)


def _encoded(value: bytes | np.ndarray) -> bytes:
    """The bytes of an image file, of an image that is stored as such or as numbers."""
    if isinstance(value, bytes):
        return value
    if value.dtype not in (np.uint8, np.uint16):
        value = value.astype(np.uint16)
    return cv2.imencode(".png", value[..., ::-1] if value.shape[-1] == 3 else value)[1].tobytes()


def _open(root: Path | None, split: str, *, name: str, image: str, mask: str) -> Source:
    builder = _builder(name, root)
    features = dict(sorted(_flat(builder.info.features)))
    image, mask = _feature_names(name, features, image, mask)
    records = _records(builder, split, image, mask)
    notes: tuple[str, ...] = ()
    labels = None
    names = getattr(features[mask], "names", None)
    if names:
        classes = Classes(tuple(names), voc_palette(len(names)))
    elif root is not None and any((root / file).is_file() for file in FILE_NAMES):
        listed = find_class_list(root)
        classes, labels, notes = listed.classes, listed.labels, listed.notes
    else:
        values = _values(builder, image, mask)
        classes = Classes(tuple(map(str, values)), voc_palette(len(values)))
        by_value = {value: label for label, value in enumerate(values)}
        labels = LabelMap(len(values), by_value | {IGNORE_INDEX: IGNORE_INDEX}, listed=False)
        notes = (
            f"tfds:{name} does not name its classes: they are the values in the masks, "
            f"{listing(classes.names, 20)}; classes.txt in --data would name them",
        )
    return DirectorySource(classes, records, labels, notes)


def _builder(name: str, root: Path | None) -> Any:
    """The builder of a prepared dataset; it is prepared first if that is possible."""
    import tensorflow_datasets as tfds

    if root is not None and not root.is_dir():
        raise DataError(f"--data {root} is not a folder; pass the folder of TFDS's data")
    own = cache.folder() / "tfds"
    try:
        if root is not None and (root / "dataset_info.json").is_file():
            return tfds.builder_from_directory(root)
        for folder in (root,) if root is not None else (own, None):
            with contextlib.suppress(tfds.core.DatasetNotFoundError):
                return tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except Exception as error:  # of many kinds, on folders that are no dataset of TFDS
        raise DataError(f"{root or own}: TFDS cannot read '{name}' ({_line(error)})") from error
    folder = root or own
    try:
        # TFDS prints its progress to stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=config)
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(
            f"TFDS has no dataset '{name}', and {folder} holds none that is prepared; check the "
            f"name, or {_BUILD.format(name)}"
        ) from error
    except Exception as error:  # of many kinds: no TensorFlow, no network, a full disk
        raise DataError(
            f"{folder}: TFDS cannot prepare '{name}' here ({_line(error)}); {_BUILD.format(name)}"
        ) from error
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _flat(features: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Features by name, nested ones with a slash."""
    for name, feature in features.items():
        if hasattr(feature, "items"):
            yield from _flat(feature, f"{above}{name}/")
        else:
            yield above + name, feature


def _feature_names(name: str, features: dict[str, Any], image: str, mask: str) -> tuple[str, str]:
    """The names of the image and mask features, given or the only ones that can be meant."""
    import tensorflow_datasets as tfds

    for given in (image, mask):
        if given and given not in features:
            raise DataError(
                f"tfds:{name} has no feature '{given}'. {did_you_mean(given, features)}"
            )
    if image:
        return image, mask
    images, masks = [], []
    for path, feature in features.items():
        shape = feature.shape
        if isinstance(feature, tfds.features.Image) and shape[-1] == 3:
            images.append(path)
        elif isinstance(feature, tfds.features.Image | tfds.features.Tensor):
            is_mask = len(shape) >= 2 and (len(shape) == 2 or shape[2:] == (1,))
            if is_mask and np.issubdtype(feature.np_dtype, np.integer):
                masks.append(path)
    if len(images) != 1 or len(masks) != 1:
        raise DataError(
            f"tfds:{name}: name the features of the image and the mask, as tfds:{name}:IMAGE:MASK; "
            f"images could be: {listing(images) or 'none'}; masks: {listing(masks) or 'none'}; all "
            f"features: {listing(features)}"
        )
    return images[0], masks[0]


def _records(builder: Any, split: str, image: str, mask: str) -> NamedRecords:
    import tensorflow_datasets as tfds

    skip: dict[str, Any] = {}
    for path, feature in _flat(builder.info.features):
        if isinstance(feature, tfds.features.Image):
            *above, last = path.split("/")
            functools.reduce(lambda tree, key: tree.setdefault(key, {}), above, skip)[last] = (
                tfds.decode.SkipDecoding()
            )
    where = builder.data_path
    try:
        stored = builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        raise DataError(
            f"{where}: the dataset is prepared as {builder.info.file_format.value} files, which "
            f"need TensorFlow; {_BUILD.format(builder.name)}, another folder"
        ) from error
    except (ValueError, AssertionError) as error:
        raise UnknownSplitError(
            f"{where}: no split '{split}' ({_line(error)}). "
            f"{did_you_mean(split, builder.info.splits)}",
            builder.info.splits,
        ) from error
    if not len(stored):
        raise DataError(f"{where}: split '{split}' holds no images; widen the split")
    return NamedRecords(stored, Path(where), split, image, mask)


_KNOWN: dict[tuple[str, str], tuple[int, ...]] = {}
"""Values by folder and mask feature: every split of a dataset asks for them."""


def _values(builder: Any, image: str, mask: str) -> tuple[int, ...]:
    """The values of all masks of a dataset in order, except 255."""
    key = str(builder.data_path), mask
    if key not in _KNOWN:
        _KNOWN[key] = _read_values(builder, image, mask)
    return _KNOWN[key]


def _read_values(builder: Any, image: str, mask: str) -> tuple[int, ...]:
    found: set[int] = set()
    for split in builder.info.splits:
        records = _records(builder, split, image, mask)

        def one(index: int, records: NamedRecords = records) -> set[int]:
            record = records[index]
            name = f"mask of {record.id}"
            values = read_stored_mask(record.mask, name=name).values
            if values.ndim == 3:
                raise DataError(
                    f"{name}: it is in colors, and '{builder.name}' does not name its classes; "
                    "list them with their colors in classes.txt in --data"
                )
            return set(np.unique(values).tolist())

        with Progress(f"reading masks of {split}", len(records)) as progress:
            found.update(*on_threads(one, range(len(records)), progress.update))
    values = tuple(sorted(found - {IGNORE_INDEX}))
    if not 0 < len(values) <= _MAX_CLASSES:
        raise DataError(
            f"{builder.data_path}: the feature '{mask}' holds {len(values)} values besides 255; "
            f"expected 1 to {_MAX_CLASSES} classes. Choose another feature, or list the classes in "
            "classes.txt in --data"
        )
    return values
