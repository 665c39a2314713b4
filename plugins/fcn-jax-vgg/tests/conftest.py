"""A registry of this distribution and the core's heads, installed or not; torch and torchvision, or a skipped test."""

import dataclasses
import functools
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from fcn_jax import registry

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
HEADS = {
    "fcn32s": "fcn_jax.models.fcn:FCN32S",
    "fcn16s": "fcn_jax.models.fcn_skip:FCN16S",
    "fcn8s": "fcn_jax.models.fcn_skip:FCN8S",
}
NARROW = 16


class Distribution(metadata.Distribution):
    """An installed distribution, by hand."""

    def __init__(self, name, version):
        self._metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename):
        return self._metadata if filename == "METADATA" else None

    def locate_file(self, path):
        return path


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    """What the project file registers, and the heads; the whole models also as `narrow_*`, with few channels in fc6 and fc7."""

    def entries(distribution, group, table):
        for name, value in table.items():
            point = metadata.EntryPoint(name, value, group)
            vars(point).update(dist=distribution)
            yield point

    own, core = Distribution(PROJECT["name"], PROJECT["version"]), Distribution("fcn-jax", "1")
    points = [point for group, table in PROJECT["entry-points"].items() for point in entries(own, group, table)]
    made = registry.Registry([*points, *entries(core, "fcn_jax.heads", HEADS)])
    model, names = made.model, made.names

    def narrow(name):
        short = name.removeprefix("narrow_")
        if name == short:
            return model(name)
        found = model(short)
        return dataclasses.replace(
            found, name=name, backbone_options={"width": NARROW}, original=functools.partial(found.original, width=NARROW)
        )

    monkeypatch.setattr(made, "model", narrow)
    monkeypatch.setattr(
        made, "names", lambda kind: sorted({*names(kind), *(f"narrow_{name}" for name in names(kind) if kind == "models")})
    )
    monkeypatch.setattr(registry, "default", lambda: made)
    return made


@pytest.fixture(scope="session")
def torch():
    found = pytest.importorskip("torch")
    pytest.importorskip("fcn_jax.convert.torch_reference").import_torchvision()
    return found


@pytest.fixture(scope="session")
def torchvision(torch):
    from fcn_jax.convert.torch_reference import import_torchvision

    return import_torchvision()
