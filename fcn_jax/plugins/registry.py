"""The index of plugins: found through entry points, imported when a name is first used.

    registry.default().backbone("vgg16")              # by name
    registry.default().backbone("fcn-jax-vgg:vgg16")  # if two distributions claim the name
    registry.default().dataset("tfds:oxford_iiit_pet")  # one of the datasets that tfds stands for

Until then only metadata is read, so a slow or broken plugin costs nothing to users of others.
`FCN_JAX_DISABLE_PLUGINS` disables distributions: "1" or "all" means every one except fcn-jax;
otherwise it is a comma-separated list.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any, cast

from fcn_jax.errors import ConfigError, PluginError, did_you_mean
from fcn_jax.plugins.api import Backbone, Dataset, Descriptor, Head, Loss, Model
from fcn_jax.plugins.entry import KINDS, Entry, import_descriptor, singular

DISABLE_VARIABLE = "FCN_JAX_DISABLE_PLUGINS"
OWN_DISTRIBUTION = "fcn-jax"

_MANY = "tfds"
"""The dataset that stands for many, by `Dataset.variant`: in tfds:NAME, it is no distribution."""

_DISTRIBUTION = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE)


class Registry:
    """An index over entries, which imports a plugin when its name is first used."""

    def __init__(self, entries: Iterable[Entry], *, disable: str = "") -> None:
        """Sort the entries.

        Args:
            entries: if a distribution has the same name twice, the first counts.
            disable: distributions to leave out, as in `FCN_JAX_DISABLE_PLUGINS`.
        """
        unique: dict[tuple[str, str, str], Entry] = {}
        for entry in entries:
            unique.setdefault((entry.kind, entry.name, normalized(entry.distribution)), entry)
        known = sorted(unique.values())
        self._disabled = [entry for entry in known if _is_disabled(entry, disable)]
        self._entries = [entry for entry in known if entry not in self._disabled]
        self._imported: dict[Entry, Descriptor | PluginError] = {}

    def backbone(self, name: str) -> Backbone:
        """The backbone of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Backbone, self.get("backbones", name))

    def head(self, name: str) -> Head:
        """The head of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Head, self.get("heads", name))

    def model(self, name: str) -> Model:
        """The model of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Model, self.get("models", name))

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Dataset, self.get("datasets", name))

    def loss(self, name: str) -> Loss:
        """The loss of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Loss, self.get("losses", name))

    def get(self, kind: str, name: str) -> Descriptor:
        """The descriptor of that kind and name; its module is imported on the first call.

        Args:
            kind: a key of `KINDS`.
            name: a registered name, or `distribution:name`.

        Raises:
            ConfigError: nothing of that name is registered.
            PluginError: two distributions claim the name; or the plugin cannot be imported, is
                another type of descriptor, or was built for another version of the contract. The
                plugin's exception is chained, on every call.
        """
        entry = self.find(kind, name)
        if entry not in self._imported:
            try:
                self._imported[entry] = import_descriptor(entry)
            except PluginError as error:
                self._imported[entry] = error
        found = self._imported[entry]
        if isinstance(found, PluginError):
            raise PluginError(str(found)) from found.__cause__
        if isinstance(found, Dataset) and found.variant and _is_variant(kind, name):
            return found.variant(name.partition(":")[2])
        return found

    def find(self, kind: str, name: str) -> Entry:
        """The entry of a name, without importing it.

        Raises:
            ConfigError: nothing of that name is registered.
            PluginError: two distributions claim the name.
        """
        found = _matching(self._entries, kind, _MANY if _is_variant(kind, name) else name)
        if len(found) == 1:
            return found[0]
        what = singular(kind)
        if found:
            owners = " and ".join(f"{entry.distribution} {entry.version}" for entry in found)
            choices = " or ".join(f"'{entry.full_name}'" for entry in found)
            raise PluginError(
                f"{what} '{name}' is registered by {owners}: write {choices} to choose one, or "
                "uninstall the other"
            )
        if disabled := _matching(self._disabled, kind, name):
            owners = ", ".join(entry.distribution for entry in disabled)
            raise ConfigError(f"{what} '{name}' is disabled: {DISABLE_VARIABLE} disables {owners}")
        if not self._entries:
            raise ConfigError(
                f"no {what} '{name}': no plugins are registered; is fcn-jax installed "
                "(pip install -e .)?"
            )
        available = (
            [entry.full_name for entry in self.entries(kind)] if ":" in name else self.names(kind)
        )
        raise ConfigError(
            f"no {what} is named '{name}'{self.hint(name)}. {did_you_mean(name, available)}"
        )

    def hint(self, name: str) -> str:
        """Why an unknown `distribution:name` may be unknown, to append to a message."""
        distribution = name.rpartition(":")[0]
        if not distribution:
            return ""
        if own := _of(self._entries, distribution):
            kinds = {
                kind: ", ".join(entry.name for entry in own if entry.kind == kind) for kind in KINDS
            }
            registers = "; ".join(f"{kind} {names}" for kind, names in kinds.items() if names)
            return f": {own[0].distribution} {own[0].version} registers {registers}"
        if _of(self._disabled, distribution):
            return f": {DISABLE_VARIABLE} disables {distribution}"
        for broken, fault in faults().items():
            if normalized(broken) == normalized(distribution):
                return f": {distribution} is installed, but {fault}"
        if not _DISTRIBUTION.fullmatch(distribution):
            return ": the part before ':' is not a valid name of a distribution"
        try:
            metadata.distribution(distribution)
        except metadata.PackageNotFoundError:
            return f": {distribution} is not installed: pip install {distribution}"
        return f": {distribution} is installed, but registers nothing for fcn-jax"

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, sorted."""
        return sorted({entry.name for entry in self.entries(kind)})

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All entries that are not disabled, or those of a kind, sorted by kind and name."""
        if kind is not None:
            singular(kind)
        return [entry for entry in self._entries if kind in (None, entry.kind)]

    def conflict(self, entry: Entry) -> str | None:
        """Which distributions claim an entry's name, too, and what to do; None if no other does."""
        others = [
            other for other in _matching(self._entries, entry.kind, entry.name) if other != entry
        ]
        if not others:
            return None
        owners = " and ".join(f"{other.distribution} {other.version}" for other in others)
        return (
            f"the name is also claimed by {owners}: write '{entry.full_name}' for this one, or "
            "uninstall or disable the other"
        )

    def own_name(self, kind: str, name: str, distribution: str, *, strict: bool = False) -> str:
        """A name as a distribution means it: its own plugin of that name, if it registers one.

        Args:
            kind: a key of `KINDS`.
            name: a registered name; `distribution:name` is returned as it is.
            distribution: the distribution that uses the name.
            strict: the name means that distribution's plugin even if it does not register one here.

        Returns:
            The name, with the distribution in front if the bare name would be ambiguous or mean
            another distribution's plugin.
        """
        if ":" in name:
            return name
        found = _matching(self._entries, kind, name)
        if own := _of(found, distribution):
            return name if found == own else own[0].full_name
        return f"{distribution}:{name}" if strict and distribution != "unknown" else name

    def record(self, kind: str, name: str) -> dict[str, str]:
        """Name, distribution and version of a plugin, for a checkpoint. Raises as `find` does."""
        entry = self.find(kind, name)
        short = name if _is_variant(kind, name) else entry.name
        return {"name": short, "distribution": entry.distribution, "version": entry.version}


def default() -> Registry:
    """The registry of all installed plugins that `FCN_JAX_DISABLE_PLUGINS` does not disable."""
    return _registry(os.environ.get(DISABLE_VARIABLE, ""))


@functools.cache
def _registry(disable: str) -> Registry:
    return Registry(_installed()[0], disable=disable)


def faults() -> dict[str, str]:
    """Distributions whose entry points are unreadable or in an unknown group, and what is wrong."""
    return dict(_installed()[1])


@functools.cache
def _installed() -> tuple[list[Entry], dict[str, str]]:
    return read_metadata(metadata.distributions())


def read_metadata(
    distributions: Iterable[metadata.Distribution],
) -> tuple[list[Entry], dict[str, str]]:
    """The entries of distributions, and the faults in their metadata by distribution.

    `importlib.metadata.entry_points()` would raise on the first broken file of any distribution.
    Like it, this skips a distribution that another one of the same name hides, because it comes
    earlier on the import path.
    """
    entries: list[Entry] = []
    problems: dict[str, str] = {}
    for distribution in distributions:
        name, version = "unknown", "unknown"
        try:
            if "fcn_jax." not in (distribution.read_text("entry_points.txt") or ""):
                continue
            headers: Any = distribution.metadata or {}
            name, version = headers.get("Name", name), headers.get("Version", version)
            if _is_hidden(distribution, name):
                continue
            for point in distribution.entry_points:
                prefix, _, kind = point.group.partition(".")
                if prefix == "fcn_jax" and kind in KINDS:
                    entries.append(Entry(kind, point.name, name, version, point.value))
                elif prefix == "fcn_jax":
                    known = [f"fcn_jax.{kind}" for kind in KINDS]
                    problems[name] = (
                        f"its entry-point group '{point.group}' is unknown, so '{point.name}' is "
                        f"not registered. {did_you_mean(point.group, known)}"
                    )
        except Exception as error:  # caused by whatever somebody wrote into the file
            where = name if name != "unknown" else f"a distribution in {_folder(distribution)}"
            problems[where] = f"its entry points cannot be read: {type(error).__name__}: {error}"
    return entries, problems


def _is_hidden(distribution: metadata.Distribution, name: str) -> bool:
    try:
        first = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return _folder(first) != _folder(distribution)


def _folder(distribution: metadata.Distribution) -> str:
    return str(distribution.locate_file(""))


def _matching(entries: Iterable[Entry], kind: str, name: str) -> list[Entry]:
    singular(kind)
    distribution, _, short = name.rpartition(":")
    found = [entry for entry in entries if (entry.kind, entry.name) == (kind, short)]
    return _of(found, distribution) if distribution else found


def _is_variant(kind: str, name: str) -> bool:
    return kind == "datasets" and name.startswith(f"{_MANY}:")


def _of(entries: Iterable[Entry], distribution: str) -> list[Entry]:
    """The entries of a distribution."""
    return [
        entry for entry in entries if normalized(entry.distribution) == normalized(distribution)
    ]


def _is_disabled(entry: Entry, disable: str) -> bool:
    if disable.strip().lower() in ("1", "all"):
        return normalized(entry.distribution) != OWN_DISTRIBUTION
    return normalized(entry.distribution) in map(normalized, filter(str.strip, disable.split(",")))


def normalized(distribution: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()
