"""Class lists: the file of each tool is recognized by its contents, or rejected by name."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.data.labels.class_list import ClassList, find_class_list, read_class_list
from fcn_jax.errors import DataError

VOID = IGNORE_INDEX


def read(tmp_path: Path, contents: str | bytes, **options: Any) -> ClassList:
    path = tmp_path / "classes.txt"
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return read_class_list(path, **options)


def error(tmp_path: Path, contents: str | bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, contents, **options)
    assert "\n" not in str(caught.value)
    assert "classes.txt" in str(caught.value)
    return str(caught.value)


CITYSCAPES = [
    {"name": "unlabeled", "id": 0, "trainId": 255, "color": [0, 0, 0], "ignoreInEval": True},
    {"name": "road", "id": 7, "trainId": 0, "color": [128, 64, 128], "ignoreInEval": False},
    {"name": "car", "id": 26, "trainId": 1, "color": [0, 0, 142], "ignoreInEval": False},
    {"name": "license plate", "id": -1, "trainId": -1, "color": [0, 0, 142], "ignoreInEval": True},
]
MAPILLARY = {
    "labels": [
        {"name": "animal--bird", "readable": "Bird", "color": [165, 42, 42], "evaluate": True},
        {
            "name": "construction--flat--road",
            "readable": "Road",
            "color": [128, 64, 128],
            "evaluate": True,
        },
        {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0], "evaluate": False},
    ],
    "version": "1.1",
}
SUPERVISELY = {
    "classes": [
        {"title": "cat", "shape": "bitmap", "color": "#FF0000", "id": 881},
        {"title": "dog", "shape": "bitmap", "color": "#00FF80", "id": 880},
    ],
    "tags": [],
}
ADE20K = (
    "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\twall\n"
    "2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"
    "3\t0.0878\t8265\t796\t1\tsky\n"
)

NAMED = {  # contents -> names, stored value -> label
    "bg\nroad\ncar\n": (("bg", "road", "car"), {0: 0, 1: 1, 2: 2, 255: VOID}),
    "a\nb 2\nvoid\n": (("a", "b 2"), {0: 0, 1: 1, 2: VOID, 255: VOID}),
    "void\nroad\ncar\n": (("road", "car"), {0: VOID, 1: 0, 2: 1, 255: VOID}),
    "1\n2\n7\n": (("1", "2", "7"), {1: 0, 2: 1, 7: 2, 255: VOID}),
    "lane 1\nlane 2\n": (("lane 1", "lane 2"), {0: 0, 1: 1, 255: VOID}),
    "Boeing 747\nAirbus 320\n": (("Boeing 747", "Airbus 320"), {0: 0, 1: 1, 255: VOID}),
    "0 background\n1 road\n": (("background", "road"), {0: 0, 1: 1, 255: VOID}),
    "0: background\n1: road\n": (("background", "road"), {0: 0, 1: 1, 255: VOID}),
    "1. wall\n2. sky\n": (("wall", "sky"), {1: 0, 2: 1, 255: VOID}),
    "road 1\nbackground 0\n": (("background", "road"), {0: 0, 1: 1, 255: VOID}),
    "background = 0\nroad = 255\n": (("background", "road"), {0: 0, 255: 1}),
    "0 void\n1 road\n7 car\n": (("road", "car"), {0: VOID, 1: 0, 7: 1, 255: VOID}),
    "__ignore__\n_background_\ncat\ndog\n": (
        ("_background_", "cat", "dog"),
        {255: VOID, 0: 0, 1: 1, 2: 2},
    ),
    "_background_\ncat\n": (("_background_", "cat"), {0: 0, 1: 1, 255: VOID}),
    "Pixel Value, Class\n0, background\n1, car\n": (("background", "car"), {0: 0, 1: 1, 255: VOID}),
    "id,name\n3,a\n7,b\n": (("a", "b"), {3: 0, 7: 1, 255: VOID}),
    "name;id\nb;1\na;0\n": (("a", "b"), {0: 0, 1: 1, 255: VOID}),
    "0,a\n1,b\n": (("a", "b"), {0: 0, 1: 1, 255: VOID}),
    "road,\ncar,\n": (("road", "car"), {0: 0, 1: 1, 255: VOID}),
    '"road 1"\n"car 2"\n': (("road 1", "car 2"), {0: 0, 1: 1, 255: VOID}),
    "wall\nbuilding, edifice\nsky\n": (
        ("wall", "building, edifice", "sky"),
        {0: 0, 1: 1, 2: 2, 255: VOID},
    ),
    "road # what cars drive on\ncar\n": (("road", "car"), {0: 0, 1: 1, 255: VOID}),
    '["a", "b"]': (("a", "b"), {0: 0, 1: 1, 255: VOID}),
    '{"0": "a", "1": "b"}': (("a", "b"), {0: 0, 1: 1, 255: VOID}),
    '{"background": 0, "road": 255}': (("background", "road"), {0: 0, 255: 1}),
    '{"id2label": {"0": "a", "1": "b"}}': (("a", "b"), {0: 0, 1: 1, 255: VOID}),
    "name\nbg\nroad\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    "class\nbg\nroad\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    "names\nbg\nroad\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    "class_names\nbg\nroad\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    "Label Names\nbg\nroad\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    "labels,\nbg,\nroad,\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    '"label"\nbg\nroad\n': (("label", "bg", "road"), {0: 0, 1: 1, 2: 2, 255: VOID}),
    '"% grass"\n"; x"\n': (("% grass", "; x"), {0: 0, 1: 1, 255: VOID}),
    "2 Straße\n0 road\n1 7up\n": (("road", "7up", "Straße"), {0: 0, 1: 1, 2: 2, 255: VOID}),
    "id\n0\n2\n": (("0", "2"), {0: 0, 2: 1, 255: VOID}),
    ",name\n0,bg\n1,road\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    "sep=;\nname;id\nb;1\na;0\n": (("a", "b"), {0: 0, 1: 1, 255: VOID}),
    "0: bg\n1: road\n255: ignore\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    "0: bg\n1: road\n-1: unlabeled\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    "0: bg\n1: road\n-1: unlabelled\n": (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    '{"bg": 0, "road": 1, "unlabeled": -1}': (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    '{"0": "bg", "1": "road", "255": "ignore"}': (("bg", "road"), {0: 0, 1: 1, 255: VOID}),
    '[{"name": "a", "id": "5"}, {"name": "b", "id": "3"}]': (("b", "a"), {3: 0, 5: 1, 255: VOID}),
    '"bg -1"\nroad\n': (("bg -1", "road"), {0: 0, 1: 1, 255: VOID}),
    ADE20K: (("wall", "building, edifice", "sky"), {0: VOID, 1: 0, 2: 1, 3: 2, 255: VOID}),
}


@pytest.mark.parametrize("contents", NAMED, ids=lambda text: text[:12].strip())
def test_reads_names_and_numbers(contents: str, tmp_path: Path) -> None:
    found = read(tmp_path, contents)
    names, values = NAMED[contents]
    assert found.classes.names == names
    assert dict(found.labels.values) == values
    assert found.labels.colors is None
    assert len(set(found.classes.palette)) == len(names)


COLORED = {  # contents -> names, color -> label
    "bare ground 0 0 0\ntree 0 255 0\nvoid 9 9 9\n": (
        ("bare ground", "tree"),
        {(0, 0, 0): 0, (0, 255, 0): 1, (9, 9, 9): VOID},
    ),
    "road 1 1 1\ncar 2 2 2\nvoid 0 0 0\n": (
        ("road", "car"),
        {(1, 1, 1): 0, (2, 2, 2): 1, (0, 0, 0): VOID},
    ),
    "void 0 0 0\nroad 1 1 1\ncar 2 2 2\n": (
        ("road", "car"),
        {(1, 1, 1): 0, (2, 2, 2): 1, (0, 0, 0): VOID},
    ),
    "road 128,64,128\ncar 0,0,142\n": (("road", "car"), {(128, 64, 128): 0, (0, 0, 142): 1}),
    "road: (128, 64, 128)\ncar: (0, 0, 142)\n": (
        ("road", "car"),
        {(128, 64, 128): 0, (0, 0, 142): 1},
    ),
    "road #804080\ncar #00008E\n": (("road", "car"), {(128, 64, 128): 0, (0, 0, 142): 1}),
    "#804080 road\n#00008e car\n": (("road", "car"), {(128, 64, 128): 0, (0, 0, 142): 1}),
    "64 128 64\tAnimal\n192 0 128\tArchway\n0 0 0\tVoid\n": (
        ("Animal", "Archway"),
        {(64, 128, 64): 0, (192, 0, 128): 1, (0, 0, 0): VOID},
    ),
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n": (
        ("background", "road"),
        {(0, 0, 0): 0, (128, 64, 128): 1},
    ),
    "background:0,0,0::\nleft hand:128,64,128:thumb,palm:wave\n": (
        ("background", "left hand"),
        {(0, 0, 0): 0, (128, 64, 128): 1},
    ),
    "name,r,g,b\nurban,0,255,255\nwater,0,0,255\n": (
        ("urban", "water"),
        {(0, 255, 255): 0, (0, 0, 255): 1},
    ),
    "name, r, g, b\ngrass, 0, 102, 0\nwater, 28, 42, 168\n": (
        ("grass", "water"),
        {(0, 102, 0): 0, (28, 42, 168): 1},
    ),
    "urban;0;255;255\nwater;0;0;255\n": (("urban", "water"), {(0, 255, 255): 0, (0, 0, 255): 1}),
    "0,urban,0,255,255\n1,water,0,0,255\n": (
        ("urban", "water"),
        {(0, 255, 255): 0, (0, 0, 255): 1},
    ),
    "name r g b\nurban 0 255 255\nwater 0 0 255\n": (
        ("urban", "water"),
        {(0, 255, 255): 0, (0, 0, 255): 1},
    ),
    "class,colour\nurban,#00FFFF\nwater,#0000ff\n": (
        ("urban", "water"),
        {(0, 255, 255): 0, (0, 0, 255): 1},
    ),
    "class,color\nurban,#00FFFF\nwater,#0000ff\n": (
        ("urban", "water"),
        {(0, 255, 255): 0, (0, 0, 255): 1},
    ),
    "road\u00a0128\u00a064 128\ncar\u30000 \uff10 142\n": (
        ("road", "car"),
        {(128, 64, 128): 0, (0, 0, 142): 1},
    ),
    '{"road": [128, 64, 128], "car": "#00008e"}': (
        ("road", "car"),
        {(128, 64, 128): 0, (0, 0, 142): 1},
    ),
    "bg 0 0 0 255\nroad 128 64 128 255\n": (("bg", "road"), {(0, 0, 0): 0, (128, 64, 128): 1}),
    "void 0 0 0 0\nroad 128 64 128 255\ncar 1 2 3 255\n": (
        ("road", "car"),
        {(0, 0, 0): VOID, (128, 64, 128): 0, (1, 2, 3): 1},
    ),
    "0 0 0 255 bg\n128 64 128 255 road\n": (("bg", "road"), {(0, 0, 0): 0, (128, 64, 128): 1}),
    "bg,0,0,0,255\nroad,128,64,128,255\n": (("bg", "road"), {(0, 0, 0): 0, (128, 64, 128): 1}),
    "bg 0,0,0,255\nroad 128,64,128,255\n": (("bg", "road"), {(0, 0, 0): 0, (128, 64, 128): 1}),
    "bg: (0, 0, 0, 255)\nroad: (128, 64, 128, 255)\n": (
        ("bg", "road"),
        {(0, 0, 0): 0, (128, 64, 128): 1},
    ),
    "name,r,g,b,a\nbg,0,0,0,255\nroad,128,64,128,255\n": (
        ("bg", "road"),
        {(0, 0, 0): 0, (128, 64, 128): 1},
    ),
    "lane 1 0 0 255\nlane 2 0 64 255\n": (("lane 1", "lane 2"), {(0, 0, 255): 0, (0, 64, 255): 1}),
    "Boeing 747 1 2 3\nroad 4 5 6\n": (("Boeing 747", "road"), {(1, 2, 3): 0, (4, 5, 6): 1}),
    '"gate 4" 1 2 3\nroad 4 5 6\n': (("gate 4", "road"), {(1, 2, 3): 0, (4, 5, 6): 1}),
    "bg 0 0 0 0\nroad 1 128 64 128\n": (("bg", "road"), {(0, 0, 0): 0, (128, 64, 128): 1}),
    '[{"name": "a", "hex": "#010203"}, {"name": "b", "hex": "#040506"}]': (
        ("a", "b"),
        {(1, 2, 3): 0, (4, 5, 6): 1},
    ),
    json.dumps(MAPILLARY): (
        ("Bird", "Road"),
        {(165, 42, 42): 0, (128, 64, 128): 1, (0, 0, 0): VOID},
    ),
    json.dumps(SUPERVISELY): (("cat", "dog"), {(255, 0, 0): 0, (0, 255, 128): 1}),
    '{"label_map": {"0": "background", "1": "cat"}, '
    '"segmentation_colors": [[0, 0, 0], [1, 2, 3]]}': (
        ("background", "cat"),
        {(0, 0, 0): 0, (1, 2, 3): 1},
    ),
}


@pytest.mark.parametrize("contents", COLORED, ids=lambda text: text[:16].strip())
def test_reads_colors(contents: str, tmp_path: Path) -> None:
    found = read(tmp_path, contents)
    names, colors = COLORED[contents]
    assert found.classes.names == names
    assert found.labels.colors == colors
    shown = {label: color for color, label in colors.items() if label != VOID}
    assert found.classes.palette == tuple(shown[label] for label in range(len(names)))


def test_mapillary_masks_store_positions_in_the_list(tmp_path: Path) -> None:
    assert dict(read(tmp_path, json.dumps(MAPILLARY)).labels.values) == {
        0: 0,
        1: 1,
        2: VOID,
        255: VOID,
    }


def test_cityscapes_reads_ids_or_train_ids_by_the_mask_names(tmp_path: Path) -> None:
    text = json.dumps(CITYSCAPES)
    by_id, by_train = read(tmp_path, text, ids="id"), read(tmp_path, text, ids="trainId")
    assert by_id.classes.names == by_train.classes.names == ("road", "car")
    assert dict(by_id.labels.values) == {0: VOID, 7: 0, 26: 1, 255: VOID}
    assert dict(by_train.labels.values) == {0: 0, 1: 1, 255: VOID}
    assert by_id.labels.colors == {(0, 0, 0): VOID, (128, 64, 128): 0, (0, 0, 142): 1}
    assert "an `id` and a `trainId` that differ" in error(tmp_path, text)


def test_reads_text_of_windows_editors_and_rejects_utf16(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbf# my classes\r\nbg\r\nroad\r\ncar\r\n").classes.names == (
        "bg",
        "road",
        "car",
    )
    assert "UTF-16" in error(tmp_path, "bg\nroad\n".encode("utf-16"))


REFUSED = {
    '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}': "COCO",
    '{"_via_settings": {}, "_via_img_metadata": {}}': "VGG Image Annotator",
    '[{"id": 1, "annotations": [], "data": {"image": "a.jpg"}}]': "Label Studio",
    '{"version": "5.0", "shapes": [], "imagePath": "a.jpg"}': "labelme's annotation of one image",
    "path: ../d\ntrain: images/train\nnames:\n  0: person\n": "YOLO",
    "item {\n  id: 1\n  name: 'cat'\n}\n": "TensorFlow label map",
    "<annotation><folder>x</folder></annotation>": "XML",
    "- road\n- car\n": "YAML list",
    "['road', 'car']": "begins like JSON but is not valid JSON",
    "": "0 classes",
    "\n# nothing\n": "0 classes",
    "a\nb\na\n": "line 3: class 'a' stands twice",
    "a 0 0 0\nb 0 0 0\n": "line 2: color (0, 0, 0) is already 'a'",
    "a 0 0 0\nb 0 0 300\n": "line 2: color (0, 0, 300)",
    "a 0 0 0\nb\n": "only some classes have colors; give one to b",
    "0 a\n1 b\nc\n": "only lines 1, 2 are numbered",
    "0: a\nb\n": "only lines 1 are numbered",
    "0,a\n0,b\n": "value 0 is already 'a'",
    "background:0,0,0::\nroad\n": "line 2: 'road' is not `name:R,G,B:parts:actions`",
    "cat\n__ignore__\n_background_\n": "labelme has __ignore__ first",
    "a, b, c\n": "a table of 3 columns whose meaning is not clear",
    "a,b\nc\n": "hold commas or semicolons and others do not",
    "a,1,2,3\nb,4\n": "fewer columns",
    "a 0.1 0.2 0.3\nb 0 0 1\n": "fractions",
    "0 0 0\n128 0 0\n": "numbers only",
    "a,0,0,0,0\nb,1,2,3,1\n": "begin it with `name,id,r,g,b`",
    "[classes]\nroad\n": "begins like JSON but is not valid JSON",
    "road:\ncar:\n": "'road:' is not understood",
    "---\nroad\n": "line 1: a class without a name",
    "a 1 2\nb 3 4\n": "two numbers",
    "road 1 2 3 #comment\ncar 4 5 6\n": "put the comment on a line of its own",
    "".join(f"class{k}x\n" for k in range(256)): "256 classes",
    "; my list\nbg\nroad\n": "lines 1 ('; my list') look like comments; begin comments with #",
    "bg\n% c\nroad\n": "lines 2 ('% c') look like comments",
    "-- c\nbg\nroad\n": "lines 1 ('-- c') look like comments",
    "! c\nbg\nroad\n": "lines 1 ('! c') look like comments",
    '"name"\n"bg"\n"road"\n': "can be a header or a class",
    "bg 0 0 0 255\nroad 128 64 128 7\n": "lines 1, 2 have four numbers whose meaning is not clear",
    "bg 0 0 0 255\nroad 1 1 1 255\n": "lines 1, 2 have four numbers whose meaning is not clear",
    "bg 0 0 0\nroad 128 64 128 255\n": "lines 2 have four numbers whose meaning is not clear",
    "0 0 0 255\n1 1 1 255\n": "line 1: '0 0 0 255' holds numbers only",
    "bg -1\nroad 0\n": "line 1: -1 in 'bg -1' is negative",
    "bg 0 0 -4\nroad 0 0 1\n": "line 1: -4 in 'bg 0 0 -4' is negative",
    ",name\n3,bg\n7,road\n": "column 1 has no name and holds numbers that do not count from 0",
    "a.jpg\nb.jpg\nc.png\n": "it lists images, not classes",
    "a.jpg 0\nb.jpg 1\n": "it lists images, not classes",
    '["a.jpg", "b.jpg"]': "it lists images, not classes",
    "name,value\na,x\nb,1\n": "line 2: 'x' is not a number",
}


@pytest.mark.parametrize("contents", REFUSED, ids=lambda text: text[:12].strip())
def test_rejects_other_formats_and_contradictions(contents: str, tmp_path: Path) -> None:
    assert REFUSED[contents] in error(tmp_path, contents)


def test_reports_all_problems_at_once(tmp_path: Path) -> None:
    message = error(tmp_path, "a 0 0 0\na 1 2 300\nvoid\nb 0 0 0\n")
    for part in (
        "line 2: class 'a' stands twice",
        "line 2: color (1, 2, 300)",
        "line 4: color (0, 0, 0)",
        "only some classes",
    ):
        assert part in message


def test_notes_assumptions(tmp_path: Path) -> None:
    assert read(tmp_path, "bg\nroad\n").notes == ()
    (note,) = read(tmp_path, "0 bg\n1 road\n").notes
    assert "numbered list: 2 classes; its numbers are the values that masks store" in note
    assert "unlabeled counts as a class" in read(tmp_path, "unlabeled\nroad\n").notes[0]
    assert "CVAT label map: 2 classes" in read(tmp_path, "a:0,0,0::\nb:1,1,1::\n").notes[0]


def test_finds_lists_under_the_names_of_tools(tmp_path: Path) -> None:
    (tmp_path / "Label_Colors.txt").write_text("64 128 64\tAnimal\n0 0 0\tVoid\n1 2 3\tCar\n")
    (tmp_path / "readme.txt").write_text("hello\n")
    assert find_class_list(tmp_path).classes.names == ("Animal", "Car")


def test_rejects_lists_that_disagree_and_merges_lists_that_agree(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("bg\nroad\n")
    (tmp_path / "labelmap.txt").write_text("bg:0,0,0::\nroad:128,64,128::\n")
    (tmp_path / "config.json").write_text('{"lr": 1, "epochs": 3}')
    found = find_class_list(tmp_path)
    assert found.labels.colors is None
    assert found.notes == ("classes.txt is the list of classes; labelmap.txt says the same",)
    (tmp_path / "labelmap.txt").write_text("bg:0,0,0::\ncar:128,64,128::\n")
    with pytest.raises(DataError, match=r"classes\.txt and labelmap\.txt list different classes"):
        find_class_list(tmp_path)


def test_ignores_files_of_other_programs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"lr": 1, "epochs": 3}')
    with pytest.raises(
        DataError, match=r"classes\.txt is missing here.*config\.json: it is JSON that is not known"
    ):
        find_class_list(tmp_path)
    for text in ('{"labels": ["loss", "score"], "epochs": 3}', '["loss", "score"]'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(DataError, match=r"classes\.txt is missing here"):
            find_class_list(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MAPILLARY))
    assert find_class_list(tmp_path).classes.names == ("Bird", "Road")
    (tmp_path / "config.json").write_text(
        '{"model_type": "x", "id2label": {"0": "bg", "1": "road"}}'
    )
    assert find_class_list(tmp_path).classes.names == ("bg", "road")


def test_notes_lists_that_share_no_name_with_classes_txt(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("bg\nroad\n")
    (tmp_path / "labels.txt").write_text("frame_001\nframe_002\n")
    found = find_class_list(tmp_path)
    assert found.classes.names == ("bg", "road")
    assert found.notes == (
        "classes.txt is the list of classes; labels.txt has none of its names and is not used",
    )
    (tmp_path / "labels.txt").write_text("frame_001.jpg\nframe_002.jpg\n")
    assert find_class_list(tmp_path).notes == ()


CITYSCAPES_CSV = (
    "name,id,trainId,category,catId,hasInstances,ignoreInEval,color\n"
    'unlabeled,0,255,void,0,False,True,"(0, 0, 0)"\n'
    'ego vehicle,1,255,void,0,False,True,"(0, 0, 0)"\n'
    'road,7,0,flat,1,False,False,"(128, 64, 128)"\ncar,26,1,vehicle,7,True,False,"(0, 0, 142)"\n'
    'license plate,-1,-1,vehicle,7,False,True,"(0, 0, 142)"\n'
)


@pytest.mark.parametrize("key", ["trainId", "train_id"])
def test_cityscapes_table_reads_ids_or_train_ids_by_the_mask_names(
    key: str, tmp_path: Path
) -> None:
    text = CITYSCAPES_CSV.replace("trainId", key)
    by_id, by_train = read(tmp_path, text, ids="id"), read(tmp_path, text, ids="trainId")
    assert by_id.classes.names == by_train.classes.names == ("road", "car")
    assert dict(by_id.labels.values) == {0: VOID, 1: VOID, 7: 0, 26: 1, 255: VOID}
    assert dict(by_train.labels.values) == {0: 0, 1: 1, 255: VOID}
    assert (
        by_id.labels.colors
        == by_train.labels.colors
        == {(0, 0, 0): VOID, (128, 64, 128): 0, (0, 0, 142): 1}
    )
    assert "an `id` and a `trainId` that differ" in error(tmp_path, text)
    only = read(tmp_path, f"name,{key}\nroad,0\ncar,1\npole,255\nsign,-1\n")
    assert only.classes.names == ("road", "car")
    assert dict(only.labels.values) == {0: 0, 1: 1, 255: VOID}
    partly = f"name,id,{key}\nroad,7,0\npole,17,\ncar,26,1\n"
    assert "an `id` and a `trainId` that differ" in error(tmp_path, partly)
    assert dict(read(tmp_path, partly, ids="trainId").labels.values) == {0: 0, 1: 1, 255: VOID}
    assert dict(read(tmp_path, partly, ids="id").labels.values) == {
        7: 0,
        17: VOID,
        26: 1,
        255: VOID,
    }
    null = json.dumps(
        [
            {"name": "road", "id": 7, key: 0},
            {"name": "pole", "id": 17, key: None},
            {"name": "car", "id": 26, key: 1},
        ]
    )
    assert "an `id` and a `trainId` that differ" in error(tmp_path, null)
    assert dict(read(tmp_path, null, ids="trainId").labels.values) == {0: 0, 1: 1, 255: VOID}
    assert dict(read(tmp_path, null, ids="id").labels.values) == {7: 0, 17: VOID, 26: 1, 255: VOID}
    of_json = json.dumps(CITYSCAPES).replace("trainId", key)
    assert dict(read(tmp_path, of_json, ids="trainId").labels.values) == {0: 0, 1: 1, 255: VOID}


def test_notes_headers_and_uncertain_names(tmp_path: Path) -> None:
    (note,) = read(tmp_path, "name\nbg\nroad\n").notes
    assert (
        note
        == "classes.txt: line 1, 'name', is taken as a header, not as a class (put it in quotes if "
        "it is a class)"
    )
    assert (
        "border counts as a class"
        in read(tmp_path, "bg 0 0 0\na 128 0 0\nborder 224 224 192\n").notes[0]
    )
    assert (
        "edges counts as a class"
        in read(tmp_path, "bg 0 0 0\na 128 0 0\nedges 224 224 192\n").notes[0]
    )


def test_missing_list_error_names_the_other_files(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("name,r,g,b\na,1,2,3\nb,4,5,6\n")
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(
        DataError,
        match=r"classes\.txt is missing here.*coco\.json: it is COCO.*"
        r"my\.csv could be one \(2 classes\)",
    ):
        find_class_list(tmp_path)


@given(
    st.lists(
        st.from_regex(r"[a-z]{1,6}( [a-z]{1,6})?", fullmatch=True),
        min_size=1,
        max_size=20,
        unique=True,
    ),
    st.randoms(),
)
def test_reads_every_format_of_names_and_colors_alike(names: list[str], random: Any) -> None:
    names = [name for name in names if name not in ("void", "name", "item")] or ["a"]
    colors = [(n, (n * 7) % 256, 255 - n) for n in range(len(names))]
    ways = (
        "".join(f"{name} {r} {g} {b}\n" for name, (r, g, b) in zip(names, colors, strict=True)),
        "".join(f"{r} {g} {b}\t{name}\n" for name, (r, g, b) in zip(names, colors, strict=True)),
        "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in zip(names, colors, strict=True)),
        "name,r,g,b\n"
        + "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in zip(names, colors, strict=True)),
        "".join(
            f"{name} #{r:02x}{g:02X}{b:02x}\n"
            for name, (r, g, b) in zip(names, colors, strict=True)
        ),
        json.dumps(
            [
                {"name": name, "color": color, "id": n}
                for n, (name, color) in enumerate(zip(names, colors, strict=True))
            ]
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            found = read(Path(folder), way)
            assert found.classes.names == tuple(names)
            assert found.classes.palette == tuple(colors)


@given(st.text(max_size=80))
def test_reads_or_rejects_any_text_in_one_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classes.txt"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        refused, found = "", None
        try:
            found = read_class_list(path)
        except DataError as refusal:
            refused = str(refusal)
        assert "\n" not in refused
        if found is not None:
            assert len(found.classes) == found.labels.num_classes >= 1
            assert set(found.labels.values.values()) >= set(range(len(found.classes)))
