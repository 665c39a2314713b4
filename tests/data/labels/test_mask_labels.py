"""From stored values to labels: by value, by color, and the errors."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.data.datasets.voc import VOC_CLASSES
from fcn_jax.data.decode import read_mask
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.mask_labels import read, to_labels
from fcn_jax.data.labels.mask_values import StoredMask, histogram
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.errors import DataError
from fuzz.encoders import INDEXED, png

VOID = IGNORE_INDEX
ADE = LabelMap(2, {0: 0, 1: 1, 2: VOID, 255: VOID}, {(1, 1, 1): 0, (2, 2, 2): 1, (0, 0, 0): VOID})
BLACK_WHITE = LabelMap(2, {0: 0, 1: 1, 255: VOID}, {(0, 0, 0): 0, (255, 255, 255): 1})
VOC = LabelMap(
    3,
    {0: 0, 1: 1, 2: 2, 255: VOID},
    {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2, (224, 224, 192): VOID},
)


def gray(*values: int) -> StoredMask:
    return StoredMask(np.array([values], np.uint8 if max(values) < 256 else np.uint16))


def rgb(*colors: tuple[int, int, int]) -> StoredMask:
    return StoredMask(np.array([colors], np.uint8))


def indexed(*values: int, colors: dict[int, tuple[int, int, int]]) -> StoredMask:
    palette = np.zeros((256, 3), np.uint8)
    for index, color in colors.items():
        palette[index] = color
    return StoredMask(np.array([values], np.uint8), palette)


def labels(stored: StoredMask, rules: LabelMap) -> list[int]:
    found = to_labels(stored, rules, name="m.png")
    assert found.dtype == np.uint8
    return found[0].tolist()


def test_without_colors_looks_up_values_and_indices() -> None:
    rules = LabelMap(2, {0: VOID, 7: 0, 26: 1, 255: VOID})
    assert labels(gray(0, 7, 26, 255), rules) == [VOID, 0, 1, VOID]
    assert labels(indexed(7, 26, 0, colors={7: (1, 2, 3), 26: (3, 2, 1)}), rules) == [0, 1, VOID]
    assert labels(gray(0, 1000), LabelMap(2, {0: 0, 1000: 1})) == [0, 1]


def test_rgb_with_equal_channels_is_gray() -> None:
    assert labels(rgb((0, 0, 0), (1, 1, 1), (255, 255, 255)), LabelMap.of(2)) == [0, 1, VOID]
    with pytest.raises(DataError, match=r"m\.png: the mask is in colors and no palette"):
        labels(rgb((0, 0, 0), (1, 1, 2)), LabelMap.of(2))


def test_colors_decide_for_gray_indexed_and_rgb_masks() -> None:
    assert labels(gray(0, 1, 2, 255), ADE) == [VOID, 0, 1, VOID]
    assert labels(rgb((0, 0, 0), (1, 1, 1), (2, 2, 2)), ADE) == [VOID, 0, 1]
    assert labels(gray(0, 255), BLACK_WHITE) == [0, 1]
    assert labels(indexed(0, 1, colors={0: (255, 255, 255), 1: (0, 0, 0)}), BLACK_WHITE) == [1, 0]
    assert labels(
        indexed(0, 5, 9, colors={0: (0, 128, 0), 5: (0, 0, 0), 9: (224, 224, 192)}), VOC
    ) == [2, 0, VOID]


def test_gray_values_without_listed_colors_are_labels() -> None:
    assert labels(gray(0, 1, 2, 255), VOC) == [0, 1, 2, VOID]
    assert read(histogram(gray(0, 1, 2)), VOC).rule == "value"
    assert read(histogram(gray(0)), VOC).rule == "either"
    # An index whose palette entry is its own gray is a gray value.
    assert labels(indexed(0, 1, 2, colors={k: (k, k, k) for k in range(256)}), VOC) == [0, 1, 2]


def test_index_255_is_void_unless_its_color_is_listed() -> None:
    assert labels(indexed(0, 255, colors={255: (255, 255, 255)}), VOC) == [0, VOID]


TWO = LabelMap(2, {0: 0, 1: 1, 255: VOID}, {(0, 0, 0): 0, (128, 0, 0): 1})
PADDED = {"padded": 256, "cut": 2}


def from_file(values: list[int], palette: list[int], rules: LabelMap) -> list[int]:
    colors = np.array(palette, np.uint8).reshape(-1, 3)
    return read_mask(png(np.array([values], np.uint8), color=INDEXED, palette=colors), rules)[
        0
    ].tolist()


@pytest.mark.parametrize("length", PADDED.values(), ids=PADDED)
def test_index_without_own_color_is_a_label_if_colors_and_values_agree(
    length: int,
) -> None:
    palette = ([0, 0, 0, 128, 0, 0] + [0] * 762)[: 3 * length]
    assert from_file([0, 1, 255], palette, TWO) == [0, 1, VOID]
    assert from_file([1, 255], palette, TWO) == [1, VOID]
    with pytest.raises(
        DataError, match=r"palette indices without a color of their own: 7 \(in 1 pixels\)"
    ):
        from_file([0, 1, 7], palette, TWO)
    three = LabelMap(3, {0: 0, 1: 1, 2: 2, 255: VOID}, {(0, 0, 0): 0, (128, 0, 0): 1, (9, 9, 9): 2})
    assert from_file([0, 1, 2], palette, three) == [0, 1, 2]
    white = LabelMap(
        3, {0: 0, 1: 1, 2: 2, 255: VOID}, {(0, 0, 0): 0, (128, 0, 0): 1, (255, 255, 255): 2}
    )
    assert from_file([0, 1, 255], palette, white) == [0, 1, VOID]
    with pytest.raises(DataError, match="without a color of their own: 255 "):
        from_file([0, 255], palette, white)


@pytest.mark.parametrize("length", PADDED.values(), ids=PADDED)
def test_rejects_index_without_own_color_if_the_palette_has_another_order(
    length: int,
) -> None:
    palette = ([128, 0, 0, 0, 0, 0] + [0] * 762)[: 3 * length]
    assert from_file([0, 1], palette, TWO) == [1, 0]
    with pytest.raises(DataError, match="without a color of their own: 255 "):
        from_file([0, 1, 255], palette, TWO)
    with pytest.raises(DataError, match="without a color of their own: 255 "):
        from_file([0, 255], palette, TWO)


@pytest.mark.parametrize("length", [3, 256])
def test_255_is_void_even_if_white_is_a_class_with_its_own_index(length: int) -> None:
    rules = LabelMap(
        3, {0: 0, 1: 1, 2: 2, 255: VOID}, {(255, 255, 255): 0, (0, 0, 255): 1, (0, 255, 255): 2}
    )
    palette = ([255, 255, 255, 0, 0, 255, 0, 255, 255] + [255] * 759)[: 3 * length]
    assert from_file([0, 1, 2, 255], palette, rules) == [0, 1, 2, VOID]
    assert from_file([255], palette, rules) == [VOID]
    with pytest.raises(DataError, match="without a color of their own: 255 "):
        from_file([0, 255], [0, 0, 0] * 256, BLACK_WHITE)


def test_voc_masks_with_21_palette_colors_store_void_as_255() -> None:
    rules = LabelMap.of(
        21, palette={c: k for k, c in enumerate(VOC_CLASSES.palette)} | {(224, 224, 192): 255}
    )
    colors = [part for color in VOC_CLASSES.palette for part in color]
    for palette in (
        colors,
        colors + [0] * (768 - len(colors)),
        [part for c in voc_palette(256) for part in c],
    ):
        assert from_file([0, 15, 20, 255], palette, rules) == [0, 15, 20, VOID]
    # The order of the colors, not the indices, counts.
    assert from_file([0, 1], colors[3:6] + colors[:3], rules) == [1, 0]


def test_reads_incomplete_palette_that_agrees_without_counting_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(stored: StoredMask) -> None:
        raise AssertionError("values were counted")

    monkeypatch.setattr("fcn_jax.data.labels.mask_labels.count", slow)
    assert from_file([0, 1, 255], [0, 0, 0, 128, 0, 0] + [0] * 762, TWO) == [0, 1, VOID]


def file_of(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_color_of_a_gray_value_is_its_gray_on_a_screen() -> None:
    def wide(*values: int) -> StoredMask:
        return StoredMask(np.array([values], np.uint16), bits=16)

    assert labels(wide(0, 65535), BLACK_WHITE) == [0, 1]
    assert labels(wide(0, 257), LabelMap(2, {0: 0, 1: 1}, {(0, 0, 0): 1, (1, 1, 1): 0})) == [1, 0]
    with pytest.raises(DataError, match="gray values that no class has: 65534"):
        labels(wide(0, 65534), BLACK_WHITE)
    assert labels(wide(0, 255), BLACK_WHITE) == [0, 1]
    reversed_ = LabelMap(2, {0: 0, 1: 1, 255: VOID}, {(255, 255, 255): 0, (0, 0, 0): 1})
    assert read_mask(file_of(np.array([[False, True]])), reversed_).tolist() == [[1, 0]]
    assert read_mask(file_of(np.array([[0, 65535]], np.uint16)), reversed_).tolist() == [[1, 0]]
    for kind in ("BMP", "TIFF", "PNG"):
        buffer = io.BytesIO()
        Image.fromarray(np.array([[False, True]])).save(buffer, kind)
        assert read_mask(buffer.getvalue(), reversed_).tolist() == [[1, 0]]
    # Where the scaled grays are not listed, the stored ones are.
    assert read_mask(file_of(np.array([[False, True]])), ADE).tolist() == [[VOID, 0]]
    assert read_mask(file_of(np.array([[False, True]])), VOC).tolist() == [[0, 1]]


def test_rejects_gray_values_that_mean_another_class_by_color() -> None:
    camvid = LabelMap(
        2, {0: 0, 1: 1, 2: VOID, 255: VOID}, {(128, 128, 128): 0, (128, 0, 0): 1, (0, 0, 0): VOID}
    )
    with pytest.raises(
        DataError, match=r"gray values 0 are listed as colors of other classes.*remove the colors"
    ):
        labels(gray(0, 1, 2), camvid)


@pytest.mark.parametrize(
    ("stored", "rules", "message"),
    [
        (
            gray(0, 5),
            LabelMap.of(2),
            "labels outside the classes: 5; allowed are 0 to 1 and void 255",
        ),
        (
            gray(0, 3),
            LabelMap(2, {1: 0, 2: 1, 5: VOID}),
            "labels outside the classes: 0, 3; allowed are 1 to 2 and void 5",
        ),
        (gray(0, 77), VOC, "gray values that no class has: 77"),
        (
            rgb((0, 0, 0), (128, 0, 1)),
            VOC,
            r"colors that no class has: \(128, 0, 1\) in 1 pixel;",
        ),
        (
            indexed(0, 1, colors={1: (9, 9, 1)}),
            VOC,
            r"palette colors that no class has: \(9, 9, 1\).*remove the colors",
        ),
    ],
)
def test_error_names_the_values_without_a_label(
    stored: StoredMask, rules: LabelMap, message: str
) -> None:
    with pytest.raises(DataError, match=rf"m\.png: {message}"):
        labels(stored, rules)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 40), st.integers(1, 40))
def test_gray_indexed_and_rgb_files_of_one_picture_have_the_same_labels(
    seed: int, count: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.choice(2**24, count, replace=False)
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
    truth = rng.integers(0, count, (height, width), np.uint8)
    palette = {tuple(color): label for label, color in enumerate(colors.tolist())}
    rules = LabelMap.of(count, palette=palette)

    def file(image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    order = rng.permutation(count).astype(np.uint8)
    shuffled = Image.fromarray(order[truth])
    shuffled.putpalette(colors[np.argsort(order)].reshape(-1).tolist())
    assert np.array_equal(read_mask(file(Image.fromarray(colors[truth])), rules), truth)
    assert np.array_equal(read_mask(file(shuffled), rules), truth)
    assert np.array_equal(read_mask(file(Image.fromarray(truth)), count), truth)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([ADE, BLACK_WHITE, VOC, LabelMap.of(3), LabelMap(2, {3: 1, 1: 0, 0: VOID})]),
)
def test_to_labels_matches_the_reading_of_the_histogram(seed: int, rules: LabelMap) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([0, 1, 2, 3, 255], (5, 6), p=[0.4, 0.4, 0.15, 0.02, 0.03]).astype(np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[:4] = rng.permutation([(0, 0, 0), (128, 0, 0), (255, 255, 255), (1, 1, 1)])
    if rng.integers(2):
        palette[1:3] = palette[0]
    few = np.minimum(values, 1)
    for stored in (
        *(
            StoredMask(values),
            StoredMask(values, palette),
            StoredMask(values, palette[:3]),
            StoredMask(values.astype(np.uint16)),
        ),
        *(StoredMask(few, bits=1), StoredMask(values.astype(np.uint16) * 257, bits=16)),
    ):
        reading = read(histogram(stored), rules)
        if reading.unknown or reading.disputed:
            with pytest.raises(DataError, match=r"m\.png: "):
                to_labels(stored, rules, name="m.png")
        else:
            assert to_labels(stored, rules, name="m.png").tolist() == [
                [reading.labels[v] for v in row] for row in stored.values.tolist()
            ]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["u8", "u16", "rgb"]))
def test_histogram_counts_every_pixel(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 6, (7, 9, 3) if kind == "rgb" else (7, 9))
    found = histogram(StoredMask(pixels.astype(np.uint16 if kind == "u16" else np.uint8)))
    flat = (pixels @ [1 << 16, 1 << 8, 1]).ravel() if kind == "rgb" else pixels.ravel()
    assert found.counts == {int(value): int((flat == value).sum()) for value in np.unique(flat)}
