"""The command line: output, files, exit status, and errors on bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from fcn_jax import build_model, cli, load_torch, to_torch
from fcn_jax.cli.settings import settings_reference
from fcn_jax.config import Config
from tests.helpers import scenes

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=16)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def run(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli.main(scenes.arguments(recipe, data, directory, "--set", "train.epochs=2")) == 0
    return directory


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail with status 2 and one line, without traceback; return it."""

    def check(*argv: object) -> str:
        capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("fcn-jax: error:")]
        assert status == 2
        assert len(lines) == 1
        assert captured.err.splitlines()[-1] == lines[0]
        assert "Traceback" not in captured.err
        return lines[0]

    return check


def test_help_imports_no_heavy_package() -> None:
    code = "import sys, fcn_jax.cli as c\ntry:\n c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "heavy = {'jax', 'torch', 'flax', 'numpy', 'pydantic', 'rich', 'grain'}\n"
    code += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_the_package_imports_no_heavy_package() -> None:
    code = "import sys, fcn_jax; assert not {'jax', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_eval_prints_a_table_and_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run)]) == 0
    table = capsys.readouterr().out
    assert "mIoU" in table
    assert "background" in table
    assert cli.main(["eval", str(run), "--json", "--split", "train"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["images"] == 16
    assert outcome["split"] == "train"
    assert 0 <= outcome["miou"] <= 1


def test_eval_scores_what_training_scored(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert outcome["miou"] == pytest.approx(
        max(record["miou"] for record in records if record["event"] == "val"), abs=1e-12
    )


def test_predict_writes_masks_of_the_images_own_size(run: Path, data: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.jpg"
    Image.fromarray(np.full((53, 71, 3), 90, np.uint8)).save(odd)
    out = tmp_path / "out"
    assert (
        cli.main(
            ["predict", str(run), str(odd), str(data / "images" / "val" / "*.png"), "-o", str(out)]
        )
        == 0
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{stem}{end}.png" for stem in ("odd", "0", "1", "2") for end in ("", "_overlay")
    )
    with Image.open(out / "odd.png") as mask:
        assert mask.mode == "P"
        assert mask.size == (71, 53)
        assert np.asarray(mask).max() < 7
    with Image.open(out / "odd_overlay.png") as overlay:
        assert overlay.size == (71, 53)


def test_predict_keeps_inputs_and_replaces_results_on_request(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    folder = tmp_path / "ph"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(np.full((24, 40, 3), 90 + number, np.uint8)).save(
            folder / f"photo{number}.png"
        )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    line = fails("predict", run, folder, "-o", folder, "--overwrite")
    assert (
        f"2 inputs would be replaced by results: {folder / 'photo0.png'}, {folder / 'photo1.png'}"
        in line
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    for path in sorted(folder.iterdir()):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    assert cli.main(["predict", str(run), str(folder), "-o", str(folder)]) == 0
    written = capsys.readouterr().out
    assert written.splitlines() == [
        f"{folder}/photo{n}.png {folder}/photo{n}_overlay.png" for n in range(2)
    ]
    assert "4 results of an earlier prediction exist" in fails("predict", run, folder, "-o", folder)
    assert cli.main(["predict", str(run), str(folder), "-o", str(folder), "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert captured.out == written
    assert "note: left out 4 results of an earlier prediction" in captured.err.splitlines()


@pytest.mark.parametrize("values", [("5", "5"), ("9", "1"), ("0", "inf"), ("nan", "1")])
def test_rejects_an_invalid_value_range(fails: Fails, values: tuple[str, str]) -> None:
    assert "give two finite numbers, the smaller one first" in fails(
        "predict", "run", "a.png", "--value-range", *values
    )


def test_predict_escapes_names_that_the_terminal_cannot_encode(run: Path, tmp_path: Path) -> None:
    """The file name is not valid UTF-8, and the terminal encodes ASCII."""
    Image.fromarray(np.full((24, 40, 3), 90, np.uint8)).save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    words = scenes.command("predict", str(run), str(tmp_path), "-o", str(tmp_path / "out"))
    environment = {**scenes.environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/out/caf\\udce9.png {tmp_path}/out/caf\\udce9_overlay.png\n"
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == [
        b"caf\xe9.png",
        b"caf\xe9_overlay.png",
    ]


def test_predict_continues_when_its_output_is_closed(run: Path, tmp_path: Path) -> None:
    for name in "abc":
        Image.fromarray(np.full((24, 40, 3), 90, np.uint8)).save(tmp_path / f"{name}.bmp")
    words = scenes.command("predict", str(run), str(tmp_path), "-o", str(tmp_path / "out"))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        words,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=scenes.environment(),
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(os.listdir(tmp_path / "out")) == 6


def test_eval_json_is_one_object_and_notes_go_to_stderr(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    root = tmp_path / "void"
    shutil.copytree(data, root)
    for mask in (root / "masks" / "val").iterdir():
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(mask)
    assert cli.main(["eval", str(run), "--data", str(root), "--json"]) == 0
    captured = capsys.readouterr()

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    outcome = json.loads(captured.out, parse_constant=refused)
    assert (outcome["miou"], outcome["classes_scored"], outcome["classes"]) == (None, 0, 7)
    assert outcome["notes"] == [
        f"no pixel has a class: all {3 * 64 * 64} are ignored (label 255), so there are no scores"
    ]
    assert captured.err.splitlines()[-1] == f"note: {outcome['notes'][0]}"
    assert "Available" in fails("eval", run, "--split", "vel")
    assert "Did you mean 'folder'" in fails("eval", run, "--dataset", "foldr")
    assert "--data" in fails("eval", run, "--dataset", "camvid")


def test_eval_finds_data_with_a_relative_recorded_path(
    run: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["eval", str(run), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["miou"]
    shutil.copytree(data, tmp_path / "project" / "data")
    moved = tmp_path / "project" / "runs" / "tiny"
    shutil.copytree(run, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["root"] = "data"
    (moved / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", str(moved), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["miou"] == expected
    assert (
        f"recorded its data as 'data', a relative path; read from {tmp_path / 'project' / 'data'} "
        in outcome["notes"][0]
    )


def test_convert_and_export_check_their_output_first(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling.pth").symlink_to("nowhere")
    for output, reason in (
        ("mine", "exists"),
        ("mine/new", "is not a writable folder"),
        ("link", "symbolic link to empty"),
    ):
        # The weights do not exist either, which a later check would report.
        assert reason in fails(
            "convert", tmp_path / "none.pth", "--model", "resnet18", "-o", tmp_path / output
        )
    for output, reason in (("dangling.pth", "exists"), ("mine/new.pth", "not a writable folder")):
        assert reason in fails("export", tmp_path / "none", "-o", tmp_path / output)
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["dangling.pth", "empty", "link", "mine"]


def test_convert_makes_a_checkpoint_that_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model("resnet18", "fcn32s", 21, rngs=nnx.Rngs(3))
    save_file(to_torch(model, key_format="d2l"), tmp_path / "d2l.safetensors")
    target = tmp_path / "converted"
    assert (
        cli.main(
            [
                "convert",
                str(tmp_path / "d2l.safetensors"),
                "--model",
                "fcn32s_resnet18",
                "-o",
                str(target),
            ]
        )
        == 0
    )
    assert "124 tensors" in capsys.readouterr().out
    image = tmp_path / "gray.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(image)
    assert cli.main(["predict", str(target), str(image), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "gray.png").exists()


def test_convert_puts_a_head_on_a_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    weights = to_torch(build_model("tiny", "fcn", 5, rngs=nnx.Rngs(3)))
    aux = {
        name.replace("classifier.", "aux_classifier."): value
        for name, value in weights.items()
        if "classifier." in name
    }
    save_file({**weights, **aux}, tmp_path / "fcn_tiny.weights")
    source, made, back = (
        str(tmp_path / "fcn_tiny.weights"),
        str(tmp_path / "made"),
        str(tmp_path / "back.safetensors"),
    )
    words = [
        "convert",
        source,
        "--model",
        "tiny",
        "--head",
        "fcn",
        "--num-classes",
        "5",
        "--head-option",
        "dropout=0.2",
    ]
    assert cli.main([*words, "-o", made]) == 0
    assert "8 dropped: aux_classifier" in capsys.readouterr().out
    image = tmp_path / "gray.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(image)
    assert cli.main(["predict", made, str(image), "-o", str(tmp_path / "out")]) == 0
    assert cli.main(["export", made, "-o", back]) == 0
    found = load_file(back)
    assert found.keys() == weights.keys()
    assert all(found[name].tobytes() == value.tobytes() for name, value in weights.items())

    out = tmp_path / "other"
    assert "surplus 16" in fails("convert", source, "--model", "tiny", "-o", out)
    assert "--head-option x: write it as KEY=VALUE" in fails(
        *words, "--head-option", "x", "-o", out
    )
    assert "Did you mean 'dropout'" in fails(*words, "--head-option", "dropuot=1", "-o", out)
    assert "--head NAME adds a head" in fails(
        "convert", source, "--model", "tiny", "--num-classes", "5", "-o", out
    )
    assert "is a model with the head 'fcn32s'" in fails(
        "convert", source, "--model", "fcn32s_resnet18", "--head", "fcn", "-o", out
    )
    assert not out.exists()
    assert (
        cli.main(["convert", source, "--model", "tiny", "--drop", "*classifier", "-o", str(out)])
        == 0
    )
    assert "16 dropped" in capsys.readouterr().out


def test_train_starts_from_a_model_with_another_head(
    data: Path, recipe: Path, tmp_path: Path
) -> None:
    save_file(to_torch(build_model("tiny", "fcn", 5, rngs=nnx.Rngs(3))), tmp_path / "whole.bin")
    words = [
        "train",
        str(recipe),
        "--data",
        str(data),
        "--weights",
        str(tmp_path / "whole.bin"),
        "--workdir",
        str(tmp_path / "run"),
    ]
    assert cli.main([*words, "--drop", "classifier", "--set", "train.epochs=1"]) == 0
    record = json.loads((tmp_path / "run" / "versions.json").read_text())["weights"]
    assert record["scope"] == "backbone"
    assert len(record["dropped"]) == 8
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init"]["drop"] == [
        "classifier"
    ]


@pytest.mark.slow
def test_convert_makes_a_backbone_that_starts_a_training(
    data: Path, recipe: Path, tmp_path: Path, fails: Fails
) -> None:
    model = build_model("tiny", "fcn32s", 7, rngs=nnx.Rngs(3))
    assert model  # the plugin of the fixtures is found
    backbone = {
        k.removeprefix("backbone."): v
        for k, v in to_torch(build_model(rngs=nnx.Rngs(1))).items()
        if k.startswith("backbone.")
    }
    save_file(backbone, tmp_path / "resnet18.safetensors")
    target = tmp_path / "backbone"
    script = Path(__file__).parents[1] / "convert_weights.py"
    words = [
        sys.executable,
        str(script),
        str(tmp_path / "resnet18.safetensors"),
        "--model",
        "resnet18",
        "-o",
        str(target),
    ]
    subprocess.run(
        words, check=True, capture_output=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert "train --weights" in fails("predict", target, data / "images" / "val")
    other = build_model(num_classes=7, rngs=nnx.Rngs(2))
    from fcn_jax.convert.init import init_from

    record = init_from(other, target)
    assert record.scope == "backbone"
    np.testing.assert_array_equal(
        to_torch(other)["backbone.conv1.weight"], backbone["conv1.weight"]
    )


def test_export_returns_the_converted_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    weights = {
        name: value
        for name, value in to_torch(build_model(rngs=nnx.Rngs(1))).items()
        if name.startswith("backbone.")
    }
    weights = {name.removeprefix("backbone."): value for name, value in weights.items()}
    save_file({**weights, "fc.weight": np.zeros((2, 512), np.float32)}, tmp_path / "in.safetensors")
    made, back = str(tmp_path / "made"), str(tmp_path / "back.safetensors")
    assert (
        cli.main(["convert", str(tmp_path / "in.safetensors"), "--model", "resnet18", "-o", made])
        == 0
    )
    assert "1 dropped: fc.weight" in capsys.readouterr().out
    assert cli.main(["export", made, "-o", back]) == 0
    shown = capsys.readouterr().out
    assert "120 tensors" in shown
    assert "dropped on import: fc.weight" in shown
    found = load_file(back)
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], value) for name, value in weights.items())
    assert "exists" in fails("export", made, "-o", back)


def test_plugins_list_names_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("resnet18" in line and "fcn-jax " in line for line in lines)
    assert any("tiny" in line and "fcn-jax-tiny 1.0" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "trains"), [(["train", "nowhere"], True), (["plugins", "list"], False)]
)
def test_only_the_command_itself_configures_the_process(
    monkeypatch: pytest.MonkeyPatch, words: list[str], trains: bool
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(cli.process, "configure_process", lambda *, trains: called.append(trains))
    cli.main(words)
    assert not called
    monkeypatch.setattr(sys, "argv", ["fcn-jax", *words])
    cli.main()
    assert called == [trains]


def test_settings_page_matches_the_command() -> None:
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    assert page.endswith("\n\n" + settings_reference()), "run: fcn-jax settings"


def test_settings_prints_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings"]) == 0
    text = capsys.readouterr().out
    assert text == settings_reference()
    for section, values in Config().model_dump(mode="json").items():
        assert f"## {section}\n" in text
        for name in ["NAME.weight"] if section == "loss" else values:
            assert f"| `{section}.{name}` |" in text
    assert (
        '| `data.crop_size` | list of 2: integer at least 1 or `"auto"` | `[320, 480]` | Height '
        "and width of the training crop, in pixels. |"
    ) in text
    assert (
        "| `optim.momentum` | number at least 0, below 1 | `0.9` | Momentum of SGD and Muon. |"
        in text
    )
    assert '| `optim.schedule` | `"poly"` or `"cosine"` or' in text
    assert "| `train.early_stopping.patience` | integer at least 1 | `5` |" in text
    assert "| `optim.clip_norm` | number above 0 | not set |" in text
    assert "| `optim.param_groups[].match` | string | required |" in text


def test_debug_shows_the_traceback(run: Path) -> None:
    from fcn_jax.errors import FcnJaxError

    with pytest.raises(FcnJaxError):
        cli.main(["eval", "nowhere", "--debug"])


# -------------------------------------------------------------------------------------- bad input


def test_rejects_an_unknown_recipe_with_the_nearest_name(fails: Fails) -> None:
    assert "Did you mean 'camvid'" in fails("train", "camvit")


def test_rejects_an_unknown_key_with_the_nearest_name(
    recipe: Path, tmp_path: Path, fails: Fails
) -> None:
    line = fails(
        "train",
        recipe,
        "--workdir",
        tmp_path / "r",
        "--set",
        "optim.learning_rate=1",
        "--set",
        "data.batchsize=2",
    )
    assert "optim.learning_rate" in line
    assert "batch_size" in line


@pytest.mark.parametrize(
    ("kind", "name", "nearest"), [("backbone", "resnet81", "resnet18"), ("head", "fcn32", "fcn32s")]
)
def test_rejects_an_unknown_backbone_or_head_with_the_nearest_name(
    recipe: Path, data: Path, tmp_path: Path, fails: Fails, kind: str, name: str, nearest: str
) -> None:
    line = fails(
        "train",
        recipe,
        "--data",
        data,
        "--workdir",
        tmp_path / "r",
        "--set",
        f"model.{kind}={name}",
    )
    assert f"Did you mean '{nearest}'" in line
    assert not (tmp_path / "r").exists(), "a recipe that does not fit writes nothing"


def test_export_rejects_paths_that_are_not_checkpoints_and_other_suffixes(
    tmp_path: Path, fails: Fails
) -> None:
    assert "no such run" in fails("export", tmp_path / "none", "-o", tmp_path / "out.pth")
    assert "ends in .pth" in fails("export", tmp_path, "-o", tmp_path / "out")


def test_rejects_unknown_weights_with_the_available_ones(
    recipe: Path, data: Path, tmp_path: Path, fails: Fails
) -> None:
    line = fails("convert", "IMAGENET1K_V2", "--model", "resnet18", "-o", tmp_path / "o")
    assert "Did you mean 'IMAGENET1K_V1'? Available: IMAGENET1K_V1." in line
    line = fails(
        "train", recipe, "--data", data, "--weights", "IMAGENET1K_V1", "--workdir", tmp_path / "r"
    )
    assert "Available: none" in line, "the tiny backbone has no published weights"


def test_failed_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(
        "https_proxy", "http://127.0.0.1:9"
    )  # the port that discards: nothing listens
    line = fails("convert", "IMAGENET1K_V1", "--model", "resnet18", "-o", tmp_path / "o")
    assert "cannot be fetched" in line
    assert str(tmp_path / "cache" / "resnet18-f37072fd.pth") in line
    assert not (tmp_path / "o").exists()


def test_convert_rejects_an_unknown_model(tmp_path: Path, fails: Fails) -> None:
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "w.safetensors")
    assert "resnet18" in fails(
        "convert", tmp_path / "w.safetensors", "--model", "resnet81", "-o", tmp_path / "o"
    )


def test_train_rejects_a_missing_data_folder(recipe: Path, tmp_path: Path, fails: Fails) -> None:
    assert "nowhere" in fails(
        "train", recipe, "--data", tmp_path / "nowhere", "--workdir", tmp_path / "r"
    )
    assert "--data" in fails("train", recipe, "--workdir", tmp_path / "r2")


def test_train_rejects_a_damaged_dataset(recipe: Path, tmp_path: Path, fails: Fails) -> None:
    def train(root: Path, number: int) -> str:
        return fails("train", recipe, "--data", root, "--workdir", tmp_path / f"r{number}")

    root = scenes.write_scenes(tmp_path / "missing", train=8)
    (root / "masks" / "train" / "3.png").unlink()
    assert "missing: 3" in train(root, 1)

    root = scenes.write_scenes(tmp_path / "sizes", train=8)
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(root / "masks" / "train" / "2.png")
    line = train(root, 2)
    assert "2.png" in line
    assert "64x64" in line

    root = scenes.write_scenes(tmp_path / "labels", train=8)
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(root / "masks" / "train" / "1.png")
    line = train(root, 3)
    assert "1.png" in line
    assert "77" in line

    root = scenes.write_scenes(tmp_path / "cut", train=8)
    whole = (root / "images" / "train" / "0.png").read_bytes()
    (root / "images" / "train" / "0.png").write_bytes(whole[: len(whole) // 2])
    assert "0.png" in train(root, 4)

    root = scenes.write_scenes(tmp_path / "empty", train=8)
    for folder in ("images", "masks"):
        for file in (root / folder / "val").iterdir():
            file.unlink()
    assert "val" in train(root, 5)


def test_predict_rejects_unreadable_images_and_writes_nothing(
    run: Path, tmp_path: Path, fails: Fails
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    assert "bad.jpg" in fails("predict", run, bad, "-o", tmp_path / "out")
    assert "nothing.png" in fails("predict", run, tmp_path / "nothing.png", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_predict_segments_the_other_images_if_one_is_unreadable(
    run: Path, tmp_path: Path, fails: Fails
) -> None:
    for name in ("a.png", "c.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"not an image")
    complaint = fails("predict", run, tmp_path, "-o", tmp_path / "out")
    assert "1 of 3 images left out" in complaint
    assert "b.png" in complaint
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a.png",
        "a_overlay.png",
        "c.png",
        "c_overlay.png",
    }


def test_predict_rejects_two_images_with_one_stem(run: Path, tmp_path: Path, fails: Fails) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    assert "a.png" in fails(
        "predict", run, tmp_path / "a.png", tmp_path / "a.jpg", "-o", tmp_path / "out"
    )


def test_rejects_paths_that_are_not_checkpoints(data: Path, tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    assert "no such run" in fails("eval", tmp_path / "none")
    assert "directory" in fails("eval", tmp_path / "file")
    assert "neither a run" in fails("predict", tmp_path / "folder", data / "images" / "val")


def test_eval_rejects_another_number_of_classes_and_train_starts_from_it(
    run: Path, recipe: Path, tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    root = scenes.write_scenes(tmp_path / "more", train=8)
    with (root / "classes.txt").open("a") as file:
        file.write("one more\n")
    line = fails("eval", run, "--data", root)
    assert "7" in line
    assert "8" in line
    new = scenes.arguments(recipe, root, tmp_path / "r", "--set", "train.epochs=1")
    assert cli.main([*new, "--weights", str(run)]) == 0
    said = capsys.readouterr().err
    assert "re-initialized, because the weights are for 7 classes, and the model has 8: " in said
    assert "head.final_conv.kernel" in said


def test_convert_rejects_files_that_are_not_weights(
    recipe: Path, data: Path, tmp_path: Path, fails: Fails
) -> None:
    torch = pytest.importorskip("torch")

    def convert(file: Path) -> str:
        line = fails("convert", file, "--model", "resnet18", "-o", tmp_path / "o")
        assert file.name in line
        assert not (tmp_path / "o").exists()
        return line

    assert "no such weights" in convert(tmp_path / "none.pth")

    good = tmp_path / "good.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, good)
    assert "missing" in convert(good)

    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:1000])
    assert "complete" in convert(cut)

    cut = tmp_path / "cut.safetensors"
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, cut)
    cut.write_bytes(cut.read_bytes()[:100])
    assert "complete" in convert(cut)

    old = tmp_path / "old.pth"
    with tarfile.open(old, "w") as archive:
        archive.add(good, arcname="storages")
    assert "oldest" in convert(old)

    ran = tmp_path / "ran"

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(ran),)

    for name, protocol in (("code.pth", None), ("code2.pth", 2)):
        evil = tmp_path / name
        if protocol:
            evil.write_bytes(pickle.dumps(Runs(), protocol=protocol))
        else:
            torch.save({"a": Runs()}, evil)
        line = convert(evil)
        assert "refused" in line or "not a readable" in line
        assert not ran.exists(), "code in the file was run"


def test_convert_rejects_weights_of_another_architecture(tmp_path: Path, fails: Fails) -> None:
    save_file(
        {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, tmp_path / "vgg.safetensors"
    )
    line = fails(
        "convert", tmp_path / "vgg.safetensors", "--model", "resnet18", "-o", tmp_path / "o"
    )
    assert "another model" in line
    assert "bn1.weight" in line


def test_load_torch_is_all_or_nothing() -> None:
    from fcn_jax.errors import WeightsError

    model = build_model(num_classes=3, rngs=nnx.Rngs(0))
    before = to_torch(model)
    changed = {name: value + 1 for name, value in before.items()}
    del changed["classifier.final_conv.bias"]
    with pytest.raises(WeightsError, match=r"classifier\.final_conv\.bias"):
        load_torch(model, changed)
    for name, value in to_torch(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_verify_reports_equal_and_exits_with_0(tiny_plugin, tmp_path, capsys):
    pytest.importorskip("torch")
    reports = [tmp_path / "r.json", tmp_path / "r.html"]
    args = [
        "verify",
        "--model",
        "tiny",
        "--num-classes",
        "3",
        "--size",
        "33x49",
        "--size",
        "32X40",
        "--batch",
        "1",
    ]
    assert cli.main([*args, "--report", str(reports[0]), "--report", str(reports[1])]) == 0
    output = capsys.readouterr().out
    assert output.startswith("EQUAL: tiny + fcn32s")
    assert "logits at 33x49" in output
    assert "logits at 32x40" in output
    assert json.loads(reports[0].read_text())["verdict"] == "equal"
    assert reports[1].read_text().startswith("<!doctype html>")
    assert cli.main([*args, "--report", str(reports[0])]) == 0, "a report of ours is replaced"


def test_verify_exits_with_1_if_a_layer_is_wrong(tiny_plugin, monkeypatch, capsys):
    pytest.importorskip("torch")
    from fcn_jax.nn import BatchNorm

    init = BatchNorm.__init__

    def wrong(self, channels, **settings):
        init(self, channels, **settings | {"eps": 1e-3})

    monkeypatch.setattr(BatchNorm, "__init__", wrong)
    assert cli.main(["verify", "--model", "tiny", "--num-classes", "3", "--size", "33x49"]) == 1
    assert capsys.readouterr().out.startswith(
        "NOT EQUAL: tiny + fcn32s in float32: backbone.conv1.bn: error"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "320"], "invalid size '320', expected HEIGHTxWIDTH in pixels, such as 320x480"),
        (["--size", "8x64"], "size 8x64: expected height and width of at least 32"),
        (["--report", "r.pdf"], "r.pdf: a report ends in .html or .json"),
        (["--weights", "none.pth"], "none.pth: no such weights"),
        (["--batch", "0"], "batch is 0: expected 1 or more"),
        (["--head", "fcn31s"], "Did you mean 'fcn32s'"),
        (["--backbone-option", "widht=8"], "Did you mean 'width'"),
        (["--head-option", "x"], "--head-option x: write it as KEY=VALUE"),
    ],
)
def test_verify_exits_with_2_on_bad_input(tiny_plugin, capsys, arguments, complaint):
    pytest.importorskip("torch")
    try:
        status = cli.main(["verify", "--model", "tiny", *arguments])
    except SystemExit as error:  # argparse exits
        status = error.code
    assert status == 2
    assert complaint in capsys.readouterr().err


def test_verify_rejects_an_unwritable_report_before_its_work(
    tiny_plugin, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("torch")
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for path, reason in (
        (tmp_path / "file" / "r.json", f"{tmp_path / 'file'} is not a writable folder"),
        (tmp_path / "folder.json", "it is a folder"),
    ):
        assert cli.main(["verify", "--model", "tiny", "--report", str(path)]) == 2
        assert f"{path}: cannot be written ({reason})" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert (
        cli.main(["verify", "--model", "tiny", "--report", str(tmp_path / "new" / "r.json")]) == 2
    )
    assert f"({tmp_path} is not a writable folder)" in capsys.readouterr().err


def test_verify_never_replaces_files_of_other_programs(tiny_plugin, tmp_path, capsys):
    pytest.importorskip("torch")
    files = {
        "notes.html": "<!doctype html><title>notes</title>",
        "table.json": '{"verdict": "mine"}',
        "empty.json": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert cli.main(["verify", "--model", "tiny", "--report", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / name}: exists and is not a report of fcn-jax verify" in error
        assert "so it is not replaced; name another file" in error
        assert (tmp_path / name).read_text() == text


def test_verify_exits_with_2_if_a_module_raises(tiny_plugin, monkeypatch, capsys):
    pytest.importorskip("torch")
    from fcn_jax.nn import Conv

    def broken(self, x):
        raise TypeError("no such thing")

    monkeypatch.setattr(Conv, "__call__", broken)
    assert cli.main(["verify", "--model", "tiny", "--size", "33x49"]) == 2
    assert "could not be run: TypeError: no such thing" in capsys.readouterr().err


def test_verify_without_torch_names_the_extra_to_install(tiny_plugin, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["verify", "--model", "tiny"]) == 2
    assert "pip install 'fcn-jax[torch]'" in capsys.readouterr().err


def test_closed_output_is_no_error() -> None:
    command = [sys.executable, "-m", "fcn_jax", "recipes", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE
