"""The index of plugins: backbones, heads, whole models and data sets, found through entry points and loaded when asked for.

    registry.default().backbone("vgg16")              # by name
    registry.default().backbone("fcn-jax-vgg:vgg16")  # by distribution and name, where two distributions claim the name

Only metadata is read until a name is asked for, so a plugin that is slow, broken or built for another version of the contract
costs nothing to anyone who does not use it. `check_all` loads each in a process of its own and says what is wrong with it.
`FCN_JAX_DISABLE_PLUGINS` switches distributions off: "1" or "all" for every one but fcn-jax itself, otherwise a comma-separated list of
distributions.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from fcn_jax.api import API_VERSION, Backbone, Dataset, Head, Model
from fcn_jax.errors import ConfigError, PluginError, did_you_mean

KINDS: dict[str, type] = {"backbones": Backbone, "heads": Head, "models": Model, "datasets": Dataset}
"""What can be registered: the entry-point group `fcn_jax.<kind>`, and the type of its descriptors."""

DISABLE_VARIABLE = "FCN_JAX_DISABLE_PLUGINS"
OWN_DISTRIBUTION = "fcn-jax"

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

    def __init__(self, entry_points: Iterable[metadata.EntryPoint], *, disable: str = "") -> None:
        """Read the metadata.

        Args:
            entry_points: those of other groups than `fcn_jax.*` are passed over. Of one distribution found twice on the import
                path (an editable install beside its egg-info) the first counts.
            disable: distributions to leave out, in the form of `FCN_JAX_DISABLE_PLUGINS`.
        """
        unique: dict[tuple[str, str, str], Entry] = {}
        for entry in _entries(entry_points):
            unique.setdefault((entry.kind, entry.name, _normalised(entry.distribution)), entry)
        self._entries = sorted(entry for entry in unique.values() if not _is_disabled(entry, disable))
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
        """The data set of that name, or `distribution:name`. Raises as `get` does."""
        return cast(Dataset, self.get("datasets", name))

    def get(self, kind: str, name: str) -> Descriptor:
        """The descriptor of that kind and name; its module is imported on the first call.

        Args:
            kind: a key of `KINDS`.
            name: a registered name, or `distribution:name`.

        Raises:
            ConfigError: nothing of that name is registered.
            PluginError: two distributions claim the name; or the plugin cannot be imported, is no such descriptor, or was built
                for another version of the contract. What it raised is kept and chained, on every call.
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
            raise PluginError(f"{what} '{name}' is registered by {owners}: write {choices} to pick one, or uninstall the other")
        disabled = _matching(self._disabled, kind, name)
        if disabled:
            owners = ", ".join(entry.distribution for entry in disabled)
            raise ConfigError(f"{what} '{name}' is switched off: {DISABLE_VARIABLE} disables {owners}")
        if not self._entries:
            raise ConfigError(f"no {what} '{name}': no plugin is registered at all; is fcn-jax installed (pip install -e .)?")
        available = [entry.full_name for entry in self.entries(kind)] if ":" in name else self.names(kind)
        distribution, hint = name.rpartition(":")[0], ""
        if distribution and _normalised(distribution) not in {_normalised(entry.distribution) for entry in self._entries}:
            hint = f": {distribution} is not installed: pip install {distribution}"
        raise ConfigError(f"no {what} is named '{name}'{hint}. {did_you_mean(name, available)}")

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
        others = [other for other in _matching(self._entries, entry.kind, entry.name) if other != entry]
        if not others:
            return None
        owners = " and ".join(f"{other.distribution} {other.version}" for other in others)
        return f"the name is also claimed by {owners}: write '{entry.full_name}' for this one, or uninstall or disable the other"

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

    `metadata.entry_points()` would raise on the first broken one, whoever it belongs to.
    """
    points: list[metadata.EntryPoint] = []
    faults: dict[str, str] = {}
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if "fcn_jax." in text:
                points += [point for point in distribution.entry_points if point.group.startswith("fcn_jax.")]
        except Exception as error:  # whatever a file that someone else wrote leads to
            where = getattr(distribution, "_path", "unknown place")
            faults[Path(where).name] = f"its entry points cannot be read: {type(error).__name__}: {error}"
    return points, faults


def load(entry: Entry) -> Descriptor:
    """Import one plugin and hold its descriptor against its registration.

    Raises:
        PluginError: naming the plugin, its distribution, its entry point and the reason; what the plugin raised is chained.
    """
    try:
        loaded = metadata.EntryPoint(entry.name, entry.value, f"fcn_jax.{entry.kind}").load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises; SystemExit too
        raise PluginError(f"{entry} cannot be loaded: {type(error).__name__}: {error}") from error
    wanted = KINDS[entry.kind]
    if not isinstance(loaded, wanted):
        raise PluginError(f"{entry} is a {type(loaded).__name__}; it must be an fcn_jax.api.{wanted.__name__}")
    descriptor = cast(Descriptor, loaded)
    _check_api_version(entry, descriptor.api_version)
    if descriptor.name != entry.name:
        raise PluginError(f"{entry} calls itself '{descriptor.name}'; its entry point must have the same name")
    return descriptor


def _check_api_version(entry: Entry, theirs: tuple[int, int]) -> None:
    ours = API_VERSION
    if not (isinstance(theirs, tuple) and [type(part) for part in theirs] == [int, int]):
        raise PluginError(f"{entry} has api_version {theirs!r}; it must be two integers, such as {ours}")
    if theirs[0] == ours[0] and theirs[1] <= ours[1]:
        return
    side = "fcn-jax" if theirs > ours else entry.distribution
    versions = f"version {'.'.join(map(str, theirs))} of the plugin contract, and this fcn-jax has {'.'.join(map(str, ours))}"
    raise PluginError(f"{entry} was written for {versions}: upgrade {side}")


def options(descriptor: Backbone | Head, table: Mapping[str, Any]) -> Any:
    """Validate an open table, such as a recipe's `[model.backbone_options]`, by the descriptor's own options type.

    Args:
        descriptor: of the backbone or head.
        table: what JSON can hold. A float may be given as an integer, a tuple as a list; nothing else is converted.

    Returns:
        An instance of `descriptor.options`.

    Raises:
        ConfigError: listing every unknown key and every bad value.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    # A plain dataclass takes over the strictness of the model around it, at any depth. Strict JSON lets a list be a tuple.
    whole = create_model("Options", __config__=ConfigDict(extra="forbid", strict=True), options=(descriptor.options, ...))
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


_CHECK = """
import json, sys
from fcn_jax.errors import PluginError
from fcn_jax.registry import Entry, load

def fault(fields):
    try:
        load(Entry(*fields))
    except PluginError as error:
        return str(error)

answer, entries = sys.argv[1:]
reasons = [fault(fields) for fields in json.loads(entries)]
with open(answer, "w", encoding="utf-8") as file:
    json.dump({"reasons": reasons}, file)
"""


def check(entry: Entry, timeout: float = 60.0) -> str | None:
    """Load one plugin in a process of its own.

    Args:
        entry: from `Registry.entries`.
        timeout: seconds after which the process is killed, with whatever it has started; above 0.

    Returns:
        None if the plugin loads, otherwise the reason why it does not.
    """
    return _check_together([entry], timeout)[0]


def check_all(entries: Iterable[Entry], timeout: float = 60.0) -> dict[Entry, str | None]:
    """`check` for each entry, in the order given.

    What one distribution registers from one module shares a process, and has one of its own each where that process comes to nothing.
    As many run at once as there are processors.
    """
    entries = list(entries)
    modules: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        modules.setdefault((entry.distribution, entry.version, entry.value.partition(":")[0]), []).append(entry)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        faults = pool.map(lambda together: _check_together(together, timeout), modules.values())
        found = dict(zip(itertools.chain(*modules.values()), itertools.chain(*faults), strict=True))
    return {entry: found[entry] for entry in entries}


def _check_together(entries: Sequence[Entry], timeout: float) -> list[str | None]:
    answer, fault = ask_child(_CHECK, [json.dumps([dataclasses.astuple(entry) for entry in entries])], timeout)
    if answer is not None:
        return cast("list[str | None]", answer["reasons"])
    return [fault] if len(entries) == 1 else [check(entry, timeout) for entry in entries]


def ask_child(code: str, arguments: Iterable[str], timeout: float) -> tuple[dict[str, Any] | None, str]:
    """Run code that imports a plugin in a process of its own, with this process's import path.

    Args:
        code: Python that writes a JSON object to the file `sys.argv[1]`. What it prints is not looked at: a plugin may print anything.
        arguments: `sys.argv[2:]`.
        timeout: seconds after which the process is killed, with whatever it has started.

    Returns:
        The object and "", or None and the reason why there is none.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as complaints:
        answer = Path(folder) / "answer.json"
        with subprocess.Popen(
            # -P: the current folder is on the child's import path only if it is on this process's.
            [sys.executable, "-P", "-c", code, str(answer), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        ) as child:
            try:
                child.wait(timeout)
            except subprocess.TimeoutExpired:
                return None, f"timed out after {timeout:g} s at import"
            finally:
                _kill(child)
        try:
            return json.loads(answer.read_text(encoding="utf-8")), ""
        except (OSError, ValueError):
            complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 2000))
            last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
        ended = f"by {signal.Signals(-child.returncode).name}" if child.returncode < 0 else f"with status {child.returncode}"
        return None, f"the import ended the process {ended}" + (f": {last[0]}" if last else "")


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a process and, where the system knows process groups, all that it has started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it ended by itself, and left nothing behind
            return
    else:
        child.kill()


def _entries(entry_points: Iterable[metadata.EntryPoint]) -> list[Entry]:
    """The entries of this package's groups. A distribution's metadata is read once, however much it registers."""
    read: dict[int, tuple[str, str]] = {}
    found = []
    for entry_point in list(entry_points):
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
        return Path(getattr(distribution, "_path", "unknown")).stem, "unknown"


def _matching(entries: Iterable[Entry], kind: str, name: str) -> list[Entry]:
    _singular(kind)
    distribution, _, short = name.rpartition(":")
    of_name = [entry for entry in entries if (entry.kind, entry.name) == (kind, short)]
    return [entry for entry in of_name if not distribution or _normalised(entry.distribution) == _normalised(distribution)]


def _is_disabled(entry: Entry, disable: str) -> bool:
    if disable.strip().lower() in ("1", "all"):
        return _normalised(entry.distribution) != OWN_DISTRIBUTION
    return _normalised(entry.distribution) in {_normalised(name) for name in disable.split(",") if name.strip()}


def _normalised(distribution: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def _singular(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind is '{kind}'; it must be one of {', '.join(KINDS)}")
    return "data set" if kind == "datasets" else kind.removesuffix("s")
