"""`fcn-jax convert --verify`: the report in the checkpoint, its check, and its way back."""

import json
import shutil

import pytest
from safetensors import safe_open

from fcn_jax import cli
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch import files

torch = pytest.importorskip("torch")

ARGUMENTS = ["--model", "tiny", "--head", "fcn32s", "--num-classes", "3", "--verify", "33x49"]


@pytest.fixture(scope="module")
def weights(tiny_plugin, tmp_path_factory):
    """A file of the PyTorch network of tiny + fcn32s."""
    from fcn_jax.verify.reference import build_reference

    torch.manual_seed(0)
    network = build_reference(ModelSpec("tiny", "fcn32s", 3))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    files.write(path, {name: x.numpy() for name, x in network.state_dict().items()})
    return path


@pytest.fixture(scope="module")
def converted(weights, tmp_path_factory):
    """A checkpoint with the report of its verification."""
    output = tmp_path_factory.mktemp("converted") / "model"
    assert cli.main(["convert", str(weights), *ARGUMENTS, "-o", str(output)]) == 0
    return output


@pytest.fixture
def copied(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "copy")


def test_report_lies_in_the_checkpoint_and_holds(converted, weights, capsys):
    table = json.loads((converted / "verify.json").read_text())
    assert (table["schema"], table["version"], table["verdict"]) == ("fcn-jax-verify", 1, "equal")
    assert table["weights"]["sha256"] == files.sha256(weights)
    assert table["settings"]["sizes"] == [[33, 49]]
    assert "fcn_jax_tiny/__init__.py" in table["sources"]
    assert "fcn_jax/nn/_conv.py" in table["sources"]
    assert cli.main(["verify", "--check", str(converted)]) == 0
    assert f"{converted}: holds: EQUAL" in capsys.readouterr().out


@pytest.mark.parametrize("named", [".", "verify.json"])
def test_report_does_not_hold_for_other_weights(copied, tmp_path, capsys, named):
    assert cli.main(["verify", "--check", str(copied / named)]) == 0
    table = json.loads((copied / "verify.json").read_text())
    table["weights"]["arrays_sha256"] = "0" * 64
    (copied / "verify.json").write_text(json.dumps(table))
    capsys.readouterr()
    assert cli.main(["verify", "--check", str(copied / named)]) == 1
    assert "no longer holds: the weights of the checkpoint changed" in capsys.readouterr().out
    # Without a checkpoint around it, there is nothing to compare with.
    shutil.copy(copied / "verify.json", tmp_path / "verify.json")
    assert cli.main(["verify", "--check", str(tmp_path / "verify.json")]) == 0


def test_report_in_a_damaged_checkpoint_is_an_error(copied, capsys):
    shutil.rmtree(copied / "model")
    assert cli.main(["verify", "--check", str(copied / "verify.json")]) == 2
    assert "the checkpoint is damaged" in capsys.readouterr().err


def test_checkpoint_without_a_report_says_how_to_make_one(copied, capsys):
    (copied / "verify.json").unlink()
    assert cli.main(["verify", "--check", str(copied)]) == 2
    assert (
        "the checkpoint has no verify.json; `fcn-jax convert --verify`" in capsys.readouterr().err
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_record_travels_with_an_export(converted, tmp_path, capsys, suffix):
    output = tmp_path / f"net{suffix}"
    assert cli.main(["export", str(converted), "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    if suffix == ".safetensors":
        assert "; the record of their verification is in its metadata" in printed
        with safe_open(output, framework="numpy") as file:
            record = json.loads(file.metadata()["fcn-jax-verify"])
    else:
        assert f"; the record of their verification is in {output}.verify.json" in printed
        record = json.loads((tmp_path / "net.pth.verify.json").read_text())
    assert record == {
        "schema": "fcn-jax-verify",
        "version": 1,
        "verdict": "equal",
        "subject": "tiny + fcn32s",
        "report_sha256": files.sha256(converted / "verify.json"),
        "tensors_sha256": files.digest(files.read(output)),
    }


@pytest.mark.parametrize("damage", ["weights", "json"])
def test_export_leaves_out_a_record_that_does_not_fit(copied, tmp_path, capsys, damage):
    text = (copied / "verify.json").read_text()
    table = json.loads(text)
    table["weights"]["arrays_sha256"] = "0" * 64
    (copied / "verify.json").write_text(json.dumps(table) if damage == "weights" else text[:99])
    output = tmp_path / "net.safetensors"
    assert cli.main(["export", str(copied), "-o", str(output)]) == 0
    reason = "describes other weights" if damage == "weights" else "is unreadable"
    assert f"warning: {copied / 'verify.json'} {reason}" in capsys.readouterr().err
    with safe_open(output, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_export_replaces_no_record(converted, tmp_path, capsys):
    (tmp_path / "net.pth.verify.json").write_text("mine")
    assert cli.main(["export", str(converted), "-o", str(tmp_path / "net.pth")]) == 2
    assert "net.pth.verify.json: exists; name another file" in capsys.readouterr().err
    assert not (tmp_path / "net.pth").exists()


def test_writes_nothing_if_the_model_differs(weights, tmp_path, monkeypatch, capsys):
    from fcn_jax.nn import BatchNorm

    init = BatchNorm.__init__

    def wrong(self, channels, **settings):
        init(self, channels, **settings | {"eps": 1e-3})

    monkeypatch.setattr(BatchNorm, "__init__", wrong)
    output = tmp_path / "model"
    assert cli.main(["convert", str(weights), *ARGUMENTS, "-o", str(output)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("NOT EQUAL: tiny + fcn32s in float32: backbone.conv1.bn: error")
    assert printed.endswith(f"{output}: not written, because the converted model differs\n")
    assert list(tmp_path.iterdir()) == []


def test_without_verify_there_is_no_report(weights, tmp_path):
    arguments = ARGUMENTS[: ARGUMENTS.index("--verify")]
    assert cli.main(["convert", str(weights), *arguments, "-o", str(tmp_path / "model")]) == 0
    assert not (tmp_path / "model" / "verify.json").exists()
