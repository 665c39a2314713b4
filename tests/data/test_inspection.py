"""The inspection of masks: errors with advice, notes on oddities, and the cache."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.api import Classes, Example, Record, Source
from fcn_jax.data import inspection
from fcn_jax.data.datasets.folder import FOLDER
from fcn_jax.data.inspection import Findings, inspect
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.remap import Remap
from fcn_jax.data.splits import open_splits
from fcn_jax.errors import ConfigError, DataError

HEIGHT, WIDTH = 8, 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stripes(*values: object) -> np.ndarray:
    """A mask of equal vertical stripes of these values."""
    columns = np.array([values[k * len(values) // WIDTH] for k in range(WIDTH)])
    return np.broadcast_to(columns, (HEIGHT, *columns.shape)).astype(np.uint8)


def make(
    root: Path, classes: str, train: list[np.ndarray], val: list[np.ndarray] | None = None
) -> Path:
    (root).mkdir(exist_ok=True)
    (root / "classes.txt").write_text(classes)
    for split, masks in (("train", train), ("val", train[:1] if val is None else val)):
        for number, mask in enumerate(masks):
            for kind, array in (
                ("images", np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
                ("masks", mask),
            ):
                path = root / kind / split / f"{split[0]}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return root


def inspected(root: Path) -> Findings:
    return inspect(
        {split: FOLDER.open(root, split) for split in ("train", "val")},
        training="train",
        stream=io.StringIO(),
    )


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        inspected(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rejects_masks_of_0_and_255_unless_their_grays_are_listed(
    tmp_path: Path,
) -> None:
    masks = [stripes(0, 255, 255), stripes(255, 0)]
    root = make(tmp_path / "d", "background\nroad\n", masks)
    message = refusal(root)
    assert "hold the values 0 and 255, and the value 255 counts as void" in message
    assert "`background 0 0 0` and `road 255 255 255`" in message
    (root / "classes.txt").write_text("background 0 0 0\nroad 255 255 255\n")
    found = inspected(root)
    assert found.counts["train"].tolist() == [32 + 48, 64 + 48, 0]
    source = FOLDER.open(root, "train")
    assert source.decode(source[0]).mask[0].tolist() == [0] * 4 + [1] * 8
    (root / "classes.txt").write_text("background 0\nroad 255\n")
    assert inspected(root).counts["train"].tolist() == [80, 112, 0]


def test_masks_of_0_and_255_are_read_if_the_recipe_says_so(tmp_path: Path) -> None:
    root = make(tmp_path / "d", "background\nroad\n", [stripes(0, 255, 255), stripes(255, 0)])
    assert "or set data.label_map = {255 = 1}" in refusal(root)
    found = open_splits(FOLDER, root, ["train", "val"], remap=Remap({"255": 1}))
    assert found.class_pixels.tolist() == [32 + 48, 64 + 48]
    assert found.sources["train"].classes.names == ("background", "road")


def test_masks_with_label_0_to_ignore_are_read_if_the_recipe_says_so(tmp_path: Path) -> None:
    root = make(tmp_path / "d", "road\ncar\n", [stripes(0, 1, 2)])
    assert "to ignore it, set data.reduce_zero_label = true" in refusal(root)
    found = open_splits(FOLDER, root, ["train"], remap=Remap(reduce_zero_label=True))
    assert found.class_pixels.tolist() == [32, 32]
    assert found.image_pixels.tolist() == [64, 64]
    source = found.sources["train"]
    assert source.decode(source[0]).mask[0].tolist() == [255] * 4 + [0] * 4 + [1] * 4


def test_names_the_colors_of_masks_without_a_list_of_colors(tmp_path: Path) -> None:
    colors = stripes(*[(9, 0, 0)] * 3, (0, 9, 0), (0, 9, 0), (0, 0, 9))
    message = refusal(make(tmp_path / "d", "a\nb\nc\n", [colors], val=[colors]))
    assert "it holds (9, 0, 0) in 96 pixels, (0, 9, 0) in 64 pixels, (0, 0, 9) in 32 pix" in message
    message = refusal(make(tmp_path / "e", "a 9 0 0\nb 1 1 1\n", [colors], val=[colors]))
    assert "colors that no class has: (0, 9, 0) in 64 pixels, (0, 0, 9) in 32 pixels" in message


def test_a_background_that_is_counted_twice(tmp_path: Path) -> None:
    masks = [stripes(0, 1, 2)]
    with pytest.raises(DataError, match="the background is counted twice, as '_background_' "):
        inspected(make(tmp_path / "d", "_background_\nbackground\ncat\ndog\n", masks))
    found = inspected(make(tmp_path / "e", "unlabeled\nbackground\ncat\ndog\n", masks))
    assert any("unlabeled, background may be one class that is listed" in n for n in found.notes)
    found = inspected(make(tmp_path / "f", "unlabeled\nbackground\ncat\n", masks))
    assert not any("listed twice" in note for note in found.notes)


def test_rejects_splits_without_a_labeled_pixel(tmp_path: Path) -> None:
    root = make(tmp_path / "d", "a\nb\n", [stripes(255)], val=[stripes(0, 1)])
    assert "all pixels of train are void, so that nothing counts there" in refusal(root)
    remap = Remap(ignore_classes=["a", "b"])
    with pytest.raises(ConfigError, match="all 2 classes of the dataset would be ignored"):
        open_splits(FOLDER, root, ["val"], remap=remap)


def test_counts_the_labeled_pixels_of_images_with_each_class(tmp_path: Path) -> None:
    masks = [stripes(0, 1, 255), stripes(0, 0), stripes(255, 2)]
    found = inspected(make(tmp_path / "d", "a\nb\nc\n", masks, val=masks[:1]))
    assert found.counts["train"].tolist() == [32 + 96, 32, 48, 32 + 48]
    assert found.image_counts["train"].tolist() == [64 + 96, 64, 48]
    assert found.image_counts["val"].tolist() == [64, 64, 0]


def test_rejects_a_single_class(tmp_path: Path) -> None:
    assert "'road' is the only class, and the masks hold the values 0, 255" in refusal(
        make(tmp_path / "d", "road\n", [stripes(0, 255)])
    )


def test_label_0_can_be_void_by_color_or_by_position(tmp_path: Path) -> None:
    masks = [stripes(0, 1, 2), stripes(0, 1, 2)]
    for number, classes in enumerate(
        ("road 1 1 1\ncar 2 2 2\nvoid 0 0 0\n", "void\nroad\ncar\n", "0 void\n1 road\n2 car\n")
    ):
        root = make(tmp_path / str(number), classes, masks)
        source = FOLDER.open(root, "train")
        assert source.classes.names == ("road", "car")
        assert source.decode(source[0]).mask[0].tolist() == [255] * 4 + [0] * 4 + [1] * 4
        assert inspected(root).counts["train"].tolist() == [64, 64, 64]


def test_byte_order_mark_before_a_comment_shifts_no_label(tmp_path: Path) -> None:
    root = make(tmp_path / "d", "", [stripes(0, 1, 2)])
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbf# my classes\r\nbg\r\nroad\r\ncar\r\n")
    assert FOLDER.open(root, "train").classes.names == ("bg", "road", "car")
    assert inspected(root).counts["train"].tolist() == [32, 32, 32, 0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_wrong_label_is_an_error_with_file_and_value(split: str, tmp_path: Path) -> None:
    wrong = stripes(0, 1, 2)
    wrong[0, 0] = 7
    good = [stripes(0, 1, 2)]
    root = make(
        tmp_path / "d",
        "bg\nroad\ncar\n",
        good + [wrong] * (split == "train"),
        good + [wrong] * (split == "val"),
    )
    message = refusal(root)
    assert "labels outside the classes: 7; allowed are 0 to 2 and void 255" in message
    assert f"in 1 of 3 masks: {root / 'masks' / split / f'{split[0]}1.png'}" in message


def test_counts_all_wrong_masks_and_names_the_first_dozen(tmp_path: Path) -> None:
    root = make(tmp_path / "d", "bg\nroad\n", [stripes(0, 1, 9)] * 20)
    assert "in 21 of 21 masks: " in refusal(root)
    assert "t11.png" not in refusal(root).split("and 9 more")[1]
    assert "and 9 more" in refusal(root)


def test_names_all_damaged_missing_and_empty_files(tmp_path: Path) -> None:
    root = make(tmp_path / "d", "bg\nroad\n", [stripes(0, 1)] * 4)
    (root / "masks/train/t0.png").write_bytes(b"no image")
    (root / "images/train/t1.png").write_bytes(b"")
    (root / "masks/train/t2.png").unlink()
    (root / "masks/train/t2.png").symlink_to(root / "nowhere.png")
    message = refusal(root)
    for part in (
        "3 masks or images",
        "t0.png: ",
        "t1.png: the file is empty",
        "t2.png: the file does not exist",
    ):
        assert part in message
    assert "do not belong together" not in message


@pytest.mark.parametrize(
    ("classes", "masks", "advice"),
    [
        (
            "bg\nroad\ncar\n",
            [stripes(0, 128, 255)],
            "`bg 0 0 0`, `road 128 128 128`, `car 255 255 255`",
        ),
        (
            "road\ncar\n",
            [stripes(0, 1, 2)],
            "0 to 2, 3 values for 2 classes: the list may lack the background",
        ),
        ("road\ncar\n", [stripes(1, 2)], "the masks count from 1"),
        (
            "bg\nroad\n",
            [stripes(0, 1), stripes(0, 255)],
            "0 and 255 in 1 masks and 0 and 1 in 2 others",
        ),
        (
            "bg\nroad\n",
            [np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)],
            "like a photograph",
        ),
        (
            "bg 0 0 0\nroad 255 255 255\n",
            [
                np.where(
                    np.arange(WIDTH) == 5,
                    np.arange(60, 60 + 10 * HEIGHT, 10)[:, None],
                    stripes(0, 255),
                ).astype(np.uint8)
            ]
            * 2,
            "edges were smoothed",
        ),
        (
            "bg\nroad\n",
            [
                np.where(
                    np.arange(WIDTH) == 5,
                    np.arange(60, 60 + 10 * HEIGHT, 10)[:, None],
                    stripes(0, 255),
                ).astype(np.uint8)
            ]
            * 2,
            "255 counts as void unless the list has the grays as colors, as in `road 255 255 255`",
        ),
        (
            "bg 0 0 0\nroad 128 64 0\n",
            [stripes((0, 0, 0), (0, 64, 128))],
            "red and blue are swapped",
        ),
        (
            "bg 0 0 1\nroad 128 64 0\n",
            [stripes((1, 2, 3), (0, 64, 1))],
            "none of the colors is in the list",
        ),
        ("bg\nroad\n", [stripes((1, 2, 3), (0, 64, 1))], "the mask is in colors and no palette"),
        ("a 9 9 9\nb 8 8 8\nvoid 0 0 0\n", [stripes(0, 1)], "remove the colors from the list"),
        (
            "a 0 0 0\nb 9 9 9\n",
            [stripes(0, 9), stripes(0, 1)],
            "some masks can be read by their colors only",
        ),
        ("bg\nroad\n", [stripes(255)], "all pixels of train are void"),
        (
            "bg\nroad\n",
            [stripes(1, 255)],
            "train holds 'road' and void only, so that nothing is learned",
        ),
        ("bg\nroad\ncar\n", [stripes(0, 255)], "every pixel of 'road' would be ignored"),
        (
            "road 255 255 255\n",
            [stripes(0, 255)],
            "'road' is the only class, and the masks hold the values 0, 255",
        ),
        (
            "road 255 255 255\n",
            [stripes((0, 0, 9), (255, 255, 255))],
            "'road' is the only class: with one class",
        ),
        (
            "bg\nroad\n",
            [stripes(1, 255)],
            "if 255 is a class, give each class its value in the list, as in `bg 1` and `road 255`",
        ),
        (
            "bg\nroad\n",
            [stripes(0, 127, 255)],
            "3 gray values for 2 classes: give each class its value in the list, as in `bg 0`",
        ),
        (
            "bg\nroad\n",
            [stripes(0, 1).astype(np.uint16) * 65535],
            "list `bg 0 0 0`, `road 255 255 255`",
        ),
    ],
)
def test_rejects_contradictions_with_fitting_advice(
    classes: str, masks: list[np.ndarray], advice: str, tmp_path: Path
) -> None:
    assert advice in refusal(make(tmp_path / "d", classes, masks))


def test_rejects_val_masks_that_are_all_void(tmp_path: Path) -> None:
    assert "all pixels of val are void" in refusal(
        make(tmp_path / "d", "bg\nroad\n", [stripes(0, 1)], [stripes(255)])
    )


def test_accepts_white_as_void_next_to_0_and_1(tmp_path: Path) -> None:
    root = make(
        tmp_path / "d", "bg 0 0 0\nroad 1 1 1\nvoid 255 255 255\n", [stripes(0, 1), stripes(0, 255)]
    )
    assert inspected(root).counts["train"].tolist() == [96, 48, 48]


def notes(
    tmp_path: Path, classes: str, train: list[np.ndarray], val: list[np.ndarray] | None = None
) -> tuple[str, ...]:
    return inspected(make(tmp_path / "d", classes, train, val)).notes


def test_returns_no_notes_for_a_correct_dataset(tmp_path: Path) -> None:
    assert notes(tmp_path, "bg\nroad\n", [stripes(0, 1, 255)] * 3) == ()


def test_notes_each_oddity_in_one_line(tmp_path: Path) -> None:
    found = notes(
        tmp_path, "bg\nroad\ncar\n", [stripes(0, 255, 255), stripes(1)], [stripes(2, 2, 255)]
    )
    assert found == (
        "train: 1 of 3 classes have no pixel: car",
        "val: all pixels that count are 'car'; no other class has any",
        "train and val have no class in common",
    )


def test_notes_much_void_and_masks_that_are_all_void(tmp_path: Path) -> None:
    found = notes(
        tmp_path, "bg\nroad\n", [stripes(0, 1), stripes(255), stripes(255)], [stripes(0, 1)]
    )
    assert found[0] == "train: 67% of the pixels are void"
    assert found[1].startswith("train: 2 of 3 masks are all void: ")


def test_notes_assumed_readings(tmp_path: Path) -> None:
    assert notes(tmp_path, "bg 0 0 0\nroad 128 64 128\n", [stripes(0, 1)]) == (
        "the list of classes has colors, but 2 masks hold gray values that are not among its "
        "colors: the values are labels",
    )
    assert notes(tmp_path, "bg\nroad\n", [stripes((0, 0, 0), (1, 1, 1))]) == (
        "2 masks are RGB with equal channels and are read as gray",
    )


def test_returns_no_note_for_a_built_in_palette(tmp_path: Path) -> None:
    source = FOLDER.open(make(tmp_path / "d", "bg\nroad\n", [stripes(0, 1)]), "train")
    for listed in (True, False):
        rules = LabelMap(2, {0: 0, 1: 1, 255: 255}, {(0, 0, 0): 0, (128, 0, 0): 1}, listed=listed)
        own = dataclasses.replace(source, labels=rules)
        assert len(inspect({"train": own}, training="train", stream=io.StringIO()).notes) == listed
    assert not LabelMap.of(2, palette={(0, 0, 0): 0}).listed


def test_notes_or_rejects_indices_without_their_own_color(
    tmp_path: Path,
) -> None:
    root = make(tmp_path / "d", "bg 0 0 0\na 128 0 0\nb 0 128 0\n", [])

    def save(palette: list[int], *values: int) -> None:
        for split in ("train", "val"):
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / split / f"{split}.png")
            mask = Image.fromarray(stripes(*values))
            mask.putpalette(palette)
            mask.save(root / "masks" / split / f"{split}.png")

    save([0, 0, 0, 128, 0, 0] + [0] * 762, 0, 1, 255)
    for _ in range(2):  # the second time from the cache
        assert inspected(root).counts["train"].tolist() == [32, 32, 0, 32]
    save([0, 0, 0, 128, 0, 0] + [0] * 762, 0, 1, 2, 255)
    for _ in range(2):
        found = inspected(root)
        assert found.counts["train"].tolist() == [24, 24, 24, 24]
        assert "2 masks hold palette indices without a color of their own" in "\n".join(found.notes)
    save([128, 0, 0, 0, 0, 0] + [0] * 762, 0, 1, 7, 255)
    for _ in range(2):
        assert "palette indices without a color of their own: 7, 255 (in 96 pixels)" in refusal(
            root
        )


def test_second_inspection_decodes_only_changed_masks(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "d", "bg\nroad\n", [stripes(0, 1), stripes(1, 0, 0)])
    first = inspected(root)
    decoded, read = [], inspection.read_stored_mask
    monkeypatch.setattr(
        inspection,
        "read_stored_mask",
        lambda data, name: decoded.append(Path(name).name) or read(data, name=name),
    )
    again = inspected(root)
    assert decoded == []
    assert {k: v.tolist() for k, v in again.counts.items()} == {
        k: v.tolist() for k, v in first.counts.items()
    }
    Image.fromarray(stripes(1)).save(root / "masks/train/t1.png")
    assert inspected(root).counts["train"].tolist() == [48, 48 + 96, 0]
    assert decoded == ["t1.png"]
    (root / "classes.txt").write_text("7 tree\n1 bg\n0 road\n")
    assert inspected(root).counts["train"].tolist() == [48, 144, 0, 0]
    assert decoded == ["t1.png"]
    for damage in (b"", b"garbage", None):
        for path in own_cache.rglob("*.txt"):
            data = path.read_bytes()
            path.write_bytes(data.replace(b"48", b"47") if damage is None else damage)
        assert inspected(root).counts["train"].tolist() == [48, 144, 0, 0]
    assert sorted(set(decoded[1:])) == ["t0.png", "t1.png", "v0.png"]
    assert len(decoded) == 1 + 3 * 3


def test_works_without_a_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert inspected(make(tmp_path / "d", "bg\nroad\n", [stripes(0, 1)])).counts[
        "train"
    ].tolist() == [
        48,
        48,
        0,
    ]


def test_counts_skipped_records_instead_of_failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DamagedError(DataError):
        pass

    def read(data: bytes, *, name: str) -> object:
        if data == b"damaged":
            raise DamagedError(f"{name}: it is damaged")
        return original(data, name=name)

    original = inspection.read_stored_mask
    monkeypatch.setattr(inspection, "read_stored_mask", read)
    root = make(tmp_path / "d", "bg\nroad\n", [stripes(0, 1)] * 3)
    (root / "masks/train/t1.png").write_bytes(b"damaged")
    sources = {split: FOLDER.open(root, split) for split in ("train", "val")}
    found = inspect(sources, training="train", skip=(DamagedError,), stream=io.StringIO())
    assert found.counts["train"].tolist() == [96, 96, 0]
    assert found.notes == (
        f"train: 1 of 3 images are skipped: {root}/masks/train/t1.png: it is damaged",
    )
    with pytest.raises(Exception, match=r"t1\.png: it is damaged"):
        inspect(sources, training="train", stream=io.StringIO())


@dataclasses.dataclass
class Decoding(Source):
    """A plugin's source that can only decode records."""

    classes: Classes
    masks: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Record:
        return Record(f"r{index}", bytes([index % 256, index // 256]), b"")

    def decode(self, record: Record) -> Example:
        mask = self.masks[record.image[0] + 256 * record.image[1]]
        if mask.max() == 77:
            raise DataError(f"mask of {record.id}: it is damaged")
        return Example(record.id, np.zeros((*mask.shape, 3), np.uint8), mask)


def test_decodes_whole_images_of_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = Classes(("bg", "road"), ((0, 0, 0), (1, 1, 1)))
    source: Source = Decoding(classes, [stripes(0, 1, 255), stripes(1)])
    assert inspect({"train": source}, training="train", stream=io.StringIO()).counts[
        "train"
    ].tolist() == [32, 32 + 96, 32]
    with pytest.raises(DataError, match="mask of r1: it is damaged"):
        inspect(
            {"train": Decoding(classes, [stripes(0, 1), stripes(77)])},
            training="train",
            stream=io.StringIO(),
        )
    monkeypatch.setattr(inspection, "_MAX_DECODED", 10)
    many = Decoding(classes, [stripes(0, 1)] * 25)
    assert inspect({"train": many}, training="train", stream=io.StringIO()).notes == (
        "train: inspected 9 of 25 masks, spread evenly",
    )


def test_evaluation_accepts_everything_that_can_be_scored(tmp_path: Path) -> None:
    root = make(tmp_path / "d", "bg\nroad\n", [stripes(255)] * 3)
    sources = {"val": FOLDER.open(root, "val")}
    found = inspect(sources, stream=io.StringIO())
    assert found.counts["val"][:-1].sum() == 0
    assert found.notes == ()
    with pytest.raises(DataError, match="all pixels of val are void"):
        inspect(sources, training="val", stream=io.StringIO())
