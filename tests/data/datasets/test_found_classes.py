"""Classes of masks without a class list."""

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.datasets.folder import FOLDER
from fcn_jax.data.datasets.found_classes import found_classes
from fcn_jax.data.labels.class_list import class_list_of
from fcn_jax.data.splits import open_splits
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.plugins.api import IGNORE_INDEX, Dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))


def write_masks(folder, arrays, palette=None):
    """One 8-row mask for each list of values or colors, whose columns repeat them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, values in enumerate(arrays):
        row = np.array(values, np.uint8)
        picture = Image.fromarray(np.repeat(row[None], 8, axis=0))
        if palette:
            picture = picture.convert("P") if picture.mode != "P" else picture
            picture.putpalette(palette)
        paths.append(folder / f"{number}.png")
        picture.save(paths[-1])
    return paths


@pytest.mark.parametrize(
    ("masks", "lines"),
    [
        ([[0, 255], [0, 0]], ("background 0", "foreground 255")),
        ([[0, 1]], ("background 0", "foreground 1")),
        ([[0, 1, 255]], ("background 0", "foreground 1", "void 255")),
        ([[0, 1], [2, 255]], ("class_0 0", "class_1 1", "class_2 2", "void 255")),
        ([[0, 128, 255]], ("class_0 0", "class_128 128", "class_255 255")),
        ([[1, 2, 3]], ("class_1 1", "class_2 2", "class_3 3")),
        (
            [[(0, 0, 0), (128, 0, 0)], [(0, 128, 0), (0, 0, 0)]],
            ("color_000000 0 0 0", "color_008000 0 128 0", "color_800000 128 0 0"),
        ),
        ([[(0, 0, 0), (128, 0, 0)]], ("background 0 0 0", "foreground 128 0 0")),
        (
            [[(0, 0, 0), (128, 0, 0), (224, 224, 192)], [(0, 0, 0), (0, 0, 0)]],
            ("background 0 0 0", "foreground 128 0 0", "void 224 224 192"),
        ),
    ],
)
def test_values_and_colors_become_classes(tmp_path, masks, lines):
    found, note = found_classes(write_masks(tmp_path / "masks", masks), tmp_path)
    assert found == lines
    assert f"in {len(masks)} masks are the classes" in note
    listed = class_list_of(found)
    assert listed.classes.names == tuple(
        line.split()[0] for line in lines if not line.startswith("void")
    )


def test_void_of_vocs_palette_is_void(tmp_path):
    palette = [0] * 768
    palette[45:48], palette[765:] = [192, 128, 128], [224, 224, 192]
    masks = write_masks(tmp_path / "masks", [[0, 15, 255]], palette)
    assert found_classes(masks, tmp_path)[0] == ("background 0", "foreground 15", "void 255")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([[7, 7]], "all masks hold one of the values only, 7"),
        ([[(9, 9, 8), (9, 9, 8)]], r"one of the colors only, \(9, 9, 8\)"),
        (
            [[0] * 90 + [255] * 90 + list(range(100, 130))],
            "hold 32 values, which are hardly labels",
        ),
        ([list(range(0, 200, 8))], "hold 25 values, which are hardly labels"),
        ([[(k, 0, 0) for k in range(80)]], "hold 80 colors, which are hardly labels"),
        ([[0, 1], [(0, 0, 0), (9, 0, 0)]], "1 of 2 masks are in RGB colors, the others are not"),
    ],
)
def test_rejects_values_that_are_no_labels(tmp_path, masks, message):
    with pytest.raises(
        DataError, match=rf"there is no list of classes.*{message}.*write classes.txt"
    ):
        found_classes(write_masks(tmp_path / "masks", masks), tmp_path)


def test_broken_masks_are_named(tmp_path):
    paths = write_masks(tmp_path / "masks", [[0, 1], [0, 1]])
    paths[1].write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"1\.png"):
        found_classes(paths, tmp_path)


def make_folder(root, masks):
    write_masks(root / "masks", masks)
    for path in (root / "masks").iterdir():
        (root / "images").mkdir(exist_ok=True)
        with Image.open(path) as mask:
            Image.new("RGB", mask.size).save(root / "images" / path.name)
    return root


def test_a_folder_without_a_list_is_read_by_the_lines_that_are_found(tmp_path):
    root = make_folder(tmp_path / "f", [[0, 255]] * 6)
    lines, note = FOLDER.find_classes(root)
    assert lines == ("background 0", "foreground 255")
    assert note.startswith("no list of classes: the values in 6 masks are the classes: ")
    with pytest.raises(DataError, match=r"classes\.txt is missing"):
        FOLDER.open(root, "train")
    opened = open_splits(FOLDER, root, ["train", "val"], classes=lines)
    source = opened.sources["val"]
    assert source.classes.names == ("background", "foreground")
    assert source.decode(source[0]).mask[0].tolist() == [0, 1]


def test_masks_that_cannot_be_masks_are_named_instead_of_the_missing_list(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.jpg")
    message = "no masks: 1 file ends in .jpg, which a mask must not be"
    with pytest.raises(DataError, match=message):
        FOLDER.find_classes(tmp_path)
    (tmp_path / "masks" / "a.jpg").unlink()
    (tmp_path / "masks").rmdir()
    assert FOLDER.find_classes(tmp_path) == (None, "")


def test_a_list_in_the_folder_is_kept_and_a_setting_replaces_it(tmp_path):
    root = make_folder(tmp_path / "f", [[0, 1, 255]] * 6)
    (root / "classes.txt").write_text("a\nb\n")
    assert FOLDER.find_classes(root) == (None, "")
    given = open_splits(
        FOLDER, root, ["train"], classes=["x 1", "void 0", "void 255"], training=False
    )
    source = given.sources["train"]
    assert source.classes.names == ("x",)
    assert source.decode(source[0]).mask[0].tolist() == [IGNORE_INDEX, 0, IGNORE_INDEX]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a", "a"], "data.classes: .*class 'a' stands twice"),
        (["a 0 0 0", "b"], "only some classes have colors"),
        ([], "data.classes: .*must be 1 to 255"),
    ],
)
def test_rejects_a_setting_that_is_no_class_list(lines, message):
    with pytest.raises(DataError, match=message):
        class_list_of(lines)


def test_rejects_the_setting_for_datasets_with_classes_of_their_own():
    dataset = Dataset(name="fixed", summary="", open=lambda root, split: None)
    with pytest.raises(
        ConfigError, match="dataset 'fixed' has classes of its own; remove the setting"
    ):
        open_splits(dataset, None, ["train"], classes=["a"])
