import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax import config
from fcn_jax.errors import ConfigError


def test_an_empty_recipe_is_all_defaults():
    parsed = config.parse({})
    assert parsed == config.Config()
    assert (parsed.model.backbone, parsed.model.head, parsed.optim.name) == (
        "resnet18",
        "fcn32s",
        "sgd",
    )


def test_a_recipe_survives_json():
    parsed = config.parse(
        {
            "optim": {"rules": [{"match": "backbone.*", "lr": 0.1}]},
            "data": {"crop": [8, 9]},
            "model": {"head_options": {"a": [1]}},
        }
    )
    assert config.parse(json.loads(parsed.to_json())) == parsed
    assert parsed.data.crop == (8, 9)


def test_all_unknown_keys_and_bad_values_are_in_one_error_with_the_nearest_name():
    table = {
        "optim": {
            "learning_rate": 0.1,
            "momentun": 0.9,
            "lr": -1,
            "rules": [{"match": "a", "weight_decai": 0}],
        },
        "data": {"batch_size": 0, "crop": [320]},
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
        "unknown key 'optim.rules.0.weight_decai'. Did you mean 'weight_decay'?",
        "optim.lr is -1",
        "data.batch_size is 0",
        "data.crop",
        "train.epochs is 'many'",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    "table",
    [
        {"optim": {"lr": float("nan")}},
        {"optim": {"lr": float("inf")}},
        {"optim": {"momentum": 1.0}},
        {"optim": {"name": "lamb"}},
        {"optim": {"rules": [{"lr": 0.1}]}},
        {"data": {"flip": "perhaps"}},
        {"data": {"scale": [0.0, 1.0]}},
        {"model": {"dtype": "float16"}},
        {"model": 3},
        {"train": {"seed": -1}},
    ],
)
def test_a_bad_value_is_refused_by_its_name(table):
    section = next(iter(table))
    with pytest.raises(ConfigError, match=section):
        config.parse(table)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        config.parse({}).optim.lr = 3


def test_settings_are_put_in_as_toml_and_bare_words_as_strings():
    table = {"optim": {"lr": 0.1}}
    changed = config.override(
        table,
        [
            "optim.lr=1e-3",
            "data.crop=[64, 96]",
            "model.backbone=vgg16",
            "data.flip=false",
            "data.root=/a=b",
            'data.train_split="x y"',
        ],
    )
    assert changed == {
        "optim": {"lr": 1e-3},
        "data": {"crop": [64, 96], "flip": False, "root": "/a=b", "train_split": "x y"},
        "model": {"backbone": "vgg16"},
    }
    assert table == {"optim": {"lr": 0.1}}, "the original stays"
    assert config.parse(changed).data.crop == (64, 96)


def test_the_last_of_two_settings_wins():
    assert config.override({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize("setting", ["optim.lr", "=3", "optim.lr.x=1"])
def test_a_malformed_setting_is_named(setting):
    with pytest.raises(ConfigError, match=f"--set {setting}"):
        config.override({"optim": {"lr": 0.1}}, [setting])


@given(
    value=st.one_of(
        st.integers(-(2**60), 2**60),
        st.booleans(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.integers(0, 9)),
    )
)
def test_any_toml_value_can_be_set(value):
    assert config.override({}, [f"a.b={json.dumps(value)}"]) == {"a": {"b": value}}


@pytest.mark.parametrize("name", config.recipes())
def test_every_shipped_recipe_is_valid_and_opens_with_its_command(name):
    config.parse(config.read_recipe(name), name)
    text = (config.importlib.resources.files("fcn_jax") / "recipes" / f"{name}.toml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# "), "a recipe opens with its command"
    assert "train" in first


def test_recipes_are_listed_by_name():
    assert "camvid" in config.recipes()
    assert all(not name.endswith(".toml") for name in config.recipes())


def test_an_unknown_recipe_says_which_there_are():
    with pytest.raises(ConfigError, match=r"no recipe 'camvit'. Did you mean 'camvid'\?.*\.toml"):
        config.read_recipe("camvit")


def test_a_recipe_file_is_read_and_a_broken_one_named(tmp_path):
    path = tmp_path / "mine.toml"
    with pytest.raises(ConfigError, match="no such recipe file"):
        config.read_recipe(str(path))
    path.write_text("[optim]\nlr = 0.5\n")
    assert config.read_recipe(str(path)) == {"optim": {"lr": 0.5}}
    for contents in (b"[optim\n", b"\xff\xfe"):
        path.write_bytes(contents)
        with pytest.raises(ConfigError, match=r"mine\.toml: not a TOML file"):
            config.read_recipe(str(path))


def test_the_range_of_values_and_what_to_do_with_damage_are_settings():
    table = config.override({}, ["data.value_range=[0, 4095]", "data.damaged=skip"])
    parsed = config.parse(table)
    assert parsed.data.value_range == (0.0, 4095.0)
    assert parsed.data.damaged == "skip"
    assert config.parse(json.loads(parsed.to_json())) == parsed
    assert (config.Config().data.value_range, config.Config().data.damaged) == (None, "refuse")


@pytest.mark.parametrize("value", ["[5, 1]", "[2, 2]", "[1]", "7", "[nan, 1]"])
def test_a_range_that_does_not_rise_is_refused(value):
    with pytest.raises(ConfigError, match=r"data\.value_range"):
        config.parse(config.override({}, [f"data.value_range={value}"]))


def test_a_value_is_taken_whole_or_as_a_string():
    values = {
        "a#b": "a#b",
        "3 # three": "3 # three",
        '"a # b"': "a # b",
        "1\nb = 2": "1\nb = 2",
        "1, 2": "1, 2",
        "": "",
        "1,": "1,",
    }
    for text, value in values.items():
        assert config.override({}, [f"x={text}"]) == {"x": value}, text


@pytest.mark.parametrize("text", ["[1", '"x', "{a = 1", "'x", "[1, 2"])
def test_a_list_or_string_without_its_end_is_refused(text):
    with pytest.raises(ConfigError, match="the value is not TOML"):
        config.override({}, [f"data.crop={text}"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.crop=64x64",
            r"data\.crop is '64x64': want a list in brackets, such as \[320, 480\]",
        ),
        ("data.batch_size=true", "data.batch_size is True: want a number"),
        ('data.batch_size="8"', "data.batch_size is '8': want a number, without quotes"),
        ("data.flip=1", "data.flip is 1: input should be a valid boolean"),
        ("data.root=", "data.root is '': want the path"),
        ("init.weights=", "init.weights is '': want the path"),
        ("train.seed=4294967296", "train.seed is 4294967296: input should be less than 4294967296"),
        ("optim.warmup_steps=1e12", "optim.warmup_steps is .*less than 2147483648"),
        ("model.head_options.x=nan", "model.head_options.x is nan: want a finite number"),
        ("model.head_options=[1]", r"want a table, such as \[model\.head_options\]"),
    ],
)
def test_what_is_allowed_is_said(setting, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(config.override({}, [setting]))


@pytest.mark.parametrize(
    "contents", [b"\xef\xbb\xbf[optim]\r\nlr = 0.5\r\n", b"[optim]\rlr = 0.5\r"]
)
def test_a_recipe_of_any_editor_is_read(tmp_path, contents):
    (tmp_path / "mine.toml").write_bytes(contents)
    assert config.read_recipe(str(tmp_path / "mine.toml")) == {"optim": {"lr": 0.5}}


def test_recipe_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "wide.toml").write_text("a = 1\n", encoding="utf-16")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    for name, message in (("folder", "a folder"), ("wide", "UTF-16"), ("deep", "not a TOML file")):
        with pytest.raises(ConfigError, match=message):
            config.read_recipe(str(tmp_path / f"{name}.toml"))


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.pth").write_bytes(b"")
    parsed = config.parse({"data": {"root": "data"}, "init": {"weights": "start.pth"}}).anchored()
    assert (parsed.data.root, parsed.init.weights) == (
        str(tmp_path / "data"),
        str(tmp_path / "start.pth"),
    )
    named = config.parse({"init": {"weights": "IMAGENET1K_V1"}}).anchored()
    assert (named.data.root, named.init.weights) == (None, "IMAGENET1K_V1")


def test_tables_that_are_nested_too_deeply_are_one_line():
    table: dict = {}
    node = table
    for _ in range(3000):
        node["a"] = {}
        node = node["a"]
    with pytest.raises(ConfigError, match="nested too deeply"):
        config.parse(table)
