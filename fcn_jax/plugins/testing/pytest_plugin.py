"""Pytest fixtures that an installed fcn-jax offers to every test suite.

    def test_my_backbone_meets_the_contract(plugin_contract):
        plugin_contract.check_backbone("my_backbone", {"width": 8})

    @pytest.fixture(autouse=True)
    def plugins(plugin_project):  # as the project file is now, not as it was when it was installed
        return plugin_project(Path(__file__).parents[1] / "pyproject.toml")

Pytest imports this module in every run, so it imports only pytest: `fcn_jax.testing` imports jax
when the first check is used.
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
    """`fcn_jax.testing`, with `check_backbone`, `check_head`, `check_model`, `check_dataset`."""
    from fcn_jax import testing

    return testing


@pytest.fixture
def plugin_project(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Path], Registry]:
    """A function from a `pyproject.toml` to the registry of its plugins and all installed ones.

    It becomes the default registry until the test ends. An installed copy of the project is
    ignored.
    """
    from fcn_jax.plugins import registry

    def register(file: str | Path) -> Registry:
        project = tomllib.loads(Path(file).read_text(encoding="utf-8"))["project"]
        name, groups = project["name"], project.get("entry-points", {})
        own = [
            registry.Entry(kind, key, name, project.get("version", "unknown"), value)
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
