"""Recipes and folders become the splits of a dataset."""

import numpy as np
import pytest
from PIL import Image

from fcn_jax.errors import ConfigError, DataError
from fcn_jax.explore.opening import dataset_of, open_splits, settings
from fcn_jax.recipes import read_recipe
from tests.helpers.folders import stripes


def test_folder_is_recognized_by_its_layout(tmp_path):
    for name in ("train", "trainannot"):
        (tmp_path / "camvid" / name).mkdir(parents=True)
    (tmp_path / "voc" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert dataset_of(tmp_path / "camvid") == "camvid"
    assert dataset_of(tmp_path / "voc") == "voc2012"
    assert dataset_of(tmp_path / "other") == "folder"
    config = settings(str(tmp_path / "camvid"))
    assert config.data.root == str(tmp_path / "camvid")
    assert config.data.dataset == "fcn-jax:camvid"
    assert config.data.crop_size == tuple(read_recipe("camvid")["data"]["crop_size"])


def test_recipe_gets_its_folder_and_changes(tmp_path):
    config = settings("voc2012", data=str(tmp_path), changes=["data.batch_size=3"])
    assert config.data.dataset.removeprefix("fcn-jax:") == "voc2012"
    assert config.data.root == str(tmp_path)
    assert config.data.batch_size == 3
    recipe = tmp_path / "my.toml"
    recipe.write_text('[data]\ndataset = "folder"\nroot = "photos"\n')
    assert settings(str(recipe)).data.root == "photos"


def test_rejects_what_is_neither_a_recipe_nor_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"'camvit' is neither .* Did you mean 'camvid'\?"):
        settings("camvit")
    with pytest.raises(ConfigError, match=r"--data .*y names another; give one"):
        settings(str(tmp_path), data=str(tmp_path / "y"))


def test_opens_splits_that_the_recipe_does_not_name(make):
    folder = make().fill()
    folder.add("extra", stripes(0))
    opened = open_splits(folder.config())
    sources, errors = opened.sources, opened.errors
    assert {name: len(source) for name, source in sources.items()} == {
        "train": 4,
        "val": 2,
        "extra": 1,
    }
    assert errors == {}


def test_split_that_cannot_be_opened_does_not_hide_the_others(make):
    folder = make().fill()
    opened = open_splits(folder.config("data.val_split=test"))
    sources, errors = opened.sources, opened.errors
    assert list(sources) == ["train", "val"]
    assert "has no split 'test'" in errors["test"]


def test_raises_if_no_split_can_be_opened(tmp_path):
    with pytest.raises(DataError, match="images/, masks/ missing"):
        open_splits(settings(str(tmp_path)))


def test_images_of_more_than_8_bits_are_scaled_alike(make):
    folder = make().fill(train=1, val=1)
    for split, largest in (("train", 4000), ("val", 100)):
        (path,) = (folder.root / "images" / split).iterdir()
        Image.fromarray(np.full((8, 12), largest, np.uint16)).save(path)
    opened = open_splits(folder.config())
    values = {n: int(s.decode(s[0]).image.max()) for n, s in opened.sources.items()}
    assert values == {"train": round(4000 * 255 / 4095), "val": round(100 * 255 / 4095)}
    assert any("read as 12 bits" in note for note in opened.notes)
    alone = open_splits(folder.config(), "val").sources["val"]
    assert alone.decode(alone[0]).image.max() == round(100 * 255 / 255)
