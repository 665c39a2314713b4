"""A run whose checkpoints are in another place continues after its machine is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcn_jax import checkpoint, cli
from fcn_jax.errors import ConfigError
from tests.helpers import bucket, scenes

RECIPE = scenes.RECIPE.replace("epochs = 5", "epochs = 2").replace("size = 8", "size = 4")
STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=8, val=2)


@pytest.fixture(scope="module")
def here(tiny_plugin, data, tmp_path_factory):
    recipe = scenes.write_recipe(tmp_path_factory.mktemp("recipe"), RECIPE)
    return lambda run, *settings: scenes.train_here(recipe, data, run, *settings)


@pytest.fixture(scope="module")
def undisturbed(here, tmp_path_factory):
    return here(tmp_path_factory.mktemp("runs") / "undisturbed").run


def records(run, event, *keys):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(line[key] for key in keys) for line in lines if line["event"] == event]


@pytest.mark.parametrize("folder", ["gs://bucket/run", "scratch/run"])
def test_continues_without_its_run_directory(
    folder, here, undisturbed, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    there = f"train.checkpoint_dir={folder}"
    with bucket.served(tmp_path / "store"):
        first = here(tmp_path / "one" / "run", there)
        assert (first.step, first.saved) == (4, 4)
        assert not (first.run / "checkpoints").exists()
        shutil.rmtree(tmp_path / "one")
        store = tmp_path / ("store/bucket/run" if "gs:" in folder else folder)
        shutil.rmtree(store / "checkpoints" / "4")  # as if killed while it saved this one
        again = here(tmp_path / "two" / "run", there)
        assert again.step == STEPS
        assert f"resuming {again.run} after step 2" in capfd.readouterr().err
        for event, keys in (("train", ("step", "loss", "lr")), ("val", ("step", "miou"))):
            assert records(again.run, event, *keys) == records(undisturbed, event, *keys)
        assert (store / "metrics.jsonl").is_file()
        found, expected = (
            checkpoint.read_arrays(checkpoint.find(run)) for run in (again.run, undisturbed)
        )
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert here(tmp_path / "two" / "run", there).was_finished
        assert cli.main(["eval", str(again.run), "--json"]) == 0
        assert cli.main(["eval", folder, "--json"]) == 0
        with pytest.raises(ConfigError, match=r"train\.checkpoint_dir = not set"):
            here(tmp_path / "two" / "run")
        with pytest.raises(ConfigError, match=r"optim.lr = 0.1 \(in the run: 0.05\)"):
            here(tmp_path / "three", there, "optim.lr=0.1")
        assert not (tmp_path / "three").exists()


def test_a_run_directory_is_local(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"a run directory is local; .*train.checkpoint_dir=gs:"):
        here(Path("gs://bucket/run"))
    assert list(tmp_path.iterdir()) == []
