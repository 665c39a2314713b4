"""COCO's annotations become masks: polygons, run lengths, crowds and overlaps."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.data.datasets.coco import COCO_VOC
from fcn_jax.data.datasets.coco_masks import decode_counts, draw
from fcn_jax.errors import DataError
from fcn_jax.testing import check_dataset
from tests.helpers.layouts import make_coco


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encode_counts(counts: list[int]) -> str:
    """COCO's compressed text, written from the description of the format."""
    text = ""
    for at, count in enumerate(counts):
        value, more = count - (counts[at - 2] if at > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def box(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def test_run_lengths_go_down_the_columns() -> None:
    # By hand, 3 high and 4 wide: pixels 2, 3, 4 and 9, counted down the columns.
    expected = [[0, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]]
    for counts in ([2, 3, 4, 1, 2], "234NN"):  # the last two as 1 - 3 and 2 - 4
        mask = draw({"size": [3, 4], "counts": counts}, 3, 4)
        assert mask.astype(int).tolist() == expected
    assert draw({"size": [2, 1], "counts": [0, 2]}, 2, 1).all()


def test_decodes_a_published_text() -> None:
    # An object of 14 pixels in an image of 10x9, as COCO's API encodes it.
    assert decode_counts("61X13mN000`0") == [6, 1, 40, 4, 5, 4, 5, 4, 21]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_compressed_run_lengths_are_decoded_to_what_was_encoded(counts: list[int]) -> None:
    assert decode_counts(encode_counts(counts)) == counts


@given(st.data())
def test_boxes_of_whole_pixels_are_exact(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    left, right = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2)))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2)))
    expected = np.zeros((height, width), bool)
    expected[top:bottom, left:right] = True
    assert np.array_equal(draw([box(left, top, right, bottom)], height, width), expected)


def test_polygons_are_drawn_as_by_cocos_api() -> None:
    # Drawn with rleFrPoly of common/maskApi.c in cocodataset/cocoapi.
    triangle = draw([[1.5, 0.5, 7.2, 3.3, 2.1, 6.9]], 8, 9)
    assert ["".join(".#"[int(v)] for v in row) for row in triangle] == [
        ".........",
        "..#......",
        "..###....",
        "..#####..",
        "..####...",
        "..##.....",
        "..#......",
        ".........",
    ]
    outside = draw([[-3.0, -2.0, 12.5, 1.0, 4.0, 11.0]], 5, 6)
    assert ["".join(".#"[int(v)] for v in row) for row in outside] == ["######"] * 4 + [".#####"]


def test_several_polygons_are_one_region() -> None:
    assert draw([box(0, 0, 2, 2), box(1, 1, 3, 3)], 3, 3).sum() == 7


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([[1, 2, 3, 4]], "three or more points"),
        ([[1, 2, 3, 4, 5]], "three or more points"),
        ([[0, 0, 1, 1, float("nan"), 2]], "three or more points"),
        ({"size": [3, 5], "counts": [15]}, "for \\[3, 5\\] pixels, the image has \\[4, 5\\]"),
        ({"size": [4, 5], "counts": [15]}, "do not add up to 4 \\* 5"),
        ({"size": [4, 5], "counts": [21, -1]}, "do not add up"),
        ({"size": [4, 5], "counts": "~"}, "character '~'"),
        ({"size": [4, 5], "counts": "h"}, "end within a number"),
        ([], "neither polygons nor run lengths"),
        (None, "neither polygons nor run lengths"),
    ],
)
def test_rejects_segmentations_that_cannot_be_drawn(segmentation: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw(segmentation, 4, 5)


PERSON, CAR, ZEBRA, TV, AIRPLANE = 10, 20, 30, 40, 50


def test_masks_have_vocs_labels_and_ignore_crowds_and_overlaps(tmp_path: Path) -> None:
    objects = [
        {"category_id": PERSON, "segmentation": [box(0, 0, 8, 24)], "area": 192},
        {"category_id": CAR, "segmentation": [box(4, 0, 12, 24)], "area": 192},
        {"category_id": TV, "segmentation": [box(14, 0, 16, 24)], "area": 48},
        {"category_id": ZEBRA, "segmentation": [box(16, 0, 20, 24)], "area": 96},
        {
            "category_id": PERSON, "iscrowd": 1, "area": 96,
            "segmentation": {"size": [24, 32], "counts": [20 * 24, 4 * 24, 8 * 24]},
        },
    ]  # fmt: skip
    make_coco(tmp_path, {"000000000139": objects, "000000000285": []}, "val2017")
    source = COCO_VOC.open(tmp_path, "val")
    assert [record.id for record in source] == ["000000000139", "000000000285"]
    mask = source.decode(source[0]).mask
    assert (mask == mask[0]).all()
    void = IGNORE_INDEX
    assert mask[0].tolist() == (
        [15] * 4 + [void] * 4 + [7] * 4 + [0] * 2 + [20] * 2 + [0] * 4 + [void] * 4 + [0] * 8
    )
    assert not source.decode(source[1]).mask.any()
    check_dataset(COCO_VOC, tmp_path, ("val", "val2017"))


def test_training_images_have_objects_of_more_than_1000_pixels(tmp_path: Path) -> None:
    def car(area: int, category: int = CAR) -> list[dict[str, object]]:
        return [{"category_id": category, "segmentation": [box(0, 0, 5, 5)], "area": area}]

    images = {"small": car(1000), "large": car(1001), "other": car(9999, ZEBRA), "empty": []}
    make_coco(tmp_path, images, "train2017")
    source = COCO_VOC.open(tmp_path, "train")
    assert [record.id for record in source] == ["large"]


def test_masks_are_drawn_once_and_again_if_the_annotations_change(
    tmp_path: Path, own_cache: Path
) -> None:
    path = make_coco(tmp_path, {"a": []}, "val2017")
    before = COCO_VOC.open(tmp_path, "val")[0].mask
    assert before == COCO_VOC.open(tmp_path, "val")[0].mask
    assert own_cache in before.parents
    path.write_text(path.read_text() + " ")
    assert COCO_VOC.open(tmp_path, "val")[0].mask != before


def test_interrupted_drawing_leaves_no_masks(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcn_jax.data.datasets import coco

    make_coco(tmp_path, {"a": [], "b": []}, "val2017")
    real = coco._mask

    def interrupted(image: dict[str, object], *rest: object) -> np.ndarray:
        if image["file_name"] == "b.jpg":
            raise KeyboardInterrupt
        return real(image, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(coco, "_mask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            COCO_VOC.open(tmp_path, "val")
    assert not list((own_cache / "datasets").iterdir())
    assert len(COCO_VOC.open(tmp_path, "val")) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a file of COCO's object annotations"),
        ("[]", "not a file of COCO's object annotations"),
        ('{"images": [], "annotations": []}', "KeyError: 'categories'"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "tree"}]}',
            "none of COCO's 20 categories",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "car"}]}',
            "no image has objects",
        ),
    ],
)
def test_rejects_other_files_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    make_coco(tmp_path, {"a": []}, "val2017").write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        COCO_VOC.open(tmp_path, "val")
    assert "instances_val2017.json" in str(caught.value)


def test_error_names_the_annotation_that_cannot_be_drawn(tmp_path: Path) -> None:
    path = make_coco(
        tmp_path, {"a": [{"category_id": CAR, "segmentation": [[1, 2]], "area": 1}]}, "val2017"
    )
    with pytest.raises(DataError, match=r"annotation 0 of a\.jpg cannot be drawn \(a polygon"):
        COCO_VOC.open(tmp_path, "val")
    contents = json.loads(path.read_text())
    del contents["annotations"][0]["segmentation"]
    path.write_text(json.dumps(contents))
    with pytest.raises(DataError, match="annotation 0 of a"):
        COCO_VOC.open(tmp_path, "val")
