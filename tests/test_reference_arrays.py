"""Conversion and forward pass against arrays that PyTorch wrote in another environment."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from fcn_jax import load_torch, to_torch
from fcn_jax.api import ModelSpec
from fcn_jax.models.build import build
from fcn_jax.pytorch import files
from tests.helpers import reference_arrays


@pytest.fixture(scope="module", params=reference_arrays.NETWORKS)
def reference(request):
    folder = os.environ.get("FCN_JAX_REFERENCE")
    if not folder:
        pytest.skip("FCN_JAX_REFERENCE names no folder of reference arrays")
    spec = ModelSpec(**reference_arrays.NETWORKS[request.param])
    model = nnx.eval_shape(lambda: build(spec, rngs=nnx.Rngs(0)))
    path = Path(folder) / request.param
    load_torch(model, path / "weights.safetensors")
    model.eval()
    return path, model


@pytest.mark.parametrize("size", reference_arrays.SIZES)
def test_logits_match_pytorch(reference, size):
    path, model = reference
    arrays = np.load(path / f"{size[0]}x{size[1]}.npz")
    graphdef, state = nnx.split(model)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, arrays["image"])
    assert np.abs(logits - arrays["logits"]).max() < 1e-5 * np.abs(arrays["logits"]).max()


def test_exports_the_same_state_dict(reference):
    path, model = reference
    theirs = {
        name: value
        for name, value in files.read(path / "weights.safetensors").items()
        if ".fc." not in name
    }
    ours = to_torch(model)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert ours[name].tobytes() == value.tobytes()
