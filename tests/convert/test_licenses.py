"""Weights on the Hugging Face Hub by name, and licenses that must be accepted."""

import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from fcn_jax.api import ModelSpec, Weights
from fcn_jax.cli import main
from fcn_jax.convert import hub, licenses
from fcn_jax.errors import CheckpointError, WeightsError
from fcn_jax.plugins.testing.contract import check_weights
from tests.helpers import hub_server

NAME = "acme/net.a1_in1k"
FREE = Weights.huggingface(NAME, "ImageNet-1k", license="apache-2.0")
RESTRICTED = Weights.huggingface(
    NAME, "ImageNet-1k", license="cc-by-nc-4.0", restricted="no commercial use"
)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub with a repository of one file, and no accepted license."""
    constants = pytest.importorskip("huggingface_hub.constants")
    save_file({"x": np.arange(3.0)}, tmp_path / "model.safetensors")
    with hub_server.serve() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv(licenses.VARIABLE, raising=False)
        monkeypatch.chdir(tmp_path)
        found.files[NAME] = {
            "config.json": b"{}",
            "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
        }
        yield found


@pytest.fixture
def offers(monkeypatch):
    """A function that lets all models have certain weights."""

    def offer(weights):
        monkeypatch.setattr(hub, "available", lambda spec, near=False: {NAME: weights})

    return offer


def test_weights_are_fetched_from_the_hub_by_their_name(server, offers):
    offers(FREE)
    assert hub.localize(NAME, ModelSpec()) == NAME
    path = hub.resolve(NAME, ModelSpec())
    assert path.name == "model.safetensors"
    assert path.read_bytes() == server.files[NAME]["model.safetensors"]


def test_a_missing_repository_is_an_error_of_one_line(server):
    with pytest.raises(CheckpointError, match="acme/none: neither a local path nor a model"):
        hub.fetch(Weights.huggingface("acme/none", "", license="mit"))


def test_a_restricted_license_must_be_accepted(server, monkeypatch):
    with pytest.raises(WeightsError, match=r"license cc-by-nc-4\.0: no commercial use; .*--accept"):
        hub.fetch(RESTRICTED)
    monkeypatch.setenv(licenses.VARIABLE, "mit")
    with pytest.raises(WeightsError, match="no commercial use"):
        hub.fetch(RESTRICTED)
    assert not server.requests
    licenses.accept("CC-BY-NC-4.0")
    assert hub.fetch(RESTRICTED).name == "model.safetensors"


@pytest.mark.parametrize("source", [NAME, f"hf://{NAME}", f"hf://{NAME}@v1"])
def test_other_forms_of_the_id_do_not_evade_the_license(server, offers, source):
    offers(RESTRICTED)
    with pytest.raises(WeightsError, match="no commercial use"):
        hub.localize(source, ModelSpec())
    assert not server.requests


def test_the_command_line_accepts_a_license(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(licenses.VARIABLE, "mit")
    missing = str(tmp_path / "no.pth")
    arguments = ["convert", missing, "--model", "resnet18", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--accept-license", "cc-by-nc-4.0"]) == 2
    assert "no such weights" in capsys.readouterr().err
    assert licenses.os.environ[licenses.VARIABLE] == "mit,cc-by-nc-4.0"


def test_the_contract_accepts_only_names_of_repositories():
    def fail(message):
        raise AssertionError(message)

    subject = types.SimpleNamespace(fail=fail)
    check_weights(subject, {NAME: FREE})
    with pytest.raises(AssertionError, match=r"must be that of the repository, hf://IN1K"):
        check_weights(subject, {"IN1K": FREE})
