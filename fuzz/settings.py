"""Recipes, `--set` and `config.json`: a setting is read as written, or an error names it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import damage, product
from fuzz.cases import Trial, mutation
from fuzz.images import write

Rng = np.random.Generator
Table = dict[str, Any]

_RECIPE = """# A recipe of every section.
[model]
backbone = "resnet18"  # registered
head = "fcn32s"
dtype = "float32"

[init]
reinit = ["head.*"]
reinit_lr_mult = 6.0

[data]
dataset = "folder"
root = "data/scenes"
batch_size = 8
crop_size = [320, 480]
scale_range = [0.5, 2.0]
flip = true
brightness = 0.25

[optim]
name = "sgd"
lr = 0.02
momentum = 0.9
weight_decay = 1e-4
schedule = "poly"

[[optim.param_groups]]
match = "backbone.*"
lr_mult = 0.1

[train]
epochs = 10
seed = 7
eval_every_epochs = 5
"""


def _leaves(
    table: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, value) of every setting; options and param groups are single values."""
    for key, value in table.items():
        if isinstance(value, Mapping) and not above:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _same(given: Any, read: Any) -> bool:
    """Whether a value is read correctly; 10 may become 10.0, and "10" may become 10."""
    if isinstance(given, bool) or isinstance(read, bool):
        return (
            given is read
            or (isinstance(given, str) and isinstance(read, bool))
            or (read in (True, False) and given in (0, 1) and isinstance(read, bool))
        )
    if isinstance(given, list | tuple):
        return (
            isinstance(read, list | tuple)
            and len(given) == len(read)
            and all(map(_same, given, read))
        )
    if isinstance(given, Mapping):
        return isinstance(read, Mapping) and all(
            key in read and _same(value, read[key]) for key, value in given.items()
        )
    if isinstance(given, str) and isinstance(read, int | float):
        try:
            return float(given) == read
        except ValueError:
            return False
    if isinstance(given, str) and isinstance(read, str):
        return given.strip() == read.strip()  # spaces around a bare word do not count
    return bool(given == read)


def as_written(given: Mapping[str, Any], otherwise: Table) -> Callable[[Table], str | None]:
    """Check that the recipe has the given settings and, for all others, the defaults."""
    written = dict(_leaves(given))

    def right(read: Table) -> str | None:
        found = dict(_leaves(read))
        for path, value in written.items():
            if path not in found:
                return f"{'.'.join(path)} is ignored"
            if not _same(value, found[path]):
                return f"{'.'.join(path)} = {value!r} is read as {found[path]!r}"
        for path, value in _leaves(otherwise):
            if path not in written and not _same(value, found.get(path)):
                return (
                    f"{'.'.join(path)} was not given and is {found.get(path)!r}, expected {value!r}"
                )
        return None

    return right


# ------------------------------------------------------------------------------------------ recipes


def _recipe(place: Path, contents: bytes, given: Mapping[str, Any] | None) -> Trial:
    path = write(place, "my.toml", contents)
    right = None if given is None else as_written(given, product.default_config())
    return Trial(call=lambda: product.read_recipe(path), right=right, names=["my.toml"])


def _toml(contents: bytes) -> Table | None:
    """Return the table of a TOML text, None if it is invalid."""
    try:
        return tomllib.loads(contents.decode("utf-8-sig").replace("\r\n", "\n"))
    except (ValueError, RecursionError):
        return None


@mutation("settings", 3)
def recipe_from_any_editor(rng: Rng, place: Path) -> Trial:
    """A byte order mark and other line ends do not change the recipe."""
    text = _RECIPE.replace("\n", str(rng.choice(["\n", "\r\n"])))
    contents = (b"\xef\xbb\xbf" if rng.integers(2) else b"") + text.encode()
    trial = _recipe(place, contents, tomllib.loads(_RECIPE))
    trial.refusable = False
    return trial


@mutation("settings", 8)
def recipe_damaged(rng: Rng, place: Path) -> Trial:
    """A damaged recipe is rejected, or has the settings of its TOML."""
    contents = damage.some(rng, _RECIPE.encode())
    for _ in range(rng.integers(3)):
        contents = damage.some(rng, contents or b"\n")
    return _recipe(place, contents, _toml(contents))


@mutation("settings", 6)
def recipe_of_other_values(rng: Rng, place: Path) -> Trial:
    """One value of a recipe is replaced by another of any type."""
    lines = _RECIPE.splitlines()
    at = int(rng.choice([k for k, line in enumerate(lines) if " = " in line]))
    lines[at] = f"{lines[at].partition(' = ')[0]} = {rng.choice(_VALUES)}"
    contents = "\n".join(lines).encode()
    return _recipe(place, contents, _toml(contents))


@mutation("settings", 3)
def recipe_of_another_structure(rng: Rng, place: Path) -> Trial:
    """Sections are repeated, misspelled, missing or nested; values are huge; files are not TOML."""
    texts = [
        "",
        "[model]\n[model]\n",
        "[Model]\nbackbone = 'resnet18'\n",
        "[modle]\n",
        "model = 3\n",
        "model = []\n",
        "[[model]]\n",
        "[model.backbone]\nname = 'resnet18'\n",
        "backbone = 'resnet18'\n",
        "[optim]\nlearning_rate = 0.1\n",
        "[optim]\nLR = 0.1\n",
        "[data]\nbatch_size = 4\nbatch_size = 8\n",
        "x = " + "[" * 3000 + "]" * 3000 + "\n",
        "x = " + "{a = " * 2000 + "1" + "}" * 2000 + "\n",
        "[" + ".".join("a" * 1 for _ in range(3000)) + "]\n",
        "[train]\nepochs = " + "9" * 5000 + "\n",
        "[train]\nseed = 99999999999999999999999\n",
        "[optim]\nlr = 1e999\n",
        "[optim]\nlr = nan\n",
        '[data]\nroot = "\\u0000"\n',
        "[[optim.param_groups]]\nmatch = '['\nlr_mult = -1\n",
        "[[optim.param_groups]]\nlr_mult = 1\n",
        "[optim]\nparam_groups = {match = 'a'}\n",
        '{"model": {"backbone": "resnet18"}}',
        "model:\n  backbone: resnet18\n",
        "[model]\nbackbone = resnet18\n",
        "\x00",
        '[model]\nbackbone = """\n',
        "[train]\nepochs = 2024-01-01\n",
        "[train]\nepochs = 07:32:00\n",
    ]
    text = texts[int(rng.integers(len(texts)))]
    contents = [text.encode(), text.encode("utf-16"), b"\xff" + text.encode()][
        int(rng.choice([0, 0, 0, 1, 2]))
    ]
    return _recipe(place, contents, _toml(contents))


# -------------------------------------------------------------------------------------------- --set

_VALUES = [
    "0", "1", "-1", "2", "0.5", "-0.5", "1.5", "1e-3", "1E400", "-1e400", "nan", "inf", "-inf",
    "+inf", "0x10", "0b1", "1_000",
    "9" * 30, "9" * 5000, "1" + "0" * 400 + ".0", "true", "false", "True", "yes", "off", "none",
    "None", "null", "", " ",
    "''", '""', "'x'",
    '"x"', "'10'", '"0.1"', "x", "resnet18", "resnet19", "fcn32s", "tiny", "adamw", "poly",
    "float16", "bfloat16", "[]",
    "[1]", "[1, 2]",
    "[1, 2, 3]", "[64, 64]", "[0, 0]", "[-1, 5]", "[1.5, 2]", "[0.5, 2.0]", "[2.0, 0.5]", "['a']",
    "['a', 'b']", "[[1, 2]]",
    "[[[[]]]]",
    "{}", "{a = 1}", "{match = 'x'}", "[{match = 'x', lr_mult = 0.5}]", "[{lr_mult = 1}]",
    "1979-05-27",
    "07:32:00", "1979-05-27T07:32:00Z",
    "/data/#1", "data/my photos", "C:\\data", "~/data", "ünï", "日本", "😀", "x'y", 'x"y', "a=b",
    "=", "[", "]", "{", "'", '"',
    "\\", "#", "# x", "1 # one", "1\n", "1\nmodel = 2", "x\ny", "\t1", "1 2", "1,2", "64,64",
    "(64, 64)", "64x64", "1;2",
    "-", "--", "*", "\x00", "\x1b[31m",
    "[" * 3000, "{a=" * 1500,
]  # fmt: skip


def _value(text: str) -> Any:
    """Return the value that a text means in `--set`: a line of TOML, otherwise the text."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if table.keys() == {"value"} and "\n" not in text else text


def _key(rng: Rng) -> str:
    known = [".".join(path) for path, _ in _leaves(product.default_config())]
    return str(rng.choice(known))


def _set(
    *settings: str, given: Mapping[str, Any] | None = None, names: tuple[str, ...] = ()
) -> Trial:
    right = None if given is None else as_written(given, product.with_settings([]))
    return Trial(call=lambda: product.with_settings(settings), right=right, names=names)


@mutation("settings", 14)
def set_values(rng: Rng, place: Path) -> Trial:
    """A known key gets a value of any kind: it is set, or an error names the key."""
    key, text = _key(rng), str(rng.choice(np.array(_VALUES, object)))
    section, last = key.split(".")
    return _set(f"{key}={text}", given={section: {last: _value(text)}}, names=(key,))


@mutation("settings", 4)
def set_keys(rng: Rng, place: Path) -> Trial:
    """An unknown key causes an error that names it."""
    key = _key(rng)
    at = int(rng.integers(len(key)))
    odd = str(
        rng.choice(
            [
                key[:at] + key[at + 1 :],
                key[:at] + "_" + key[at:],
                key.upper(),
                key + ".x",
                "x." + key,
                key.split(".")[1],
                "",
                ".",
                "..",
                key + ".",
                "." + key,
                key.replace(".", ".."),
                key.replace(".", "/"),
                key.replace(".", "-"),
                f"'{key}'",
                key + "[0]",
                "model",
                "data",
                "ü.ü",
                "a b.c",
                "--" + key,
            ]
        )
    )
    if odd in {".".join(path) for path, _ in _leaves(product.default_config())}:
        odd += "x"
    # The error may name only the first unknown part.
    return _set(f"{odd}=1", names=(odd, *filter(None, odd.split("."))) if odd.strip(".") else ())


@mutation("settings", 2)
def set_without_a_value(rng: Rng, place: Path) -> Trial:
    """A setting has no `=`, no key, or is empty."""
    text = str(
        rng.choice(
            ["", " ", "optim.lr", "optim.lr 0.1", "optim.lr:0.1", "=", "=1", "0.1", "-", "optim"]
        )
    )
    return _set(text, names=("--set", text) if text.strip() else ("--set",))


@mutation("settings", 3)
def set_twice(rng: Rng, place: Path) -> Trial:
    """The last of two values for one key is used. Two keys are both set."""
    first, second = (float(rng.integers(1, 9)) / 10 for _ in range(2))
    if rng.integers(2):
        return _set(f"optim.lr={first}", f"optim.lr={second}", given={"optim": {"lr": second}})
    return _set(
        f"optim.lr={first}",
        f"optim.power={second}",
        given={"optim": {"lr": first, "power": second}},
    )


@mutation("settings", 2)
def set_options(rng: Rng, place: Path) -> Trial:
    """Nested settings: options of the backbone, and param groups."""
    text = str(
        rng.choice(
            [
                "model.backbone_options.width=4",
                "model.backbone_options={width=4}",
                "model.backbone_options=4",
                "model.backbone_options.a.b=1",
                "optim.param_groups.0.lr=1",
                "optim.param_groups=[{match='x'}]",
                "optim.param_groups=x",
                "model.backbone_options=[]",
            ]
        )
    )
    key, _, value = text.partition("=")
    section, *rest = key.split(".")
    given: Any = _value(value)
    for part in reversed(rest):
        given = {part: given}
    return _set(text, given={section: given}, names=(rest[0], key))


# -------------------------------------------------------------------------------------------------
# config.json


@mutation("settings", 5)
def config_json_of_a_run(rng: Rng, place: Path) -> Trial:
    """The file is damaged, empty, deeply nested or written by another program."""
    table = product.with_settings([])
    text = json.dumps(table, indent=2)
    odd = [
        "",
        "{}",
        "[]",
        "null",
        "3",
        '"x"',
        "{",
        "[" * 5000,
        '{"a":' * 3000,
        '{"model": null}',
        '{"train": {"epochs": NaN}}',
        "\ufeff" + text,
        "9" * 5000,
    ]
    chosen = int(rng.integers(2 * len(odd)))
    contents = odd[chosen].encode() if chosen < len(odd) else damage.some(rng, text.encode())
    run = place / "run"
    run.mkdir()
    (run / "config.json").write_bytes(contents)
    try:
        given = json.loads(contents.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        given = None
    right = as_written(given, product.default_config()) if isinstance(given, dict) else None
    return Trial(call=lambda: product.read_run_config(run), right=right, names=["run"])
