"""How a file is read: which of its state dicts, without which prefix, by which table of names."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from flax import nnx

from fcn_jax.errors import WeightsError, listing
from fcn_jax.pytorch import state_dicts
from fcn_jax.pytorch.rules import Table
from fcn_jax.pytorch.state_dicts import StateDict, Tensors

WRAPPERS = frozenset(
    (
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "_module",
        "_ddp_module",
    )
)
"""What DataParallel, torch.compile, FSDP, activation checkpointing and others put around a network or a part of it."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """One way to read a file.

    Attributes:
        state: the state dict.
        prefix: what every name of the network begins with, such as "module.".
        scope: "model", or "backbone" for the backbone alone.
        scheme: naming scheme of the tables.
        names: name without the prefix and without wrappers of parts -> name in the file.
        known: how many of the names the model knows.
        sized: how many of those have as many values as the model's.
        missing: how many names of the model are not there.
    """

    state: StateDict
    prefix: str
    scope: str
    scheme: str
    names: Mapping[str, str]
    known: int
    sized: int
    missing: int

    @property
    def label(self) -> str:
        """What `--key` calls it: the keys and the prefix."""
        return ".".join(part for part in (self.state.key, self.prefix.rstrip(".")) if part)

    def tensors(self) -> Tensors:
        """The tensors of the state dict: those of the network by the names of the tables, all others by their own."""
        names = dict(self.names)
        read = set(names.values())
        for raw in self.state.tensors:
            if raw not in read:
                names[raw if raw not in names else f"{raw} (outside of '{self.prefix}')"] = raw
        return self.state.tensors.renamed(names)


def readings(
    states: Sequence[StateDict],
    tables: Mapping[tuple[str, str], Table],
    targets: Mapping[str, nnx.Variable],
) -> list[Reading]:
    """All ways to read a file by which its names are known, the best first.

    The best is the one by which most tensors of the model are there: by name and size, then by
    name. Among equals the one by which fewer are missing; then weights come before running averages
    of them, as `state_dicts.is_average` tells by keys and prefixes, and what is nearer to the top
    of the file before what is deeper.
    """
    wanted = {key: _expected(table, targets) for key, table in tables.items()}
    segments = {part for names in wanted.values() for name in names for part in name.split(".")}
    found = []
    for state in states:
        for prefix, names in _without_prefixes(state.tensors, WRAPPERS - segments).items():
            for (scope, scheme), expected in wanted.items():
                known = names.keys() & expected.keys()
                if known and (10 * len(known) >= len(expected) or _is_usual(prefix)):
                    sized = sum(
                        math.prod(state.tensors.shape(names[name])) == expected[name]
                        for name in known
                    )
                    found.append(
                        Reading(
                            state,
                            prefix,
                            scope,
                            scheme,
                            names,
                            len(known),
                            sized,
                            len(expected) - len(known),
                        )
                    )

    def quality(reading: Reading) -> tuple[object, ...]:
        return (
            reading.sized,
            reading.known,
            -reading.missing,
            not state_dicts.is_average(reading.label),
            not state_dicts.is_average(
                reading.prefix
            ),  # where the key is an average's, it says nothing about what is below it
            not reading.state.joined,
            -reading.label.count("."),
        )

    return sorted(
        found, key=quality, reverse=True
    )  # a stable sort: of equal ones the first in the file


def _is_usual(prefix: str) -> bool:
    """Whether a prefix is one that even a small part of a network would have. Under others a few names may fit by chance."""
    return set(prefix.split(".")[:-1]) <= WRAPPERS | {
        "model",
        "net",
        "network",
        "backbone",
        "encoder",
    }


def _expected(table: Table, targets: Mapping[str, nnx.Variable]) -> dict[str, int]:
    """The names that a table gives to the leaves of a model, and how many values each has."""
    return {
        found[0]: math.prod(leaf.shape)
        for path, leaf in targets.items()
        if (found := table.to_torch(path)) is not None
    }


def _without_prefixes(
    names: Collection[str], wrappers: Collection[str]
) -> dict[str, dict[str, str]]:
    """For every dotted prefix that occurs: what follows it, without the wrappers of parts -> the whole name."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        parts = name.split(".")
        for i, first in enumerate(parts):
            if first in wrappers:
                continue  # a wrapper around all that follows belongs to the prefix
            rest = ".".join(part for part in parts[i:] if part not in wrappers)
            prefix = "".join(f"{part}." for part in parts[:i])
            known = found.setdefault(prefix, {})
            if rest not in known or name == prefix + rest:
                known[rest] = name
    return found


def choose(
    found: Sequence[Reading], key: str, states: Sequence[StateDict], source: str
) -> tuple[Reading, list[str]]:
    """The best of the readings, or the best under a key.

    Returns:
        The reading, and the labels of others by which as much of the model is there.

    Raises:
        WeightsError: nothing lies under the key.
    """
    if key:
        under = [
            reading
            for reading in found
            if key in (reading.label, reading.state.key, reading.prefix.rstrip("."))
        ]
        if not under:
            best = found[0].known
            labels = [
                reading.label for reading in found if reading.label and 2 * reading.known >= best
            ]
            keys = dict.fromkeys([*labels, *(state.key for state in states if state.key)])
            available = (
                f"there are: {listing(keys)}"
                if keys
                else "its names have no key and no common prefix"
            )
            raise WeightsError(
                f"{source}: has no weights of this model under the key '{key}'; {available}"
            )
        return under[0], []
    best_one = found[0]
    equal = [
        reading
        for reading in found[1:]
        if (reading.sized, reading.known, reading.scope, reading.scheme)
        == (best_one.sized, best_one.known, best_one.scope, best_one.scheme)
    ]
    return best_one, [
        label
        for label in dict.fromkeys(reading.label for reading in equal)
        if label != best_one.label
    ]


# ------------------------------------------------------------------------------------------- what a
# file holds besides the network


def other_weights(reading: Reading, states: Sequence[StateDict]) -> list[StateDict]:
    """The state dicts of a file that hold layers and are not part of the one that is read."""
    read = reading.state
    inside = f"{read.key}." if read.key else ""
    return [
        state
        for state in states
        if state is not read
        and not state.joined
        and not (read.joined and (state.key == read.key or state.key.startswith(inside)))
        and state_dicts.holds_layers(state)
    ]


def parts_apart(
    reading: Reading, found: Sequence[Reading], others: Sequence[StateDict]
) -> list[StateDict]:
    """Of other weights those that may belong to the same network as a backbone that is read, such as its head.

    Copies of the backbone, running averages and the states of losses do not.
    """
    copies = [other.state for other in found if 2 * other.known >= reading.known]
    apart = []
    for state in others:
        parts = state.key.split(".")
        for part in reading.state.key.split("."):  # what is around both says nothing about either
            if parts[:1] == [part]:
                parts = parts[1:]
            else:
                break
        is_score = any(_SCORES.fullmatch(part) for part in parts)
        if (
            not is_score
            and not state_dicts.is_average(".".join(parts))
            and not any(state is copy for copy in copies)
        ):
            apart.append(state)
    return apart


_COUNTS = frozenset(
    [
        "n_averaged",
        "num_updates",
        "decay",
        "initted",
        "step",
        "steps",
        "_step",
        "global_step",
        "iteration",
        "iterations",
        "epoch",
        "num_steps",
        "current_step",
    ]
)

_SCORES = re.compile(
    r"(.*_)?(criterions?|criteria|loss(es)?|loss_?(fn|func|function)|metrics?|mean_?iou|m?iou|jaccard|jaccard_index|accuracy|acc|"
    r"confmat|confusion|confusion_matrix|dice|f1|f1_?score|auroc|ohem)(_.*)?",
    re.I,
)

_NORMALIZATION = frozenset(
    ("mean", "std", "pixel_mean", "pixel_std", "image_mean", "image_std", "_mean", "_std")
)

HEAD_LEFT = "belongs to another head; the model's own is re-initialized (--reinit)"


def leftovers(
    reading: Reading,
    found: Sequence[Reading],
    table: Table,
    targets: Mapping[str, nnx.Variable],
    new_head: bool,
) -> Callable[[str], str | None]:
    """What explains a tensor of a file for which the model has no place.

    Args:
        reading: how the file is read.
        found: all its readings; the other copies of the network are known by them.
        table: the table of the reading.
        targets: the model's leaves.
        new_head: whether the head starts again on purpose, so that another head in the file may be
            left.

    Returns:
        Name, as `Reading.tensors` has it -> the reason to leave it out, or None where there is
        none.
    """
    shapes = reading.tensors()
    known = {place[0] for path in targets if (place := table.to_torch(path)) is not None}
    used = [reading.names[name] for name in known if name in reading.names]
    copies = [
        other.prefix
        for other in found
        if other.state is reading.state
        and other.prefix
        and 2 * other.known >= reading.known
        and not any(name.startswith(other.prefix) for name in used)
    ]
    trunk = {
        place[0].split(".")[0]
        for path in targets
        if path.startswith("backbone.") and (place := table.to_torch(path)) is not None
    }

    def reason(name: str) -> str | None:
        inside = name in reading.names
        if inside and (why := table.dropped(name)) is not None:
            return why
        raw = reading.names.get(name, name)
        parts = [part for part in raw.split(".") if part not in WRAPPERS]
        size = math.prod(shapes.shape(name))
        if parts[-1] in _COUNTS and size == 1:
            return "a count of the training or averaging"
        if (
            parts[-1] == "num_batches_tracked"
            and name.removesuffix("num_batches_tracked") + "weight" in known
        ):
            return "a count of batches, which the model does not keep"
        if any(_SCORES.fullmatch(part) for part in (parts[:-1] or parts)) and name not in known:
            return "the state of a loss or metric"
        if parts[-1] in _NORMALIZATION and size <= 4:
            return "the input's normalization; the backbone has its own"
        copy = next((prefix for prefix in copies if raw.startswith(prefix)), None)
        if copy is not None:
            return f"another copy of the network; --key {copy.rstrip('.')} takes it"
        outer = raw.removeprefix(_outer(reading.prefix)).split(".")[0]
        if not inside and len(parts) > 1 and state_dicts.is_average(outer):
            return "a running average of the weights"
        if new_head and not (inside and name.split(".")[0] in trunk):
            return HEAD_LEFT
        return None

    return reason


def _outer(prefix: str) -> str:
    """The wrappers that a prefix begins with."""
    parts: list[str] = []
    for part in prefix.split(".")[:-1]:
        if part not in WRAPPERS:
            break
        parts.append(f"{part}.")
    return "".join(parts)


def head_paths(targets: Mapping[str, nnx.Variable]) -> list[str]:
    """The paths of the head's leaves."""
    return [path for path in targets if path.startswith("head.")]


def names_of(
    paths: Sequence[str], tables: Mapping[tuple[str, str], Table]
) -> Iterator[tuple[str, ...]]:
    """For each path the path itself and the names that the tables of the whole model give it."""
    whole = [table for (scope, _), table in tables.items() if scope == "model"]
    for path in paths:
        yield (path, *(found[0] for table in whole if (found := table.to_torch(path)) is not None))
