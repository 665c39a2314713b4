"""Whether a report still holds: the criterion, versions, source files and weights behind it.

docs/evidence.md describes the fields of a report and the check.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fcn_jax import checkpoint
from fcn_jax.checkpoint import portable, remote
from fcn_jax.errors import CheckpointError
from fcn_jax.pytorch import files
from fcn_jax.runtime.versions import package_versions

_PACKAGES = (
    *("fcn-jax", "jax", "jaxlib", "flax", "equinox", "optax"),
    *("torch", "torchvision", "timm", "torchax", "numpy"),
)

_STEPS = ("step", "optim", "adam", "groups", "schedules", "ema")
"""Modules of fcn_jax.train that a comparison of training steps depends on, with optax."""

_VERSIONED = {
    *("jax", "jaxlib", "flax", "equinox", "optax", "numpy", "torch", "torchvision", "timm"),
    *sys.stdlib_module_names,
}
"""Packages that a report describes by their versions, not by their files."""

_OWN = re.compile(r"fcn_jax\.((models|nn)(\..+)?|pytorch|pytorch\.rules)")
"""The modules of fcn_jax that define models. Those that compare are described by the version."""


def criterion() -> dict[str, Any]:
    """The numbers that decide the verdict; see `fcn_jax.verify.criterion`."""
    constants = vars(importlib.import_module("fcn_jax.verify.criterion"))
    return {
        name.lower(): value
        for name, value in constants.items()
        if name.isupper() and isinstance(value, int | float | dict)
    }


def environment(packages: Iterable[str] = (), precision: str = "highest") -> dict[str, Any]:
    """Versions, devices and settings that a result depends on.

    Args:
        packages: further distributions, such as those of plugins.
        precision: of matrix products and convolutions.
    """
    import jax
    import torch

    found = package_versions(dict.fromkeys([*_PACKAGES, *packages]))
    installed = {name: version for name, version in found.items() if version}
    return {
        "versions": {"python": platform.python_version(), **installed},
        "jax_devices": [device.device_kind for device in jax.local_devices()],
        "jax_platform": jax.default_backend(),
        "jax_matmul_precision": precision,
        "torch_threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def training_modules(*, steps: bool) -> list[str]:
    """Names of the modules of the loss and, with `steps`, of the training step."""
    losses = [name for name in sys.modules if f"{name}.".startswith("fcn_jax.train.losses.")]
    return [*losses, *(f"fcn_jax.train.{name}" for name in _STEPS if steps)]


def sources(*parts: Any, also: Iterable[str] = ()) -> dict[str, str]:
    """SHA-256 of the source files that define networks, by path such as "fcn_jax/nn/_conv.py".

    These are the files of the classes of all modules and of the functions that they hold, and the
    files of the same packages that they import. Packages that the report describes by their
    versions are left out.

    Args:
        parts: PyTorch modules, which stand for all of their submodules; modules and functions of
            JAX, as `Port.parts` lists them; None is ignored.
        also: names of further modules.
    """
    names = {name for part in parts if part is not None for name in _modules_of(part)}
    packages = {name.partition(".")[0] for name in names} - {"fcn_jax"}

    def counts(name: str) -> bool:
        return name.partition(".")[0] in packages or _OWN.fullmatch(name) is not None

    waiting = [*filter(counts, names), *also]
    found: dict[str, str] = {}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name in seen or file is None or not Path(file).is_file():
            continue
        seen.add(name)
        found[_relative(name, Path(file))] = files.sha256(Path(file))
        if isinstance(module, ModuleType) and file.endswith(".py"):
            waiting += filter(counts, _imported(module, Path(file)))
    return dict(sorted(found.items()))


def _modules_of(part: Any) -> set[str]:
    """Names of the modules that define the classes of a network or layer, or a function."""
    children = list(part.modules()) if hasattr(part, "named_modules") else [part]
    found: set[str] = set()
    for child in children:
        for value in (child, *getattr(child, "__dict__", {}).values()):
            while isinstance(value, functools.partial):
                value = value.func
            if callable(value) and not isinstance(value, type):  # a type is a dtype
                found.add(getattr(value, "__module__", None) or "")
        found |= {base.__module__ for base in type(child).__mro__}
    return {name for name in found if name.partition(".")[0] not in {*_VERSIONED, ""}}


def _imported(module: ModuleType, file: Path) -> Iterator[str]:
    """Full names of the modules that a source file imports, those in functions included."""
    package = module.__package__ or ""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _relative(name: str, file: Path) -> str:
    """A module's file, relative to the folder of its top-level package."""
    depth = name.count(".") + (file.name == "__init__.py")
    return "/".join(file.parts[-depth - 1 :])


def locate(source: str) -> Path | None:
    """The file here of a path that `sources` returned; None if there is none.

    It is looked up on the import path without importing it, then in the working directory.
    """
    top, _, rest = source.partition("/")
    try:
        spec = importlib.util.find_spec(top.removesuffix(".py"))
    except (ImportError, ValueError):
        spec = None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    candidates = [folder / rest for folder in folders] if rest else []
    if not rest and spec and spec.origin:
        candidates.append(Path(spec.origin))
    return next((path for path in (*candidates, Path(source)) if path.is_file()), None)


def find(path: Path) -> Path:
    """The report at a path: the file, or that in a checkpoint or in a run's best checkpoint.

    Raises:
        CheckpointError: a folder is not a checkpoint, or the checkpoint has no report.
    """
    if not path.is_dir() and remote.parse(path) is None:
        return path
    file = checkpoint.find(path) / checkpoint.EVIDENCE
    if not file.is_file():
        raise CheckpointError(
            f"{path}: the checkpoint has no {checkpoint.EVIDENCE}; `fcn-jax convert --verify` "
            "stores one"
        )
    return file


def differences(report: Mapping[str, Any], path: Path | None = None) -> list[str]:
    """Why a report no longer holds for the code at hand; empty if it does.

    Nothing is compared. A weights file that is not here is not a difference.

    Args:
        report: as `Report.to_dict` returns it.
        path: where it was found. The weights of a checkpoint are checked, too.

    Returns:
        Descriptions such as "fcn_jax/models/resnet.py changed" or "jax 0.10.2 -> 0.11.0".
    """
    found = [] if report["sources"] else ["it names no source files"]
    for source, digest in report["sources"].items():
        here = locate(source)
        if here is None:
            found.append(f"{source} is missing")
        elif files.sha256(here) != digest:
            found.append(f"{source} changed")
    found += _other_versions(report)
    now = criterion()
    if report["criterion"] != now:
        names = [name for name in now if report["criterion"].get(name) != now[name]]
        found.append(f"the criterion changed ({', '.join(names) or 'fewer numbers'})")
    weights = report["weights"]
    file = Path(weights.get("source", ""))
    folder = _checkpoint(path)
    if folder is not None:
        if files.digest(checkpoint.read_arrays(folder)) != weights.get("arrays_sha256"):
            found.append("the weights of the checkpoint changed")
    elif "sha256" in weights and file.is_file() and files.sha256(file) != weights["sha256"]:
        found.append(f"weights {file} changed")
    return found


def _checkpoint(path: Path | None) -> Path | None:
    """The checkpoint of a path to it or to its report; None for a report outside of checkpoints."""
    if path is None:
        return None
    if path.is_dir():
        return checkpoint.find(path)
    inside = any((path.parent / part).exists() for part in ("spec", "model", portable.CONFIG))
    # A report may have been copied to another place.
    return checkpoint.find(path.parent) if path.name == checkpoint.EVIDENCE and inside else None


def _other_versions(report: Mapping[str, Any]) -> list[str]:
    recorded = dict(report["environment"].get("versions", {}))
    recorded.pop("python", None)
    for name in () if report["settings"].get("train_steps") else ("optax",):
        recorded.pop(name, None)
    here = package_versions(recorded)
    return [
        f"{name} {version} -> {here[name] or 'not installed'}"
        for name, version in recorded.items()
        if here[name] != version
    ]
