"""Datasets read in place: every layout, and one clear error for every wrong folder."""

import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import IGNORE_INDEX, Dataset
from fcn_jax.data.datasets.camvid import CAMVID
from fcn_jax.data.datasets.files import Files
from fcn_jax.data.datasets.folder import FOLDER
from fcn_jax.data.datasets.hash_split import hash_split
from fcn_jax.data.datasets.matching import match
from fcn_jax.data.datasets.voc import VOC2012, VOC_CLASSES
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.errors import DataError


def write(path: Path, labels: np.ndarray | int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((12, 16), labels, np.uint8) if isinstance(labels, int) else labels
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def make_voc(devkit: Path, names: dict[str, list[str]]) -> None:
    for split, ids in names.items():
        lists = devkit / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for name in ids:
            write(devkit / "JPEGImages" / f"{name}.jpg")
            mask = Image.fromarray(np.full((12, 16), 20, np.uint8))
            mask.putpalette([value for color in voc_palette(256) for value in color])
            (devkit / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(devkit / "SegmentationClass" / f"{name}.png")


def make_folder(
    root: Path,
    classes: str = "ground\ntree\n",
    names: tuple[str, ...] = ("a", "b", "c"),
    sub: str = "",
) -> None:
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text(classes)
    for name in names:
        write(root / "images" / sub / f"{name}.png")
        write(root / "masks" / sub / f"{name}.png", 1)


@pytest.mark.parametrize("given_root", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_opens_from_any_of_its_three_folders(given_root: str, tmp_path: Path) -> None:
    make_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": ["b", "a"], "val": ["c"]})
    source = VOC2012.open(tmp_path / given_root, "train")
    assert [source[i].id for i in range(len(source))] == ["b", "a"]
    assert (source.decode(source[0]).mask == 20).all()
    assert source.classes is VOC_CLASSES
    assert len(VOC_CLASSES) == 21


def test_voc_palette_matches_the_devkit() -> None:
    assert VOC_CLASSES.palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert VOC_CLASSES.palette[20] == (0, 64, 128)
    assert len(set(voc_palette(256))) == 256


def test_camvid_matches_by_stem_and_maps_its_void(tmp_path: Path) -> None:
    write(tmp_path / "train" / "x.png")
    write(tmp_path / "train" / "y.JPG")
    write(tmp_path / "trainannot" / "x.png", 11)
    write(tmp_path / "trainannot" / "y.png", 10)
    source = CAMVID.open(tmp_path, "train")
    assert [source[i].id for i in range(len(source))] == ["x", "y"]
    assert (source.decode(source[0]).mask == IGNORE_INDEX).all()
    assert (source.decode(source[1]).mask == 10).all()


@pytest.mark.parametrize("dataset", [VOC2012, CAMVID, FOLDER], ids=lambda d: d.name)
def test_error_without_a_folder_names_the_option(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass --data DIR"):
        dataset.open(None, "train")
    with pytest.raises(DataError, match="does not exist"):
        dataset.open(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="here"):
        dataset.open(tmp_path, "train")


def test_unknown_split_error_lists_the_splits(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc", {"train": ["a"], "val": ["b"]})
    with pytest.raises(
        DataError, match=r"no split 'trian'. Did you mean 'train'\? Available: train, val"
    ):
        VOC2012.open(tmp_path / "voc", "trian")
    make_folder(tmp_path / "f")
    with pytest.raises(DataError, match=r"no split 'test'.*Available: train, val"):
        FOLDER.open(tmp_path / "f", "test")


def test_counts_all_missing_images_and_masks(tmp_path: Path) -> None:
    make_voc(tmp_path, {"train": [f"i{k:02}" for k in range(20)]})
    for k in range(15):
        (tmp_path / "SegmentationClass" / f"i{k:02}.png").unlink()
    (tmp_path / "JPEGImages" / "i19.jpg").unlink()
    with pytest.raises(DataError) as caught:
        VOC2012.open(tmp_path, "train")
    assert "1 of 20 images are missing: i19" in str(caught.value)
    assert "15 of 20 masks are missing: i00, " in str(caught.value)
    assert "i11 and 3 more" in str(caught.value)


def test_rejects_empty_splits_and_repeated_names(tmp_path: Path) -> None:
    make_voc(tmp_path, {"train": ["a"], "val": []})
    with pytest.raises(DataError, match="split 'val' holds no images"):
        VOC2012.open(tmp_path, "val")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\na\n")
    with pytest.raises(DataError, match="listed twice: a"):
        VOC2012.open(tmp_path, "train")


def test_rejects_two_images_of_one_stem(tmp_path: Path) -> None:
    make_folder(tmp_path / "f")
    write(tmp_path / "f" / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"both a\.jpg and a\.png"):
        FOLDER.open(tmp_path / "f", "train")


def test_folder_reads_splits_from_lists_or_subfolders(tmp_path: Path) -> None:
    make_folder(tmp_path / "files")
    (tmp_path / "files" / "splits").mkdir()
    (tmp_path / "files" / "splits" / "small.txt").write_text("c\na\n")
    source = FOLDER.open(tmp_path / "files", "small")
    assert [source[i].id for i in range(len(source))] == ["c", "a"]
    make_folder(tmp_path / "subs", names=("a", "b"), sub="train")
    make_folder(tmp_path / "subs", names=("z",), sub="night")
    assert [len(FOLDER.open(tmp_path / "subs", split)) for split in ("train", "night")] == [2, 1]
    with pytest.raises(DataError, match="Available: night, train"):
        FOLDER.open(tmp_path / "subs", "val")


def test_folder_without_splits_is_divided_into_disjoint_parts(tmp_path: Path) -> None:
    make_folder(tmp_path / "f", names=tuple(f"n{k}" for k in range(12)))
    ids = [
        [source[i].id for i in range(len(source))]
        for source in (FOLDER.open(tmp_path / "f", s) for s in ("train", "val"))
    ]
    assert sorted(ids[0] + ids[1]) == sorted(f"n{k}" for k in range(12))
    assert ids[1]


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=60))
def test_hash_split_is_a_partition_independent_of_order(
    names: set[str],
) -> None:
    split = hash_split(sorted(names))
    assert set(split["train"]) | set(split["val"]) == names
    assert not set(split["train"]) & set(split["val"])
    assert split["train"]
    assert split["val"]
    assert set(hash_split(sorted(names, reverse=True))["val"]) == set(split["val"])


def test_hash_split_is_about_four_to_one_and_stable_when_images_are_added() -> None:
    small, large = (hash_split([f"img_{k}" for k in range(n)]) for n in (1000, 2000))
    assert 160 < len(small["val"]) < 240
    assert set(small["val"]) <= set(large["val"])
    assert set(small["train"]) <= set(large["train"])
    assert all(hash_split([f"img_{k}"]) == {"train": (f"img_{k}",), "val": ()} for k in range(30))


def test_folder_reads_masks_in_colors_by_classes_txt(tmp_path: Path) -> None:
    make_folder(tmp_path / "f", "# comment\nbare ground 0 0 0\n\ntree 0 255 0\nvoid 255 255 255\n")
    colors = np.zeros((12, 16, 3), np.uint8)
    colors[:4], colors[4:8] = (0, 255, 0), (255, 255, 255)
    for name in "abc":
        write(tmp_path / "f" / "masks" / f"{name}.png", colors)
    source = FOLDER.open(tmp_path / "f", "train")
    assert source.classes.names == ("bare ground", "tree")
    assert source.classes.palette == ((0, 0, 0), (0, 255, 0))
    assert source.decode(source[0]).mask[:, 0].tolist() == [1] * 4 + [IGNORE_INDEX] * 4 + [0] * 4


def test_source_pickles(tmp_path: Path) -> None:
    make_folder(tmp_path / "f")
    source = FOLDER.open(tmp_path / "f", "train")
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0] == source[0]
    assert np.array_equal(copy.decode(copy[0]).image, source.decode(source[0]).image)


def test_reading_in_place_does_not_import_grain_tfds_or_jax() -> None:
    code = (
        "import sys, fcn_jax.data.transforms, fcn_jax.data.decode, fcn_jax.data.datasets.voc, "
        "fcn_jax.data.datasets.camvid, fcn_jax.data.datasets.folder, "
        "fcn_jax.data.datasets.shapes, fcn_jax.data.datasets.tfds_datasets, "
        "fcn_jax.data.inspection, fcn_jax.data.labels.class_list\n"
        "heavy = {'grain', 'jax', 'tensorflow_datasets', 'array_record', 'tensorflow', 'torch'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_voc_and_camvid_decode(shared: Path) -> None:
    for dataset, root, size in ((VOC2012, "data/VOCdevkit", 235), (CAMVID, "data/camvid", 101)):
        source = dataset.open(shared / root, "val")
        assert len(source) == size
        for index in range(0, size, 40):
            example = source.decode(source[index])
            assert example.image.shape == (*example.mask.shape, 3)
            assert set(np.unique(example.mask)) <= {*range(len(source.classes)), IGNORE_INDEX}


def ids(source: object) -> list[str]:
    return [record.id for record in source.records]  # type: ignore[attr-defined]


def with_list(
    root: Path,
    lines: str | bytes,
    names: tuple[str, ...] = ("photo 0", "photo 1", "b"),
    split: str = "train",
) -> Path:
    make_folder(root, names=names)
    (root / "splits").mkdir(exist_ok=True)
    (root / "splits" / f"{split}.txt").write_bytes(
        lines.encode() if isinstance(lines, str) else lines
    )
    return root


@pytest.mark.parametrize(
    "lines",
    [
        "photo 0\nb\n",
        "photo 0.png\nb.png\n",
        "images/photo 0.png\n./images/b.png\n",
        "images\\photo 0.png\r\nimages\\b.png\r\n",
        "/somewhere/else/photo 0.jpg\n/data/b\n",
        "JPEGImages/photo 0\nJPEGImages/b\n",
        "  photo 0  \n\n\tb\n",
        b"\xef\xbb\xbf# the list\r\nphoto 0\r\nb\r\n",
        "image,mask\nphoto 0,photo 0\nb,b\n",
        "image_path,mask_path\nimages/photo 0.png,masks/photo 0.png\nimages/b.png,masks/b.png\n",
        "images/photo 0.png masks/photo 0.png\nimages/b.png masks/b.png\n",
        "filename\nphoto 0.png\nb.png\n",
        '"photo 0",\n"b",\n',
        "photo 0 1\nb 1\n",
        "PHOTO 0\nB.PNG\n",
    ],
)
def test_matches_ids_in_every_usual_spelling(lines: str | bytes, tmp_path: Path) -> None:
    source = FOLDER.open(with_list(tmp_path / "f", lines), "train")
    assert ids(source) == ["photo 0", "b"]
    assert [record.mask.name for record in source.records] == ["photo 0.png", "b.png"]


def test_second_column_names_the_mask(tmp_path: Path) -> None:
    root = with_list(tmp_path / "f", "images/b.png fine/b.png\n")
    write(root / "fine" / "b.png", 0)
    assert FOLDER.open(root, "train").records[0].mask == root / "fine" / "b.png"
    (root / "splits" / "train.txt").write_text(
        "images/b masks/photo 0\nphoto 0\timages/../masks/b.png\n"
    )
    assert [(r.id, r.mask.name) for r in FOLDER.open(root, "train").records] == [
        ("b", "photo 0.png"),
        ("photo 0", "b.png"),
    ]
    (root / "splits" / "train.txt").write_text("images/b.png fine/c.png\n")
    with pytest.raises(DataError, match=r"1 of 1 masks are missing: fine/c\.png"):
        FOLDER.open(root, "train")


def test_rejects_flags_of_a_list_of_one_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flags -1, 1, as VOC's lists of one class do"):
        FOLDER.open(with_list(tmp_path / "f", "photo 0  1\nb -1\n"), "train")


def test_number_in_the_second_column_is_a_flag_even_if_a_mask_has_that_name(
    tmp_path: Path,
) -> None:
    numbers = tuple(map(str, range(6)))
    source = FOLDER.open(
        with_list(tmp_path / "flags", "0 1\n2 1\n1 1\n3 1\n", names=numbers), "train"
    )
    assert [(record.id, record.mask.name) for record in source.records] == [
        (n, f"{n}.png") for n in "0213"
    ]
    assert "split 'train': the list's second column, 1 on every line, is not used" in source.notes
    source = FOLDER.open(with_list(tmp_path / "own", "0 0\n1,1\n4\t4\n", names=numbers), "train")
    assert [(record.id, record.mask.name) for record in source.records] == [
        (n, f"{n}.png") for n in "014"
    ]
    source = FOLDER.open(
        with_list(tmp_path / "files", "0 1.png\n2 masks/3.png\n", names=numbers), "train"
    )
    assert [(record.id, record.mask.name) for record in source.records] == [
        ("0", "1.png"),
        ("2", "3.png"),
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("0 1\n2 0\n", "flags 0, 1, as VOC's lists of one class do"),
        ("0 0\n1 1\n2 1\n", "flags 0, 1, as VOC's lists of one class do"),
        ("0 -1\n2 1\n", "flags -1, 1, as VOC's"),
        (
            "0 3\n2 5\n",
            r"numbers 3, 5, which name no mask; write a mask with its ending, such as 3\.png",
        ),
    ],
)
def test_rejects_other_numbers_in_the_second_column(lines: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said) as caught:
        FOLDER.open(with_list(tmp_path / "f", lines, names=tuple(map(str, range(6)))), "train")
    assert "Add the files" not in str(caught.value)


def test_rejects_a_mask_of_two_images(tmp_path: Path) -> None:
    root = with_list(
        tmp_path / "list",
        "images/a0.png masks/a1.png\nimages/a1.png masks/../masks/a1.png\n",
        names=("a0", "a1"),
    )
    with pytest.raises(DataError, match=r"mask a1\.png is given to 2 images: a0, a1$"):
        FOLDER.open(root, "train")
    (root / "splits" / "train.txt").write_text("images/a0.png images/a0.png\n")
    with pytest.raises(DataError, match="images are given as their own masks: a0"):
        FOLDER.open(root, "train")
    root = with_list(tmp_path / "case", "A\n", names=("a", "A"))
    (root / "masks" / "A.png").unlink()
    with pytest.raises(DataError, match="1 of 1 masks are missing: A "):
        FOLDER.open(root, "train")


def test_rejects_an_image_listed_in_two_spellings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images listed twice: photo 1;"):
        FOLDER.open(with_list(tmp_path / "f", "photo 1\nphoto 0\nimages/photo 1.png\n"), "train")


def test_names_missing_images_as_the_list_writes_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 of 2 images are missing: photo 7 \(images/ holds 3 such files"
    ):
        FOLDER.open(with_list(tmp_path / "f", "photo 7\nb\n"), "train")


def test_matches_case_and_unicode_form_if_one_file_is_meant(tmp_path: Path) -> None:
    make_folder(tmp_path / "f", names=("e\u0301tang", "IMG_1", "x"))
    (tmp_path / "f" / "masks" / "e\u0301tang.png").rename(
        tmp_path / "f" / "masks" / "\u00e9tang.png"
    )
    (tmp_path / "f" / "masks" / "IMG_1.png").rename(tmp_path / "f" / "masks" / "img_1.PNG")
    (tmp_path / "f" / "splits").mkdir()
    (tmp_path / "f" / "splits" / "train.txt").write_text("\u00e9tang\nIMG_1\n")
    source = FOLDER.open(tmp_path / "f", "train")
    assert [record.mask.name for record in source.records] == ["\u00e9tang.png", "img_1.PNG"]
    assert source.notes == ("split 'train': 1 names match only in other upper and lower case",)
    write(tmp_path / "f" / "masks" / "Img_1.png")
    with pytest.raises(DataError, match=r"masks are missing: IMG_1 .*differ in case only"):
        FOLDER.open(tmp_path / "f", "train")


@pytest.mark.parametrize(
    ("image", "mask", "said"),
    [
        ("{}", "{}_mask", "end in `_mask`"),
        ("{}", "{}_L", "end in `_L`"),
        ("{}", "mask_{}", "begin with `mask_`"),
        ("{}_sat", "{}_mask", "end in `_mask` instead of `_sat`"),
        (
            "{}_leftImg8bit",
            "{}_gtFine_labelIds",
            "end in `_gtFine_labelIds` instead of `_leftImg8bit`",
        ),
        ("{}_image", "{}", "lack `_image`"),
    ],
)
def test_matches_masks_by_a_common_affix_with_a_note(
    image: str, mask: str, said: str, tmp_path: Path
) -> None:
    make_folder(tmp_path, names=())
    for number in (1, 10, 2):
        write(tmp_path / "images" / "train" / f"{image.format(number)}.png")
        write(tmp_path / "masks" / "train" / f"{mask.format(number)}.png", number % 2)
    source = FOLDER.open(tmp_path, "train")
    assert [record.mask.stem for record in source.records] == [
        mask.format(record.image.stem.split("_")[0]) for record in source.records
    ]
    assert f"split 'train': masks are matched by names that {said}" in source.notes


def test_rejects_masks_of_several_kinds_and_missing_masks(
    tmp_path: Path,
) -> None:
    make_folder(tmp_path, names=())
    for number in range(3):
        write(tmp_path / "images" / "train" / f"i{number}.png")
        for kind in ("color", "labelIds"):
            write(tmp_path / "masks" / "train" / f"i{number}_{kind}.png")
    with pytest.raises(
        DataError,
        match="several masks, with names that end in `_color` or end in `_labelIds`; keep one kind",
    ):
        FOLDER.open(tmp_path, "train")
    for number in range(3):
        (tmp_path / "masks" / "train" / f"i{number}_color.png").unlink()
    (tmp_path / "masks" / "train" / "i2_labelIds.png").unlink()
    with pytest.raises(
        DataError,
        match=r"3 of 3 masks are missing: i0, i1, i2 \(2 masks have names that end in `_labelIds`",
    ):
        FOLDER.open(tmp_path, "train")


def test_missing_mask_error_describes_the_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "jpeg")
    for name in "abc":
        (tmp_path / "jpeg" / "masks" / f"{name}.png").rename(
            tmp_path / "jpeg" / "masks" / f"{name}.jpg"
        )
    with pytest.raises(
        DataError, match=r"masks are missing: .*files end in \.jpg, which a mask must not be"
    ):
        FOLDER.open(tmp_path / "jpeg", "train")
    make_folder(tmp_path / "deep")
    (tmp_path / "deep" / "masks").rename(tmp_path / "deep" / "png")
    (tmp_path / "deep" / "masks").mkdir()
    (tmp_path / "deep" / "png").rename(tmp_path / "deep" / "masks" / "png")
    with pytest.raises(DataError, match="the subfolder png/ holds 3 images"):
        FOLDER.open(tmp_path / "deep", "train")


def test_ignores_hidden_files_and_stray_folders(tmp_path: Path) -> None:
    make_folder(tmp_path, names=tuple(f"n{k}" for k in range(12)))
    before = {split: ids(FOLDER.open(tmp_path, split)) for split in ("train", "val")}
    for name in (".DS_Store", "._n1.png", "Thumbs.db", "desktop.ini", "n1.png~", ".n1.png.swp"):
        for folder in ("images", "masks"):
            (tmp_path / folder / name).write_bytes(b"\0")
    for folder in (
        "images/originals",
        "images/.ipynb_checkpoints",
        "images/@eaDir",
        "masks/__MACOSX",
        "images/empty",
        "images/odd.png",
    ):
        (tmp_path / folder).mkdir()
    write(tmp_path / "images" / "originals" / "n1.png")
    write(tmp_path / "images" / ".ipynb_checkpoints" / "n1-checkpoint.png")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "readme.txt").write_text("splits go here\n")
    (tmp_path / "splits" / "._train.txt").write_bytes(b"\0")
    opened = {split: FOLDER.open(tmp_path, split) for split in ("train", "val")}
    assert {split: ids(source) for split, source in opened.items()} == before
    assert any(
        "the images in the subfolders originals are not used" in note
        for note in opened["train"].notes
    )


def test_stray_folders_next_to_split_subfolders_are_not_splits(tmp_path: Path) -> None:
    make_folder(tmp_path, names=("a", "b"), sub="train")
    write(tmp_path / "images" / "originals" / "a.png")
    write(tmp_path / "images" / "cover.png")
    source = FOLDER.open(tmp_path, "train")
    assert ids(source) == ["a", "b"]
    assert len([note for note in source.notes if "not used" in note]) == 2
    with pytest.raises(DataError, match=r"no split 'originals'.*Available: train"):
        FOLDER.open(tmp_path, "originals")


def test_rejects_split_subfolders_without_masks(
    tmp_path: Path,
) -> None:
    make_folder(tmp_path, names=("a", "b"), sub="train")
    (tmp_path / "masks" / "train").rename(tmp_path / "masks" / "Training")
    with pytest.raises(DataError, match="the subfolders train are missing here"):
        FOLDER.open(tmp_path, "train")


def test_rejects_splits_that_are_both_flat_and_in_subfolders(tmp_path: Path) -> None:
    make_folder(tmp_path, names=("a", "b"), sub="train")
    make_folder(tmp_path, names=("a", "b", "c"))
    with pytest.raises(DataError, match="3 images lie here and others in train/"):
        FOLDER.open(tmp_path, "train")


def test_lists_can_name_images_in_subfolders_by_path(tmp_path: Path) -> None:
    for city in ("aachen", "bochum"):
        make_folder(tmp_path, names=("a",), sub=city)
    write(tmp_path / "masks" / "bochum" / "a.png", 0)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("bochum/a\nimages/aachen/a.png\n")
    source = FOLDER.open(tmp_path, "train")
    assert [source.decode(record).mask.max() for record in source.records] == [0, 1]


@pytest.mark.parametrize(
    ("folders", "advice"),
    [
        (
            ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
            "looks like PASCAL VOC: use the dataset voc2012, or for",
        ),
        (
            ("JPEGImages", "SegmentationClass"),
            "rename JPEGImages/ to images/ and rename SegmentationClass/ to masks/",
        ),
        (
            ("img_dir/train", "ann_dir/train"),
            "rename img_dir/ to images/ and rename ann_dir/ to masks/",
        ),
        (
            ("leftImg8bit/train/aachen", "gtFine/train/aachen"),
            "use the dataset cityscapes",
        ),
        (
            ("train/images", "train/masks", "val/images", "val/masks"),
            "move train/images/ to images/train/ and train/masks/ to masks/train/, "
            "val/images/ to images/val/ and val/masks/ to",
        ),
        (
            ("train/images", "train/labels"),
            "move train/images/ to images/train/ and train/labels/ to masks/train/$",
        ),
        (
            ("train", "train_labels", "val", "val_labels"),
            "move train/ to images/train/ and train_labels/ to masks/train/, val/ to",
        ),
        (
            ("train_images", "train_masks"),
            "move train_images/ to images/train/ and train_masks/ to masks/train/$",
        ),
        (
            ("dataset/train/images", "dataset/train/masks"),
            "pass --data .*dataset and in it move train/images/ to images/train/ and",
        ),
        (
            ("CameraRGB", "CameraSeg"),
            "rename CameraRGB/ to images/ and rename CameraSeg/ to masks/",
        ),
        (
            ("Training_Images", "Ground_Truth"),
            "rename Training_Images/ to images/ and rename Ground_Truth/ to masks/",
        ),
        (
            ("set/image", "set/label"),
            "pass --data .*set and in it rename image/ to images/ and rename label/ to masks/",
        ),
        (
            ("image", "mask"),
            r"Here lie image/, mask/: rename image/ to images/ and rename mask/ to masks/",
        ),
        (("Images", "Labels"), r"rename Images/ to images/ and rename Labels/ to masks/"),
        (("set/images", "set/masks"), r"pass --data .*set"),
        (("train", "trainannot"), "use the dataset camvid"),
    ],
)
def test_advises_what_to_rename_in_other_layouts(
    folders: tuple[str, ...], advice: str, tmp_path: Path
) -> None:
    for number, folder in enumerate(folders):
        write(tmp_path / folder / "a.png", number)
    with pytest.raises(DataError, match=f"images/, masks/ missing here.*{advice}"):
        FOLDER.open(tmp_path, "train")


def test_notes_masks_without_an_image_and_unused_lists(tmp_path: Path) -> None:
    make_folder(tmp_path)
    write(tmp_path / "masks" / "z.png")
    notes = " | ".join(FOLDER.open(tmp_path, "train").notes)
    assert "1 masks in" in notes
    root = with_list(tmp_path / "sub", "a\n", names=())
    (root / "splits").rename(root / "lists")
    for folder in ("images", "masks"):
        write(root / folder / "train" / "a.png", 1)
    assert (
        f"lists/train.txt in {root}: not used; a list of a split is splits/SPLIT.txt"
        in FOLDER.open(root, "train").notes
    )


def test_follows_links(tmp_path: Path) -> None:
    make_folder(tmp_path / "real")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "classes.txt").symlink_to(tmp_path / "real" / "classes.txt")
    (tmp_path / "link" / "images").symlink_to(tmp_path / "real" / "images")
    (tmp_path / "link" / "masks").mkdir()
    for name in "abc":
        (tmp_path / "link" / "masks" / f"{name}.png").symlink_to(
            tmp_path / "real" / "masks" / f"{name}.png"
        )
    assert ids(FOLDER.open(tmp_path / "link", "train")) == ids(
        FOLDER.open(tmp_path / "real", "train")
    )


def test_does_not_follow_a_link_to_a_folder_above_it(tmp_path: Path) -> None:
    make_folder(tmp_path, names=("a",), sub="aachen")
    (tmp_path / "images" / "aachen" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("aachen/a\n")
    assert ids(FOLDER.open(tmp_path, "train")) == ["aachen/a"]


def test_mask_names_select_cityscapes_ids(tmp_path: Path) -> None:
    make_folder(tmp_path, names=())
    (tmp_path / "classes.txt").write_text(
        '[{"name": "void", "id": 0, "trainId": 255}, {"name": "road", "id": 7, "trainId": 0}, '
        '{"name": "car", "id": 26, "trainId": 1}]'
    )
    for number in range(2):
        write(tmp_path / "images" / "train" / f"x{number}_leftImg8bit.png")
        write(tmp_path / "masks" / "train" / f"x{number}_gtFine_labelIds.png", 26)
    source = FOLDER.open(tmp_path, "train")
    assert source.classes.names == ("road", "car")
    assert (source.decode(source[0]).mask == 1).all()


@given(
    st.sets(
        st.text("abcXYZ01 _-.", min_size=1, max_size=6).filter(
            lambda name: name.strip(" .") == name
        ),
        min_size=1,
        max_size=8,
    )
)
def test_matches_any_names_with_endings_and_paths_one_to_one(names: set[str]) -> None:
    names = {
        name for name in names if [other.casefold() for other in names].count(name.casefold()) == 1
    }
    files, masks = (
        Files(Path(folder), {name: Path(folder, f"{name}{end}") for name in sorted(names)})
        for folder, end in (("images", ".jpg"), ("masks", ".png"))
    )
    for form in ("{}", "{}.jpg", "data/images/{}.jpg", "..\\images\\{}.jpg"):
        lines = [form.format(name) for name in files]
        if files and not any(line.startswith("#") for line in lines):
            pairs = match(lines, files, masks, split="train", where=Path("nowhere"))
            assert [(record.image, record.mask) for record in pairs] == [
                (files[name], masks[name]) for name in files
            ]


@pytest.mark.parametrize(
    "place",
    [
        "Splits/{}.txt",
        "split/{}.txt",
        "lists/{}.TXT",
        "ImageSets/{}.txt",
        "ImageSets/Segmentation/{}.txt",
        "{}.txt",
    ],
)
def test_reads_lists_in_other_usual_places_with_a_note(place: str, tmp_path: Path) -> None:
    make_folder(tmp_path, names=tuple("abcdef"))
    for split, text in (("train", "c\na\n"), ("val", "f\n")):
        path = tmp_path / place.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    source = FOLDER.open(tmp_path, "train")
    assert ids(source) == ["c", "a"]
    assert ids(FOLDER.open(tmp_path, "val")) == ["f"]
    said = f"the lists of splits are {place.format('train')}, {place.format('val')} in {tmp_path}"
    assert (said in source.notes) == (not place.startswith("Splits"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ("splits/train.csv", "splits/val.csv"),
            r"splits/ holds train\.csv, val\.csv; lists end in \.txt",
        ),
        (("splits/val.txt", "splits/train"), "splits/ holds train; lists end in"),
        (
            ("splits/fold0/train.txt",),
            r"splits/ holds fold0/train\.txt; lists end in \.txt.*lie in splits/ itself",
        ),
        (
            ("ImageSets/Main/train.txt",),
            r"holds ImageSets/Main/train\.txt, but lists of splits lie in splits/",
        ),
        (
            ("lists/train.lst",),
            r"holds lists/train\.lst, but lists of splits lie in splits/ and end in \.txt; convert",
        ),
        (
            ("lists/train.txt", "train.txt"),
            r"holds lists/train\.txt, train\.txt, but .*keep those of one place",
        ),
    ],
)
def test_rejects_unusable_lists_by_name(files: tuple[str, ...], said: str, tmp_path: Path) -> None:
    make_folder(tmp_path, names=tuple("abcdef"))
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("a\n")
    with pytest.raises(DataError, match=said):
        FOLDER.open(tmp_path, "train")


def test_notes_unused_lists_when_a_hash_divides_the_images(
    tmp_path: Path,
) -> None:
    make_folder(tmp_path, names=tuple("abcdef"))
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "default.txt").write_text("a\n")
    (tmp_path / "train.csv").write_text("id,rle\n")
    notes = FOLDER.open(tmp_path, "train").notes
    assert any(
        note.startswith("ImageSets/Segmentation/default.txt, train.csv in ") and "not used" in note
        for note in notes
    )


def test_reads_subfolders_of_a_split_that_holds_no_images_itself(
    tmp_path: Path,
) -> None:
    for number, city in enumerate(("aachen", "bochum")):
        make_folder(tmp_path, names=(), sub="")
        write(tmp_path / "images" / "train" / city / f"{city}_1_leftImg8bit.png")
        write(tmp_path / "masks" / "train" / city / f"{city}_1_gtFine_labelIds.png", number)
    source = FOLDER.open(tmp_path, "train")
    assert [(record.id, int(source.decode(record).mask.max())) for record in source.records] == [
        ("aachen/aachen_1_leftImg8bit", 0),
        ("bochum/bochum_1_leftImg8bit", 1),
    ]
    assert (
        "split 'train': images are taken from the subfolders aachen, bochum of "
        f"{tmp_path / 'images' / 'train'}" in source.notes
    )
    for city in ("aachen", "bochum"):
        mask = tmp_path / "masks" / "train" / city / f"{city}_1_gtFine_labelIds.png"
        mask.rename(tmp_path / "masks" / "train" / mask.name)
    assert [record.mask.name for record in FOLDER.open(tmp_path, "train").records] == [
        "aachen_1_gtFine_labelIds.png",
        "bochum_1_gtFine_labelIds.png",
    ]


def test_lists_can_name_images_in_subfolders_without_the_folder(
    tmp_path: Path,
) -> None:
    make_folder(tmp_path, names=("a0", "a1"), sub="train")
    make_folder(tmp_path, names=("b0", "a1"), sub="val")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a0\nimages/b0.png\n")
    source = FOLDER.open(tmp_path, "train")
    assert [(record.id, record.mask) for record in source.records] == [
        ("train/a0", tmp_path / "masks" / "train" / "a0.png"),
        ("val/b0", tmp_path / "masks" / "val" / "b0.png"),
    ]
    assert (
        "split 'train': 2 names are those of images in subfolders, without the folder"
        in source.notes
    )
    (tmp_path / "splits" / "train.txt").write_text("a1\ntrain/b0\n")
    with pytest.raises(
        DataError, match=r"images are missing: a1, train/b0 .*a1 is one of train/a1, val/a1"
    ):
        FOLDER.open(tmp_path, "train")


@pytest.mark.parametrize(
    ("names", "split", "advice"),
    [
        (("train", "validation"), "val", "--set data.val_split=validation"),
        (("train", "valid", "test"), "val", "--set data.val_split=valid"),
        (("train", "test"), "val", "--set data.val_split=test"),
        (("Train", "Val"), "train", "--set data.train_split=Train"),
        (("training", "val"), "train", "--set data.train_split=training"),
    ],
)
def test_advises_a_setting_for_a_split_of_another_name(
    names: tuple[str, ...], split: str, advice: str, tmp_path: Path
) -> None:
    for name in names:
        make_folder(tmp_path, names=("a",), sub=name)
    with pytest.raises(
        DataError,
        match=f"has no split '{split}'.* Available: {', '.join(sorted(names))}.*{advice}$",
    ):
        FOLDER.open(tmp_path, split)


@pytest.mark.parametrize(
    ("image", "mask", "said"),
    [
        ("img_{}", "mask_{}", "begin with `mask_` instead of `img_`"),
        ("image_{}", "mask_{}", "begin with `mask_` instead of `image_`"),
        ("image{}", "mask{}", "begin with `mask` instead of `image`"),
        ("frame{:04}", "label{:04}", "begin with `label` instead of `frame`"),
        ("top{}_RGB", "top{}_label", "end in `_label` instead of `_RGB`"),
        ("IMG_{}", "img_{}_GT", "end in `_GT`"),
        ("{}", "{:04}", "differ in padding zeros or separators"),
        ("a {}", "a_{}", "differ in padding zeros or separators"),
        (
            "img-{}",
            "mask_{:03}",
            "begin with `mask_` instead of `img_` and differ in padding zeros or separators",
        ),
    ],
)
@pytest.mark.parametrize("layout", ["subfolders", "hash", "list"])
def test_matches_affixes_padding_and_separators_that_all_names_share(
    image: str, mask: str, said: str, layout: str, tmp_path: Path
) -> None:
    make_folder(tmp_path, names=())
    sub = "train" if layout == "subfolders" else ""
    numbers = (1, 2, 3, 10, 11, 100)
    for number in numbers:
        write(tmp_path / "images" / sub / f"{image.format(number)}.png", number)
        write(tmp_path / "masks" / sub / f"{mask.format(number)}.png", number)
    if layout == "list":
        (tmp_path / "splits").mkdir()
        (tmp_path / "splits" / "train.txt").write_text(
            "".join(f"{image.format(number)}\n" for number in numbers)
        )
    source = FOLDER.open(tmp_path, "train")
    assert len(source) + (len(FOLDER.open(tmp_path, "val")) if layout == "hash" else 0) == 6
    for record in source.records:
        assert cv2.imread(str(record.image))[0, 0, 0] == cv2.imread(str(record.mask))[0, 0, 0]
    assert f"split 'train': masks are matched by names that {said}" in source.notes


@pytest.mark.parametrize(
    ("images", "masks", "said"),
    [
        (
            ("img_0", "img_1", "img_2"),
            ("mask_0", "mask_1"),
            "2 masks have names that begin with `mask_` instead of `img_`",
        ),
        (
            ("img_0", "img_1", "img_2"),
            ("mask_1", "mask_2", "mask_3"),
            "2 masks have names that begin with `mask_`",
        ),
        (
            ("dogs1", "dogs2"),
            ("cats1", "cats2"),
            "masks begin with `cats` where images begin with `dogs`",
        ),
        (("1", "2", "01"), ("001", "002", "003"), "masks are missing: 01, 1, 2"),
        (("1", "2"), ("01", "001", "2x"), "masks are missing: 1, 2"),
    ],
)
def test_rejects_names_that_no_single_rule_matches(
    images: tuple[str, ...], masks: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    make_folder(tmp_path, names=())
    for name in images:
        write(tmp_path / "images" / "train" / f"{name}.png")
    for name in masks:
        write(tmp_path / "masks" / "train" / f"{name}.png")
    with pytest.raises(DataError, match=said):
        FOLDER.open(tmp_path, "train")


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_reads_masks_in_lossless_webp_and_gif(ending: str, tmp_path: Path) -> None:
    make_folder(tmp_path, names=())
    labels = np.zeros((12, 16), np.uint8)
    labels[3:, 5:] = 1
    for name in "ab":
        write(tmp_path / "images" / "train" / f"{name}.png")
        path = tmp_path / "masks" / "train" / f"{name}_mask.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = Image.fromarray(labels)
        if ending == "gif":
            mask.save(path)
        else:
            mask.convert("RGB").save(path, lossless=True)
    (tmp_path / "classes.txt").write_text("ground 0 0 0\ntree 1 1 1\n")
    source = FOLDER.open(tmp_path, "train")
    assert np.array_equal(source.decode(source[0]).mask, labels)


@pytest.mark.parametrize("extra", ["labelmap.txt", "class_names.txt"])
def test_does_not_take_exports_of_annotation_tools_for_voc2012(extra: str, tmp_path: Path) -> None:
    make_voc(tmp_path, {"train": ["a"]})
    (tmp_path / extra).write_text("x\n")
    (tmp_path / "SegmentationClass" / "a.png").rename(tmp_path / "SegmentationClass" / "a.npy")
    write(tmp_path / "SegmentationClassPNG" / "a.png")
    with pytest.raises(
        DataError,
        match=r"rename JPEGImages/ to images/ and rename SegmentationClassPNG/ to masks/$",
    ) as caught:
        FOLDER.open(tmp_path, "train")
    assert "voc2012" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("annotations", "instances.json"),
        ("labels", "train/a.txt"),
        ("train/labels", "a.txt"),
        ("Annotations", "a.xml"),
    ],
)
def test_does_not_advise_renaming_a_folder_without_mask_images(
    folder: str, file: str, tmp_path: Path
) -> None:
    write(tmp_path / "images" / "a.png")
    (tmp_path / folder / file).parent.mkdir(parents=True)
    (tmp_path / folder / file).write_text("{}")
    with pytest.raises(
        DataError,
        match=rf"masks/ missing here.*\. {folder}/ holds {Path(file).suffix} files.*no mask images",
    ) as caught:
        FOLDER.open(tmp_path, "train")
    assert "rename" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ("train/a0.jpg", "train/a0_mask.png"),
            r"1 masks lie among the images of train/ \(a0_mask\.png\): move the images to images/",
        ),
        (
            ("data/a.jpg", "data/a.png"),
            r"1 masks lie among the images of data/ \(a\.png\): move the images to images/ and ",
        ),
        (
            ("images/a.jpg", "images/a_mask.png", "masks/z.png"),
            r"masks lie among the images in images/, as a_mask\.png: move them to",
        ),
        (
            ("a.jpg", "a.png", "b.jpg", "b.png"),
            r"2 masks lie among the images \(a\.png, b\.png\): move the images to images/ and ",
        ),
        (
            ("images/a.jpg", "images/a_L.png"),
            r"1 masks lie among the images of images/ \(a_L\.png\): move the masks to masks/",
        ),
    ],
)
def test_advises_moving_masks_among_the_images(
    files: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for file in files:
        write(tmp_path / file)
    with pytest.raises(DataError, match=said):
        FOLDER.open(tmp_path, "train")


def test_rejects_a_rule_that_leaves_images_without_masks(
    tmp_path: Path,
) -> None:
    make_folder(tmp_path, names=())
    for number in range(3):
        write(tmp_path / "images" / f"img_{number}.png")
        write(tmp_path / "masks" / f"mask_{number + 1}.png")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("img_1\nimg_2\n")
    with pytest.raises(
        DataError,
        match=r"2 of 2 masks are missing.*2 masks have names that begin with `mask_` instead of `",
    ):
        FOLDER.open(tmp_path, "train")
    (tmp_path / "masks" / "mask_3.png").unlink()
    assert [record.mask.name for record in FOLDER.open(tmp_path, "train").records] == [
        "mask_1.png",
        "mask_2.png",
    ]
