"""check_dataset: correct datasets pass, and each broken promise is found."""

import re
import threading

import numpy as np
import pytest
from PIL import Image

from fcn_jax.api import Classes, Dataset, Example, Record, Source
from fcn_jax.data.datasets.shapes import draw_scene
from fcn_jax.data.geometry import resize
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.testing import check_dataset


class Pictures(Source):
    """Three made-up pictures in memory."""

    def __init__(
        self, names=("a", "b"), palette=((0, 0, 0), (9, 9, 9)), ids=("0", "1", "2"), decode=None
    ):
        self.classes = Classes(names, palette)
        self.ids, self.change = ids, decode

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return Record(self.ids[index], b"picture", b"mask")

    def decode(self, record):
        if b"not a picture" in (record.image, record.mask):
            raise DataError(f"{record.id}: no picture")
        example = Example(record.id, np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 1, np.uint8))
        return self.change(example) if self.change else example


class Trusting(Pictures):
    """Does not look at what it decodes."""

    def decode(self, record):
        return super().decode(record._replace(image=b"", mask=b""))


class Resizing(Pictures):
    """Decodes at other sizes; `resized` is what becomes of the pictures."""

    def __init__(self, resized=None):
        super().__init__()
        self.resized = resized

    def decode(self, record):
        mask = np.arange(60 * 80, dtype=np.uint8).reshape(60, 80) % 2
        image = (
            np.repeat(np.arange(80, dtype=np.uint8) * 3, 60 * 3).reshape(80, 60, 3).swapaxes(0, 1)
        )
        return super().decode(record)._replace(image=np.ascontiguousarray(image), mask=mask)

    def decode_resized(self, record, factor):
        example = resize(self.decode(record), factor)
        return (
            self.resized(example)
            if self.resized and (factor <= 0.5 or self.resized is brighter)
            else example
        )


class ResizingScenes(Resizing):
    """Pictures with edges and grain, as photographs have."""

    def decode(self, record):
        scene = draw_scene(0, (120, 160))[0] + np.random.default_rng(0).normal(0, 12, (120, 160, 3))
        image = np.clip(scene, 0, 255).astype(np.uint8)
        return super().decode(record)._replace(image=image, mask=image[..., 0] & 1)


class ResizingTrusting(Resizing):
    """Does not look at what it decodes at another size."""

    def decode_resized(self, record, factor):
        return super().decode_resized(record._replace(image=b"", mask=b""), factor)


class Unpicklable(Pictures):
    """Holds what cannot be sent to another process."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Restless:
    """Opened again, it holds another order."""

    def __init__(self):
        self.turn = 0

    def __call__(self):
        self.turn += 1
        return Pictures(ids=("0", "1") if self.turn % 2 else ("1", "0"))


def pictures(make=Pictures, splits=("train", "val"), error=DataError, **fields):
    def open_split(root, split):
        if split not in splits:
            raise error(f"no split {split}")
        return make()

    return Dataset(**{"name": "pictures", "summary": "for tests", "open": open_split, **fields})


def wide(example):
    return example._replace(image=example.image.astype(np.float32))


def tall(example):
    return example._replace(mask=example.mask[:3])


def unknown(example):
    return example._replace(mask=example.mask + 6)


def brighter(example):
    return example._replace(image=example.image + 1)


def mirrored(example):
    return example._replace(image=example.image[:, ::-1])


def shifted(example):
    return example._replace(image=np.roll(example.image, 1, axis=1))


def lowered(example):
    return example._replace(image=np.roll(example.image, 1, axis=0))


def relabeled(example):
    return example._replace(mask=1 - example.mask)


def cut(example):
    return Example(example.id, example.image[:-1], example.mask[:-1])


def renamed(example):
    return example._replace(id="x")


def test_accepts_a_correct_dataset():
    check_dataset(pictures())
    check_dataset(pictures(Resizing))
    check_dataset(pictures(ResizingScenes))


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (pictures(error=KeyError), "a split 'no-such-split' raises KeyError"),
        (
            pictures(splits=("train", "val", "no-such-split")),
            "a split 'no-such-split' is accepted; it must raise a DataError",
        ),
        (pictures(lambda: Pictures(ids=())), "it has no images"),
        (pictures(lambda: Pictures(ids=("0", "0"))), "images have the same id: 0"),
        (pictures(lambda: Pictures(ids=(0, 1))), "an fcn_jax.api.Record with an id"),
        (pictures(Restless()), "opened again, it has other images or another order"),
        (pictures(Unpicklable), "does not pickle"),
        (pictures(dict), "it is a dict; it must be an fcn_jax.api.Source"),
        (pictures(lambda: Pictures(names=("a", "a"))), "each name must occur once"),
        (pictures(lambda: Pictures(palette=((0, 0, 0),))), "one RGB color"),
        (
            pictures(lambda: Pictures(decode=wide)),
            "the image is float32[4, 6, 3]; it must be uint8[H, W, 3]",
        ),
        (pictures(lambda: Pictures(decode=tall)), "the mask is uint8[3, 6]"),
        (pictures(lambda: Pictures(decode=unknown)), "labels 7; allowed are 0 to 1 and 255"),
        (
            pictures(lambda: Pictures(decode=renamed)),
            "decode: it returns the id 'x'; it must be '0'",
        ),
        (pictures(Trusting), "decode of an unreadable image is accepted"),
        (
            pictures(lambda: Resizing(brighter)),
            "decode_resized by 0.7: the image differs from the full image, resized, by 1.0 of 255",
        ),
        (pictures(lambda: Resizing(mirrored)), "decode_resized by 0.45: the image differs"),
        (pictures(lambda: ResizingScenes(shifted)), "decode_resized by 0.45: the image differs"),
        (pictures(lambda: ResizingScenes(lowered)), "decode_resized by 0.45: the image differs"),
        (pictures(lambda: Resizing(relabeled)), "decode_resized by 0.45: the mask differs"),
        (
            pictures(lambda: Resizing(cut)),
            "decode_resized by 0.45: the image is uint8[26, 36, 3]; it must be uint8[27, 36, 3]",
        ),
        (pictures(lambda: Resizing(renamed)), "decode_resized by 0.45: it returns the id 'x'"),
        (pictures(ResizingTrusting), "decode_resized of an unreadable image is accepted"),
        (pictures(api_version=(9, 0)), "api_version"),
    ],
)
def test_rejects_a_broken_promise(broken, complaint):
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        check_dataset(broken)


def write_folder(root, *splits):
    """A dataset of one image in each split."""
    for part in ("images", "masks"):
        for split in splits:
            (root / part / split).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 6), np.uint8)).save(root / part / split / "0.png")
    (root / "classes.txt").write_text("one\n")


def test_checks_the_folder_dataset(tmp_path):
    write_folder(tmp_path, "train", "val")
    noise = np.random.default_rng(0).integers(0, 256, (99, 131, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "val" / "0.jpg")
    (tmp_path / "images" / "val" / "0.png").unlink()
    Image.fromarray(noise[..., 0] & 0).save(tmp_path / "masks" / "val" / "0.png")
    check_dataset("folder", tmp_path)
    with pytest.raises(ConfigError, match="splits is empty; name at least one"):
        check_dataset("folder", tmp_path, splits=())
    with pytest.raises(AssertionError, match="a root that is a file is accepted"):
        check_dataset(pictures(), tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        check_dataset("folder", tmp_path / "nowhere")


@pytest.mark.parametrize("pattern", ["rows", "columns", "checkers"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_accepts_regular_textures(tmp_path, pattern, size):
    rows, columns = np.mgrid[:99, :131] // size
    texture = (
        {"rows": rows, "columns": columns, "checkers": rows + columns}[pattern] % 2 * np.uint8(255)
    )
    write_folder(tmp_path, "val")
    Image.fromarray(texture.astype(np.uint8)).save(
        tmp_path / "images" / "val" / "0.jpg", quality=92
    )
    (tmp_path / "images" / "val" / "0.png").unlink()
    Image.fromarray(np.zeros((99, 131), np.uint8)).save(tmp_path / "masks" / "val" / "0.png")
    check_dataset("folder", tmp_path, splits=("val",))
