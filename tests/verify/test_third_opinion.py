"""The PyTorch module run by torchax, where it is installed; otherwise one clear reason."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.verify.third_opinion import ThirdOpinion
from fcn_jax.verify.torch_side import REFERENCE, TorchSide

torch = pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).standard_normal((2, 9, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU()).eval()


def call(module, tensors):
    return {"out": module(*tensors)}


def ask(opinion, network, title="outputs", dtype="float32"):
    side = TorchSide(network, dtype, call)
    with torch.no_grad():
        reference = {name: x.numpy() for name, x in side.outputs(REFERENCE, (IMAGES,)).items()}
    opinion.ask(title, side, (IMAGES,), reference)
    return opinion


def test_says_why_torchax_cannot_be_imported(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchax", None)
    opinion = ask(ThirdOpinion(), network)
    assert opinion.skipped.startswith("torchax cannot be imported (ModuleNotFoundError: ")
    assert opinion.errors == {}
    ask(opinion, network, title="again")
    assert opinion.errors == {}


def test_is_asked_in_float32_only(network):
    assert ask(ThirdOpinion(), network, dtype="bfloat16").skipped == "it is asked in float32 only"


def test_says_why_a_network_cannot_run(network, monkeypatch):
    def refuse(module):
        raise NotImplementedError("no such operator\nwith details")

    monkeypatch.setitem(sys.modules, "torchax", types.SimpleNamespace(extract_jax=refuse))
    opinion = ask(ThirdOpinion(), network)
    assert opinion.skipped.endswith(
        "cannot run this network (NotImplementedError: no such operator)"
    )


def test_measures_the_error_of_what_torchax_returns(network, monkeypatch):
    """With a stand-in that runs the network in PyTorch and doubles the output."""

    def extract(module):
        x = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            found = {name: jnp.asarray(2 * value.numpy()) for name, value in module(x).items()}
        return {}, lambda state, inputs: found

    monkeypatch.setitem(sys.modules, "torchax", types.SimpleNamespace(extract_jax=extract))
    opinion = ask(ThirdOpinion(), network)
    assert opinion.skipped == ""
    assert opinion.errors["outputs"]["out"] == pytest.approx(1.0, abs=1e-5)


def test_torchax_runs_the_network(network):
    try:
        import torchax  # noqa: F401
    except Exception as error:  # releases fail with AttributeError on a newer torch
        pytest.skip(f"torchax: {error}")
    fast = torch.backends.mha.get_fastpath_enabled()
    opinion = ask(ThirdOpinion(), network)
    assert opinion.skipped == ""
    assert 0 < opinion.errors["outputs"]["out"] < 1e-6
    assert torch.backends.mha.get_fastpath_enabled() == fast
