"""Checkpoints of older versions."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import checkpoint
from fcn_jax.api import ModelSpec

FORMAT_3 = Path(__file__).parents[1] / "fixtures" / "checkpoints" / "format3"
"""A run by the first version with format 3, which recorded neither its version nor the order."""

KERNEL = np.arange(24, dtype=np.float32).reshape(2, 3, 1, 4) / np.float32(8)
MEAN = np.array([0.5, -1.0, 1e-30, 3.0], np.float32)


def test_reads_a_model_of_format_3():
    directory = checkpoint.find(FORMAT_3)
    spec = checkpoint.read_spec(directory)
    assert (spec.model.backbone, spec.classes.names) == ("resnet18", ("sky", "tree"))
    assert spec.split == {"images": 9, "digest": "abc"}
    assert spec.order is None
    arrays = checkpoint.read_arrays(directory)
    np.testing.assert_array_equal(arrays["backbone.conv.kernel"], KERNEL)
    np.testing.assert_array_equal(arrays["backbone.bn.mean"], MEAN)
    assert arrays["backbone.bn.num_batches_tracked"] == 4


def test_continues_a_run_of_format_3(tmp_path):
    run = Path(shutil.copytree(FORMAT_3, tmp_path / "run"))
    step = jnp.zeros((), jnp.int32)
    model = {
        "backbone.conv.kernel": jnp.zeros(KERNEL.shape),
        "backbone.bn.mean": jnp.zeros(4),
        "backbone.bn.num_batches_tracked": step,
    }
    trace = {"trace": {"backbone.conv.kernel": jnp.zeros(KERNEL.shape)}}
    checkpoints = checkpoint.Checkpoints(run)
    found = checkpoints.restore(model=model, train={"step": step, "opt_state": (trace, step)})
    checkpoints.close()
    assert (found.step, found.data, found.skipped) == (4, {"next_batch": 4}, ())
    momentum = found.train["opt_state"][0]["trace"]["backbone.conv.kernel"]
    np.testing.assert_array_equal(momentum, KERNEL * np.float32(3))
    np.testing.assert_array_equal(found.model["backbone.bn.mean"], MEAN)
    assert checkpoint.is_evaluated(run, 4)


@pytest.mark.parametrize("written", [1, 2, 4])
def test_a_run_whose_newest_checkpoint_has_another_format_is_refused(
    written, tmp_path, monkeypatch
):
    """It must not start again from an older checkpoint, or from nothing."""
    run = Path(shutil.copytree(FORMAT_3, tmp_path / "run"))
    array = {"a": jnp.ones(3)}
    monkeypatch.setattr(checkpoint.spec, "FORMAT", written)
    checkpoints = checkpoint.Checkpoints(run)
    spec = checkpoint.make_spec(ModelSpec("resnet18", "fcn32s"))
    checkpoints.save(8, model=array, train=array, data={"next_batch": 8}, spec=spec)
    checkpoints.close()
    monkeypatch.undo()
    with pytest.raises(checkpoint.FormatError, match=f"checkpoints/8: checkpoint format {written}"):
        checkpoint.latest_spec(run)
