"""A registry of these plugins and the core's, installed or not; and torchvision."""

from importlib import metadata
from importlib.util import find_spec

import pytest

from fcn_jax import registry

OURS = {
    "backbones": {f"mobilenet_{name}": f"fcn_jax_mobilenet:MOBILENET_{name.upper()}" for name in ("v2", "v3_small", "v3_large")},
    "heads": {"lraspp": "fcn_jax_mobilenet:LRASPP"},
    "models": {"lraspp_mobilenet_v3_large": "fcn_jax_mobilenet:LRASPP_MOBILENET_V3_LARGE"},
}


class Distribution(metadata.Distribution):
    """An installed distribution, by hand."""

    def __init__(self, name):
        self._name = name

    def read_text(self, filename):
        return f"Metadata-Version: 2.1\nName: {self._name}\nVersion: 0.1.0\n" if filename == "METADATA" else None

    def locate_file(self, path):
        return path


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    def entry(kind, name, value):
        point = metadata.EntryPoint(name, value, f"fcn_jax.{kind}")
        vars(point).update(dist=Distribution("fcn-jax-mobilenet"))
        return point

    core = [
        point
        for kind in registry.KINDS
        for point in metadata.entry_points(group=f"fcn_jax.{kind}")
        if point.dist is not None and point.dist.name == "fcn-jax"
    ]
    made = registry.Registry([*core, *(entry(kind, name, value) for kind in OURS for name, value in OURS[kind].items())])
    monkeypatch.setattr(registry, "default", lambda: made)
    return made


@pytest.fixture(scope="session")
def torchvision():
    pytest.importorskip("torch")
    if find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    from fcn_jax.convert.torch_reference import import_torchvision

    return import_torchvision()
