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


def test_augmentation_tables_have_defaults_and_survive_json():
    table = {"rotate": {}, "jpeg": {"quality": [40, 40]}, "resize": {"shorter_side": [256, 512]}}
    parsed = config.parse({"augment": table})
    assert (parsed.augment.rotate.degrees, parsed.augment.rotate.probability) == (10.0, 0.5)
    assert parsed.augment.jpeg.quality == (40, 40)
    assert parsed.augment.blur is None
    assert config.parse(json.loads(parsed.to_json())) == parsed


def test_one_error_names_all_mistakes_in_augmentation_tables():
    table = {
        "rotate": {"degrees": 200, "probability": 2},
        "blur": {"sigma": [2.0, 0.1]},
        "jpeg": {"quality": [0, 95], "qualty": 3},
        "cutout": {"labels": "drop"},
        "crop": {"max_class_share": 1.0},
        "resize": {},
        "rotat": {},
        "photometric": 3,
    }
    with pytest.raises(ConfigError) as caught:
        config.parse({"augment": table, "data": {"hue": 0.7, "rotate": {}}})
    for part in (
        "augment.rotate.degrees is 200: input should be less than or equal to 180",
        "augment.rotate.probability is 2: input should be less than or equal to 1",
        "augment.blur.sigma is [2.0, 0.1]: expected [low, high] with low <= high",
        "augment.jpeg.quality[0] is 0: input should be greater than or equal to 1",
        "unknown key 'augment.jpeg.qualty'. Did you mean 'quality'?",
        "augment.cutout.labels is 'drop': input should be 'ignore' or 'keep'",
        "augment.crop.max_class_share is 1.0: input should be less than 1",
        "augment.resize.shorter_side is missing",
        "unknown key 'augment.rotat'. Did you mean 'rotate'?",
        "augment.photometric is 3: expected a table, such as [augment.photometric]",
        "data.hue is 0.7: input should be less than or equal to 0.5",
        "unknown key 'data.rotate'. Did you mean 'augment.rotate'?",
    ):
        assert part in str(caught.value), part


PIPELINE = {"__version__": "2.0.8", "transform": {"__class_fullname__": "HorizontalFlip", "p": 1}}


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_pipeline_of_albumentations_is_recorded_by_its_contents(tmp_path, ending):
    path = tmp_path / f"pipeline.{ending}"
    path.write_text(json.dumps(PIPELINE))  # JSON is YAML, too
    if ending == "yaml":
        pytest.importorskip("yaml")
    parsed = config.parse({"augment": {"albumentations": str(path)}})
    assert parsed.augment.albumentations == PIPELINE
    path.unlink()
    assert config.parse(json.loads(parsed.to_json())) == parsed


@pytest.mark.parametrize(
    ("name", "contents", "named"),
    [
        ("none.json", None, r"none\.json': cannot be read \(No such file or directory\)"),
        ("a.json", "{", "not JSON"),
        ("a.yaml", "a: [", "not YAML"),
        ("a.json", "[1]", "not a file that albumentations.save wrote"),
        ("a.json", "{}", "it has no table 'transform'"),
        ("a.toml", "", r"expected a file whose name ends in \.json, \.yaml or \.yml"),
        ("a.json", "\udcff", "not a text file in UTF-8"),
    ],
)
def test_rejects_files_that_are_no_pipelines(tmp_path, name, contents, named):
    if contents is not None:
        (tmp_path / name).write_text(contents, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=named) as caught:
        config.parse({"augment": {"albumentations": str(tmp_path / name)}})
    assert str(caught.value).startswith("recipe: augment.albumentations is ")
    assert "\n" not in str(caught.value)


def test_rejects_a_pipeline_of_another_type():
    with pytest.raises(ConfigError, match=r"augment\.albumentations is 3: expected the path"):
        config.parse({"augment": {"albumentations": 3}})


@pytest.mark.parametrize("value", [[5, 1], [2, 2], [1], 7, [float("nan"), 1]])
def test_rejects_a_value_range_that_does_not_rise(value):
    with pytest.raises(ConfigError, match=r"data\.value_range"):
        config.parse({"data": {"value_range": value}})


@pytest.mark.parametrize("key", config.AUTO_SETTINGS)
def test_some_settings_may_be_auto(key):
    section, name = key.split(".")
    parsed = config.parse({section: {name: "auto"}})
    assert getattr(getattr(parsed, section), name) == "auto"
    assert config.parse(json.loads(parsed.to_json())) == parsed
    with pytest.raises(ConfigError, match=rf"{key} is 'Auto': expected .*, or 'auto'"):
        config.parse({section: {name: "Auto"}})


def test_other_settings_may_not_be_auto():
    with pytest.raises(
        ConfigError, match=r"train\.seed is 'auto': expected a number, without quotes"
    ):
        config.parse({"train": {"seed": "auto"}})


def test_numbers_that_are_not_finite_do_not_hide_other_problems():
    table = {
        "optim": {"lr": float("nan"), "param_groups": [{"match": "a", "lr_mult": float("inf")}, 3]},
        "train": {"epochs": "many"},
    }
    with pytest.raises(ConfigError) as caught:
        config.parse(table)
    assert str(caught.value) == (
        "recipe: optim.lr is nan: expected a finite number; optim.param_groups[0].lr_mult is inf: "
        "expected a finite number; optim.param_groups[1] is 3: expected a table, such as "
        "{ match = 'head.*' }; train.epochs is 'many': expected a number, without quotes, or 'auto'"
    )


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
        **{f"augment.{name}": table for name, table in config.AUGMENT_TABLES.items()},
    }
    missing = [
        f"{section}.{name}"
        for section, settings in sections.items()
        for name, field in getattr(settings, "model_fields", {}).items()
        if not (field.description or "").endswith(".")
    ]
    assert not missing
