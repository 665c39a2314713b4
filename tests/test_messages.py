"""Messages of errors say what is wrong, where, what is allowed and what to do, in one line."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax import build_model, cli, config, errors, load_torch
from fcn_jax.data import decode
from tests.helpers import messages


@pytest.fixture(scope="module")
def model():
    return nnx.eval_shape(lambda: build_model("resnet18", "fcn32s", 3, rngs=nnx.Rngs(0)))


def unknown_key(folder, model):
    config.parse({"optim": {"momentun": 0.9}}, "my.toml")


def wrong_value(folder, model):
    config.parse({"optim": {"lr": -1}}, "my.toml")


def unknown_plugin(folder, model):
    build_model("resnet81", "fcn32s", 3, rngs=nnx.Rngs(0))


def unreadable_weights(folder, model):
    (folder / "net.pth").write_text("hello")
    load_torch(model, folder / "net.pth")


def missing_weights(folder, model):
    load_torch(model, folder / "net.pth")


def misshapen_tensor(folder, model):
    load_torch(model, {"conv1.weight": np.zeros((64, 3, 5, 5), np.float32)})


def truncated_image(folder, model):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "photo.png")
    (folder / "photo.png").write_bytes((folder / "photo.png").read_bytes()[:50])
    decode.read_image(folder / "photo.png")


def not_an_image(folder, model):
    (folder / "photo.png").write_text("hello")
    decode.read_image(folder / "photo.png")


def label_out_of_range(folder, model):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(folder / "mask.png")
    decode.read_mask(folder / "mask.png", 3)


@pytest.mark.parametrize(
    ("provoke", "error", "parts"),
    [
        (unknown_key, errors.ConfigError, ["my.toml", "optim.momentun", "'momentum'", "schedule"]),
        (wrong_value, errors.ConfigError, ["my.toml", "optim.lr", "-1", "greater than 0"]),
        (unknown_plugin, errors.ConfigError, ["'resnet81'", "'resnet18'", "resnet50"]),
        (unreadable_weights, errors.WeightsError, ["{folder}/net.pth", "readable weights file"]),
        (
            missing_weights,
            errors.WeightsError,
            ["{folder}/net.pth", "no such", ".safetensors", "IMAGENET1K_V1"],
        ),
        (
            misshapen_tensor,
            errors.WeightsError,
            ["resnet18", "conv1.weight", "(64, 3, 5, 5)", "(64, 3, 7, 7)", "--reinit"],
        ),
        (
            truncated_image,
            errors.DataError,
            ["{folder}/photo.png", "PNG", "truncated", "50 bytes", "again"],
        ),
        (not_an_image, errors.DataError, ["{folder}/photo.png", "JPEG, PNG, TIFF, BMP or WebP"]),
        (label_out_of_range, errors.DataError, ["{folder}/mask.png", "7", "0 to 2", "255"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_names_the_fault_its_place_and_what_is_allowed(provoke, error, parts, model, tmp_path):
    with pytest.raises(error) as caught:
        provoke(tmp_path, model)
    message = str(caught.value)
    for part in parts:
        assert part.format(folder=tmp_path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "shaps"], ["'shaps'", "'shapes'", "camvid", ".toml"]),
        (["train", "shapes", "--set", "optim.lrr=1"], ["optim.lrr", "'lr'", "momentum"]),
        (["eval", "{folder}"], ["{folder}", "'checkpoints'", "'model'"]),
        (["predict", "{folder}/run", "a.png", "-o", "{folder}/out"], ["a.png", "no such image"]),
        (["plugins", "lst"], ["'lst'", "'list', 'check', 'new'"]),
    ],
)
def test_commands_print_one_line_and_return_2(arguments, parts, capsys, tmp_path):
    try:
        status = cli.main([argument.format(folder=tmp_path) for argument in arguments])
    except SystemExit as stop:  # raised by argparse, after its usage
        status = stop.code
    assert status == 2
    output = capsys.readouterr()
    line = output.err.splitlines()[-1]
    assert line.startswith("fcn-jax")
    for part in parts:
        assert part.format(folder=tmp_path) in line
    assert output.out == ""


def record(path, *texts):
    lines = [{"test": "t", "error": "DataError", "message": text} for text in texts]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_compares_two_records_of_messages(tmp_path):
    before = record(tmp_path / "a", "/tmp/x1/a.png: 3 rows", "gone")
    after = record(tmp_path / "b", "/tmp/x2/a.png: 5 rows", "new")
    assert list(messages.compare(before, after)) == [
        "- DataError: gone",
        "      t",
        "+ DataError: new",
        "      t",
        "2 before, 2 after; 1 removed, 1 new",
    ]


def test_records_each_error_with_its_test(pytester, monkeypatch, tmp_path):
    path = tmp_path / "messages"
    monkeypatch.setattr(errors.FcnJaxError, "__init__", errors.FcnJaxError.__init__)
    pytester.makepyfile(
        test_it="""
        from fcn_jax.errors import DataError

        def test_raises():
            DataError("a.png: broken")
        """
    )
    done = pytester.inline_run("-p", "no:cacheprovider", plugins=[messages.Recorder(path)])
    done.assertoutcome(passed=1)
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "test": "test_it.py::test_raises",
        "error": "DataError",
        "message": "a.png: broken",
        "source": "test_it.py",
    }
