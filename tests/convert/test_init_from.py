"""Initial weights for training, from checkpoints and weight files."""

import numpy as np
import pytest

from fcn_jax import checkpoint
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.init import init_from
from fcn_jax.errors import CheckpointError, WeightsError
from fcn_jax.models.names import leaves
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
    checkpoint.save_model(directory, checkpoint.make_spec(model.spec), checkpoint.arrays(model))
    return directory, values(model)


def test_loads_a_checkpoint(saved, make_model):
    directory, expected = saved
    model = make_model(3, seed=2)
    report = init_from(model, directory)
    assert_same(values(model), expected)
    assert (report.key_format, report.scope, report.source) == ("fcn-jax", "model", str(directory))
    assert len(report.loaded) == 124


def test_loads_a_weights_file(make_model, tmp_path):
    source = make_model(3, seed=1)
    files.write(tmp_path / "a.safetensors", to_torch(source))
    model = make_model(3, seed=2)
    report = init_from(model, tmp_path / "a.safetensors")
    assert_same(values(model), values(source))
    assert report.sha256 == files.sha256(tmp_path / "a.safetensors")


def test_other_number_of_classes_reinitializes_what_depends_on_it(saved, make_model):
    directory, expected = saved
    model = make_model(5, seed=2)
    before = values(model)
    report = init_from(model, directory)
    resized = [name for name, value in expected.items() if before[name].shape != value.shape]
    assert resized
    own = {name: before[name] for name in resized}
    assert_same(values(model), {**expected, **own})
    assert sorted(report.resized) == sorted(report.reinit) == sorted(resized)
    assert (
        f"{len(resized)} re-initialized, because the weights are for 3 classes, and the model has "
        f"5: {', '.join(report.resized)}" in str(report)
    )
    assert "by --reinit" not in str(report)


def test_other_shapes_with_another_number_of_classes_are_still_an_error(
    saved, make_model, tmp_path
):
    _, expected = saved
    source, model = make_model(3, seed=1), make_model(5, seed=2)
    before = values(model)
    odd = {**expected, "backbone.conv1.bn.bias": np.zeros(63, np.float32)}
    checkpoint.save_model(tmp_path / "odd", checkpoint.make_spec(source.spec), odd)
    with pytest.raises(WeightsError, match=r"misshapen 1: backbone\.conv1\.bn\.bias"):
        init_from(model, tmp_path / "odd")
    assert_same(values(model), before)


def test_file_of_another_number_of_classes_needs_reinit(make_model, tmp_path):
    files.write(tmp_path / "a.safetensors", to_torch(make_model(3, seed=1)))
    model = make_model(5, seed=2)
    before = values(model)
    with pytest.raises(
        WeightsError,
        match=r"misshapen 4: .*final_conv.bias: shape \(3,\), the model needs \(5,\).*--reinit",
    ):
        init_from(model, tmp_path / "a.safetensors")
    assert_same(values(model), before)


def test_reinit_names_the_complete_head(saved, make_model):
    directory, expected = saved
    model = make_model(5, seed=2)
    before = values(model)
    report = init_from(model, directory, reinit=["head"])
    own = {path: value for path, value in before.items() if path.startswith("head.")}
    assert_same(values(model), {**expected, **own})
    assert sorted(report.reinit) == sorted(own)


def test_loads_a_checkpoint_of_a_backbone(saved, make_model, tmp_path):
    _, expected = saved
    source = make_model(3, seed=1)
    spec = checkpoint.make_spec(type(source.spec)(backbone="resnet18", head=None))
    checkpoint.save_model(tmp_path / "backbone", spec, checkpoint.arrays(source.backbone))
    model = make_model(5, seed=2)
    own = {path: value for path, value in values(model).items() if path.startswith("head.")}
    report = init_from(model, tmp_path / "backbone")
    assert report.scope == "backbone"
    assert_same(
        values(model),
        {
            **{path: value for path, value in expected.items() if path.startswith("backbone.")},
            **own,
        },
    )


def test_rejects_missing_paths_and_other_folders(make_model, tmp_path):
    model = make_model(3)
    with pytest.raises(WeightsError, match=r"nothing: no such weights.*\.safetensors"):
        init_from(model, tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither a run"):
        init_from(model, tmp_path)
