"""Fixtures: the registry with this project's plugins, and torchvision."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def plugins(plugin_project):
    return plugin_project(Path(__file__).parents[1] / "pyproject.toml")


@pytest.fixture(scope="session")
def torchvision():
    pytest.importorskip("torch")
    if find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    from fcn_jax.pytorch.reference import import_torchvision

    return import_torchvision()
