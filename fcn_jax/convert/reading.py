"""Decides how to read a file: which state dict, without which prefix, by which table of names."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from fcn_jax.convert.matching import Leaves
from fcn_jax.errors import WeightsError, listing
from fcn_jax.pytorch import state_dicts
from fcn_jax.pytorch.rules import Table
from fcn_jax.pytorch.state_dicts import Entry, StateDict

Tables = Mapping[tuple[str, str], Table]
"""Tables by (scope, key format); the scope is "model" or "backbone"."""

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
WRAPPERS |= {"_forward_module", "_module", "_ddp_module"}
"""Names that DataParallel, torch.compile, FSDP and others put around a network or a part of it."""

_USUAL_PREFIXES = WRAPPERS | {"model", "net", "network", "backbone", "encoder"}
"""Prefixes that even a small part of a network may have. Under others, names may fit by chance."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """One way to read a file.

    Attributes:
        state: the state dict.
        prefix: the start of every name of the network, such as "module.".
        scope: "model", or "backbone" for the backbone alone.
        key_format: naming scheme of the tables.
        names: name without the prefix and without wrappers of parts -> name in the file.
        known: number of the names that the model has.
        sized: number of those whose tensors have as many values as the model's.
        missing: number of the model's names that the file lacks.
    """

    state: StateDict
    prefix: str
    scope: str
    key_format: str
    names: Mapping[str, str]
    known: int
    sized: int
    missing: int

    @property
    def label(self) -> str:
        """Its name for `--key`: the keys and the prefix."""
        return ".".join(part for part in (self.state.key, self.prefix.rstrip(".")) if part)

    def all_names(self) -> dict[str, str]:
        """The names of all tensors -> names in the file. Those outside the prefix are unchanged."""
        names = dict(self.names)
        read = set(names.values())
        for raw in self.state.tensors:
            if raw not in read:
                names[raw if raw not in names else f"{raw} (outside of '{self.prefix}')"] = raw
        return names


def readings(states: Sequence[StateDict], tables: Tables, targets: Leaves) -> list[Reading]:
    """Find all ways to read a file by which its names are known, the best first.

    The best one finds most of the model's tensors, by name and size, then by name. Ties: fewer
    missing tensors; then weights before their running averages (`state_dicts.is_average`, by keys
    and prefixes); then the state dict nearer to the top.
    """
    expected = {
        key: {name: math.prod(targets[path].shape) for path, name in table.names(targets).items()}
        for key, table in tables.items()
    }
    segments = {part for names in expected.values() for name in names for part in name.split(".")}
    found = []
    for state in states:
        for prefix, names in _without_prefixes(state.tensors, WRAPPERS - segments).items():
            for (scope, key_format), sizes in expected.items():
                known = names.keys() & sizes.keys()
                is_usual = set(prefix.split(".")[:-1]) <= _USUAL_PREFIXES
                if known and (10 * len(known) >= len(sizes) or is_usual):
                    sized = sum(_size(state, names[name]) == sizes[name] for name in known)
                    counts = (len(known), sized, len(sizes) - len(known))
                    found.append(Reading(state, prefix, scope, key_format, names, *counts))

    def quality(reading: Reading) -> tuple[object, ...]:
        return (
            reading.sized,
            reading.known,
            -reading.missing,
            not state_dicts.is_average(reading.label),
            # If the key is an average's, the label says nothing about the prefix.
            not state_dicts.is_average(reading.prefix),
            not reading.state.joined,
            -reading.label.count("."),
        )

    return sorted(found, key=quality, reverse=True)  # stable: of equal ones the first in the file


def _size(state: StateDict, name: str) -> int:
    return math.prod(state.tensors.shape(name))


def _without_prefixes(
    names: Collection[str], wrappers: Collection[str]
) -> dict[str, dict[str, str]]:
    """For every dotted prefix: the rest of the name without wrappers -> the complete name."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        parts = name.split(".")
        for i, first in enumerate(parts):
            if first in wrappers:
                continue  # a wrapper around everything that follows belongs to the prefix
            rest = ".".join(part for part in parts[i:] if part not in wrappers)
            prefix = "".join(f"{part}." for part in parts[:i])
            known = found.setdefault(prefix, {})
            if rest not in known or name == prefix + rest:
                known[rest] = name
    return found


def choose(
    found: Sequence[Reading], key: str, states: Sequence[StateDict], source: str
) -> tuple[Reading, list[str]]:
    """Choose the best of the readings, or the best under a key.

    Returns:
        The reading, and the labels of other readings that are as complete.

    Raises:
        WeightsError: the key does not exist.
    """
    best = found[0]
    if key:
        for reading in found:
            if key in (reading.label, reading.state.key, reading.prefix.rstrip(".")):
                return reading, []
        labels = [reading.label for reading in found if 2 * reading.known >= best.known]
        keys = dict.fromkeys(filter(None, [*labels, *(state.key for state in states)]))
        available = (
            f"there are: {listing(keys)}" if keys else "its names have no key and no common prefix"
        )
        raise WeightsError(
            f"{source}: has no weights of this model under the key '{key}'; {available}"
        )

    def rank(reading: Reading) -> tuple[object, ...]:
        return reading.sized, reading.known, reading.scope, reading.key_format

    equal = dict.fromkeys(reading.label for reading in found if rank(reading) == rank(best))
    return best, [label for label in equal if label != best.label]


# ------------------------------------------------------------- tensors outside of the network


def other_weights(reading: Reading, states: Sequence[StateDict]) -> list[StateDict]:
    """The state dicts of a file that hold layers and are not part of the reading's."""
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


def separate_parts(
    reading: Reading, found: Sequence[Reading], others: Sequence[StateDict], table: Table
) -> dict[str, Entry]:
    """The tensors in other state dicts that may belong to the network of a backbone, as its head.

    They must not be lost silently. The result lacks copies of the backbone, running averages, the
    states of losses, and names that the table knows, because nobody asked to load them from there.
    """
    copies = [other.state for other in found if 2 * other.known >= reading.known]
    entries: dict[str, Entry] = {}
    own_names = reading.all_names()
    for state in others:
        parts = state.key.split(".")
        for part in reading.state.key.split("."):  # a key around both says nothing about either
            if parts[:1] != [part]:
                break
            parts = parts[1:]
        if (
            any(_SCORES.fullmatch(part) for part in parts)
            or state_dicts.is_average(".".join(parts))
            or any(state is copy for copy in copies)
        ):
            continue
        for raw in state.tensors:
            name = f"{state.key}.{raw}" if state.key else raw
            if name not in own_names and table.to_jax(name) is None:
                entries[name] = state.tensors.entry(raw)
    return entries


_COUNTS = (
    "n_averaged num_updates decay initted step steps _step global_step iteration iterations epoch "
    "num_steps current_step"
)

_SCORES = re.compile(
    r"(.*_)?(criterions?|criteria|loss(es)?|loss_?(fn|func|function)|metrics?|mean_?iou|m?iou|"
    r"jaccard|jaccard_index|accuracy|acc|confmat|confusion|confusion_matrix|dice|f1|f1_?score|"
    r"auroc|ohem)(_.*)?",
    re.I,
)

_NORMALIZATION = "mean std pixel_mean pixel_std image_mean image_std _mean _std"

OTHER_HEAD = "belongs to another head; the model's own is re-initialized (--reinit)"


def leftovers(
    reading: Reading, found: Sequence[Reading], table: Table, targets: Leaves, new_head: bool
) -> Callable[[str], str | None]:
    """A function that explains the tensors of a file that the model does not have.

    Args:
        reading: how the file is read.
        found: all its readings, which show the other copies of the network.
        table: the table of the reading.
        targets: the model's leaves.
        new_head: whether the head starts again on purpose, so that another head may be dropped.

    Returns:
        Name, as in `Reading.all_names` -> the reason to drop it; None if there is none.
    """
    names = table.names(targets)
    known = set(names.values())
    backbone = {name.split(".")[0] for p, name in names.items() if p.startswith("backbone.")}
    used = [reading.names[name] for name in known if name in reading.names]
    file_names = reading.all_names()
    copies = [
        other.prefix
        for other in found
        if other.state is reading.state
        and other.prefix
        and 2 * other.known >= reading.known
        and not any(name.startswith(other.prefix) for name in used)
    ]

    first_parts = itertools.takewhile(WRAPPERS.__contains__, reading.prefix.split("."))
    wrappers = "".join(f"{part}." for part in first_parts)

    def reason(name: str) -> str | None:
        inside = name in reading.names
        if (inside or name not in file_names) and (why := table.dropped(name)) is not None:
            return why
        if name not in file_names:  # from `separate_parts`
            return OTHER_HEAD if new_head else None
        raw = file_names[name]
        parts = [part for part in raw.split(".") if part not in WRAPPERS]
        size = _size(reading.state, raw)
        if parts[-1] in _COUNTS.split() and size == 1:
            return "a count of the training or averaging"
        if (
            parts[-1] == "num_batches_tracked"
            and name.removesuffix("num_batches_tracked") + "weight" in known
        ):
            return "a count of batches, which the model does not keep"
        if any(_SCORES.fullmatch(part) for part in (parts[:-1] or parts)) and name not in known:
            return "the state of a loss or metric"
        if parts[-1] in _NORMALIZATION.split() and size <= 4:
            return "the input's normalization; the backbone has its own"
        copy = next((prefix for prefix in copies if raw.startswith(prefix)), None)
        if copy is not None:
            return f"another copy of the network; --key {copy.rstrip('.')} loads it"
        outer = raw.removeprefix(wrappers).split(".")[0]
        if not inside and len(parts) > 1 and state_dicts.is_average(outer):
            return "a running average of the weights"
        if new_head and not (inside and name.split(".")[0] in backbone):
            return OTHER_HEAD
        return None

    return reason
