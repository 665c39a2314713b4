"""One pass over a split counts, measures and finds every failure."""

import numpy as np
import pytest
from PIL import Image

from fcn_jax.api import Classes, Example, Record, Source
from fcn_jax.data.labels.label_map import as_label_map
from fcn_jax.explore import contents
from fcn_jax.explore.contents import read_split
from fcn_jax.explore.opening import open_splits
from tests.helpers.folders import noise, stripes


def read(folder, split="train"):
    source = open_splits(folder.config()).sources[split]
    return read_split(source, source.labels)


def test_counts_pixels_and_images_of_each_class(make):
    folder = make()
    folder.add("train", stripes(0, 1, 255))
    folder.add("train", stripes(0, 0))
    folder.add("val", stripes(0))
    found = read(folder)
    assert found.class_pixels.tolist() == [32 + 96, 32, 0, 32]
    assert found.class_images.tolist() == [2, 1, 0]
    assert found.sizes.tolist() == [[8, 12], [8, 12]]
    assert not any(failures.count for failures in found.failures.values())


def test_every_failure_has_its_kind_and_its_file(make):
    folder = make().fill(train=6, val=1)
    images = sorted((folder.root / "images/train").iterdir())
    masks = sorted((folder.root / "masks/train").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:60])
    masks[0].write_bytes(b"no image")
    images[1].write_bytes(b"")
    Image.fromarray(noise(9, (12, 8))).save(images[2])
    Image.fromarray(stripes(0, 1, 7)).save(masks[3])
    Image.fromarray(stripes(0, 1, 2)).save(masks[4], "JPEG")
    found = read(folder)
    messages = {kind: failures.messages for kind, failures in found.failures.items()}
    assert len(messages["damaged"]) == 3
    for part, message in zip((images[0], masks[0], images[1]), messages["damaged"], strict=True):
        assert message.startswith(f"{part}: ")
    (size,) = messages["size"]
    assert "the mask is 12x8" in size
    assert str(masks[2]) in size
    (lossy,) = messages["unreadable"]
    assert "must not be a JPEG" in lossy
    assert found.decoded.tolist() == [False] * 5 + [True]
    unread = [mask.name for mask in found.masks if mask.reading.unknown]
    assert unread == [str(masks[3])], "a wrong label is reported with the class list, not here"


def test_a_pair_with_a_wrong_label_and_another_size_has_both_problems(make):
    folder = make().fill(train=1, val=1)
    (mask,) = (folder.root / "masks/train").iterdir()
    Image.fromarray(stripes(0, 9).T.copy()).save(mask)
    found = read(folder)
    assert found.failures["size"].count == 1
    assert [m.reading.unknown for m in found.masks] == [(9,)]


def test_equal_pixels_have_equal_digests(make):
    folder = make()
    image = noise(0)
    folder.add("train", stripes(0, 1), image)
    folder.add("train", stripes(0, 1), image)
    folder.add("train", stripes(0, 2), image)
    folder.add("train", stripes(0, 1).reshape(12, 8), image.reshape(12, 8, 3))
    folder.add("val", stripes(0))
    first = (folder.root / "images/train/t2.png").read_bytes()
    Image.fromarray(image).save(folder.root / "images/train/t2.png", compress_level=0)
    assert (folder.root / "images/train/t2.png").read_bytes() != first
    digests = read(folder).digests
    assert digests[0].tolist() == digests[1].tolist()
    assert digests[0, :2].tolist() == digests[2, :2].tolist()
    assert digests[0, 2] != digests[2, 2]
    assert digests[0, 0] != digests[3, 0]


class InMemory(Source):
    """A dataset that decodes in its own way."""

    classes = Classes(("bg", "road"), ((0, 0, 0), (255, 0, 0)))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Record(f"r{index}", b"x", b"y")

    def decode(self, record):
        return Example(record.id, noise(0), stripes(0, 1, 255))


def test_reads_sources_with_a_decoder_of_their_own():
    found = read_split(InMemory(), as_label_map(2))
    assert found.class_pixels.tolist() == [96, 96, 96]
    assert found.class_images.tolist() == [3, 3]


@pytest.mark.parametrize("values", [(0, 1), (0, 7), tuple(range(8))])
def test_masks_share_their_histograms(make, monkeypatch, values):
    monkeypatch.setattr(contents, "_KEPT_VALUES", 4)
    folder = make()
    for _ in range(9):
        folder.add("train", stripes(*values))
    folder.add("val", stripes(0))
    masks = read(folder).masks
    assert len(masks) == 9
    assert len({id(mask.found) for mask in masks}) <= 3
    assert len({mask.name for mask in masks}) == 9
    unknown = tuple(value for value in values if value > 2)
    assert all(bool(mask.reading.unknown) == bool(unknown) for mask in masks)
    assert np.all([set(mask.found.counts) <= set(values) for mask in masks])


def test_masks_that_share_a_histogram_keep_all_their_values(make):
    folder = make("\n".join(f"c{number}" for number in range(12)))
    folder.add("train", stripes(0, 1, 2, 3, 4, 5))
    folder.add("train", stripes(6, 7, 8, 9, 10, 11))
    folder.add("val", stripes(0))
    found = read(folder)
    assert found.class_pixels.tolist() == [16] * 12 + [0]
    assert {value for mask in found.masks for value in mask.found.counts} == set(range(12))
