import json
import shlex
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax import recipes
from fcn_jax.config import Config, parse
from fcn_jax.errors import ConfigError
from fcn_jax.report import settings


def dumped(table):
    return parse(table).model_dump(mode="json")


def replayed(command):
    """The settings that a command trains with, as `fcn-jax train` reads it."""
    program, verb, recipe, *words = shlex.split(command)
    assert (program, verb) == ("fcn-jax", "train")
    flags = {"--data": "data.root", "--weights": "init.weights"}
    given = []
    while words:
        option, value = words.pop(0), words.pop(0)
        if option == "--set":
            given.append(value)
        elif option in flags:
            given.append(f"{flags[option]}={json.dumps(value)}")
        else:
            assert (option, value) == ("--workdir", "runs/again")
    return parse(recipes.override(recipes.read_recipe(recipe), given))


TABLES = [
    {},
    recipes.read_recipe("camvid"),
    {**recipes.read_recipe("voc2012"), "train": {"epochs": 3, "seed": 7}},
    {"data": {"dataset": "folder", "root": "/my photos/a'b", "crop_size": [64, 96]}},
    {"init": {"weights": "/w/x.pth", "reinit": ["head.*"]}, "optim": {"clip_norm": 1.5}},
    {"loss": {"dice": {"weight": 0.5}}},
    {"loss": {"cross_entropy": {}, "dice": {}}},
    {"loss": {"cross_entropy": {"class_weights": [1.0, 2.0]}, "dice": {"weight": 0.5}}},
    {"optim": {"param_groups": [{"match": "head.*", "lr_mult": 10.0}], "lr": 1e-5}},
    {"model": {"backbone_options": {"norm": "group_norm"}}},
    {"train": {"early_stopping": {"patience": 2}}, "log": {"wandb": {"project": "x y"}}},
]


@pytest.mark.parametrize("table", TABLES)
def test_command_trains_with_the_same_settings(table):
    config = parse(table)
    command = settings.command(config.model_dump(mode="json"), "runs/again")
    assert replayed(command) == config


def test_command_starts_from_the_nearest_recipe():
    config = dumped({**recipes.read_recipe("camvid"), "train": {"epochs": 3}})
    command = settings.command(config, "runs/x")
    assert command.startswith("fcn-jax train camvid ")
    assert len(settings.command(dumped(recipes.read_recipe("shapes")), "runs/x").split()) == 5


@given(
    st.floats(1e-9, 1e3),
    st.integers(1, 500),
    st.booleans(),
    st.tuples(st.integers(1, 999), st.integers(1, 999)),
    st.none() | st.floats(1e-3, 9),
)
def test_any_settings_come_back_from_their_command(lr, epochs, flip, crop, clip):
    table = {
        "optim": {"lr": lr, "clip_norm": clip},
        "train": {"epochs": epochs},
        "data": {"flip": flip, "crop_size": list(crop)},
    }
    config = parse(table)
    assert replayed(settings.command(config.model_dump(mode="json"), "runs/again")) == config


def test_settings_of_another_version_have_no_command():
    with pytest.raises(ConfigError, match=r"unknown key 'data\.crop'"):
        settings.command({"data": {"crop": [1, 2]}}, "runs/x")


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=5)
numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
)


@given(values)
def test_inline_toml_is_read_back(value):
    assert tomllib.loads(f"value = {settings.toml(value)}")["value"] == value


def test_tables_leave_out_missing_items():
    assert settings.toml({"project": "x", "entity": None, "a b": [1, True]}) == (
        '{project = "x", "a b" = [1, true]}'
    )


def test_differences_between_runs():
    one = dumped({"optim": {"lr": 0.1}, "loss": {"dice": {}}})
    other = dumped({"optim": {"lr": 0.2}, "train": {"seed": 3}})
    assert settings.differences([one, other]) == [
        ("loss.dice.weight", ["1.0", "-"]),
        ("optim.lr", ["0.1", "0.2"]),
        ("train.seed", ["0", "3"]),
        ("loss.cross_entropy.weight", ["-", "1.0"]),
    ]
    assert settings.differences([one, one]) == []


def test_settings_that_an_older_version_lacked_have_their_defaults():
    older = dumped({"optim": {"lr": 0.1}})
    del older["log"], older["train"]["seed"]
    assert settings.differences([older, dumped({"optim": {"lr": 0.2}})]) == [
        ("optim.lr", ["0.1", "0.2"])
    ]
    unknown = {"data": {"crop": [1, 2]}}
    assert ("data.crop", ["[1, 2]", "-"]) in settings.differences([unknown, older])


def test_single_run_is_compared_with_the_defaults():
    assert settings.differences([dumped({"optim": {"lr": 0.5}})]) == [("optim.lr", ["0.5"])]
    assert settings.differences([Config().model_dump(mode="json")]) == []
    assert settings.differences([dumped({"loss": {"dice": {}}})]) == [
        ("loss.dice.weight", ["1.0"]),
        ("loss.cross_entropy.weight", ["-"]),
    ]
