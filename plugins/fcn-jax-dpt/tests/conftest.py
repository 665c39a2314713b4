"""Fixtures: the registry with this project's heads, and segmentation_models_pytorch."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def plugins(plugin_project):
    return plugin_project(Path(__file__).parents[1] / "pyproject.toml")


@pytest.fixture(scope="session")
def smp():
    for name in ("torch", "torchvision", "segmentation_models_pytorch"):
        if find_spec(name) is None:
            pytest.skip(f"needs {name}")
    from fcn_jax_smp_heads.parts import import_smp

    return import_smp()
