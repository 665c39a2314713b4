"""Class lists in JSON, as Cityscapes, Mapillary, Supervisely, Datumaro and others write them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fcn_jax.data.labels.class_list_entries import (
    ADVICE,
    OTHER_IDS,
    UNUSED,
    Entry,
    Ids,
    Parsed,
    RefusedError,
    color,
    key_of,
    number,
    stored_id,
)
from fcn_jax.errors import listing
from fcn_jax.plugins.api import IGNORE_INDEX

_UNKNOWN = (
    "it is JSON that is not known as a list of classes of a tool; if it lists classes, rename it "
    f"to classes.json, otherwise write a classes.txt: {ADVICE}"
)
_KNOWN_KEYS = {"trainid": "trainId", "id": "id"} | dict.fromkeys(
    ("hex", "hexcolor", "color", "colour", "rgb"), "color"
)
_LISTS = (
    ("labels", "Mapillary's config.json"),
    ("classes", "Supervisely's meta.json"),
    ("categories", "a JSON list of categories"),
    ("names", "a JSON list of names"),
    ("class_names", "a JSON list of names"),
)
_ANNOTATIONS = (
    ("COCO annotations, which hold polygons", {"images", "annotations"}),
    ("COCO annotations, which hold polygons", {"images", "categories"}),
    ("a project of the VGG Image Annotator, which holds polygons", {"_via_settings"}),
    ("a project of the VGG Image Annotator, which holds polygons", {"_via_img_metadata"}),
    ("labelme's annotation of one image, which holds polygons", {"shapes", "imagePath"}),
    ("the annotation of one image, which holds polygons", {"objects", "size"}),
    ("the annotation of one image, which holds polygons", {"objects", "imgHeight"}),
    ("a notebook", {"cells", "nbformat"}),
)
"""Kinds of files that are not class lists, and keys of their object."""

_ANNOTATION_PARTS = (
    ("annotations of the VGG Image Annotator, which hold polygons", {"regions", "filename"}),
    ("COCO results, which hold polygons", {"image_id", "segmentation"}),
    ("Label Studio's export", {"annotations"}),
    ("Label Studio's export", {"completions"}),
    ("Label Studio's export", {"annotation_id"}),
)
"""Kinds of files that are not class lists, and keys of the objects in their object or list."""


def parse_json(text: str, ids: Ids | None, is_named: bool) -> Parsed:
    """Parse a class list in JSON.

    Args:
        text: the contents of the file.
        ids: which number the masks store if each class has an `id` and a `trainId`.
        is_named: whether the file's name says that it lists classes, so that any JSON table in it
            does.

    Raises:
        RefusedError: the text is not JSON, or not a class list.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            f"it begins like JSON but is not valid JSON ({error}); correct it, or {ADVICE}"
        ) from error
    _refuse_annotations(value)
    if isinstance(value, dict):
        return _parse_object(value, ids, is_named)
    if not is_named and all(isinstance(item, str) for item in value):
        raise RefusedError(_UNKNOWN)
    return _parse_list(value, "a JSON list", ids)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"{listing(repeated)} stands twice in one object")
    return dict(pairs)


def _refuse_annotations(value: Any) -> None:
    """Raise `RefusedError` for known files that hold annotations, not classes."""
    parts = list(value.values()) if isinstance(value, dict) else value[:1]
    for objects, kinds in (([value], _ANNOTATIONS), (parts, _ANNOTATION_PARTS)):
        for kind, keys in kinds:
            if any(isinstance(item, dict) and keys <= item.keys() for item in objects):
                raise RefusedError(
                    f"it is {kind}, not a list of classes; export masks as PNG images, then "
                    f"{ADVICE}"
                )


def _parse_object(value: dict[str, Any], ids: Ids | None, is_named: bool) -> Parsed:
    if isinstance(value.get("label_map"), dict):
        parsed = _parse_pairs(value["label_map"], "Datumaro's dataset_meta.json")
        colors = value.get("segmentation_colors")
        if isinstance(colors, list) and len(colors) == len(parsed.entries):
            parsed.entries = [
                dataclasses.replace(entry, color=color(given))
                for entry, given in zip(parsed.entries, colors, strict=True)
            ]
        return parsed
    for key, kind in _LISTS:
        items = value.get(key)
        if isinstance(items, list) and (
            is_named or (items and all(isinstance(item, dict) for item in items))
        ):
            return _parse_list(items, kind, ids)
    for key in ("id2label", "label2id", *(("labels", "classes", "names") if is_named else ())):
        if isinstance(value.get(key), dict):
            return _parse_pairs(value[key], "a JSON table of classes")
    if is_named:
        return _parse_pairs(value, "a JSON table of classes")
    raise RefusedError(_UNKNOWN)


def _parse_pairs(pairs: dict[str, Any], kind: str) -> Parsed:
    """Parse `{"0": "road"}`, `{"road": 0}`, `{"road": [128, 64, 128]}` or `{"road": "#804080"}`."""
    parsed = Parsed(kind)
    for key, value in pairs.items():
        name, stored, shown = key.strip(), None, None
        if number(key) is not None and isinstance(value, str):
            name, stored = value.strip(), number(key)
        elif isinstance(value, int) and not isinstance(value, bool):
            stored = value
        elif (shown := color(value)) is None:
            raise RefusedError(
                f"it is JSON that is not known as a list of classes (key {key!r}); write a list of "
                f"objects with `name`, `id` and `color`, or a classes.txt: {ADVICE}"
            )
        parsed.entries.append(Entry(name, stored, shown, where=f"key {key!r}"))
    return parsed


def _parse_list(items: Sequence[Any], kind: str, ids: Ids | None) -> Parsed:
    if all(isinstance(item, str) for item in items):
        return Parsed(kind, [Entry(it.strip(), where=f"item {at}") for at, it in enumerate(items)])
    if not all(isinstance(item, dict) for item in items):
        raise RefusedError(
            "it is a JSON list whose items are neither names nor objects with a `name`; " + ADVICE
        )
    items = [_with_known_keys(item) for item in items]
    key = stored_id(items, ids)
    trains = any("trainId" in item for item in items)
    parsed = Parsed(kind)
    for at, item in enumerate(items):
        problem = _add(parsed, item, key, trains, f"item {at}")
        if problem:
            parsed.problems.append(f"item {at}: {problem}")
    if key:
        parsed.drop_unstored_void(key)
    return parsed


def _add(parsed: Parsed, item: dict[str, Any], key: str | None, trains: bool, where: str) -> str:
    """Add an object's entry; return the problem with the object, or an empty string."""
    # Mapillary calls "construction--flat--road" by the readable "Road".
    names = [item.get(k) for k in ("readable", "name", "title", "label", "class")]
    name = next((name for name in names if isinstance(name, str)), None)
    if name is None:
        return "it has no `name`"
    void = item.get("ignoreInEval") is True or item.get("evaluate") is False
    value = item.get(key, IGNORE_INDEX if key == "trainId" else None) if key else None
    if key and (not isinstance(value, int) or isinstance(value, bool)):
        return f"{key} {value!r} is not a whole number"
    if value is not None and (value < 0 or (key == "trainId" and value == IGNORE_INDEX)):
        value, void = None, True
    shown = color(item.get("color"))
    void |= key == "id" and item.get("trainId", IGNORE_INDEX if trains else 0) in UNUSED
    parsed.entries.append(Entry(name.strip(), value, shown, void, where))
    if item.get("color") is not None and shown is None:
        return f'color {item["color"]!r} is not a color; write [R, G, B] or "#RRGGBB"'
    return ""


def _with_known_keys(item: dict[str, Any]) -> dict[str, Any]:
    """An object with known spellings of its keys, and quoted numbers as numbers."""
    given = {key: value for key, value in item.items() if value is not None}
    item = {_KNOWN_KEYS.get(key_of(key), key): value for key, value in given.items()} | given
    for key in ("id", "trainId", *OTHER_IDS):
        if isinstance(item.get(key), str) and number(item[key]) is not None:
            item[key] = number(item[key])
    return item
