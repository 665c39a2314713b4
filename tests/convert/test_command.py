"""Conversion of a file to a checkpoint."""

import jax
import numpy as np
import pytest
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.convert import command, files
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import build_backbone, by_name


@pytest.fixture(scope="module")
def state(make_resnet18):
    return {name: tensor.numpy() for name, tensor in make_resnet18().state_dict().items()}


def test_a_whole_file_is_converted_without_drawing_anything(tmp_path, state, monkeypatch):
    traced = []
    build = command.build_backbone

    def watched(*args, **kwargs):
        module, specs = build(*args, **kwargs)
        traced.append(isinstance(module.conv1.kernel.get_value(), jax.core.Tracer))
        return module, specs

    monkeypatch.setattr(command, "build_backbone", watched)
    files.write(tmp_path / "trunk.safetensors", state)
    command.convert_file(tmp_path / "trunk.safetensors", "resnet18", tmp_path / "out")
    assert traced == [True]
    arrays = checkpoint.read_arrays(tmp_path / "out")
    np.testing.assert_array_equal(arrays["layer4.1.conv2.kernel"], state["layer4.1.conv2.weight"].transpose(2, 3, 1, 0))


def test_what_the_file_leaves_open_is_drawn_from_the_seed(tmp_path, state):
    counts = "num_batches_tracked"
    partial = {name: value for name, value in state.items() if name != "layer4.0.conv1.weight" and counts not in name}
    files.write(tmp_path / "trunk.safetensors", partial)
    record = command.convert_file(
        tmp_path / "trunk.safetensors", "resnet18", tmp_path / "out", reinit=["layer4.0.conv1.weight"], seed=3
    )
    assert record.reinit == ["backbone.layer4.0.conv1.kernel"]
    arrays = checkpoint.read_arrays(tmp_path / "out")
    fresh = leaves(build_backbone(by_name("resnet18"), rngs=nnx.Rngs(3))[0])
    assert arrays.keys() == fresh.keys()
    np.testing.assert_array_equal(arrays["layer4.0.conv1.kernel"], fresh["layer4.0.conv1.kernel"][...])
    assert not np.array_equal(arrays["layer4.0.conv2.kernel"], fresh["layer4.0.conv2.kernel"][...])
    assert all(value == 0 for path, value in arrays.items() if counts in path)
