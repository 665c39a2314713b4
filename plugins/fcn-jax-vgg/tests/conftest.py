"""Fixtures: the registry with this project's plugins, and torch and torchvision.

The plugins are registered even if the project is not installed. Tests that need torch or
torchvision are skipped without them.
"""

import dataclasses
import functools
from pathlib import Path

import pytest

NARROW = 16


@pytest.fixture(autouse=True)
def plugins(plugin_project, monkeypatch):
    """The models are also registered as `narrow_*`, with few channels in fc6 and fc7."""
    made = plugin_project(Path(__file__).parents[1] / "pyproject.toml")
    model, names, find = made.model, made.names, made.find

    def narrow(name):
        short = name.removeprefix("narrow_")
        if name == short:
            return model(name)
        found = model(short)
        return dataclasses.replace(
            found,
            name=name,
            spec=dataclasses.replace(found.spec, backbone_options={"width": NARROW}),
            reference_model=functools.partial(found.reference_model, width=NARROW),
        )

    monkeypatch.setattr(made, "model", narrow)
    monkeypatch.setattr(made, "find", lambda kind, name: find(kind, name.removeprefix("narrow_")))
    monkeypatch.setattr(
        made,
        "names",
        lambda kind: sorted(
            {*names(kind), *(f"narrow_{name}" for name in names(kind) if kind == "models")}
        ),
    )
    return made


@pytest.fixture(scope="session")
def torch():
    found = pytest.importorskip("torch")
    pytest.importorskip("fcn_jax.pytorch.reference").import_torchvision()
    return found


@pytest.fixture(scope="session")
def torchvision(torch):
    from fcn_jax.pytorch.reference import import_torchvision

    return import_torchvision()
