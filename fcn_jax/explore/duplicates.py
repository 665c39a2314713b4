"""Images that occur several times, by the pixels that are decoded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fcn_jax.explore.contents import Contents
from fcn_jax.explore.problems import Problem

_KEPT = 1000

_Place = tuple[str, int]
"""A split, and the index of a pair in it."""


def duplicates(
    splits: Mapping[str, Contents], used: Sequence[str], *, refused: bool = False
) -> list[Problem]:
    """Find equal images within a split and across splits, and equal images with different masks.

    A split that is a part of another one, as `train` is of VOC's `trainval`, is a note, unless both
    are used in training.

    Args:
        splits: the contents of the splits, by name.
        used: the splits that a training uses.
        refused: whether `fcn_jax.data.overlap` refuses these.
    """
    groups = list(_groups(splits))
    problems = []
    for name in splits:
        repeated = [inside for group in groups if len(inside := _of(group, name)) > 1]
        if repeated:
            extra = sum(len(inside) - 1 for inside in repeated)
            problems.append(
                Problem(
                    "warning",
                    "duplicates",
                    name,
                    f"{extra} of {len(splits[name].source)} images repeat another image of the "
                    "split, pixel by pixel",
                    extra,
                    tuple(
                        " = ".join(splits[name].source[index].id for index in inside)
                        for inside in repeated[:_KEPT]
                    ),
                )
            )
    for first, second in itertools.combinations(splits, 2):
        both_used = {first, second} <= set(used)
        for problem in _across(splits, groups, first, second, both_used):
            severity = "error" if both_used and refused else problem.severity
            problems.append(dataclasses.replace(problem, severity=severity))
    if several := [group for group in groups if _has_other_masks(splits, group)]:
        problems.append(
            Problem(
                "warning",
                "duplicates",
                "",
                "equal images have different masks",
                len(several),
                tuple(" = ".join(_names(splits, group)) for group in several[:_KEPT]),
            )
        )
    return problems


def _groups(splits: Mapping[str, Contents]) -> Iterator[list[_Place]]:
    """The places of images that occur more than once."""
    decoded = {name: np.flatnonzero(contents.decoded) for name, contents in splits.items()}
    digests = [contents.digests[decoded[name], :2] for name, contents in splits.items()]
    _, which, counts = np.unique(
        np.concatenate(digests), axis=0, return_inverse=True, return_counts=True
    )
    which = which.reshape(-1)
    repeated = np.flatnonzero(counts[which] > 1)
    offsets = np.cumsum([0, *map(len, digests)])
    found: dict[int, list[_Place]] = {}
    names = list(splits)
    for position in repeated.tolist():
        part = int(np.searchsorted(offsets, position, "right")) - 1
        place = names[part], int(decoded[names[part]][position - offsets[part]])
        found.setdefault(int(which[position]), []).append(place)
    yield from found.values()


def _across(
    splits: Mapping[str, Contents],
    groups: Sequence[Sequence[_Place]],
    first: str,
    second: str,
    both_used: bool,
) -> Iterator[Problem]:
    shared = [group for group in groups if _of(group, first) and _of(group, second)]
    if not shared:
        return
    sizes = {name: int(splits[name].decoded.sum()) for name in (first, second)}
    counts = {name: sum(len(_of(group, name)) for group in shared) for name in sizes}
    part = next((name for name in sizes if counts[name] == sizes[name]), None)
    if part is not None and not both_used:
        whole = first if part == second else second
        message = f"all {counts[part]} images are in {whole} too"
        yield Problem("note", "duplicates", part, message, counts[part])
        return
    details = (
        f"{splits[second].source[_of(group, second)[0]].id} = "
        f"{first}: {splits[first].source[_of(group, first)[0]].id}"
        for group in shared[:_KEPT]
    )
    message = f"{counts[second]} of {sizes[second]} images are in {first} too, pixel by pixel"
    yield Problem("warning", "duplicates", second, message, counts[second], tuple(details))


def _has_other_masks(splits: Mapping[str, Contents], group: Sequence[_Place]) -> bool:
    return len({int(splits[name].digests[index, 2]) for name, index in group}) > 1


def _of(group: Sequence[_Place], split: str) -> list[int]:
    return [index for name, index in group if name == split]


def _names(splits: Mapping[str, Contents], group: Sequence[_Place]) -> list[str]:
    return [f"{name}: {splits[name].source[index].id}" for name, index in group]
