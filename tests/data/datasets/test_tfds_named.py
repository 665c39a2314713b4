"""Any dataset of TFDS by the names of its features, without TensorFlow."""

import io
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.data.datasets import tfds_named
from fcn_jax.data.datasets.tfds_named import named
from fcn_jax.errors import DataError
from tests.helpers.layouts import SIZE, stripes

tfds = pytest.importorskip("tensorflow_datasets")


def png(array: np.ndarray) -> io.BytesIO:
    return io.BytesIO(cv2.imencode(".png", array)[1].tobytes())


class _NamedBuilder(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    url_infos = None
    FEATURES: ClassVar[Any]

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(0, 3), "test": self._generate_examples(3, 4)}

    def _image(self, at: int) -> io.BytesIO:
        return png(np.random.default_rng(at).integers(0, 256, (*SIZE, 3), np.uint8))


class LikePets(_NamedBuilder):
    """As oxford_iiit_pet: a mask of the values 1 to 3, and features that are neither."""

    FEATURES: ClassVar = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=37),
        "file_name": tfds.features.Text(),
        "head_bbox": tfds.features.BBoxFeature(),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
    }

    def _generate_examples(self, first: int, end: int) -> Iterator[Any]:
        for at in range(first, end):
            yield (
                at,
                {
                    "image": self._image(at),
                    "label": at,
                    "file_name": f"cat_{at}.jpg",
                    "head_bbox": tfds.features.BBox(0.1, 0.1, 0.5, 0.5),
                    "segmentation_mask": png(stripes(1, 2, 3 if at == 3 else 2, 255)),
                },
            )


class Named(_NamedBuilder):
    """Two images and nested masks; one of them names its classes, one is of numbers."""

    FEATURES: ClassVar = {
        "left": tfds.features.Image(shape=(None, None, 3)),
        "right": tfds.features.Image(shape=(None, None, 3)),
        "pixels": tfds.features.Tensor(shape=(*SIZE, 3), dtype=np.uint8),
        "annotations": {
            "mask": tfds.features.LabeledImage(labels=["sky", "road"], shape=(None, None, 1)),
            "numbers": tfds.features.Tensor(shape=SIZE, dtype=np.int32),
        },
    }

    def _generate_examples(self, first: int, end: int) -> Iterator[Any]:
        for at in range(first, end):
            masks = {"mask": png(stripes(0, 1)), "numbers": stripes(0, 7).astype(np.int32)}
            yield (
                at,
                {
                    "left": self._image(at),
                    "right": self._image(99),
                    "pixels": np.full((*SIZE, 3), (at, 100, 200), np.uint8),
                    "annotations": masks,
                },
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (LikePets, Named):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_reads_a_prepared_dataset_by_its_name_alone(prepared: Path) -> None:
    source = named("like_pets").open(prepared, "train")
    assert [record.id for record in source] == [f"train/{at:06d} cat_{at}.jpg" for at in range(3)]
    # The classes are the values in the masks of all splits.
    assert source.classes.names == ("1", "2", "3")
    example = source.decode(source[1])
    assert example.mask[0, ::8].tolist() == [0, 1, 1, IGNORE_INDEX]
    expected = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8)[..., ::-1]
    assert np.array_equal(example.image, expected)
    assert "they are the values in the masks, 1, 2, 3" in source.notes[0]
    test = named("like_pets:1.0.0:image:segmentation_mask").open(prepared, "test")
    assert test.decode(test[0]).mask[0, ::8].tolist() == [0, 1, 2, IGNORE_INDEX]
    assert len(named("like_pets").open(prepared, "train[:2]+test")) == 3
    assert pickle.loads(pickle.dumps(source))[2].id == source[2].id
    assert "tensorflow" not in sys.modules


def test_reads_the_folder_of_one_version(prepared: Path) -> None:
    folder = prepared / "like_pets" / "1.0.0"
    assert len(named("like_pets").open(folder, "train")) == 3


def test_list_of_classes_names_the_values(prepared: Path) -> None:
    path = prepared / "classes.txt"
    path.write_text("void\npet\nbackground\nborder\n")
    try:
        source = named("like_pets").open(prepared, "train")
    finally:
        path.unlink()
    assert source.classes.names == ("pet", "background", "border")
    assert source.decode(source[0]).mask[0, ::8].tolist() == [0, 1, 1, IGNORE_INDEX]


def test_several_features_must_be_named(prepared: Path) -> None:
    with pytest.raises(
        DataError, match=r"as tfds:named:IMAGE:MASK; images could be: left, right; masks: anno"
    ):
        named("named").open(prepared, "train")
    source = named("named:left:annotations/mask").open(prepared, "train")
    assert source.classes.names == ("sky", "road")
    assert source.decode(source[0]).mask[0, ::8].tolist() == [0, 0, 1, 1]
    source = named("named:left:annotations/numbers").open(prepared, "train")
    assert source.classes.names == ("0", "7")
    assert source.decode(source[0]).mask[0, ::8].tolist() == [0, 0, 1, 1]
    source = named("named:pixels:annotations/mask").open(prepared, "train")
    assert (source.decode(source[2]).image == (2, 100, 200)).all()
    with pytest.raises(DataError, match=r"no feature 'lefd'. Did you mean 'left'"):
        named("named:lefd:annotations/mask").open(prepared, "train")


def test_unknown_names_and_splits_are_one_line(prepared: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'val'.*Available: test, train"):
        named("like_pets").open(prepared, "val")
    with pytest.raises(DataError, match=r"TFDS has no dataset 'no_such_set'.*tfds build") as caught:
        named("no_such_set").open(prepared, "train")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is not a folder"):
        named("like_pets").open(prepared / "nowhere", "train")


def test_files_that_need_tensorflow_are_refused_with_a_way_out(
    prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "like_pets" / "1.0.0"
    shutil.copytree(prepared / "like_pets" / "1.0.0", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="prepared as tfrecord files, which need TensorFlow"):
        named("like_pets").open(tmp_path, "train")


def test_prepares_an_installed_builder_without_tensorflow(tmp_path: Path) -> None:
    source = named("like_pets").open(tmp_path, "test")
    assert len(source) == 1
    assert (tmp_path / "like_pets" / "1.0.0" / "dataset_info.json").is_file()


def test_failed_preparation_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, at: int) -> io.BytesIO:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LikePets, "_image", full)
    with pytest.raises(
        DataError, match=r"TFDS cannot prepare 'like_pets' here.*No space"
    ) as caught:
        named("like_pets").open(tmp_path, "train")
    assert "\n" not in str(caught.value)
    assert not [p for p in tmp_path.glob("like_pets/*") if not p.name.startswith("incomplete")]


def test_values_are_read_once_for_all_splits(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named("like_pets").open(prepared, "train")
    monkeypatch.setattr(tfds_named, "_read_values", None)
    assert named("like_pets").open(prepared, "test").classes.names == ("1", "2", "3")
