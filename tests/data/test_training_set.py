"""The training split of d2l: small images left out, void as background."""

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.training_set import training_set
from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import Classes, Record

SIZES = ((20, 30), (19, 40), (40, 29), (25, 35))


@pytest.fixture
def source(tmp_path):
    records = []
    for number, (height, width) in enumerate(SIZES):
        image, mask = tmp_path / f"{number}.jpg", tmp_path / f"{number}.png"
        Image.new("RGB", (width, height)).save(image)
        values = np.full((height, width), 1, np.uint8)
        values[0] = 255
        Image.fromarray(values).save(mask)
        records.append(Record(str(number), image, mask))
    return DirectorySource(Classes(("a", "b"), ((0, 0, 0), (9, 9, 9))), records)


def test_leaves_out_images_that_are_lower_or_narrower_than_the_crop(source):
    kept, notes = training_set(source, (20, 30), drop_small=True, void_as_background=False)
    assert [record.id for record in kept] == ["0", "3"]
    assert notes == [
        "2 of 4 training images are smaller than the crop 20x30 and are left out (data.drop_small)"
    ]
    assert training_set(source, (20, 30), drop_small=False, void_as_background=False) == (
        source,
        [],
    )
    assert training_set(source, (1, 1), drop_small=True, void_as_background=False) == (source, [])


def test_rejects_a_crop_larger_than_all_images(source):
    with pytest.raises(ConfigError, match=r"4 of 4 training images.*so that none remains; lower"):
        training_set(source, (50, 50), drop_small=True, void_as_background=False)


def test_void_becomes_class_0_in_whole_and_resized_examples(source):
    filled, _ = training_set(source, (1, 1), drop_small=False, void_as_background=True)
    assert len(filled) == len(source)
    assert filled.classes == source.classes
    for factor in (1.0, 2.0):
        before = source.decode_resized(source[0], factor).mask
        after = filled.decode_resized(filled[0], factor).mask
        np.testing.assert_array_equal(after, np.where(before == 255, 0, before))
        assert (after == 0).any()
        assert after.dtype == np.uint8
    np.testing.assert_array_equal(
        filled.decode(filled[0]).mask, filled.decode_resized(filled[0], 1.0).mask
    )
