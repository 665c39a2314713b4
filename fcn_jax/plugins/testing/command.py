"""`fcn-jax plugins check`: compare one registered plugin with the contract."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fcn_jax.errors import ConfigError, DataError, FcnJaxError, did_you_mean
from fcn_jax.plugins import options as plugin_options
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import API_VERSION, Backbone, Dataset, Descriptor, Head, Loss, Model
from fcn_jax.plugins.entry import Entry
from fcn_jax.plugins.isolation import run_isolated
from fcn_jax.plugins.testing.subject import Progress

HEAVY = ("torch", "torchvision", "tensorflow")
"""Packages to import inside functions only, so that the plugin works without them."""

# Packages that fcn-jax imports anyway are imported first.
_MEASURE = """
import time
import flax.nnx, jax, numpy
import fcn_jax.pytorch.rules, fcn_jax.data.datasets.directory, fcn_jax.nn, fcn_jax.models.build
before = set(sys.modules)
start = time.perf_counter()
reason = fault(entries[0])
answer([reason, time.perf_counter() - start, sorted(set(sys.modules) - before)])
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the result.

    Attributes:
        kept: whether the promise is kept.
        what: the promise.
        detail: a number, or the fault.
    """

    kept: bool
    what: str
    detail: str

    def __str__(self) -> str:
        """The line, as it is printed."""
        return f"  {'ok    ' if self.kept else 'BROKEN'}  {self.what:<12} {self.detail}"


def registered(name: str, kind: str | None = None) -> list[Entry]:
    """The entries of a name, at most one of each kind.

    Args:
        name: a registered name, or `distribution:name`.
        kind: a key of `registry.KINDS`; None for all.

    Raises:
        ConfigError: nothing of that name is registered.
        PluginError: two distributions claim the name.
    """
    plugins = registry.default()
    if kind is not None:
        return [plugins.find(kind, name)]
    found, refusals = [], []
    for kind in registry.KINDS:
        try:
            found.append(plugins.find(kind, name))
        except ConfigError as error:
            refusals.append(error)
    if not found:
        known = {entry.full_name if ":" in name else entry.name for entry in plugins.entries()}
        unknown = ConfigError(
            f"no backbone, head, model, dataset or loss is named '{name}'{plugins.hint(name)}. "
            f"{did_you_mean(name, known)}"
        )
        raise next(
            (refusal for refusal in refusals if registry.DISABLE_VARIABLE in str(refusal)), unknown
        )
    return found


def print_progress() -> Progress:
    """A `Progress` that prints each check's name and the seconds since the start to stderr."""
    began = time.perf_counter()

    def progress(check: str) -> None:
        seconds = time.perf_counter() - began
        print(f"  {seconds:5.1f} s  {check}", file=sys.stderr, flush=True)

    return progress


def check_plugin(
    entry: Entry,
    *,
    options: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    splits: Sequence[str] = (),
    timeout: float = 60.0,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Compare one plugin with the contract; ends after the first broken promise.

    Args:
        entry: the plugin.
        options: table of options of a backbone, head or loss; None for the defaults.
        data: folder of a dataset.
        splits: splits of a dataset; none for train and val.
        timeout: seconds that the import may take in a process of its own, above 0; the import of
            fcn_jax itself counts.
        progress: called with each check's name before it runs; by default `print_progress()`.

    Yields:
        The lines of the result.

    Raises:
        ConfigError: `options`, `data` or `splits` are given for a plugin that has none, or an
            option is wrong.
        DataError: there is no dataset at `data`, or it has no such split.
    """
    with_options = ("backbones", "heads", "losses")
    if options and entry.kind not in with_options:
        raise ConfigError(f"--set is for the options of a backbone, head or loss; {entry} has none")
    if data is not None and entry.kind != "datasets":
        raise ConfigError(f"--data is for a dataset; {entry} reads no data")
    if splits and entry.kind != "datasets":
        raise ConfigError(f"--split is for a dataset; {entry} has no splits")
    progress = progress or print_progress()
    progress("import in a new process")
    answers, ending = run_isolated(_MEASURE, [entry], timeout)
    fault, seconds, modules = answers[0] if answers else (ending, 0.0, [])
    if fault is not None:
        yield Finding(False, "import", fault)
        return
    took = f"{seconds:.3f} s in addition to fcn_jax, {len(modules)} modules"
    heavy = [name for name in HEAVY if name in modules]
    if heavy:
        packages = " and ".join(heavy)
        took += f"; it imports {packages}: import them inside the functions that need them"
    yield Finding(not heavy, "import", took)
    descriptor: Any = registry.default().get(entry.kind, entry.full_name)
    theirs, ours = (
        ".".join(map(str, version)) for version in (descriptor.api_version, API_VERSION)
    )
    yield Finding(True, "api version", f"{theirs}; this fcn-jax has {ours}")
    if entry.kind in with_options:
        plugin_options.validate(descriptor, options or {})
    try:
        _run(descriptor, options, data, splits, progress)
    except AssertionError as error:
        yield Finding(False, "contract", str(error))
    except FcnJaxError:
        raise
    except Exception as error:  # anything that the plugin's code raises
        fault = f"{type(error).__name__}: {error}{entry.place(error)}"
        yield Finding(False, "contract", f"it cannot be built or run: {fault}")
    else:
        yield Finding(True, "contract", "every promise is kept")


def _run(
    descriptor: Descriptor,
    options: Mapping[str, Any] | None,
    data: str | Path | None,
    splits: Sequence[str],
    progress: Progress,
) -> None:
    from fcn_jax import testing

    match descriptor:
        case Backbone():
            testing.check_backbone(descriptor, options, progress=progress)
        case Head():
            testing.check_head(descriptor, options, progress=progress)
        case Loss():
            testing.check_loss(descriptor, options, progress=progress)
        case Model():
            testing.check_model(descriptor, progress=progress)
        case Dataset():
            try:
                testing.check_dataset(descriptor, data, splits or ("train", "val"))
            except DataError as error:
                if splits:
                    raise
                raise DataError(
                    f"{str(error).rstrip('.')}. Without --split, train and val are checked"
                ) from error
