"""A contact sheet shows images, masks, and training images."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from fcn_jax.api import Classes, Example
from fcn_jax.errors import ConfigError, DataError, WriteError
from fcn_jax.explore import browse
from fcn_jax.explore.opening import open_splits, settings
from tests.helpers.folders import channels, multilabel_folder, noise, stripes

CLASSES = Classes(("bg", "road", "car"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


def decoded(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))


def articles(page):
    return re.findall(r'<article data-labels="([\d ]+)">', page)


def test_page_shows_all_images_with_their_labels(make, tmp_path):
    folder = make("bg\nroad <b>\ncar\n").fill(train=3)
    folder.add("train", stripes(0, 1, 255))
    path = tmp_path / "out" / "page.html"
    assert browse.browse(folder.config(), path) == ()
    page = path.read_text()
    assert [sorted(map(int, labels.split())) for labels in articles(page)] == [
        [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 255],
    ]  # fmt: skip
    assert "4 of 4 images" in page
    assert "road &lt;b&gt;" in page
    assert "<b>" not in page
    assert "http" not in page, "the page needs no other file"
    assert page.count("<figure") == 4 * 5


def test_count_split_and_seed_choose_the_images(make, tmp_path):
    folder = make().fill(train=20, val=3)
    names = []
    for number, options in enumerate(
        ({"seed": 0}, {"seed": 0}, {"seed": 1}, {"split": "val", "draws": 0})
    ):
        path = tmp_path / f"{number}.html"
        browse.browse(folder.config(), path, count=5, **options)
        names.append(re.findall(r"<h2>(\w+)<span>", path.read_text()))
    assert list(map(len, names)) == [5, 5, 5, 3]
    assert names[0] == names[1] != names[2]
    assert all(name.startswith("v") for name in names[3])
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()
    assert (tmp_path / "3.html").read_text().count("<figure") == 3 * 2


def test_training_images_come_from_the_pipeline(make):
    folder = make().fill()
    config = folder.config("data.crop_size=[16,20]", "data.flip=false")
    source = open_splits(config).sources["train"]
    first, second = browse._draws(config, source, 0, seed=0, draws=2)
    assert first.image.shape == (16, 20, 3)
    assert (first.mask == 255).sum() == 16 * 20 - 8 * 12, "small images are padded"
    assert not np.array_equal(first.mask, second.mask)
    image = source.decode(source[0]).image
    inside = first.image[first.mask != 255].reshape(image.shape)
    np.testing.assert_array_equal(inside, image)


def test_mask_lies_over_the_image_with_exact_colors():
    mask = stripes(0, 1, 2, 255)
    picture = decoded(browse._mask(Example("a", np.zeros((8, 12, 3), np.uint8), mask), CLASSES))
    pixels = np.array(picture.convert("RGBA"))
    assert pixels[:, 1].tolist() == [[0, 0, 0, 0]] * 8, "the black background is transparent"
    assert pixels[0, 3].tolist() == [255, 255, 255, 255], "outlines are white"
    assert pixels[0, 4].tolist() == [255, 0, 0, 255]
    assert pixels[0, 7].tolist() == [0, 0, 255, 255]
    assert pixels[0, 10].tolist() == [224, 224, 192, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_images_of_any_number_of_channels_are_shown(channels, dtype):
    image = np.random.default_rng(0).integers(0, 256, (800, 400, channels)).astype(dtype)
    picture = decoded(browse._photo(Example("a", image, np.zeros((800, 400), np.uint8))))
    assert picture.size == (180, 360)


def test_unreadable_images_are_replaced_and_listed(make, tmp_path):
    folder = make().fill(train=4)
    (folder.root / "images/train/t1.png").write_bytes(b"no image")
    (failure,) = browse.browse(folder.config(), tmp_path / "page.html", count=4)
    assert "t1.png" in failure
    page = (tmp_path / "page.html").read_text()
    assert len(articles(page)) == 3
    assert "Files that cannot be read: 1" in page
    for path in (folder.root / "images/train").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 4 images of train can be read"):
        browse.browse(folder.config(), tmp_path / "page.html")


def test_replaces_only_its_own_pages(make, tmp_path):
    folder = make().fill()
    path = tmp_path / "page.html"
    browse.browse(folder.config(), path, count=1, draws=0)
    browse.browse(folder.config(), path, count=1, draws=0)
    other = tmp_path / "other.html"
    other.write_text("<!doctype html>mine")
    with pytest.raises(WriteError, match="not a contact sheet"):
        browse.browse(folder.config(), other)
    assert other.read_text() == "<!doctype html>mine"
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        browse.browse(folder.config(), tmp_path / "page.png")


@pytest.mark.parametrize("options", [{"count": 0}, {"draws": -1}, {"seed": -1}])
def test_rejects_values_out_of_range(make, tmp_path, options):
    with pytest.raises(ConfigError, match="expected"):
        browse.browse(make().fill().config(), tmp_path / "page.html", **options)


def test_settings_that_are_auto_are_decided_from_the_images(make, tmp_path):
    folder = make()
    for number in range(4):
        folder.add("train", stripes(0, 1).repeat(9, 0).repeat(9, 1), noise(number, (72, 108)))
    folder.add("val", stripes(0, 1))
    (folder.root / "images/train/t1.png").write_bytes(b"no image")
    browse.browse(settings(str(folder.root)), tmp_path / "page.html", draws=1)
    assert "crop_size = [64, 96]" in (tmp_path / "page.html").read_text()


def test_ignored_pixels_are_background_if_training_reads_them_so(make):
    folder = make()
    folder.add("train", stripes(1, 255))
    folder.add("val", stripes(0, 1))
    source = open_splits(folder.config()).sources["train"]
    for setting, labels in (("false", [1, 255]), ("true", [0, 1])):
        config = folder.config(f"data.void_as_background={setting}")
        (drawn,) = browse._draws(config, source, 0, seed=0, draws=1)
        assert np.unique(drawn.mask).tolist() == labels


def test_page_shows_masks_of_several_classes_per_pixel(tmp_path):
    config = multilabel_folder(tmp_path, [channels(3, 1, 0), channels(0, -1, 0), channels(1, 1, 1)])
    browse.browse(config, tmp_path / "page.html", draws=2)
    page = (tmp_path / "page.html").read_text()
    assert [sorted(map(int, labels.split())) for labels in articles(page)] == [[0, 1], [255]]
    assert "the pictures show the last one" in page
    shares = re.findall(r"</i>(\w+) <span>([\d.]+)%", page.partition("<article")[2])
    assert shares == [("cracked", "75.0"), ("wet", "25.0"), ("ignored", "33.3")]
    first = page.partition("<article")[2].partition("</article>")[0]
    assert first.count("<figure") == 4
    mask = re.search(r'class=mask src="([^"]+)"', first)[1]
    pixels = np.asarray(decoded(mask).convert("RGBA"))
    assert (pixels[3, :, 3] == [255] * 6).all(), "the border of the classes is drawn"
    colors = {tuple(color) for color in pixels.reshape(-1, 4)[:, :3].tolist()}
    assert {(128, 0, 0), (0, 128, 0)} <= colors
