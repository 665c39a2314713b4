"""`fcn-jax plugins check`: the contract, held against one registered name."""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fcn_jax.errors import ConfigError, DataError, FcnJaxError, did_you_mean
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import API_VERSION, Dataset
from fcn_jax.plugins.registry import Entry
from fcn_jax.plugins.testing.imports import import_cost


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the verdict.

    Attributes:
        kept: whether the promise is kept.
        what: the promise.
        detail: a figure, or what is wrong.
    """

    kept: bool
    what: str
    detail: str

    def __str__(self) -> str:
        """The line, as it is printed."""
        return f"  {'ok    ' if self.kept else 'BROKEN'}  {self.what:<12} {self.detail}"


def registered(name: str, kind: str | None = None) -> list[Entry]:
    """What a name stands for: of each kind, one entry at most.

    Args:
        name: a registered name, or `distribution:name`.
        kind: a key of `registry.KINDS`; None for all.

    Raises:
        ConfigError: nothing is registered under it.
        PluginError: two distributions claim it.
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
            f"no backbone, head, model or dataset is named '{name}'{plugins.hint(name)}. {did_you_mean(name, known)}"
        )
        raise next(
            (refusal for refusal in refusals if registry.DISABLE_VARIABLE in str(refusal)), unknown
        )
    return found


def check_plugin(
    entry: Entry,
    *,
    options: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    splits: Sequence[str] = (),
    timeout: float = 60.0,
) -> Iterator[Finding]:
    """Hold one plugin against the contract, promise by promise; ends after the first that is broken and that the next ones need.

    Args:
        entry: what to check.
        options: table of options of a backbone or head; None takes the defaults.
        data: folder of a dataset.
        splits: of a dataset; none for train and val.
        timeout: seconds that the import may take, above 0.

    Yields:
        The verdict's lines.

    Raises:
        ConfigError: `options`, `data` or `splits` are given for what takes none, or an option is
            wrong.
        DataError: there is no dataset at `data`, or it has no such split.
    """
    if options and entry.kind not in ("backbones", "heads"):
        raise ConfigError(f"--set is for the options of a backbone or head; {entry} has none")
    if data is not None and entry.kind != "datasets":
        raise ConfigError(f"--data is for a dataset; {entry} reads none")
    if splits and entry.kind != "datasets":
        raise ConfigError(f"--split is for a dataset; {entry} has none")
    cost = import_cost(entry, timeout)
    if cost.fault is not None:
        yield Finding(False, "import", cost.fault)
        return
    took = f"{cost.seconds:.3f} s over fcn_jax itself, {cost.modules} modules"
    if cost.heavy:
        yield Finding(
            False,
            "import",
            f"{took}; it imports {' and '.join(cost.heavy)}: do that inside the functions that need it",
        )
    else:
        yield Finding(True, "import", took)
    descriptor: Any = registry.default().get(entry.kind, entry.full_name)
    theirs, ours = (
        ".".join(map(str, version)) for version in (descriptor.api_version, API_VERSION)
    )
    yield Finding(True, "api version", f"{theirs}; this fcn-jax has {ours}")
    if entry.kind in ("backbones", "heads"):
        registry.options(descriptor, options or {})
    yield _verdict(_suite(entry, descriptor, options, data, splits))


def _suite(
    entry: Entry,
    descriptor: Any,
    options: Mapping[str, Any] | None,
    data: str | Path | None,
    splits: Sequence[str],
) -> Callable[[], None]:
    from fcn_jax.plugins import testing

    if entry.kind == "datasets":
        return functools.partial(_check_dataset, descriptor, data, splits)
    if entry.kind == "models":
        return functools.partial(testing.check_model, descriptor)
    suite: Callable[..., None] = (
        testing.check_backbone if entry.kind == "backbones" else testing.check_head
    )
    return functools.partial(suite, descriptor, options)


def _check_dataset(descriptor: Dataset, data: str | Path | None, splits: Sequence[str]) -> None:
    from fcn_jax.plugins import testing

    try:
        testing.check_dataset(descriptor, data, splits or ("train", "val"))
    except DataError as error:
        if splits:
            raise
        raise DataError(
            f"{str(error).rstrip('.')}. Without --split, train and val are checked"
        ) from error


def _verdict(suite: Callable[[], None]) -> Finding:
    try:
        suite()
    except AssertionError as error:
        return Finding(False, "contract", str(error))
    except FcnJaxError:
        raise
    except Exception as error:  # whatever a stranger's code raises when it is built or run
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        return Finding(
            False,
            "contract",
            f"it cannot be built or run: {type(error).__name__}: {error} ({place}, in {last.name})",
        )
    return Finding(True, "contract", "every promise is kept")
