"""The index of plugins: backbones, heads, whole models and datasets, found through entry points and loaded when asked for.

    registry.default().backbone("vgg16")              # by name
    registry.default().backbone("fcn-jax-vgg:vgg16")  # by distribution and name, where two
    distributions claim the name

Only metadata is read until a name is asked for, so a plugin that is slow, broken or built for
another version of the contract costs nothing to anyone who does not use it. `isolation.check_all`
loads each in a process of its own and says what is wrong with it. `FCN_JAX_DISABLE_PLUGINS`
switches distributions off: "1" or "all" for every one but fcn-jax itself, otherwise a
comma-separated list of distributions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from fcn_jax.errors import ConfigError, PluginError, did_you_mean
from fcn_jax.plugins.api import API_VERSION, Backbone, Dataset, Head, Model

KINDS: dict[str, type] = {
    "backbones": Backbone,
    "heads": Head,
    "models": Model,
    "datasets": Dataset,
}
"""What can be registered: the entry-point group `fcn_jax.<kind>`, and the type of its descriptors."""

DISABLE_VARIABLE = "FCN_JAX_DISABLE_PLUGINS"
OWN_DISTRIBUTION = "fcn-jax"

_DISTRIBUTION = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE)

Descriptor = Backbone | Head | Model | Dataset


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """One registered name, as the metadata of installed distributions tells it; nothing has been imported.

    Attributes:
        kind: "backbones", "heads", "models" or "datasets".
        name: the name it is registered under.
        distribution: the installed distribution that registers it.
        version: of that distribution.
        value: `module:attribute` of its descriptor.
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str

    @property
    def full_name(self) -> str:
        """`distribution:name`, which is never ambiguous."""
        return f"{self.distribution}:{self.name}"

    def __str__(self) -> str:
        """For messages: what it is, and whose."""
        return f"{_singular(self.kind)} '{self.name}' of {self.distribution} {self.version} ({self.value})"


class Registry:
    """An index over entry points, which loads a plugin when its name is first asked for."""

    def __init__(
        self, entry_points: Iterable[metadata.EntryPoint | Entry], *, disable: str = ""
    ) -> None:
        """Read the metadata.

        Args:
            entry_points: those of other groups than `fcn_jax.*` are passed over; entries made by
                hand stand for themselves. Of one distribution given twice (a project's own entries
                beside those of its installed copy) the first counts.
            disable: distributions to leave out, in the form of `FCN_JAX_DISABLE_PLUGINS`.
        """
        unique: dict[tuple[str, str, str], Entry] = {}
        for entry in _entries(entry_points):
            unique.setdefault((entry.kind, entry.name, normalized(entry.distribution)), entry)
        self._entries = sorted(
            entry for entry in unique.values() if not _is_disabled(entry, disable)
        )
        self._disabled = [entry for entry in unique.values() if _is_disabled(entry, disable)]
        self._loaded: dict[Entry, Descriptor] = {}
        self._failed: dict[Entry, PluginError] = {}

    def backbone(self, name: str) -> Backbone:
        """The backbone of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Backbone, self.get("backbones", name))

    def head(self, name: str) -> Head:
        """The head of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Head, self.get("heads", name))

    def model(self, name: str) -> Model:
        """The whole model of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Model, self.get("models", name))

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Dataset, self.get("datasets", name))

    def get(self, kind: str, name: str) -> Descriptor:
        """The descriptor of that kind and name; its module is imported on the first call.

        Args:
            kind: a key of `KINDS`.
            name: a registered name, or `distribution:name`.

        Raises:
            ConfigError: nothing of that name is registered.
            PluginError: two distributions claim the name; or the plugin cannot be imported, is no
                such descriptor, or was built for another version of the contract. What it raised is
                kept and chained, on every call.
        """
        entry = self.find(kind, name)
        if entry in self._failed:
            raise PluginError(str(self._failed[entry])) from self._failed[entry].__cause__
        if entry not in self._loaded:
            try:
                self._loaded[entry] = load(entry)
            except PluginError as error:
                self._failed[entry] = error
                raise
        return self._loaded[entry]

    def find(self, kind: str, name: str) -> Entry:
        """The entry that a name stands for, without importing it. Raises `ConfigError` or, for a claimed name, `PluginError`."""
        found = _matching(self._entries, kind, name)
        if len(found) == 1:
            return found[0]
        what = _singular(kind)
        if found:
            owners = " and ".join(f"{entry.distribution} {entry.version}" for entry in found)
            choices = " or ".join(f"'{entry.full_name}'" for entry in found)
            raise PluginError(
                f"{what} '{name}' is registered by {owners}: write {choices} to pick one, or uninstall the other"
            )
        disabled = _matching(self._disabled, kind, name)
        if disabled:
            owners = ", ".join(entry.distribution for entry in disabled)
            raise ConfigError(
                f"{what} '{name}' is switched off: {DISABLE_VARIABLE} disables {owners}"
            )
        if not self._entries:
            raise ConfigError(
                f"no {what} '{name}': no plugin is registered at all; is fcn-jax installed (pip install -e .)?"
            )
        available = (
            [entry.full_name for entry in self.entries(kind)] if ":" in name else self.names(kind)
        )
        raise ConfigError(
            f"no {what} is named '{name}'{self.hint(name)}. {did_you_mean(name, available)}"
        )

    def hint(self, name: str) -> str:
        """Of a `distribution:name` that is not registered: what is the matter with the distribution, to follow the name in a message."""
        distribution = name.rpartition(":")[0]
        if not distribution:
            return ""
        own = [
            entry
            for entry in self._entries
            if normalized(entry.distribution) == normalized(distribution)
        ]
        if own:
            kinds = {
                kind: ", ".join(entry.name for entry in own if entry.kind == kind) for kind in KINDS
            }
            registers = "; ".join(
                f"{_singular(kind)}s {names}" for kind, names in kinds.items() if names
            )
            return f": {own[0].distribution} {own[0].version} registers {registers}"
        if any(
            normalized(entry.distribution) == normalized(distribution) for entry in self._disabled
        ):
            return f": {DISABLE_VARIABLE} disables {distribution}"
        for folder, fault in unreadable().items():
            if _name_of_folder(folder) == normalized(distribution):
                return f": {distribution} is installed, but {fault}"
        if not _DISTRIBUTION.fullmatch(distribution):
            return ": what stands before ':' cannot be a distribution's name"
        try:
            metadata.distribution(distribution)
        except metadata.PackageNotFoundError:
            return f": {distribution} is not installed: pip install {distribution}"
        return f": {distribution} is installed, but registers nothing for fcn-jax"

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, in order."""
        return sorted({entry.name for entry in self.entries(kind)})

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All that is registered and not switched off, ordered by kind, name and distribution; of one kind if it is given."""
        if kind is not None:
            _singular(kind)
        return [entry for entry in self._entries if kind in (None, entry.kind)]

    def conflict(self, entry: Entry) -> str | None:
        """Who else claims an entry's name, and how to say which is meant; None where no one does."""
        others = [
            other for other in _matching(self._entries, entry.kind, entry.name) if other != entry
        ]
        if not others:
            return None
        owners = " and ".join(f"{other.distribution} {other.version}" for other in others)
        return f"the name is also claimed by {owners}: write '{entry.full_name}' for this one, or uninstall or disable the other"

    def own_name(self, kind: str, name: str, distribution: str, *, strict: bool = False) -> str:
        """What to write for a name that one distribution uses: its own plugin of that name comes first, whoever else registers one.

        Args:
            kind: a key of `KINDS`.
            name: a registered name; `distribution:name` stays as it is.
            distribution: whose word the name is.
            strict: the name means that distribution's plugin and no other, even if the distribution
                does not register it here.

        Returns:
            The name, with the distribution in front where the bare name would be ambiguous, or
            another's.
        """
        if ":" in name:
            return name
        found = _matching(self._entries, kind, name)
        own = [
            entry for entry in found if normalized(entry.distribution) == normalized(distribution)
        ]
        if own:
            return name if found == own else own[0].full_name
        return f"{distribution}:{name}" if strict and distribution != "unknown" else name

    def record(self, kind: str, name: str) -> dict[str, str]:
        """Name, distribution and version of a plugin, for a checkpoint. Raises as `find` does."""
        entry = self.find(kind, name)
        return {"name": entry.name, "distribution": entry.distribution, "version": entry.version}


def default() -> Registry:
    """The registry of what is installed, without what `FCN_JAX_DISABLE_PLUGINS` switches off; read once."""
    return _installed(os.environ.get(DISABLE_VARIABLE, ""))


@functools.cache
def _installed(disable: str) -> Registry:
    return Registry(_readable()[0], disable=disable)


def unreadable() -> dict[str, str]:
    """Installed distributions whose entry points cannot be read, and why: what they register, if anything, is unknown."""
    return dict(_readable()[1])


@functools.cache
def _readable() -> tuple[list[metadata.EntryPoint], dict[str, str]]:
    """The entry points of every installed distribution, and those distributions whose metadata is broken.

    As in `metadata.entry_points()`, only the first of a name on the import path counts: it hides an
    older copy behind it, with all that the copy registers. But that function would raise on the
    first broken one, whoever it belongs to.
    """
    points: list[metadata.EntryPoint] = []
    faults: dict[str, str] = {}
    seen: set[str] = set()
    for distribution in metadata.distributions():
        name = _name_of_folder(_folder(distribution)) or normalized(
            _name_and_version(distribution)[0]
        )
        if name in seen:
            continue
        seen.add(name)
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if "fcn_jax." in text:
                points += [
                    point
                    for point in distribution.entry_points
                    if point.group.startswith("fcn_jax.")
                ]
        except Exception as error:  # whatever a file that someone else wrote leads to
            faults[_folder(distribution) or "unknown place"] = (
                f"its entry points cannot be read: {type(error).__name__}: {error}"
            )
    return points, faults


def load(entry: Entry) -> Descriptor:
    """Import one plugin and hold its descriptor against its registration.

    Raises:
        PluginError: naming the plugin, its distribution, its entry point and the reason; what the
            plugin raised is chained.
    """
    try:
        loaded = metadata.EntryPoint(entry.name, entry.value, f"fcn_jax.{entry.kind}").load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises; SystemExit too
        raise PluginError(f"{entry} cannot be loaded: {type(error).__name__}: {error}") from error
    wanted = KINDS[entry.kind]
    if not isinstance(loaded, wanted):
        raise PluginError(
            f"{entry} is a {type(loaded).__name__}; it must be an fcn_jax.plugins.api.{wanted.__name__}"
        )
    descriptor = cast(Descriptor, loaded)
    if fault := api_version_fault(descriptor.api_version, entry.distribution):
        raise PluginError(f"{entry} {fault}")
    if descriptor.name != entry.name:
        raise PluginError(
            f"{entry} calls itself '{descriptor.name}'; its entry point must have the same name"
        )
    return descriptor


def api_version_fault(theirs: Any, distribution: str = "the plugin") -> str | None:
    """What is wrong with a descriptor's `api_version`, and which side to upgrade; None if this fcn-jax understands it."""
    ours = API_VERSION
    if not (isinstance(theirs, tuple) and [type(part) for part in theirs] == [int, int]):
        return f"has api_version {theirs!r}; it must be two integers, such as {ours}"
    if theirs[0] == ours[0] and theirs[1] <= ours[1]:
        return None
    side = "fcn-jax" if theirs > ours else distribution
    versions = f"version {'.'.join(map(str, theirs))} of the plugin contract (api_version), and this fcn-jax has {'.'.join(map(str, ours))}"
    return f"was written for {versions}: upgrade {side}"


def options(descriptor: Backbone | Head, table: Mapping[str, Any]) -> Any:
    """Validate an open table, such as a recipe's `[model.backbone_options]`, by the descriptor's own options type.

    Args:
        descriptor: of the backbone or head.
        table: what JSON can hold. A float may be given as an integer, a tuple as a list; nothing
            else is converted.

    Returns:
        An instance of `descriptor.options`.

    Raises:
        ConfigError: listing every unknown key and every bad value.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    # A plain dataclass takes over the strictness of the model around it, at any depth. Strict JSON
    # lets a list be a tuple.
    whole = create_model(
        "Options",
        __config__=ConfigDict(extra="forbid", strict=True),
        options=(descriptor.options, ...),
    )
    try:
        return whole.model_validate_json(json.dumps({"options": dict(table)}, default=str)).options  # type: ignore[attr-defined]
    except ValidationError as error:
        known = [field.name for field in dataclasses.fields(descriptor.options) if field.init]
        problems = [_problem(cast(Mapping[str, Any], fault), known) for fault in error.errors()]
    kind = type(descriptor).__name__.lower()
    raise ConfigError(f"the options of {kind} '{descriptor.name}' are wrong: {'; '.join(problems)}")


def _problem(fault: Mapping[str, Any], known: list[str]) -> str:
    """One of pydantic's findings in a sentence."""
    path = fault["loc"][1:]
    key = ".".join(map(str, path))
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        hint = f" {did_you_mean(key, known).rstrip('.')}" if len(path) == 1 else ""
        return f"unknown key '{key}'.{hint}" if hint else f"unknown key '{key}'"
    if fault["type"] == "value_error":
        text = str(fault["ctx"]["error"])
        return f"'{key}': {text}" if key else text
    return f"'{key}' is {fault['input']!r}; {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _entries(entry_points: Iterable[metadata.EntryPoint | Entry]) -> list[Entry]:
    """The entries of this package's groups. A distribution's metadata is read once, however much it registers."""
    read: dict[int, tuple[str, str]] = {}
    found = []
    for entry_point in list(entry_points):
        if isinstance(entry_point, Entry):
            found.append(entry_point)
            continue
        prefix, _, kind = entry_point.group.partition(".")
        if prefix != "fcn_jax" or kind not in KINDS:
            continue
        distribution = entry_point.dist
        if id(distribution) not in read:
            read[id(distribution)] = _name_and_version(distribution)
        found.append(Entry(kind, entry_point.name, *read[id(distribution)], entry_point.value))
    return found


def _name_and_version(distribution: metadata.Distribution | None) -> tuple[str, str]:
    try:
        headers: Any = distribution.metadata if distribution else {}
        return headers.get("Name") or "unknown", headers.get("Version") or "unknown"
    except Exception:  # a distribution without METADATA is still one whose plugins can be had
        return Path(_folder(distribution) or "unknown").stem, "unknown"


def _folder(distribution: metadata.Distribution | None) -> str:
    """The name of the folder of a distribution's metadata, on disk or in a zip file; "" where it has none."""
    return getattr(getattr(distribution, "_path", None), "name", "")


def _name_of_folder(folder: str) -> str | None:
    """The normalized name of a distribution by that of its metadata's folder, which tells it without reading; None where it does not."""
    path = Path(folder)
    return (
        normalized(path.stem.partition("-")[0])
        if path.suffix in (".dist-info", ".egg-info")
        else None
    )


def _matching(entries: Iterable[Entry], kind: str, name: str) -> list[Entry]:
    _singular(kind)
    distribution, _, short = name.rpartition(":")
    of_name = [entry for entry in entries if (entry.kind, entry.name) == (kind, short)]
    return [
        entry
        for entry in of_name
        if not distribution or normalized(entry.distribution) == normalized(distribution)
    ]


def _is_disabled(entry: Entry, disable: str) -> bool:
    if disable.strip().lower() in ("1", "all"):
        return normalized(entry.distribution) != OWN_DISTRIBUTION
    return normalized(entry.distribution) in {
        normalized(name) for name in disable.split(",") if name.strip()
    }


def normalized(distribution: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def _singular(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind is '{kind}'; it must be one of {', '.join(KINDS)}")
    return "dataset" if kind == "datasets" else kind.removesuffix("s")
