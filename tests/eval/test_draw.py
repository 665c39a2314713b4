import os

import numpy as np
import pytest
from PIL import Image

from fcn_jax.api import Classes
from fcn_jax.eval import draw

VOC = (
    *(
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
    ),
    *(
        (128, 128, 128),
        (64, 0, 0),
        (192, 0, 0),
        (64, 128, 0),
        (192, 128, 0),
        (64, 0, 128),
        (192, 0, 128),
    ),
    *(
        (64, 128, 128),
        (192, 128, 128),
        (0, 64, 0),
        (128, 64, 0),
        (0, 192, 0),
        (128, 192, 0),
        (0, 64, 128),
    ),
)
CLASSES = Classes(("background", "red", "blue"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


def test_the_palette_is_vocs():
    assert draw.voc_palette(21) == VOC


def test_256_colors_are_all_different():
    assert len(set(draw.voc_palette(256))) == 256


def test_a_mask_keeps_its_indices_and_colors_through_a_file(tmp_path):
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
def test_a_mask_of_one_label_keeps_it(tmp_path, label):
    # Pillow stores as few bits as the labels need; readers must get the same numbers back.
    mask = np.full((3, 5), label, np.uint8)
    draw.write_mask(tmp_path / "mask.png", mask, CLASSES)
    with Image.open(tmp_path / "mask.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), mask)


def test_colorize_gives_void_vocs_cream():
    np.testing.assert_array_equal(
        draw.colorize(np.asarray([[2, 255]], np.uint8), CLASSES), [[[0, 0, 255], [224, 224, 192]]]
    )


def test_an_image_is_written_without_loss(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    draw.write_image(tmp_path / "image.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), image)


def test_an_overlay_leaves_background_clear_mixes_classes_and_draws_outlines():
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


def test_a_first_class_in_a_color_is_drawn_like_the_others():
    classes = Classes(("sky", "tree"), ((0, 0, 200), (0, 200, 0)))
    picture = draw.overlay(
        np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), classes, opacity=0.5
    )
    assert (picture == (0, 0, 100)).all()


def test_results_of_predict_are_known_by_their_header(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (400, 300, 3)).astype(np.uint8)
    draw.write_mask(tmp_path / "mask.png", image[..., 0] % 3, CLASSES)
    draw.write_overlay(tmp_path / "overlay.png", image)
    draw.write_image(tmp_path / "sample.png", image)
    Image.open(tmp_path / "mask.png").save(tmp_path / "saved by another program.png")
    Image.fromarray(image).save(tmp_path / "photo.jpg", comment=b"tEXtSoftware\0fcn_jax predict")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")  # which would wait for somebody to write
    assert {path.name for path in tmp_path.iterdir() if draw.is_result(path)} == {
        "mask.png",
        "overlay.png",
    }
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "overlay.png")), image)
    assert Image.open(tmp_path / "mask.png").info["Software"] == "fcn_jax predict"


def test_an_overlay_without_classes_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(draw.overlay(image, np.zeros((4, 5), np.uint8), CLASSES), image)


def test_a_panel_shows_three_pictures_over_a_legend_with_void():
    image = np.full((8, 40, 3), 50, np.uint8)
    truth, prediction = np.zeros((8, 40), np.uint8), np.ones((8, 40), np.uint8)
    truth[0] = 255
    panel = draw.panel(image, truth, prediction, CLASSES)
    assert panel.shape[1] == 120
    assert panel.shape[0] > 8
    np.testing.assert_array_equal(panel[:8, :40], image)
    assert (panel[8:].reshape(-1, 3) == (224, 224, 192)).all(1).any(), "void has its entry"


def test_pictures_of_different_sizes_are_stacked():
    stacked = draw.stack([np.full((2, 3, 3), 9, np.uint8), np.full((1, 5, 3), 8, np.uint8)])
    assert stacked.shape == (3, 5, 3)
    assert (stacked[:2, 3:] == 0).all()
    assert (stacked[2] == 8).all()


def test_numbered_classes_have_distinct_colors():
    classes = draw.generic_classes(30)
    assert classes.names[3] == "class 3"
    assert len(set(classes.palette)) == len(classes) == 30
