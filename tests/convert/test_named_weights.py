"""Weights by name: which names a model knows, and which file a name stands for."""

import dataclasses
import sys
import types
from importlib import metadata

import numpy as np
import pytest

from fcn_jax.api import Model, Weights
from fcn_jax.convert import download, named_weights
from fcn_jax.convert.engine import leaves, load_torch, to_torch
from fcn_jax.convert.initial import load_initial
from fcn_jax.errors import PluginError, WeightsError
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch import files

WHOLE = Model(
    name="whole",
    summary="",
    spec=ModelSpec("fcn-jax:resnet18", "fcn32s", 3),
    weights={"SHAPES": Weights("https://example.org/shapes.safetensors", "0" * 8)},
)
SAME = dataclasses.replace(
    WHOLE, name="same", spec=dataclasses.replace(WHOLE.spec, num_classes=5)
)
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
    """Install whole models for a test."""

    def install(*models):
        module = types.ModuleType("installed_for_a_test")
        vars(module).update({model.name: model for model in models})
        monkeypatch.setitem(sys.modules, module.__name__, module)
        own = [
            registry.Entry("models", model.name, "acme", "1", f"{module.__name__}:{model.name}")
            for model in models
        ]
        installed = [
            point
            for kind in registry.KINDS
            for point in metadata.entry_points(group=f"fcn_jax.{kind}")
        ]
        plugins = registry.Registry([*installed, *own])
        monkeypatch.setattr(registry, "default", lambda: plugins)

    return install


def test_a_model_knows_its_own_weights_and_its_backbones(register):
    register(WHOLE, SAME, NO_HEAD)
    assert set(named_weights.available(ModelSpec())) == {"SHAPES", "IMAGENET1K_V1"}
    assert set(named_weights.available(ModelSpec(head=None))) == {"IMAGENET1K_V1"}


def test_a_models_own_weights_come_before_its_backbones(register):
    register(OWN_IMAGENET)
    assert named_weights.available(ModelSpec())["IMAGENET1K_V1"].sha256 == "1" * 8
    assert named_weights.available(ModelSpec(head=None))["IMAGENET1K_V1"].sha256 == "f37072fd"


def test_a_name_for_two_files_is_an_error_that_names_both_models(register):
    register(WHOLE, OTHER_FILE)
    with pytest.raises(
        PluginError, match=r"'SHAPES' names different weights of models '\S*other' and '\S*whole'"
    ):
        named_weights.available(ModelSpec())


def test_a_name_is_taken_wherever_a_file_is(register, make_model, tmp_path, monkeypatch):
    source = make_model(3, seed=1)
    trunk = {
        name.removeprefix("backbone."): v
        for name, v in to_torch(source).items()
        if name.startswith("backbone.")
    }
    files.write(tmp_path / "trunk.safetensors", trunk)
    fetched = []
    monkeypatch.setattr(
        download,
        "fetch",
        lambda weights: (fetched.append(weights.sha256), tmp_path / "trunk.safetensors")[1],
    )
    for load in (load_torch, load_initial):
        model = make_model(3, seed=2)
        record = load(model, "IMAGENET1K_V1")
        assert record.source == str(tmp_path / "trunk.safetensors")
        assert record.sha256 == files.sha256(tmp_path / "trunk.safetensors")
        np.testing.assert_array_equal(
            leaves(model)["backbone.conv1.conv.kernel"][...],
            leaves(source)["backbone.conv1.conv.kernel"][...],
        )
    assert fetched == ["f37072fd"] * 2


def test_what_exists_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IMAGENET1K_V1").write_text("")
    assert named_weights.resolve("IMAGENET1K_V1", ModelSpec()).read_text() == ""


def test_an_unknown_name_is_an_error_with_the_nearest_and_the_list():
    with pytest.raises(
        WeightsError,
        match=r"IMAGENET1K_V2: no such weights.*Did you mean 'IMAGENET1K_V1'\? Available: IMAGENET1K_V1",
    ):
        named_weights.resolve("IMAGENET1K_V2", ModelSpec())


def test_a_name_that_is_known_near_by_imports_no_other_plugin(register, monkeypatch, tmp_path):
    register(WHOLE)
    asked = []
    model = registry.Registry.model
    monkeypatch.setattr(
        registry.Registry, "model", lambda self, name: (asked.append(name), model(self, name))[1]
    )
    monkeypatch.setattr(download, "fetch", lambda weights: tmp_path / weights.sha256)
    assert named_weights.resolve("IMAGENET1K_V1", ModelSpec()).name == "f37072fd"
    assert {name.partition(":")[0] for name in asked} == {"fcn-jax"}
    assert named_weights.resolve("SHAPES", ModelSpec()).name == "0" * 8, (
        "whoever else publishes it is asked next"
    )
    assert "acme:whole" in asked


def test_a_model_of_other_parts_does_not_import_them(register, monkeypatch):
    register(dataclasses.replace(WHOLE, spec=dataclasses.replace(WHOLE.spec, head="fcn8s")))
    loaded = []
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda entry: (loaded.append(entry.name), load(entry))[1])
    assert "SHAPES" not in named_weights.available(ModelSpec())
    assert "whole" in loaded
    assert "fcn8s" not in loaded
