"""Pytest fixtures, which an installed fcn-jax offers to every test suite: the contract, and a project's plugins as if installed.

    def test_my_backbone_keeps_its_promises(plugin_contract):
        plugin_contract.check_backbone("my_backbone", {"width": 8})

    @pytest.fixture(autouse=True)
    def plugins(plugin_project):  # what the project file says now, not what it said when it was
        installed return plugin_project(Path(__file__).parents[1] / "pyproject.toml")

Pytest imports this module in every run, so it imports nothing but pytest: `fcn_jax.testing`
loads jax when the first check is asked for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fcn_jax.plugins.registry import Registry


@pytest.fixture(scope="session")
def plugin_contract() -> ModuleType:
    """`fcn_jax.testing`: `check_backbone`, `check_head`, `check_model` and `check_dataset`, each of which raises on a broken promise."""
    from fcn_jax.plugins import testing

    return testing


@pytest.fixture
def plugin_project(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Path], Registry]:
    """A function: path of a `pyproject.toml` -> the registry of what it registers beside what is installed.

    Until the test ends that is the default one, by which every name is looked up. An installed copy
    of the project does not count.
    """
    from fcn_jax.plugins import registry

    def register(file: str | Path) -> Registry:
        project = tomllib.loads(Path(file).read_text(encoding="utf-8"))["project"]
        name, version, groups = (
            project["name"],
            project.get("version", "unknown"),
            project.get("entry-points", {}),
        )
        own = [
            registry.Entry(kind, key, name, version, value)
            for kind in registry.KINDS
            for key, value in groups.get(f"fcn_jax.{kind}", {}).items()
        ]
        others = [
            entry
            for entry in registry.default().entries()
            if registry.normalized(entry.distribution) != registry.normalized(name)
        ]
        plugins = registry.Registry([*own, *others])
        monkeypatch.setattr(registry, "default", lambda: plugins)
        return plugins

    return register
