"""Pytest fixtures that an installed fcn-jax offers to every test suite.

    def test_my_backbone_meets_the_contract(plugin_contract):
        plugin_contract.check_backbone("my_backbone", {"width": 8})

    def test_my_port_is_equal(verify_port):
        verify_port(torch_net, jax_net, images, rules=table)

    @pytest.fixture(autouse=True)
    def plugins(plugin_project):  # as the project file is now, not as it was when it was installed
        return plugin_project(Path(__file__).parents[1] / "pyproject.toml")

Pytest imports this module in every run, so it imports only pytest: `fcn_jax.testing` imports jax
when the first check is used.
"""

from __future__ import annotations

import re
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fcn_jax.plugins.registry import Registry
    from fcn_jax.verify import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--verify-reports`."""
    about = "folder for the reports of the fixture verify_port, one JSON file for each comparison"
    parser.getgroup("fcn-jax").addoption("--verify-reports", metavar="DIR", help=about)


@pytest.fixture
def verify_port(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """A function that fails the test unless a port computes the same function as PyTorch.

        verify_port(torch_module, jax_network, inputs, rules=table, grad=False)

    It takes the arguments of `fcn_jax.verify.compare` and returns its report. A failure shows the
    report's text; tensors that the comparison proves nothing about are a warning. With
    `--verify-reports DIR` each report is also written there, named by the test; `fcn-jax verify
    --check` says later whether it still holds.
    """
    count = 0

    def verify(torch_module: Any, jax_network: Any, inputs: Any, **options: Any) -> Report:
        nonlocal count
        from fcn_jax.verify import compare, html

        report = compare(torch_module, jax_network, inputs, **options)
        count += 1
        if folder := request.config.getoption("--verify-reports"):
            name = re.sub(r"[^\w.-]+", "_", request.node.nodeid)
            number = f"-{count}" if count > 1 else ""
            html.write(report, Path(folder) / f"{name}{number}.json")
        if not report.equal:
            pytest.fail(str(report), pytrace=False)
        if report.not_proven:
            warnings.warn(report.verdict, stacklevel=2)
        return report

    return verify


@pytest.fixture(scope="session")
def plugin_contract() -> ModuleType:
    """`fcn_jax.testing`, with `check_backbone`, `check_head`, `check_loss` and the others."""
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
