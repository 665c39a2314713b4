"""Which image files paths, folders and globs name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.errors import DataError
from fcn_jax.eval.image_files import Found, find_images


def photograph(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def names(found: Found) -> list[str]:
    return [path.name for path in found.images]


def test_skips_hidden_files_folders_and_other_files(tmp_path):
    for name in ("B.JPG", "a.png", ".hidden.jpg", "._a.jpg", "folder.png/inner.jpg", "sub/c.jpg"):
        photograph(tmp_path / name)
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert names(find_images([str(tmp_path)])) == ["B.JPG", "a.png"]
    assert names(find_images([f"{tmp_path}/*"])) == ["B.JPG", "a.png"]
    assert names(find_images([f"{tmp_path}/**/*.jpg"])) == ["inner.jpg", "c.jpg"]


def test_existing_names_with_brackets_are_literal(tmp_path):
    for name in ("[1].jpg", "1.jpg", "[2024] trip/x.jpg", "[2024] trip/y.png", "2 trip/z.jpg"):
        photograph(tmp_path / name)
    assert names(find_images([f"{tmp_path}/[1].jpg"])) == ["[1].jpg"]
    assert names(find_images([f"{tmp_path}/[12].jpg"])) == ["1.jpg"]
    assert names(find_images([f"{tmp_path}/[2024] trip/*.jpg"])) == ["x.jpg"]
    assert names(find_images([f"{tmp_path}/[2024] trip"])) == ["x.jpg", "y.png"]


def test_rejects_empty_paths(tmp_path, monkeypatch):
    photograph(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for pattern in ("", " "):
        with pytest.raises(DataError, match="path is empty"):
            find_images([pattern])
    assert find_images(["."]).images == [Path("a.png")]


def test_takes_a_file_once_however_it_is_spelled(tmp_path, monkeypatch):
    photograph(tmp_path / "p" / "a.jpg")
    (tmp_path / "q").symlink_to("p")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "a.png").symlink_to(tmp_path / "p" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_images(
        ["p", "p/a.jpg", "./p/../p/a.jpg", "q/*", str(tmp_path / "p"), "r"]
    ).images == [Path("p/a.jpg")]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.png", "a.jpg"),
        ("x/a.jpg", "y/a.jpg"),
        ("A.jpg", "a.png"),
        ("caf\u00e9.jpg", "cafe\u0301.png"),
        ("a.jpg", "A_Overlay.jpg"),
    ],
)
def test_rejects_images_that_would_write_one_file(tmp_path, first, second):
    photograph(tmp_path / first)
    photograph(tmp_path / second, 1)
    with pytest.raises(DataError) as error:
        find_images([str(tmp_path / first), str(tmp_path / second)])
    assert (
        f"1 pair of images would write the same file: {tmp_path / first} and {tmp_path / second}"
        in str(error.value)
    )


def test_missing_images_error_lists_the_files_of_the_folder(tmp_path):
    for name in (
        "folder/a.heic",
        "folder/b.HEIC",
        "folder/notes.txt",
        "folder/README",
        "folder/.hidden.jpg",
        "folder/sub/x.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    photograph(tmp_path / "street.jpg")
    patterns = ["folder", "empty", "stret.jpg", "none/a.jpg", "*.bmp", "dangling.jpg", "x" * 300]
    with pytest.raises(DataError) as error:
        find_images([str(tmp_path / pattern) for pattern in patterns])
    text = str(error.value)
    assert (
        f"{tmp_path}/folder: contains no images, only 2 .heic files, 1 .txt file, "
        "1 file without ending, 1 folder; images end in .jpg, " in text
    )
    assert f"to search its folders, use the glob '{tmp_path}/folder/**/*'" in text
    assert f"{tmp_path}/empty: the folder is empty" in text
    assert f"{tmp_path}/stret.jpg: no such image; did you mean '{tmp_path}/street.jpg'?" in text
    assert f"{tmp_path}/none/a.jpg: no such image; there is no folder {tmp_path}/none" in text
    assert f"{tmp_path}/*.bmp: matches no image" in text
    assert f"{tmp_path}/dangling.jpg: a symbolic link to nowhere.jpg, which does not exist" in text
    assert f"{'x' * 300}: no such image" in text
