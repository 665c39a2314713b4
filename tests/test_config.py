"""Settings: defaults, validation, and errors that name every mistake."""

import json

import pytest

from fcn_jax import config
from fcn_jax.errors import ConfigError


def test_empty_table_returns_all_defaults():
    parsed = config.parse({})
    assert parsed == config.Config()
    assert (parsed.model.backbone, parsed.model.head) == ("resnet18", "fcn32s")
    assert parsed.optim.name == "sgd"


def test_settings_survive_json():
    parsed = config.parse(
        {
            "optim": {"param_groups": [{"match": "backbone.*", "lr_mult": 0.1}]},
            "data": {"crop_size": [8, 9], "value_range": [0, 4095], "damaged": "skip"},
            "model": {"head_options": {"a": [1]}},
        }
    )
    assert config.parse(json.loads(parsed.to_json())) == parsed
    assert parsed.data.crop_size == (8, 9)
    assert parsed.data.value_range == (0.0, 4095.0)


def test_one_error_names_all_unknown_keys_and_bad_values():
    table = {
        "optim": {
            "learning_rate": 0.1,
            "momentun": 0.9,
            "lr": -1,
            "param_groups": [{"match": "a", "decai_mult": 0}],
        },
        "data": {"batch_size": 0, "crop_size": [320], "scale": [1.0, 2.0]},
        "modle": {},
        "epochs": 3,
        "train": {"epochs": "many"},
    }
    with pytest.raises(ConfigError) as caught:
        config.parse(table, "my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml: ")
    for part in (
        "unknown key 'optim.learning_rate'",
        "unknown key 'optim.momentun'. Did you mean 'momentum'?",
        "unknown key 'modle'. Did you mean 'model'?",
        "unknown key 'epochs'. Did you mean 'train.epochs'?",
        "unknown key 'optim.param_groups[0].decai_mult'. Did you mean 'decay_mult'?",
        "unknown key 'data.scale'. Did you mean 'scale_range'?",
        "optim.lr is -1",
        "data.batch_size is 0",
        "data.crop_size",
        "train.epochs is 'many'",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"optim": {"lr": float("nan")}}, r"optim\.lr is nan"),
        ({"optim": {"lr": float("inf")}}, r"optim\.lr is inf"),
        ({"optim": {"momentum": 1.0}}, r"optim\.momentum is 1\.0: .*less than 1"),
        ({"optim": {"clip_norm": 0}}, r"optim\.clip_norm is 0: .*greater than 0"),
        ({"optim": {"name": "lamb"}}, r"optim\.name is 'lamb': .*'lion' or 'muon'"),
        ({"optim": {"schedule": "step"}}, r"'one_cycle' or 'multi_step'"),
        ({"optim": {"param_groups": [{"lr_mult": 0.1}]}}, r"param_groups\[0\]\.match is missing"),
        ({"data": {"flip": "perhaps"}}, r"data\.flip is 'perhaps'"),
        ({"data": {"scale_range": [0.0, 1.0]}}, r"data\.scale_range\[0\] is 0\.0"),
        ({"model": {"dtype": "float16"}}, r"model\.dtype is 'float16'"),
        ({"model": 3}, r"model is 3: expected a table, such as \[model\]"),
        ({"train": {"seed": -1}}, r"train\.seed is -1"),
        ({"data": {"crop_size": "64x64"}}, r"expected a list in brackets, such as \[320, 480\]"),
        ({"data": {"batch_size": True}}, "data.batch_size is True: expected a number"),
        ({"data": {"batch_size": "8"}}, "data.batch_size is '8': expected a number, without"),
        ({"data": {"flip": 1}}, "data.flip is 1: input should be a valid boolean"),
        ({"data": {"root": ""}}, "data.root is '': expected the path"),
        ({"init": {"weights": ""}}, "init.weights is '': expected the path"),
        ({"train": {"seed": 2**32}}, "train.seed is 4294967296: .*less than 4294967296"),
        ({"optim": {"warmup_steps": 1e12}}, "optim.warmup_steps is .*less than 2147483648"),
        ({"model": {"head_options": {"x": float("nan")}}}, "model.head_options.x is nan: expected"),
        ({"model": {"head_options": [1]}}, r"expected a table, such as \[model\.head_options\]"),
        ([1], r"recipe: is \[1\]; expected a table of settings"),
    ],
)
def test_rejects_a_bad_value_and_names_the_allowed_ones(table, named):
    with pytest.raises(ConfigError, match=named):
        config.parse(table)


@pytest.mark.parametrize("value", [[5, 1], [2, 2], [1], 7, [float("nan"), 1]])
def test_rejects_a_value_range_that_does_not_rise(value):
    with pytest.raises(ConfigError, match=r"data\.value_range"):
        config.parse({"data": {"value_range": value}})


def test_settings_are_immutable():
    with pytest.raises(Exception, match="frozen"):
        config.parse({}).optim.lr = 3


def test_makes_paths_absolute_but_not_names_of_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.pth").write_bytes(b"")
    given = {"data": {"root": "data"}, "init": {"weights": "start.pth"}}
    parsed = config.parse(given).with_absolute_paths()
    assert parsed.data.root == str(tmp_path / "data")
    assert parsed.init.weights == str(tmp_path / "start.pth")
    named = config.parse({"init": {"weights": "IMAGENET1K_V1"}}).with_absolute_paths()
    assert (named.data.root, named.init.weights) == (None, "IMAGENET1K_V1")


def test_rejects_tables_that_are_nested_too_deeply():
    table: dict = {}
    node = table
    for _ in range(3000):
        node["a"] = {}
        node = node["a"]
    with pytest.raises(ConfigError, match="nested too deeply"):
        config.parse(table)


def test_every_setting_has_a_description():
    sections = {
        **{name: field.annotation for name, field in config.Config.model_fields.items()},
        "optim.param_groups": config.ParamGroup,
    }
    missing = [
        f"{section}.{name}"
        for section, settings in sections.items()
        for name, field in getattr(settings, "model_fields", {}).items()
        if not (field.description or "").endswith(".")
    ]
    assert not missing
