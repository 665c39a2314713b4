"""Checkpoints: saving, loading, and the detection of damage."""

import shutil
from importlib import metadata

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.api import Classes, ModelSpec
from fcn_jax.errors import CheckpointError
from fcn_jax.models.build import build
from fcn_jax.models.names import leaves

CLASSES = Classes(("sky", "tree"), ((0, 0, 0), (1, 2, 255)))
SPEC = ModelSpec(
    "tiny", "fcn32s", 2, backbone_options={"width": 4, "dropout": 0.0}, head_options={}
)


@pytest.fixture
def model(tiny_plugin):
    model = build(SPEC, rngs=nnx.Rngs(3))
    model.backbone.conv1.bn.num_batches_tracked[...] = jnp.asarray(11, jnp.int32)
    model.backbone.conv1.bn.var[...] = jnp.asarray([0.1, 0.2, 1e-30, 4.0])
    return model


@pytest.fixture
def saved(model, tmp_path):
    checkpoint.save_model(
        tmp_path / "model",
        checkpoint.make_spec(SPEC, CLASSES, weights={"source": "a.pth"}),
        checkpoint.arrays(model),
    )
    return tmp_path / "model"


def test_load_model_returns_the_saved_values_and_classes(model, saved, tmp_path):
    loaded, spec = checkpoint.load_model(saved)
    assert spec.model == loaded.spec == SPEC
    assert spec.classes == CLASSES
    assert spec.weights == {"source": "a.pth"}
    assert spec.plugins["backbone"] == {
        "name": "tiny",
        "distribution": "fcn-jax-tiny",
        "version": "1.0",
    }
    assert leaves(loaded).keys() == leaves(model).keys()
    for path, leaf in leaves(model).items():
        assert leaves(loaded)[path][...].dtype == leaf[...].dtype
        np.testing.assert_array_equal(leaves(loaded)[path][...], leaf[...], err_msg=path)
    x = np.random.default_rng(0).standard_normal((1, 9, 10, 3), np.float32)
    model.eval()
    np.testing.assert_array_equal(loaded(x), model(x))  # loaded in eval mode
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "no temporary folder is left"


def test_spec_survives_json():
    spec = checkpoint.make_spec(ModelSpec("resnet18", None), CLASSES)
    assert checkpoint.Spec.from_dict(spec.to_dict()) == spec


def test_save_model_accepts_an_empty_folder_and_rejects_others(model, tmp_path):
    spec = checkpoint.make_spec(SPEC)
    (tmp_path / "empty").mkdir()
    checkpoint.save_model(tmp_path / "empty", spec, checkpoint.arrays(model))
    assert checkpoint.find(tmp_path / "empty") == tmp_path / "empty"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for name in ("full", "empty"):
        with pytest.raises(CheckpointError, match="exists and is not empty"):
            checkpoint.save_model(tmp_path / name, spec, checkpoint.arrays(model))
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file: exists and is not empty"):
        checkpoint.save_model(tmp_path / "file", spec, checkpoint.arrays(model))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such run or checkpoint"),
        (lambda path: path.write_text("x"), "this is a file.*fcn-jax convert"),
        (lambda path: path.mkdir(), "neither a run .* nor a checkpoint"),
        (lambda path: (path / "checkpoints").mkdir(parents=True), "has no checkpoint yet"),
    ],
)
def test_find_rejects_other_paths_with_the_reason(tmp_path, make, message):
    path = tmp_path / "path"
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.find(path)
    assert str(path) in str(caught.value)


def test_missing_or_truncated_files_raise_an_error_or_change_nothing(tiny_plugin, tmp_path):
    saved = tmp_path / "model"
    # A single array: of several, Orbax would leave the other reads unawaited, and Python would warn
    # of each.
    expected = {"a": np.random.default_rng(0).standard_normal(5000, np.float32)}
    checkpoint.save_model(saved, checkpoint.make_spec(SPEC), expected)
    files = [path.relative_to(saved) for path in sorted(saved.rglob("*")) if path.is_file()]
    assert len(files) > 3
    refused: list[str] = []
    for file in files:
        for damage in ("remove", "empty", "halve"):
            broken = tmp_path / "broken"
            shutil.copytree(saved, broken)
            contents = (broken / file).read_bytes()
            if damage == "remove":
                (broken / file).unlink()
            else:
                (broken / file).write_bytes(
                    contents[: len(contents) // 2 if damage == "halve" else 0]
                )
            try:
                checkpoint.read_spec(broken)
                arrays = checkpoint.read_arrays(broken)
            except CheckpointError as error:
                refused.append(str(error))
            else:
                for name, value in expected.items():
                    np.testing.assert_array_equal(arrays[name], value, err_msg=f"{file} {damage}")
            shutil.rmtree(broken)
    assert len(refused) > 3
    assert all(str(tmp_path / "broken") in message for message in refused)


def test_rejects_a_newer_format(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.spec, "FORMAT", 99)
    checkpoint.save_model(tmp_path / "new", checkpoint.make_spec(SPEC), checkpoint.arrays(model))
    monkeypatch.undo()
    ours = metadata.version("fcn-jax")
    with pytest.raises(
        checkpoint.FormatError,
        match=f"format 99, written by fcn-jax {ours}; this is fcn-jax {ours}, which reads format "
        f"3. Upgrade it: pip install 'fcn-jax>={ours}'",
    ):
        checkpoint.read_spec(tmp_path / "new")


@pytest.mark.parametrize("contents", [None, "{}", "[]", "no JSON"])
def test_find_rejects_a_checkpoint_without_its_list_of_files(contents, model, tmp_path):
    directory = tmp_path / "model"
    checkpoint.save_model(directory, checkpoint.make_spec(SPEC), checkpoint.arrays(model))
    assert checkpoint.find(directory) == directory
    listed = directory / "files.json"
    listed.unlink() if contents is None else listed.write_text(contents)
    with pytest.raises(CheckpointError, match=r"damaged: files\.json"):
        checkpoint.find(directory)


@pytest.mark.parametrize("written", [1, 2])
def test_rejects_formats_with_other_parameter_names(model, tmp_path, monkeypatch, written):
    monkeypatch.setattr(checkpoint.spec, "FORMAT", written)
    checkpoint.save_model(
        tmp_path / "model", checkpoint.make_spec(model.spec), checkpoint.arrays(model)
    )
    monkeypatch.undo()
    with pytest.raises(
        checkpoint.FormatError,
        match=f"format {written}, which development versions of fcn-jax before 0.1 read; this is "
        "fcn-jax .*, which reads format 3. Train or convert again",
    ):
        checkpoint.load_model(tmp_path / "model")


def test_load_model_rejects_a_backbone_alone(model, tmp_path):
    spec = checkpoint.make_spec(ModelSpec("tiny", None))
    checkpoint.save_model(tmp_path / "backbone", spec, checkpoint.arrays(model.backbone))
    with pytest.raises(CheckpointError, match=r"backbone 'tiny' alone.*train --weights"):
        checkpoint.load_model(tmp_path / "backbone")


def test_load_model_names_all_arrays_that_do_not_fit(model, tmp_path):
    arrays = dict(checkpoint.arrays(model))
    arrays["extra"] = arrays.pop("backbone.conv1.bn.var")
    arrays["head.final_conv.bias"] = jnp.zeros(3)
    checkpoint.save_model(tmp_path / "odd", checkpoint.make_spec(SPEC), arrays)
    with pytest.raises(
        CheckpointError,
        match=r"missing \['backbone.conv1.bn.var'\], surplus \['extra'\], "
        r"misshapen \['head.final_conv.bias'\]",
    ):
        checkpoint.load_model(tmp_path / "odd")


def test_keeps_the_best_and_the_last_two_checkpoints_and_finds_the_best(model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    spec, arrays = checkpoint.make_spec(SPEC, CLASSES), checkpoint.arrays(model)
    train = {"step": jnp.zeros((), jnp.int32)}
    checkpoints = checkpoint.Checkpoints(run)
    for step, score in ((1, 0.2), (2, 0.6), (3, 0.5), (4, None), (5, None)):
        train = {"step": jnp.asarray(step, jnp.int32)}
        checkpoints.save(step, model=arrays, train=train, data={"position": step}, spec=spec)
        if score is not None:
            checkpoints.score(step, score)
    checkpoints.close()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4", "5"]
    assert checkpoint.find(run) == run / "checkpoints" / "2"

    reopened = checkpoint.Checkpoints(run)
    assert reopened.latest_step() == 5
    assert [checkpoint.is_evaluated(run, step) for step in (2, 5)] == [True, False]
    restored = reopened.restore(model=arrays, train=train)
    assert (restored.step, int(restored.train["step"]), restored.data, restored.skipped) == (
        5,
        5,
        {"position": 5},
        (),
    )
    np.testing.assert_array_equal(
        restored.model["backbone.conv1.conv.kernel"], arrays["backbone.conv1.conv.kernel"]
    )
    reopened.close()
