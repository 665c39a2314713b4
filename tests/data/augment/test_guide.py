"""The examples of docs/augmentation.md work."""

import os
import re
import tomllib
from pathlib import Path

import pytest

from fcn_jax.config import parse
from fcn_jax.config.augment import AUGMENT_TABLES
from fcn_jax.data.transforms import Augment

GUIDE = (Path(__file__).parents[3] / "docs" / "augmentation.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_first_recipe_is_valid():
    config = parse(tomllib.loads(blocks("toml")[0]))
    assert config.augment.blur is not None
    assert Augment.of(config.data, config.augment).brightness == 0.25


def test_every_setting_is_named():
    for name, table in AUGMENT_TABLES.items():
        assert f"`augment.{name}`" in GUIDE
        for key in table.model_fields:
            assert f"`{key}`" in GUIDE, f"augment.{name}.{key}"


def test_albumentations_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("albumentations")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "NO_ALBUMENTATIONS_UPDATE", "1")
    (code,) = blocks("python")
    exec(code, {})
    config = parse(tomllib.loads(blocks("toml")[1]))
    Augment.of(config.data, config.augment)
