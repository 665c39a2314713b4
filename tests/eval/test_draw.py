import os

import numpy as np
import pytest
from PIL import Image

from fcn_jax.api import Classes
from fcn_jax.eval import draw

VOC = (
    "000000 800000 008000 808000 000080 800080 008080 808080 400000 c00000 408000 c08000 400080 "
    "c00080 408080 c08080 004000 804000 00c000 80c000 004080"
)
"""Colors of the background and VOC's 20 classes, RRGGBB."""

CLASSES = Classes(("background", "red", "blue"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


def test_palette_matches_voc():
    assert draw.voc_palette(21) == tuple(map(tuple, map(bytes.fromhex, VOC.split())))


def test_256_colors_are_distinct():
    assert len(set(draw.voc_palette(256))) == 256


def test_mask_file_keeps_indices_and_colors(tmp_path):
    mask = np.asarray([[0, 1, 2], [255, 2, 1]], np.uint8)
    path = tmp_path / "new" / "mask.png"
    draw.write_mask(path, mask, CLASSES)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), mask)
        np.testing.assert_array_equal(
            np.asarray(picture.convert("RGB")), draw.colorize(mask, CLASSES)
        )
    assert [p.name for p in path.parent.iterdir()] == ["mask.png"], "no temporary file is left"


@pytest.mark.parametrize("label", [0, 1, 255])
def test_mask_file_of_one_label_keeps_it(tmp_path, label):
    # Pillow stores as few bits as the labels need; readers must still get the same numbers.
    mask = np.full((3, 5), label, np.uint8)
    draw.write_mask(tmp_path / "mask.png", mask, CLASSES)
    with Image.open(tmp_path / "mask.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), mask)


def test_colorize_draws_ignored_pixels_in_the_color_of_void():
    np.testing.assert_array_equal(
        draw.colorize(np.asarray([[2, 255]], np.uint8), CLASSES), [[[0, 0, 255], [224, 224, 192]]]
    )


def test_image_file_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    draw.write_image(tmp_path / "image.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), image)


def test_overlay_keeps_background_blends_classes_and_draws_outlines():
    image = np.full((6, 6, 3), 100, np.uint8)
    mask = np.zeros((6, 6), np.uint8)
    mask[:, 3:] = 1
    before = image.copy()
    picture = draw.overlay(image, mask, CLASSES, opacity=0.5)
    np.testing.assert_array_equal(image, before)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[:, :3], image[:, :3])
    assert (picture[:, 3] == 255).all(), "the outline"
    assert (picture[:, 4:] == np.round([177.5, 50, 50])).all()


def test_overlay_blends_a_first_class_that_is_not_black():
    classes = Classes(("sky", "tree"), ((0, 0, 200), (0, 200, 0)))
    picture = draw.overlay(
        np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), classes, opacity=0.5
    )
    assert (picture == (0, 0, 100)).all()


def test_is_result_recognizes_files_by_their_header(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (400, 300, 3)).astype(np.uint8)
    draw.write_mask(tmp_path / "mask.png", image[..., 0] % 3, CLASSES)
    draw.write_overlay(tmp_path / "overlay.png", image)
    draw.write_image(tmp_path / "sample.png", image)
    Image.open(tmp_path / "mask.png").save(tmp_path / "saved by another program.png")
    Image.fromarray(image).save(tmp_path / "photo.jpg", comment=b"tEXtSoftware\0fcn_jax predict")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would block
    assert {path.name for path in tmp_path.iterdir() if draw.is_result(path)} == {
        "mask.png",
        "overlay.png",
    }
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "overlay.png")), image)
    assert Image.open(tmp_path / "mask.png").info["Software"] == "fcn_jax predict"


def test_overlay_of_background_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(draw.overlay(image, np.zeros((4, 5), np.uint8), CLASSES), image)


def test_panel_shows_three_pictures_over_a_legend_with_ignored():
    image = np.full((8, 40, 3), 50, np.uint8)
    truth, prediction = np.zeros((8, 40), np.uint8), np.ones((8, 40), np.uint8)
    truth[0] = 255
    panel = draw.panel(image, truth, prediction, CLASSES)
    assert panel.shape[1] == 120
    assert panel.shape[0] > 8
    np.testing.assert_array_equal(panel[:8, :40], image)
    assert (panel[8:].reshape(-1, 3) == (224, 224, 192)).all(1).any(), (
        "the legend has an entry for ignored pixels"
    )


def test_generic_classes_have_distinct_colors():
    classes = draw.generic_classes(30)
    assert classes.names[3] == "class 3"
    assert len(set(classes.palette)) == len(classes) == 30
