"""Other classes than those of a dataset: label maps, merged and ignored classes.

The settings `data.label_map`, `data.merge_classes`, `data.ignore_classes` and
`data.reduce_zero_label` change the classes and the `LabelMap` with which masks are read. Everything
that reads labels follows: training, evaluation, the inspection of masks and the names of classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.errors import ConfigError, did_you_mean, listing
from fcn_jax.plugins.api import IGNORE_INDEX, Classes

IGNORE = "ignore"
BACKGROUNDS = ("background", "bg", "other", "others", "unlabeled", "unlabelled", "void", "none")
"""Names of background classes, in lower case and without underscores."""


@dataclasses.dataclass(frozen=True)
class Remap:
    """How the classes of a dataset change.

    Attributes:
        label_map: old -> new. The old one is a class by its name, or a stored value of the masks;
            the new one is a class by its name or its label, the name of a new class, or "ignore".
        merge_classes: name -> the classes that become one of that name.
        ignore_classes: names of classes whose pixels become `IGNORE_INDEX`.
        reduce_zero_label: whether stored 0 is ignored and the class list begins at stored 1, as in
            ADE20K.
    """

    label_map: Mapping[str, int | str] = dataclasses.field(default_factory=dict)
    merge_classes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    ignore_classes: Sequence[str] = ()
    reduce_zero_label: bool = False

    @classmethod
    def of(cls, data: Any) -> Remap:
        """Take the settings of these names from a recipe's section `data`."""
        return cls(*(getattr(data, field.name) for field in dataclasses.fields(cls)))

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return any(getattr(self, field.name) for field in dataclasses.fields(self))


class Remapped(NamedTuple):
    """Other classes, and how to read masks to their labels.

    Attributes:
        classes: the new classes.
        labels: the labels of stored values and colors.
        new_labels: the new label of each old label, or `IGNORE_INDEX`; None if values of the masks
            that were no label before have become one.
        notes: the new classes, and doubts, one line each.
    """

    classes: Classes
    labels: LabelMap
    new_labels: tuple[int, ...] | None
    notes: tuple[str, ...]


def remapped(classes: Classes, labels: LabelMap, remap: Remap) -> Remapped:
    """Change the classes of a dataset.

    Args:
        classes: the dataset's classes.
        labels: the labels of its masks' values and colors.
        remap: the changes.

    Raises:
        ConfigError: a class is not known, has several new ones or has lost its name, or no class is
            left. All problems are reported at once.
    """
    changes = _Changes(classes, labels, remap)
    groups = changes.groups()
    if changes.problems:
        raise ConfigError(listing(changes.problems, separator="; "))
    return changes.result(groups)


class _Member(NamedTuple):
    """A part of the old data that gets a new class: an old class, or a single stored value."""

    old_class: int | None
    value: int | None = None


@dataclasses.dataclass
class _Group:
    """A new class.

    Attributes:
        name: its name; None until it follows from its members.
        order: the place among the new classes.
        members: what becomes this class.
        by_number: whether the setting gives it by its label.
    """

    name: str | None
    order: tuple[int, int]
    members: list[_Member] = dataclasses.field(default_factory=list)
    by_number: bool = False


_Target = int | str
"""The label of an old class, `IGNORE_INDEX`, or the name of a new class."""


class _Assignment(NamedTuple):
    """The target of a member, the setting that says so, and which of the two are numbers there."""

    target: _Target
    setting: str
    from_number: bool
    to_number: bool


class _Changes:
    """The assignments of a `Remap`, and the problems that they have."""

    def __init__(self, classes: Classes, labels: LabelMap, remap: Remap) -> None:
        self.problems: list[str] = []
        self._classes, self._names, self._remap = classes, classes.names, remap
        self._labels = self._reduced(labels) if remap.reduce_zero_label else labels
        self._assigned: dict[_Member, _Assignment] = {}
        for setting, old, new in self._pairs():
            self._assign(setting, old, new)

    # -------------------------------------------------------------------------------- reading

    def _reduced(self, labels: LabelMap) -> LabelMap:
        numbers = {v: label for v, label in labels.values.items() if label != IGNORE_INDEX}
        setting = "data.reduce_zero_label"
        if labels.colors is not None:
            self.problems.append(
                f"{setting}: the classes have colors, which decide what masks mean; name the class "
                "to ignore in data.ignore_classes"
            )
        elif numbers != {label: label for label in range(len(self._names))}:
            self.problems.append(
                f"{setting}: the class list itself says which stored values its classes have "
                f"({listing(map(str, sorted(numbers)), 6)}), so that labels cannot be one less; "
                "leave the setting out"
            )
        if digits := [old for old in self._remap.label_map if old.isdecimal()]:
            self.problems.append(
                f"{setting} and the numbers {listing(digits)} in data.label_map: it is not clear "
                "whether they are counted before or after; name the classes"
            )
        void = {v: label for v, label in labels.values.items() if label == IGNORE_INDEX}
        values = {0: IGNORE_INDEX, **void, **{v + 1: label for v, label in numbers.items()}}
        return dataclasses.replace(labels, values=values)

    def _pairs(self) -> Iterator[tuple[str, str, int | str]]:
        """The setting, the old class or value, and the new class of each assignment."""
        for old, new in self._remap.label_map.items():
            yield f"data.label_map.{old}", old, new
        for name, olds in self._remap.merge_classes.items():
            if not olds:
                self.problems.append(f"data.merge_classes.{name} is empty; name its classes")
            for old in olds:
                yield f"data.merge_classes.{name}", old, name
        for name in self._remap.ignore_classes:
            yield "data.ignore_classes", name, IGNORE

    def _assign(self, setting: str, old: str, new: int | str) -> None:
        member, target = self._member(setting, old), self._target(setting, new)
        if member is None or target is None:
            return
        if member in self._assigned:
            before = self._assigned[member]
            self.problems.append(
                f"{self._shown(member)} is mapped twice: by {before.setting} to "
                f"{self._named(before.target)}, and by {setting} to {self._named(target)}; keep one"
            )
            return
        numbers = old not in self._names, str(new).isdecimal()
        self._assigned[member] = _Assignment(target, setting, *numbers)

    def _member(self, setting: str, old: str) -> _Member | None:
        if old in self._names:
            return _Member(self._names.index(old))
        if not old.isdecimal():
            known = did_you_mean(old, self._names)
            self.problems.append(f"{setting}: the dataset has no class '{old}'. {known}")
            return None
        value = int(old)
        if value > 65535:
            self.problems.append(f"{setting}: {value} is no stored value; expected 0 to 65535")
            return None
        label = self._labels.values.get(value, IGNORE_INDEX)
        if label != IGNORE_INDEX and [*self._labels.values.values()].count(label) == 1:
            return _Member(label)
        if self._labels.colors is not None:
            # The color of the value would still say something else.
            self.problems.append(
                f"{setting}: {value} is the stored value of no class, and the classes have colors; "
                "give a class by its name"
            )
            return None
        return _Member(None, value)

    def _target(self, setting: str, new: int | str) -> _Target | None:
        count = len(self._names)
        if new == IGNORE or str(new) == str(IGNORE_INDEX):
            return IGNORE_INDEX
        if str(new).isdecimal() or isinstance(new, int):
            if 0 <= int(new) < count:
                return int(new)
            self.problems.append(
                f"{setting} is {new}: expected a label from 0 to {count - 1}, the name of a class "
                f'or of a new class, or "{IGNORE}"'
            )
            return None
        assert isinstance(new, str)
        if new in self._names:
            return self._names.index(new)
        if not any(c.isalnum() for c in new) or not new.isprintable() or new.lower() == "void":
            self.problems.append(
                f"{setting} is {new!r}: not a valid name of a class"
                + (f'; write "{IGNORE}" to ignore its pixels' if new.lower() == "void" else "")
            )
            return None
        return new

    # ------------------------------------------------------------------------------- new classes

    def groups(self) -> list[_Group]:
        """The new classes, in order; adds the problems with them."""
        everything = [_Member(label) for label in range(len(self._names))]
        everything += [member for member in self._assigned if member.old_class is None]
        groups: dict[_Target, _Group] = {}
        for member in everything:
            own, found = member.old_class, self._assigned.get(member)
            target = own if found is None else found.target
            if target is None or target == IGNORE_INDEX:
                continue
            if isinstance(target, str):
                place = len(self._names) if own is None else own
                group = groups.setdefault(target, _Group(target, (place, 1)))
            else:
                group = groups.setdefault(target, _Group(None, (target, 0)))
                if found is not None and own != target:
                    group.by_number |= found.to_number
                    if not (found.from_number or found.to_number) and self._moved(target):
                        self._contradiction(member, target, found.setting)
            group.members.append(member)
        for target, group in groups.items():
            if isinstance(target, int):
                group.name = self._name(target, group, len(groups))
        names = [group.name for group in groups.values() if group.name is not None]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            self.problems.append(f"two of the new classes would be called '{name}'; rename one")
        if not groups and not self.problems:
            self.problems.append(
                f"all {len(self._names)} classes of the dataset would be ignored; keep some"
            )
        return sorted(groups.values(), key=lambda group: group.order)

    def _moved(self, label: int) -> bool:
        """Whether an old class becomes another one."""
        found = self._assigned.get(_Member(label))
        return found is not None and found.target != label

    def _contradiction(self, member: _Member, target: int, setting: str) -> None:
        then = self._assigned[_Member(target)]
        self.problems.append(
            f"{setting}: {self._shown(member)} becomes '{self._names[target]}', which itself "
            f"becomes {self._named(then.target)} by {then.setting}; give the final class of each"
        )

    def _name(self, label: int, group: _Group, count: int) -> str | None:
        """The name of a new class that a setting gives by its label, or that keeps its label."""
        if not self._moved(label) or not group.by_number:
            return self._names[label]
        # The old class of that label has gone elsewhere. Either the dataset's list names the new
        # classes, and masks hold more values than it; or the members take their names along.
        foreign = any(
            member.old_class is None and found.to_number and found.target != IGNORE_INDEX
            for member, found in self._assigned.items()
        )
        if foreign and count == len(self._names):
            return self._names[label]
        if not foreign and count < len(self._names) and len(group.members) == 1:
            return self._names[group.members[0].old_class or 0]
        olds = [self._shown(member) for member in group.members]
        first = group.members[0]
        likely = self._shown(_Member(label) if foreign or len(olds) == 1 else first).strip("'")
        self.problems.append(
            f"data.label_map gives {listing(olds, 6)} the label {label}, and '{self._names[label]}'"
            f" of that label another one, so that the name of the new class is not clear; give it "
            f'by its name, as in {self._key(first)} = "{likely}"'
        )
        return None

    def result(self, groups: Sequence[_Group]) -> Remapped:
        """The new classes and labels, from groups without problems."""
        label_of = {member: new for new, group in enumerate(groups) for member in group.members}
        new_labels = tuple(
            label_of.get(_Member(label), IGNORE_INDEX) for label in range(len(self._names))
        )

        def new(label: int) -> int:
            return label if label == IGNORE_INDEX else new_labels[label]

        singles = [member for member in self._assigned if member.value is not None]
        elsewhere = {self._assigned[m].target for m in singles if self._assigned[m].to_number}
        # If numbers say where all classes are, their positions in the list say nothing more.
        by_position = not elsewhere >= set(range(len(self._names)))
        values = {
            value: new(label)
            for value, label in self._labels.values.items()
            if by_position or label == IGNORE_INDEX or _Member(label) in self._assigned
        }
        for member in singles:
            values[member.value or 0] = label_of.get(member, IGNORE_INDEX)
        colors = self._labels.colors and {c: new(k) for c, k in self._labels.colors.items()}
        assumed = self._labels.assumed_void and all(m.value != IGNORE_INDEX for m in singles)
        names = tuple(group.name or "" for group in groups)
        found = LabelMap(len(names), values, colors, assumed, self._labels.listed)
        return Remapped(
            Classes(names, self._palette(groups)),
            found,
            None if singles else new_labels,
            tuple(self._notes(groups)),
        )

    def _palette(self, groups: Sequence[_Group]) -> tuple[tuple[int, int, int], ...]:
        """The color of each class: of its old namesake, else of its first member."""
        spare = (color for color in voc_palette(256) if color not in self._classes.palette)
        colors = []
        for group in groups:
            olds = [member.old_class for member in group.members if member.old_class is not None]
            if group.name in self._names:
                olds = [self._names.index(group.name)]
            colors.append(self._classes.palette[olds[0]] if olds else next(spare))
        return tuple(colors)

    def _notes(self, groups: Sequence[_Group]) -> Iterator[str]:
        if self._remap.reduce_zero_label:
            yield "data.reduce_zero_label: stored 0 is ignored, and stored 1 is the first class"
            if self._names[0].lower().strip("_") in BACKGROUNDS:
                yield (
                    f"data.reduce_zero_label: the list of classes begins with '{self._names[0]}'; "
                    "it must not name stored 0, which is ignored. To ignore a class that it names, "
                    "use data.ignore_classes"
                )
        if not self._assigned:
            return
        said = []
        for label, group in enumerate(groups):
            members = [self._shown(member).strip("'") for member in group.members]
            of = "" if members == [group.name] else f" (from {listing(members, 6)})"
            said.append(f"{label} {group.name}{of}")
        ignored = [
            self._shown(member).strip("'")
            for member, found in self._assigned.items()
            if found.target == IGNORE_INDEX
        ]
        also = f"; ignored: {listing(ignored)}" if ignored else ""
        yield f"the recipe changes the classes: {listing(said, 24)}{also}"

    # ------------------------------------------------------------------------------- messages

    def _shown(self, member: _Member) -> str:
        if member.old_class is None:
            return f"stored {member.value}"
        return f"'{self._names[member.old_class]}'"

    def _key(self, member: _Member) -> str:
        label = member.old_class
        if label is None:
            return str(member.value)
        return next(str(v) for v, found in self._labels.values.items() if found == label)

    def _named(self, target: _Target) -> str:
        if target == IGNORE_INDEX:
            return IGNORE
        return f"'{self._names[target]}'" if isinstance(target, int) else f"'{target}'"
