"""Where a training starts: the same values, whatever they come from."""

import numpy as np
import pytest

from fcn_jax import checkpoint
from fcn_jax.convert.engine import leaves, to_torch
from fcn_jax.convert.initial import load_initial
from fcn_jax.errors import CheckpointError, WeightsError
from fcn_jax.pytorch import files


def values(model):
    return {path: np.asarray(leaf[...]) for path, leaf in leaves(model).items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory):
    """A checkpoint of a model with 3 classes, and the values in it."""
    model = make_model(3, seed=1)
    directory = tmp_path_factory.mktemp("saved") / "model"
    checkpoint.save_model(directory, checkpoint.describe(model.spec), checkpoint.arrays(model))
    return directory, values(model)


def test_a_checkpoint_gives_its_values(saved, make_model):
    directory, expected = saved
    model = make_model(3, seed=2)
    record = load_initial(model, directory)
    assert_same(values(model), expected)
    assert (record.names, record.scope, record.source) == ("fcn-jax", "model", str(directory))
    assert len(record.loaded) == 124


def test_a_weights_file_gives_its_values(make_model, tmp_path):
    source = make_model(3, seed=1)
    files.write(tmp_path / "a.safetensors", to_torch(source))
    model = make_model(3, seed=2)
    record = load_initial(model, tmp_path / "a.safetensors")
    assert_same(values(model), values(source))
    assert record.sha256 == files.sha256(tmp_path / "a.safetensors")


def test_another_number_of_classes_is_an_error_until_the_head_is_named(saved, make_model):
    directory, expected = saved
    model = make_model(5, seed=2)
    before = values(model)
    with pytest.raises(
        WeightsError,
        match=r"misshapen 4: .*head.final_conv.bias: shape \(3,\), the model needs \(5,\).*--reinit",
    ):
        load_initial(model, directory)
    assert_same(values(model), before)
    record = load_initial(model, directory, reinit=["head"])
    own = {path: value for path, value in before.items() if path.startswith("head.")}
    assert_same(values(model), {**expected, **own})
    assert sorted(record.reinit) == sorted(own)


def test_a_checkpoint_of_a_backbone_alone_fills_the_backbone(saved, make_model, tmp_path):
    _, expected = saved
    source = make_model(3, seed=1)
    spec = checkpoint.describe(type(source.spec)(backbone="resnet18", head=None))
    checkpoint.save_model(tmp_path / "trunk", spec, checkpoint.arrays(source.backbone))
    model = make_model(5, seed=2)
    own = {path: value for path, value in values(model).items() if path.startswith("head.")}
    record = load_initial(model, tmp_path / "trunk")
    assert record.scope == "backbone"
    assert_same(
        values(model),
        {
            **{path: value for path, value in expected.items() if path.startswith("backbone.")},
            **own,
        },
    )


def test_a_path_that_is_nothing_is_one_clear_error(make_model, tmp_path):
    model = make_model(3)
    with pytest.raises(WeightsError, match=r"nothing: no such weights.*\.safetensors"):
        load_initial(model, tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither a run"):
        load_initial(model, tmp_path)
