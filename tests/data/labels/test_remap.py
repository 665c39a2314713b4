"""Label maps, merged and ignored classes, and ADE20K's label 0."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.mask_labels import to_labels
from fcn_jax.data.labels.mask_values import StoredMask
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.data.labels.remap import Remap, Remapped, remapped
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.plugins.api import Classes

STREET = ("sky", "road", "car", "bus")


def change(names: tuple[str, ...] = STREET, labels: LabelMap | None = None, **settings) -> Remapped:
    classes = Classes(names, voc_palette(len(names)))
    return remapped(classes, labels or LabelMap.of(len(names)), Remap(**settings))


def refusal(names: tuple[str, ...] = STREET, labels: LabelMap | None = None, **settings) -> str:
    with pytest.raises(ConfigError) as caught:
        change(names, labels, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(found: Remapped, *stored: int) -> list[int]:
    values = np.array([stored], np.uint8)
    return to_labels(StoredMask(values), found.labels, name="mask.png")[0].tolist()


def test_maps_by_name_to_a_class_a_new_class_and_ignore() -> None:
    found = change(label_map={"bus": "car", "road": "ground", "sky": "ignore"})
    assert found.classes.names == ("ground", "car")
    assert read(found, 0, 1, 2, 3, 255) == [255, 0, 1, 1, 255]
    assert found.classes.palette == (voc_palette(4)[1], voc_palette(4)[2])
    assert found.notes == (
        "the recipe changes the classes: 0 ground (from road), 1 car (from car, bus); ignored: sky",
    )


def test_maps_stored_values_to_labels() -> None:
    found = change(label_map={"3": 2, "0": "ignore"})
    assert found.classes.names == ("road", "car")
    assert read(found, 0, 1, 2, 3) == [255, 0, 1, 1]


def test_a_complete_map_of_numbers_takes_the_names_along() -> None:
    found = change(label_map={"0": "ignore", "1": 0, "2": 1, "3": 2})
    assert found.classes.names == ("road", "car", "bus")
    assert read(found, 0, 1, 2, 3) == [255, 0, 1, 2]


def test_a_list_of_the_new_classes_names_more_stored_values() -> None:
    # Cityscapes' IDs of road, sidewalk and building are 7, 8 and 11.
    cityscapes = {str(value): "ignore" for value in range(34)} | {"7": 0, "8": 1, "11": 2}
    found = change(("road", "sidewalk", "building"), label_map=cityscapes)
    assert found.classes.names == ("road", "sidewalk", "building")
    assert read(found, 0, 1, 7, 8, 11, 33) == [255, 255, 0, 1, 2, 255]
    assert found.new_labels is None


def test_a_map_for_all_classes_says_which_stored_values_there_are() -> None:
    names = ("road", "sidewalk", "building")
    found = change(names, label_map={"7": 0, "8": 1, "11": 2})
    assert read(found, 7, 8, 11, 255) == [0, 1, 2, 255]
    with pytest.raises(DataError, match="labels outside the classes: 0; allowed are 7 to 8, 11"):
        read(found, 0, 7)
    both = change(names, label_map={"7": 0, "8": 1, "11": 2, "0": 0})
    assert read(both, 0, 7, 8) == [0, 0, 1]
    some = change(names, label_map={"7": 0})
    assert read(some, 0, 1, 2, 7) == [0, 1, 2, 0]


def test_merges_classes_at_the_place_of_the_first() -> None:
    found = change(merge_classes={"vehicle": ["bus", "car"]}, ignore_classes=["sky"])
    assert found.classes.names == ("road", "vehicle")
    assert read(found, 0, 1, 2, 3) == [255, 0, 1, 1]
    assert found.new_labels == (255, 0, 1, 1)


def test_merges_into_an_existing_class() -> None:
    assert change(merge_classes={"car": ["bus"]}).classes.names == ("sky", "road", "car")
    assert change(merge_classes={"car": ["bus", "car"]}).classes.names == ("sky", "road", "car")


def test_white_becomes_a_class_if_the_map_says_so() -> None:
    found = change(("background", "road"), label_map={"255": 1})
    assert read(found, 0, 255, 1) == [0, 1, 1]
    assert not found.labels.assumed_void
    assert found.classes.names == ("background", "road")


def test_ignored_stored_value_becomes_a_new_class() -> None:
    labels = LabelMap.of(4, void=(11, 255))
    found = change(labels=labels, label_map={"11": "unlabeled"})
    assert found.classes.names == (*STREET, "unlabeled")
    assert found.classes.palette[4] not in found.classes.palette[:4]
    assert read(found, 0, 3, 11, 255) == [0, 3, 4, 255]


def test_reduce_zero_label_begins_the_list_at_stored_1() -> None:
    found = change(reduce_zero_label=True)
    assert found.classes.names == STREET
    assert read(found, 0, 1, 2, 3, 4, 255) == [255, 0, 1, 2, 3, 255]
    assert 5 not in found.labels.values
    merged = change(reduce_zero_label=True, label_map={"bus": "car"})
    assert read(merged, 0, 1, 2, 3, 4) == [255, 0, 1, 2, 2]


def test_reduce_zero_label_doubts_a_list_that_names_the_background() -> None:
    assert (
        "it must not name stored 0" in change(("background", "a"), reduce_zero_label=True).notes[1]
    )
    assert len(change(reduce_zero_label=True).notes) == 1


def test_reduce_zero_label_rejects_lists_with_numbers_or_colors() -> None:
    numbered = LabelMap(4, {1: 0, 2: 1, 3: 2, 4: 3, 0: 255})
    assert "itself says which stored values its classes have (1, 2, 3, 4)" in refusal(
        labels=numbered, reduce_zero_label=True
    )
    colored = LabelMap.of(4, palette={(0, 0, 0): 0, (1, 1, 1): 1, (2, 2, 2): 2, (3, 3, 3): 3})
    assert "the classes have colors" in refusal(labels=colored, reduce_zero_label=True)
    assert "counted before or after" in refusal(reduce_zero_label=True, label_map={"1": "ignore"})


def test_colors_follow_their_classes() -> None:
    palette = {(9, 9, 9): 0, (8, 0, 0): 1, (0, 8, 0): 2, (0, 0, 8): 3, (224, 224, 192): 255}
    found = change(labels=LabelMap.of(4, palette=palette), label_map={"bus": "car", "1": "ignore"})
    assert found.labels.colors == {
        (9, 9, 9): 0, (8, 0, 0): 255, (0, 8, 0): 1, (0, 0, 8): 1, (224, 224, 192): 255,
    }  # fmt: skip
    message = refusal(labels=LabelMap.of(4, palette=palette), label_map={"255": "border"})
    assert "255 is the stored value of no class, and the classes have colors" in message


def test_names_all_problems_at_once() -> None:
    message = refusal(
        label_map={"roda": "car", "car": 7, "1": "ignore", "bus": "..."},
        merge_classes={"flat": ["road"], "none": []},
        ignore_classes=["skyy"],
    )
    for part in (
        "data.label_map.roda: the dataset has no class 'roda'. Did you mean 'road'?",
        "data.label_map.car is 7: expected a label from 0 to 3",
        "data.label_map.bus is '...': not a valid name",
        "'road' is mapped twice: by data.label_map.1 to ignore, and by data.merge_classes.flat to "
        "'flat'; keep one",
        "data.merge_classes.none is empty",
        "data.ignore_classes: the dataset has no class 'skyy'. Did you mean 'sky'?",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label_map": {"road": "sky", "1": "sky"}}, "'road' is mapped twice"),
        ({"label_map": {"bus": "car", "car": "road"}}, "'bus' becomes 'car', which itself becomes"),
        ({"label_map": {"road": "car", "car": "road"}}, "which itself becomes 'road'"),
        ({"label_map": {"0": 1, "1": 0}}, 'as in 1 = "sky"'),
        ({"label_map": {"2": 0, "3": 0, "0": "ignore"}}, 'as in 2 = "car"'),
        ({"ignore_classes": STREET}, "all 4 classes of the dataset would be ignored"),
        ({"label_map": {"bus": "void"}}, 'write "ignore" to ignore its pixels'),
        ({"label_map": {"70000": 0}}, "70000 is no stored value"),
        ({"label_map": {"2": 0, "0": "ignore", "3": "car"}}, "would be called 'car'"),
    ],
)  # fmt: skip
def test_rejects_contradictions(settings: dict, expected: str) -> None:
    assert expected in refusal(**settings)


NAMES = tuple("abcdefg")


@st.composite
def maps(draw: st.DrawFn) -> dict[str, str]:
    """Maps in which each class stays, or becomes a class that stays, a new one, or nothing."""
    staying = draw(st.sets(st.sampled_from(NAMES), min_size=1))
    targets = st.sampled_from([*sorted(staying), "new", "other", "ignore"])
    moving = [name for name in NAMES if name not in staying]
    return {name: draw(targets) for name in draw(st.permutations(moving))}


@given(maps())
def test_a_map_changes_labels_as_its_table_does(table: dict[str, str]) -> None:
    found = change(NAMES, label_map=table) if table else change(NAMES, label_map={"a": "a"})
    labels = read(found, *range(len(NAMES)))
    names = ["ignore" if label == 255 else found.classes.names[label] for label in labels]
    assert names == [table.get(name, name) for name in NAMES]
    assert set(found.classes.names) == set(names) - {"ignore"}
    assert found.new_labels == tuple(labels)
