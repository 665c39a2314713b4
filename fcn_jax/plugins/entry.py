"""One registered plugin: its entry point, and how it is loaded."""

from __future__ import annotations

import dataclasses
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

from fcn_jax.errors import PluginError
from fcn_jax.plugins.api import API_VERSION, Backbone, Dataset, Descriptor, Head, Loss, Model

KINDS: dict[str, type[Descriptor]] = {
    "backbones": Backbone,
    "heads": Head,
    "models": Model,
    "datasets": Dataset,
    "losses": Loss,
}
"""By kind, the type of its descriptors. The entry-point group is `fcn_jax.<kind>`."""

_CHANGED_IN_2_0 = {
    "maskable": "delete the field `maskable`",
    "alone": "rename the field `alone` to `standalone_tables`",
    "original": "rename the field `original` to `reference_model`",
    "names": "rename the field `names` to `key_format`",
    "backbone": "give the parts of a Model as `spec=ModelSpec(...)`",
    "require_no_offset": "delete `require_no_offset`: heads are refused on features with an offset "
    "unless they say `handles_offset=True`",
}
"""What version 1 of the contract had, and what to do about it."""


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """One registered name, from the metadata of installed distributions; nothing is imported.

    Attributes:
        kind: "backbones", "heads", "models", "datasets" or "losses".
        name: the registered name.
        distribution: the installed distribution that registers it.
        version: the distribution's version.
        value: `module:attribute` of the descriptor.
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

    @property
    def module(self) -> str:
        """The module of the descriptor."""
        return self.value.partition(":")[0]

    def __str__(self) -> str:
        """Kind, name, distribution and location, for messages."""
        owner = f"{self.distribution} {self.version} ({self.value})"
        return f"{singular(self.kind)} '{self.name}' of {owner}"

    def place(self, error: BaseException) -> str:
        """Where in the plugin's own package an error came from: " (net.py, line 3, in f)", or "".

        Frames of libraries that the plugin calls, such as JAX's, are not what its author looks for.
        """
        if isinstance(error, SyntaxError) and error.filename:
            return ""  # its text ends in the place
        package = self.module.partition(".")[0]
        own = [
            (frame.f_code, line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_globals.get("__name__", "").partition(".")[0] == package
            and frame.f_globals is not globals()
        ]
        if not own:
            return ""
        code, line = own[-1]
        function = "" if code.co_name == "<module>" else f", in {code.co_name}"
        return f" ({Path(code.co_filename).name}, line {line}{function})"


def singular(kind: str) -> str:
    """A kind in the singular. Raises `ValueError` if there is no such kind."""
    if kind not in KINDS:
        raise ValueError(f"kind is '{kind}'; it must be one of {', '.join(KINDS)}")
    return "loss" if kind == "losses" else kind.removesuffix("s")


def plural(word: str) -> str:
    """The kind of a word such as "loss"; the inverse of `singular`."""
    return next(kind for kind in KINDS if singular(kind) == word)


def import_descriptor(entry: Entry) -> Descriptor:
    """Import one plugin and compare its descriptor with its registration.

    Raises:
        PluginError: the plugin, its distribution, its entry point and the reason. The plugin's
            exception is chained.
    """
    try:
        found = metadata.EntryPoint(entry.name, entry.value, f"fcn_jax.{entry.kind}").load()
    except (Exception, SystemExit) as error:  # anything may be raised while a module is imported
        reason = f"{type(error).__name__}: {error}{entry.place(error)}{_advice(error)}"
        raise PluginError(f"{entry} cannot be loaded: {reason}") from error
    wanted = KINDS[entry.kind]
    if not isinstance(found, wanted):
        raise PluginError(
            f"{entry} is a {type(found).__name__}; it must be an fcn_jax.api.{wanted.__name__}"
        )
    if fault := api_version_fault(found.api_version, entry.distribution):
        raise PluginError(f"{entry} {fault}")
    if found.name != entry.name:
        raise PluginError(
            f"{entry} calls itself '{found.name}'; its entry point must have the same name"
        )
    return found


def _advice(error: BaseException) -> str:
    """What to change in a plugin that was written for version 1 of the contract, or ""."""
    if isinstance(error, TypeError | ImportError):
        for name, advice in _CHANGED_IN_2_0.items():
            if f"'{name}'" in str(error):
                return f"; version 2.0 of the plugin contract changed this: {advice}"
    return ""


def api_version_fault(theirs: Any, distribution: str = "the plugin") -> str | None:
    """What is wrong with a descriptor's `api_version`, and what to do; None if it is supported."""
    ours = API_VERSION
    if not (isinstance(theirs, tuple) and [type(part) for part in theirs] == [int, int]):
        return f"has api_version {theirs!r}; it must be two integers, such as {ours}"
    if theirs[0] == ours[0] and theirs[1] <= ours[1]:
        return None
    remedy = "upgrade fcn-jax"
    if theirs < ours:
        changes = ", ".join(_CHANGED_IN_2_0.values())
        remedy = f"upgrade {distribution}. Its author must change it: {changes}"
    return (
        f"was written for version {'.'.join(map(str, theirs))} of the plugin contract "
        f"(api_version), and this fcn-jax has {'.'.join(map(str, ours))}: {remedy}"
    )
