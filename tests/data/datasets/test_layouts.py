"""Public datasets in their official layouts: labels, splits, and errors for wrong folders."""

import importlib.util
import shutil
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_jax.api import IGNORE_INDEX, Dataset
from fcn_jax.data.datasets import directory
from fcn_jax.data.datasets.ade20k import ADE20K, ADE20K_CLASSES
from fcn_jax.data.datasets.camvid import CAMVID, segnet_split
from fcn_jax.data.datasets.cityscapes import CITYSCAPES, CITYSCAPES_CLASSES
from fcn_jax.data.datasets.coco import COCO_VOC
from fcn_jax.data.datasets.cvat import CVAT
from fcn_jax.data.datasets.files import Files
from fcn_jax.data.datasets.folder import FOLDER
from fcn_jax.data.datasets.pets import PETS
from fcn_jax.data.datasets.sbd import SBD
from fcn_jax.data.datasets.voc import VOC2012, VOC_CLASSES
from fcn_jax.data.datasets.voc_aug import VOC2012_AUG
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.plugins.entry import Entry, import_descriptor
from fcn_jax.plugins.registry import Registry
from fcn_jax.testing import check_dataset
from tests.helpers.layouts import (
    colored,
    gray,
    indexed,
    lines,
    make_ade,
    make_cityscapes,
    make_cvat,
    make_pets,
    make_sbd,
    make_voc,
    mat_bytes,
    photo,
    stripes,
)

ROOT = Path(__file__).parents[3]


def ids(source: Any) -> list[str]:
    return [record.id for record in source]


def row(source: Any, index: int = 0, count: int = 4) -> list[int]:
    """The labels in the middle of `count` columns of a mask."""
    mask = source.decode(source[index]).mask
    width = mask.shape[1] // count
    return mask[0, width // 2 :: width].tolist()


# --------------------------------------------------------------------------------- VOC and SBD


def test_sbd_reads_masks_of_matlab_files(tmp_path: Path) -> None:
    make_sbd(tmp_path, train=["2008_000002"], val=["2008_000003", "2008_000007"])
    source = SBD.open(tmp_path, "val")
    assert ids(source) == ["2008_000003", "2008_000007"]
    assert row(source) == [0, 0, 3, 3]
    assert source.classes is VOC_CLASSES
    check_dataset(SBD, tmp_path)


def test_voc_aug_adds_sbd_without_images_of_voc_val(tmp_path: Path) -> None:
    make_voc(tmp_path, train=["a", "b"], val=["v", "w"])
    make_sbd(tmp_path, train=["a", "s", "v"], val=["t", "w", "b"])
    source = VOC2012_AUG.open(tmp_path, "train")
    assert ids(source) == ["a", "b", "s", "t"]
    # VOC's own masks are used for VOC's images.
    assert row(source, 0) == [0, 20, IGNORE_INDEX, 0]
    assert row(source, 2) == [0, 0, 3, 3]
    assert source[0].image.parent.name == "JPEGImages"
    assert source[2].image.parent.name == "img"
    assert source.notes == (
        "split 'train' has 4 images, 2 of them with VOC's masks; the complete sets give 10582",
    )
    assert ids(VOC2012_AUG.open(tmp_path, "val")) == ["v", "w"]
    assert ids(VOC2012_AUG.open(tmp_path, "train_aug")) == ids(source)
    check_dataset(VOC2012_AUG, tmp_path)


def make_segmentation_class_aug(root: Path) -> Path:
    devkit = make_voc(root, train=["a"], val=["v"])
    for name in ("a", "s", "t", "v"):
        photo(devkit / "JPEGImages" / f"{name}.jpg")
        gray(devkit / "SegmentationClassAug" / f"{name}.png", 0, 5)
    return devkit


def test_voc_aug_reads_segmentation_class_aug(tmp_path: Path) -> None:
    devkit = make_segmentation_class_aug(tmp_path)
    source = VOC2012_AUG.open(tmp_path, "train")
    assert ids(source) == ["a", "s", "t"]
    assert row(source, 0) == [0, 20, IGNORE_INDEX, 0]
    assert row(source, 1) == [0, 0, 5, 5]
    paths = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in ("t", "a")]
    lines(devkit / "ImageSets" / "Segmentation" / "train_aug.txt", *paths)
    source = VOC2012_AUG.open(tmp_path, "train")
    assert ids(source) == ["t", "a"]
    assert row(source, 1) == [0, 20, IGNORE_INDEX, 0]


def test_voc_aug_refuses_a_list_with_images_of_val(tmp_path: Path) -> None:
    devkit = make_segmentation_class_aug(tmp_path)
    lines(devkit / "ImageSets" / "Segmentation" / "trainaug.txt", "a", "v", "s")
    with pytest.raises(DataError, match=r"1 images of VOC val are listed for training: v; remove"):
        VOC2012_AUG.open(tmp_path, "train")


def test_voc_aug_counts_the_complete_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real numbers: VOC has 1,464 and 1,449 images, and 2,237 of SBD's 11,355 are among them.
    train = [f"t{at}" for at in range(1464)]
    val = [f"v{at}" for at in range(1449)]
    more = [f"s{at}" for at in range(9118)]
    devkit, dataset = make_voc(tmp_path, train=[]), make_sbd(tmp_path, train=[])
    for name in ("img", "cls"):
        (dataset / name).mkdir()
    lines(devkit / "ImageSets" / "Segmentation" / "train.txt", *train)
    lines(devkit / "ImageSets" / "Segmentation" / "val.txt", *val)
    lines(dataset / "train.txt", *train[:1100], *val[:600], *more[:6798])
    lines(dataset / "val.txt", *val[600:1137], *more[6798:])
    files = {"SegmentationClass": train, "JPEGImages": [*train, *val, *more], "cls": more}

    def by_stem(folder: Path, *_: object) -> Files:
        return Files(folder, {name: folder / name for name in files.get(folder.name, ())})

    monkeypatch.setattr(directory, "files_by_stem", by_stem)
    source = VOC2012_AUG.open(tmp_path, "train")
    assert len(source) == 10_582
    assert source.notes == ()


def test_rejects_other_matlab_files(tmp_path: Path) -> None:
    dataset = make_sbd(tmp_path, train=["a"], val=["b"])
    source = SBD.open(tmp_path, "train")
    path = dataset / "cls" / "a.mat"
    whole = mat_bytes(stripes(0, 3))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.mat: the MATLAB file is truncated or corrupt"):
        source.decode(source[0])
    path.write_bytes(whole.replace(b"GTcls", b"GTins"))
    with pytest.raises(DataError, match=r"a\.mat: a MATLAB file without GTcls\.Segmentation"):
        source.decode(source[0])


# ---------------------------------------------------------------------------------------- CamVid


def test_camvid_reads_masks_in_colors_with_their_names(tmp_path: Path) -> None:
    for split, name in (("train", "0001TP_006690"), ("val", "0016E5_07959")):
        photo(tmp_path / split / f"{name}.png")
        colors = (0, 0, 0), (192, 0, 64), (64, 128, 192), (192, 0, 192)
        colored(tmp_path / f"{split}_labels" / f"{name}_L.png", *colors)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\n")
    source = CAMVID.open(tmp_path, "val")
    assert ids(source) == ["0016E5_07959"]
    assert row(source) == [IGNORE_INDEX, 3, 8, 10]  # Void, LaneMkgsNonDriv, SUVPickupTruck, Moto
    check_dataset(CAMVID, tmp_path)


# The 32 colors of the original (label_colors.txt), by the class of SegNet that they become.
ORIGINAL = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Archway": (192, 0, 128), "Bridge": (0, 128, 64), "Building": (128, 0, 0),
        "Tunnel": (64, 0, 64), "Wall": (64, 192, 0),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {
        "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64), "Road": (128, 64, 128),
    },
    "pavement": {
        "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192),
    },
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign": {
        "Misc_Text": (128, 128, 64), "SignSymbol": (192, 128, 128), "TrafficLight": (0, 64, 64),
    },
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128), "OtherMoving": (128, 64, 64), "SUVPickupTruck": (64, 128, 192),
        "Train": (192, 64, 128), "Truck_Bus": (192, 128, 192),
    },
    "pedestrian": {
        "Animal": (64, 128, 64), "CartLuggagePram": (64, 0, 192), "Child": (192, 128, 64),
        "Pedestrian": (64, 64, 0),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
    "void": {"Void": (0, 0, 0)},
}  # fmt: skip


def test_camvid_maps_the_32_colors_of_the_original(tmp_path: Path) -> None:
    of_color = {color: name for name, group in ORIGINAL.items() for color in group.values()}
    assert len(of_color) == 32
    photo(tmp_path / "train" / "a.png")
    colored(tmp_path / "train_labels" / "a_L.png", *of_color)
    source = CAMVID.open(tmp_path, "train")
    names = [*source.classes.names, *[""] * 244, "void"]
    assert [names[label] for label in row(source, count=32)] == list(of_color.values())


def test_camvid_divides_the_original_as_segnet_does(tmp_path: Path, shared: Path) -> None:
    for split in ("train", "val"):
        names = [path.stem for path in (shared / "data/camvid" / split).glob("*.jpg")]
        assert names
        assert {segnet_split(name) for name in names} == {split}


def test_camvid_reads_the_original_layout(tmp_path: Path) -> None:
    for name in ("0001TP_008520", "0001TP_008550", "0016E5_08159", "Seq05VD_f00000"):
        photo(tmp_path / "CamVid" / "701_StillsRaw_full" / f"{name}.png")
        colored(tmp_path / "CamVid" / "LabeledApproved_full" / f"{name}_L.png", (128, 128, 128))
    found = {split: ids(CAMVID.open(tmp_path, split)) for split in ("train", "val", "test")}
    assert found == {
        "train": ["0001TP_008520"],
        "val": ["0016E5_08159"],
        "test": ["0001TP_008550", "Seq05VD_f00000"],
    }


# ------------------------------------------------------------------------------------ Cityscapes


def test_cityscapes_maps_ids_by_the_official_table(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"labelIds": (0, 7, 29, 33), "color": (1,), "instanceIds": (2,)})
    source = CITYSCAPES.open(tmp_path, "train")
    assert ids(source) == ["aachen/aachen_000000_000019", "bochum/bochum_000000_000600"]
    assert row(source) == [IGNORE_INDEX, 0, IGNORE_INDEX, 18]
    # The column trainId of cityscapesScripts' labels.py, for the IDs 0 to 33.
    assert [source.labels.values[number] for number in range(34)] == [
        *[255] * 7, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14,
        15, 255, 255, 16, 17, 18,
    ]  # fmt: skip
    assert source.classes is CITYSCAPES_CLASSES
    assert (source.classes.names[13], source.classes.palette[13]) == ("car", (0, 0, 142))
    check_dataset(CITYSCAPES, tmp_path)


def test_cityscapes_prefers_train_ids_if_they_are_complete(tmp_path: Path) -> None:
    kinds = {"labelIds": (0, 7, 26, 33), "labelTrainIds": (255, 1, 2, 18)}
    make_cityscapes(tmp_path, kinds)
    assert row(CITYSCAPES.open(tmp_path, "val")) == [IGNORE_INDEX, 1, 2, 18]
    next(tmp_path.rglob("aachen*labelTrainIds.png")).unlink()
    assert row(CITYSCAPES.open(tmp_path, "train"), 1) == [IGNORE_INDEX, 0, 13, 18]


def test_cityscapes_finds_folders_of_separate_archives(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"labelIds": (7,)})
    for name in ("leftImg8bit", "gtFine"):
        (tmp_path / f"{name}_trainvaltest").mkdir()
        (tmp_path / name).rename(tmp_path / f"{name}_trainvaltest" / name)
    assert len(CITYSCAPES.open(tmp_path, "train")) == 2


def test_cityscapes_without_masks_names_the_archive(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"color": (7,)})
    with pytest.raises(DataError, match=r"gtFine/train: no masks .* unpack gtFine_trainvaltest"):
        CITYSCAPES.open(tmp_path, "train")


# -------------------------------------------------------------------------- ADE20K, pets and CVAT


def test_ade20k_ignores_zero_and_knows_150_classes(tmp_path: Path) -> None:
    make_ade(tmp_path)
    source = ADE20K.open(tmp_path, "train")
    assert ids(source) == ["ADE_train_00000001", "ADE_train_00000002"]
    assert row(source) == [IGNORE_INDEX, 0, 6, 149]
    assert ids(ADE20K.open(tmp_path / "ADEChallengeData2016", "validation")) == ["ADE_val_00000001"]
    names = ADE20K_CLASSES.names
    assert (len(names), names[0], names[7], names[149]) == (150, "wall", "bed", "flag")
    assert ADE20K_CLASSES.palette[149] == (92, 0, 255)
    check_dataset(ADE20K, tmp_path)


def test_pets_reads_the_official_lists_and_divides_trainval(tmp_path: Path) -> None:
    make_pets(tmp_path)
    assert ids(PETS.open(tmp_path, "test")) == ["Bombay_1", "pug_2"]
    source = PETS.open(tmp_path, "val")
    assert ids(source) == ["Abyssinian_100", "Abyssinian_110"]
    assert row(source) == [0, 1, 2, 1]
    assert source.classes.names == ("pet", "background", "border")
    train, both = (ids(PETS.open(tmp_path, split)) for split in ("train", "trainval"))
    assert sorted(train + ids(source)) == sorted(both)
    with pytest.raises(DataError, match="Available: test, train, trainval, val"):
        PETS.open(tmp_path, "list")
    check_dataset(PETS, tmp_path)


@pytest.mark.needs_torch
def test_pets_are_divided_as_by_smp(tmp_path: Path) -> None:
    found = importlib.util.find_spec("segmentation_models_pytorch")
    if found is None or found.origin is None:
        pytest.skip("needs segmentation_models_pytorch")
    # Its own module: the package imports many more.
    file = Path(found.origin).parent / "datasets" / "oxford_pet.py"
    spec = importlib.util.spec_from_file_location("smp_oxford_pet", file)
    assert spec is not None
    assert spec.loader is not None
    smp = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(smp)
    make_pets(tmp_path)
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert ids(PETS.open(tmp_path, ours)) == smp.OxfordPetDataset(tmp_path, theirs).filenames


def test_cvat_reads_its_label_map_and_divides_a_lone_list(tmp_path: Path) -> None:
    make_cvat(tmp_path, [f"frame_{at:06d}" for at in range(20)])
    source = CVAT.open(tmp_path, "train")
    assert source.classes.names == ("background", "road", "car")
    assert source.classes.palette[1] == (128, 64, 128)
    assert row(source) == [0, 1, 2, 0]
    assert (
        len(source) + len(CVAT.open(tmp_path, "val")) == 20 == len(CVAT.open(tmp_path, "default"))
    )
    assert any("divided by a hash" in note for note in source.notes)
    check_dataset(CVAT, tmp_path)


def test_cvat_reads_the_lists_of_subsets(tmp_path: Path) -> None:
    make_cvat(tmp_path, ["a", "b"], "train")
    make_cvat(tmp_path, ["c"], "test")
    assert ids(CVAT.open(tmp_path, "test")) == ["c"]
    with pytest.raises(DataError, match=r"no split 'val'.*pass --set data\.val_split=test"):
        CVAT.open(tmp_path, "val")
    shutil.rmtree(tmp_path / "JPEGImages")
    with pytest.raises(DataError, match=r"the images are missing; export again .* 'Save images'"):
        CVAT.open(tmp_path, "train")


# --------------------------------------------------------------------------------- wrong folders

EVERY = [VOC2012, VOC2012_AUG, SBD, CAMVID, CITYSCAPES, ADE20K, PETS, COCO_VOC, CVAT]


@pytest.mark.parametrize("dataset", EVERY, ids=lambda d: d.name)
def test_wrong_folder_is_one_line_with_what_is_needed_and_found(
    dataset: Dataset, tmp_path: Path
) -> None:
    photo(tmp_path / "pictures" / "a.jpg")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError) as caught:
        dataset.open(tmp_path, "train")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: dataset '{dataset.name}' expects a folder that holds ")
    assert message.endswith("; found here: pictures/, notes.txt")
    assert "\n" not in message
    with pytest.raises(DataError, match="pass --data DIR"):
        dataset.open(None, "train")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda root: make_cityscapes(root, {"labelIds": (7,)}), "cityscapes"),
        (make_ade, "ade20k"),
        (make_pets, "pets"),
        (lambda root: make_cvat(root, ["a"]), "cvat"),
        (lambda root: make_voc(root, train=["a"]), "voc2012"),
        (lambda root: make_sbd(root, train=["a"]), "sbd"),
    ],
)
def test_wrong_folder_names_the_dataset_that_it_holds(make: Any, name: str, tmp_path: Path) -> None:
    make(tmp_path)
    hint = rf"looks like .*: use the dataset {name}\b"
    with pytest.raises(DataError, match=hint):
        (CAMVID if name != "camvid" else PETS).open(tmp_path, "train")
    if name not in ("ade20k", "pets"):  # these have a folder images/ and are a case of their own
        with pytest.raises(DataError, match=hint):
            FOLDER.open(tmp_path, "train")


def test_datasets_are_read_from_their_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    make_cityscapes(tmp_path / "tree", {"labelIds": (7,)})
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(packed / f"{name}_trainvaltest.zip", "w") as archive:
            for path in sorted((tmp_path / "tree" / name).rglob("*")):
                archive.write(path, path.relative_to(tmp_path / "tree"))
    assert len(CITYSCAPES.open(packed, "train")) == 2
    one = tmp_path / "export.zip"
    make_cvat(tmp_path / "cvat", ["a", "b"])
    with zipfile.ZipFile(one, "w") as archive:
        for path in sorted((tmp_path / "cvat").rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    assert len(CVAT.open(one, "default")) == 2


# ---------------------------------------------------------------------------------- registration


def registered() -> list[Entry]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["fcn_jax.datasets"]
    return [Entry("datasets", name, "fcn-jax", "0", value) for name, value in points.items()]


def test_every_dataset_is_registered_under_its_name() -> None:
    names = {import_descriptor(entry).name for entry in registered()}
    assert {dataset.name for dataset in (*EVERY, FOLDER)} <= names


def test_tfds_names_are_variants_of_one_dataset() -> None:
    plugins = Registry(registered())
    dataset = plugins.dataset("tfds:some_set/config:1.0.0:image:mask")
    assert dataset.name == "tfds:some_set/config:1.0.0:image:mask"
    assert dataset.open.keywords == {  # type: ignore[attr-defined]
        "name": "some_set/config:1.0.0", "image": "image", "mask": "mask",
    }  # fmt: skip
    assert plugins.record("datasets", "tfds:some_set")["name"] == "tfds:some_set"
    assert plugins.own_name("datasets", "tfds:some_set", "fcn-jax") == "tfds:some_set"
    for wrong in ("tfds:", "tfds:a:image", "tfds:a::"):
        with pytest.raises(ConfigError, match="expected tfds:NAME or tfds:NAME:IMAGE:MASK"):
            plugins.dataset(wrong)
    with pytest.raises(DataError, match="dataset 'tfds' needs a name"):
        plugins.dataset("tfds").open(None, "train")
    with pytest.raises(ConfigError, match="no dataset is named 'pets:x'"):
        plugins.dataset("pets:x")


# ------------------------------------------------------------------------------------- real data


def test_real_voc_is_augmented_without_images_of_val(shared: Path, tmp_path: Path) -> None:
    devkit = shared / "data/VOCdevkit/VOC2012"
    val = (devkit / "ImageSets/Segmentation/val.txt").read_text().split()
    make_sbd(tmp_path, train=[*val[:20], "2008_900000"], val=["2008_900001"])
    (tmp_path / "VOCdevkit").symlink_to(devkit.parent)
    source = VOC2012_AUG.open(tmp_path, "train")
    assert len(source) == 656 + 2
    assert not set(ids(source)) & set(val)
    assert set(np.unique(source.decode(source[0]).mask)) <= {*range(21), IGNORE_INDEX}


def test_indexed_masks_of_voc_aug_are_read_like_gray_ones(tmp_path: Path) -> None:
    devkit = make_segmentation_class_aug(tmp_path)
    indexed(devkit / "SegmentationClassAug" / "s.png", 0, 7, 255, 7)
    assert row(VOC2012_AUG.open(tmp_path, "train"), 1) == [0, 7, IGNORE_INDEX, 7]
