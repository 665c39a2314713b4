"""Published weights by name: the names of a model, and the file of a name."""

import dataclasses
import sys
import types

import numpy as np
import pytest

from fcn_jax.api import Model, Weights
from fcn_jax.convert import hub
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.init import init_from
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import PluginError, WeightsError
from fcn_jax.models.names import leaves
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch import files

WHOLE = Model(
    name="whole",
    summary="",
    spec=ModelSpec("fcn-jax:resnet18", "fcn32s", 3),
    weights={"SHAPES": Weights("https://example.org/shapes.safetensors", "0" * 8)},
)
SAME = dataclasses.replace(WHOLE, name="same", spec=dataclasses.replace(WHOLE.spec, num_classes=5))
OWN_IMAGENET = dataclasses.replace(
    WHOLE, weights={"IMAGENET1K_V1": Weights("https://example.org/own.safetensors", "1" * 8)}
)
OTHER_FILE = dataclasses.replace(
    WHOLE, name="other", weights={"SHAPES": Weights("https://example.org/b.safetensors", "2" * 8)}
)
NO_HEAD = dataclasses.replace(
    WHOLE,
    name="broken",
    spec=dataclasses.replace(WHOLE.spec, head="nowhere"),
    weights={"NEVER": Weights("https://example.org/c", "3" * 8)},
)


@pytest.fixture
def register(monkeypatch):
    """Register models for a test."""

    def install(*models):
        module = types.ModuleType("installed_for_a_test")
        vars(module).update({model.name: model for model in models})
        monkeypatch.setitem(sys.modules, module.__name__, module)
        own = [
            registry.Entry("models", model.name, "acme", "1", f"{module.__name__}:{model.name}")
            for model in models
        ]
        plugins = registry.Registry([*registry.default().entries(), *own])
        monkeypatch.setattr(registry, "default", lambda: plugins)

    return install


def test_available_lists_weights_of_model_and_backbone(register):
    register(WHOLE, SAME, NO_HEAD)
    assert set(hub.available(ModelSpec())) == {"SHAPES", "IMAGENET1K_V1"}
    assert set(hub.available(ModelSpec(head=None))) == {"IMAGENET1K_V1"}


def test_weights_of_the_model_come_before_the_backbones(register):
    register(OWN_IMAGENET)
    assert hub.available(ModelSpec())["IMAGENET1K_V1"].sha256 == "1" * 8
    assert hub.available(ModelSpec(head=None))["IMAGENET1K_V1"].sha256 == "f37072fd"


def test_rejects_one_name_for_different_files(register):
    register(WHOLE, OTHER_FILE)
    with pytest.raises(
        PluginError, match=r"'SHAPES' names different weights of models '\S*other' and '\S*whole'"
    ):
        hub.available(ModelSpec())


def test_loads_published_weights_by_name(register, make_model, tmp_path, monkeypatch):
    source = make_model(3, seed=1)
    backbone = {
        name.removeprefix("backbone."): v
        for name, v in to_torch(source).items()
        if name.startswith("backbone.")
    }
    files.write(tmp_path / "backbone.safetensors", backbone)
    fetched = []
    monkeypatch.setattr(
        hub,
        "fetch",
        lambda weights: (fetched.append(weights.sha256), tmp_path / "backbone.safetensors")[1],
    )
    for load in (load_torch, init_from):
        model = make_model(3, seed=2)
        report = load(model, "IMAGENET1K_V1")
        assert report.source == str(tmp_path / "backbone.safetensors")
        assert report.sha256 == files.sha256(tmp_path / "backbone.safetensors")
        np.testing.assert_array_equal(
            leaves(model)["backbone.conv1.conv.kernel"][...],
            leaves(source)["backbone.conv1.conv.kernel"][...],
        )
    assert fetched == ["f37072fd"] * 2


def test_existing_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IMAGENET1K_V1").write_text("")
    assert hub.resolve("IMAGENET1K_V1", ModelSpec()).read_text() == ""


def test_unknown_name_lists_the_nearest_and_all():
    with pytest.raises(
        WeightsError,
        match=r"K_V2: no such weights.*Did you mean 'IMAGENET1K_V1'\? Available: IMAGENET1K_V1",
    ):
        hub.resolve("IMAGENET1K_V2", ModelSpec())


def test_known_name_does_not_import_other_plugins(register, monkeypatch, tmp_path):
    register(WHOLE)
    asked = []
    model = registry.Registry.model
    monkeypatch.setattr(
        registry.Registry, "model", lambda self, name: (asked.append(name), model(self, name))[1]
    )
    monkeypatch.setattr(hub, "fetch", lambda weights: tmp_path / weights.sha256)
    assert hub.resolve("IMAGENET1K_V1", ModelSpec()).name == "f37072fd"
    assert {name.partition(":")[0] for name in asked} == {"fcn-jax"}
    assert hub.resolve("SHAPES", ModelSpec()).name == "0" * 8, (
        "other distributions must be searched next"
    )
    assert "acme:whole" in asked


def test_does_not_import_parts_of_other_models(register, monkeypatch):
    register(dataclasses.replace(WHOLE, spec=dataclasses.replace(WHOLE.spec, head="fcn8s")))
    loaded = []
    load = registry.import_descriptor
    monkeypatch.setattr(
        registry, "import_descriptor", lambda entry: (loaded.append(entry.name), load(entry))[1]
    )
    assert "SHAPES" not in hub.available(ModelSpec())
    assert "whole" in loaded
    assert "fcn8s" not in loaded


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The weights of an installed distribution, and their file."""
    file = tmp_path / "acme_weights" / "net.pth"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    record = tmp_path / "acme_weights-1.2.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-weights\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    return Weights("pip://acme-weights/acme_weights/net.pth", files.sha256(file)), file


def test_finds_the_file_of_an_installed_distribution(installed):
    weights, file = installed
    assert hub.fetch(weights) == file


@pytest.mark.parametrize(
    ("url", "sha256", "complaint"),
    [
        (None, "0" * 64, r"net\.pth: the file's SHA-256 begins with \w{64}, expected is 0{64}; "),
        ("pip://acme-weights/other.pth", None, r"acme-weights 1\.2 has no file .*other\.pth"),
        (
            "pip://nowhere/net.pth",
            None,
            "package nowhere, which is not installed; pip install --no-deps nowhere",
        ),
    ],
)
def test_says_what_is_wrong_with_a_distribution(installed, url, sha256, complaint):
    weights, _ = installed
    changes = {"url": url or weights.url, "sha256": sha256 or weights.sha256}
    with pytest.raises(WeightsError, match=complaint):
        hub.fetch(dataclasses.replace(weights, **changes))
