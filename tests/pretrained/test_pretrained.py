"""Portable directories, and models on a local server that speaks the hub's protocol."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import fcn_jax
from fcn_jax import checkpoint
from fcn_jax.api import Classes, ModelSpec
from fcn_jax.checkpoint import remote
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.init import init_from
from fcn_jax.errors import CheckpointError, ConfigError, WeightsError, WriteError
from fcn_jax.models.build import build
from fcn_jax.models.names import leaves
from fcn_jax.pytorch import files
from tests.helpers import hub_server

CLASSES = Classes(("sky", "road", "car"), ((0, 0, 255), (90, 90, 90), (255, 0, 0)))
SPEC = ModelSpec("tiny", "fcn32s", 3)
pytestmark = pytest.mark.usefixtures("tiny_plugin")


@pytest.fixture(scope="module")
def model(tiny_plugin):
    network = build(SPEC, rngs=nnx.Rngs(3))
    network.eval()
    return network


@pytest.fixture
def saved(model, tmp_path):
    return fcn_jax.save_pretrained(model, tmp_path / "net", classes=CLASSES, license="mit")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server, and huggingface_hub directed to it, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with hub_server.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.chdir(tmp_path)
        yield server


def upload(hub, folder: Path, name: str = "acme/net") -> None:
    hub.files[name] = {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one, other) -> bool:
    first, second = leaves(one), leaves(other)
    return first.keys() == second.keys() and all(
        np.array_equal(first[name][...], second[name][...]) for name in first
    )


# ------------------------------------------------------------------------------ portable directory


def test_save_and_load_return_the_same_model(model, saved):
    loaded = fcn_jax.from_pretrained(saved)
    assert loaded.spec == SPEC
    assert same(loaded, model)


def test_saving_a_portable_directory_again_gives_the_same_files(saved, tmp_path):
    again = fcn_jax.save_pretrained(saved, tmp_path / "net2")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_predictor_uses_the_classes_of_a_portable_directory(saved):
    predictor = fcn_jax.Predictor.from_checkpoint(saved)
    assert predictor.classes == CLASSES


def test_config_states_classes_preprocessing_and_license(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["library_name"] == "fcn_jax"
    assert config["classes"]["names"] == ["sky", "road", "car"]
    assert config["license"] == "mit"
    assert set(config["preprocess"]) == {"mean", "std", "scale", "channel_order"}
    card = (saved / "README.md").read_text()
    assert 'license: "mit"' in card
    assert "| 2 | car | `#ff0000` |" in card


def test_dtype_is_changed_on_request(saved):
    loaded = fcn_jax.from_pretrained(saved, dtype="bfloat16")
    assert loaded.spec.dtype == "bfloat16"
    assert str(loaded(np.zeros((1, 32, 32, 3), np.float32)).dtype) == "bfloat16"
    with pytest.raises(ConfigError, match=r"dtype is 'half'; expected 'float32' or 'bfloat16'"):
        fcn_jax.from_pretrained(saved, dtype="half")


def test_training_starts_from_a_portable_directory(model, saved):
    other = build(SPEC, rngs=nnx.Rngs(9))
    report = init_from(other, saved)
    assert len(report.loaded) == len(leaves(model))
    assert same(other, model)


def test_rejects_another_number_of_classes(model, saved, tmp_path):
    for source in (model, saved):
        with pytest.raises(ConfigError, match="1 classes for a model of 3 classes"):
            fcn_jax.save_pretrained(source, tmp_path / "x", classes=Classes(("a",), ((0, 0, 0),)))
    assert not (tmp_path / "x").exists()


def test_rejects_a_directory_that_is_not_empty(model, saved):
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        fcn_jax.save_pretrained(model, saved)


def test_names_a_missing_or_changed_tensors_file(saved):
    tensors = saved / "model.safetensors"
    values = load_file(tensors)
    first = next(iter(values))
    save_file({**values, first: values[first] + 1}, tensors)
    with pytest.raises(CheckpointError, match=r"not the file that config.json describes"):
        fcn_jax.from_pretrained(saved)
    tensors.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        fcn_jax.from_pretrained(saved)


def test_names_a_config_that_contradicts_the_weights(saved):
    config = json.loads((saved / "config.json").read_text())
    config["model"]["num_classes"] = 4
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"does not fit the model.*misshapen"):
        fcn_jax.from_pretrained(saved)


def test_names_the_library_of_another_config(tmp_path):
    folder = tmp_path / "segformer"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["SegformerForSemanticSegmentation"]}')
    with pytest.raises(CheckpointError, match=r"of another library.*SegformerForSemantic"):
        fcn_jax.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: unreadable"):
        fcn_jax.from_pretrained(folder)


def test_names_a_plugin_that_is_not_installed(saved):
    config = json.loads((saved / "config.json").read_text())
    config["plugins"]["backbone"]["distribution"] = "acme-nets"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="acme-nets"):
        fcn_jax.from_pretrained(saved)


# --------------------------------------------------------------------------------------------- hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/net", remote.HubId("acme/net")),
        ("hf://acme/net@v1", remote.HubId("acme/net", "v1")),
        ("hf:/acme/net", remote.HubId("acme/net")),  # as `Path` writes it
        ("acme/net-1.2@refs/pr/3", remote.HubId("acme/net-1.2", "refs/pr/3")),
        ("net", None),
        ("./acme/net", None),
        ("/acme/net", None),
        ("acme/net/extra", None),
        ("acme/weights.pth", None),
        ("here/net", None),
    ],
)
def test_parse_distinguishes_ids_from_paths(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert remote.parse(text) == expected
    assert expected is None or remote.parse(str(expected)) == expected


def test_model_of_the_hub_is_downloaded_once(model, saved, hub, monkeypatch):
    upload(hub, saved)
    assert same(fcn_jax.from_pretrained("acme/net"), model)
    assert fcn_jax.Predictor.from_checkpoint("acme/net").classes == CLASSES
    assert hub.requests.count("GET /acme/net/resolve/" + hub_server.SHA + "/model.safetensors") == 1
    other = build(SPEC, rngs=nnx.Rngs(9))
    init_from(other, "acme/net")
    assert same(other, model)


def test_cached_model_needs_no_connection(model, saved, hub, monkeypatch):
    upload(hub, saved)
    fcn_jax.from_pretrained("acme/net")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert same(fcn_jax.from_pretrained("acme/net"), model)
    with pytest.raises(CheckpointError, match=r"no connection.*copy its config.json"):
        fcn_jax.from_pretrained("acme/other")


def test_pickled_files_are_fetched_only_where_nothing_else_exists(model, saved, hub):
    upload(hub, saved)
    hub.files["acme/net"]["pytorch_model.bin"] = b"never read"
    fcn_jax.from_pretrained("acme/net")
    assert not [line for line in hub.requests if line.endswith("pytorch_model.bin")]


def test_push_uploads_what_from_pretrained_reads(model, hub):
    commit = fcn_jax.push_to_hub(model, "acme/mine", classes=CLASSES, private=True)
    assert commit == f"{hub.url}/acme/mine/commit/{hub_server.SHA}"
    assert set(hub.files["acme/mine"]) == {"README.md", "config.json", "model.safetensors"}
    assert hub.private["acme/mine"]
    assert b'from_checkpoint("acme/mine")' in hub.files["acme/mine"]["README.md"]
    assert same(fcn_jax.from_pretrained("acme/mine"), model)


def test_push_keeps_an_edited_model_card(saved, hub):
    (saved / "README.md").write_text("---\nlicense: mit\n---\nmine")
    fcn_jax.push_to_hub(saved, "acme/mine")
    assert hub.files["acme/mine"]["README.md"].endswith(b"mine")
    with pytest.raises(ConfigError, match="uploaded as it is, without another license"):
        fcn_jax.push_to_hub(saved, "acme/mine", license="apache-2.0")


def test_push_reports_a_wrong_token_and_a_wrong_id(saved, hub, monkeypatch):
    with pytest.raises(WriteError, match=r"hf://acme/mine: the hub refuses: .*401"):
        fcn_jax.push_to_hub(saved, "acme/mine", token="hf_wrong")
    with pytest.raises(ConfigError, match="expected ORGANIZATION/NAME"):
        fcn_jax.push_to_hub(saved, "mine")
    assert "acme/mine" not in hub.files


def test_errors_of_the_hub_are_one_line(saved, hub):
    upload(hub, saved)
    hub.gated.add("acme/net")
    with pytest.raises(CheckpointError, match="hf://acme/net: access is restricted; accept"):
        fcn_jax.from_pretrained("acme/net")
    with pytest.raises(CheckpointError, match="neither a local path nor a model on the hub"):
        fcn_jax.from_pretrained("acme/missing")
    with pytest.raises(CheckpointError, match="has no revision 'v9'"):
        fcn_jax.from_pretrained("acme/net@v9")


def test_weights_of_another_library_are_loaded_from_the_hub(hub, tmp_path):
    source = build(SPEC, rngs=nnx.Rngs(1))
    files.write(tmp_path / "model.safetensors", to_torch(source))
    config = json.dumps({"architecture": "fcn_resnet18"}).encode()
    body = (tmp_path / "model.safetensors").read_bytes()
    hub.files["acme/foreign"] = {"config.json": config, "model.safetensors": body}
    target = build(SPEC, rngs=nnx.Rngs(2))
    init_from(target, "acme/foreign")
    assert same(target, source)
    with pytest.raises(CheckpointError, match=r"another library \(architecture: fcn_resnet18\)"):
        fcn_jax.from_pretrained("acme/foreign")
    del hub.files["acme/foreign"]["model.safetensors"]


def test_hub_model_without_weights_is_reported(hub):
    hub.files["acme/empty"] = {"config.json": b"{}"}
    with pytest.raises(WeightsError, match=r"expected one weights file.*none"):
        init_from(build(SPEC, rngs=nnx.Rngs(2)), "acme/empty")


# ------------------------------------------------------------------------------------- of a run


def test_run_keeps_its_scores_and_loses_its_paths(model, tmp_path):
    run = tmp_path / "private" / "run"
    spec = dataclasses.replace(
        checkpoint.make_spec(SPEC, CLASSES), weights={"source": "/home/me/secret/net.pth"}
    )
    directory = run / "checkpoints" / "20"
    checkpoint.save_model(directory, spec, checkpoint.arrays(model))
    scores = {
        **{"checkpoint": str(directory), "weights": "raw", "dataset": "shapes", "split": "val"},
        **{"protocol": {"name": "native"}, "images": 4, "miou": 0.51234, "pixel_accuracy": 0.9},
        "iou": {"sky": 0.5, "road": None, "car": 0.25},
    }
    stored = run / "evaluations" / "training" / "scores.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps(scores))
    saved = fcn_jax.save_pretrained(run, tmp_path / "net")
    config, card = (saved / "config.json").read_text(), (saved / "README.md").read_text()
    assert json.loads(config)["scores"]["miou"] == 0.51234
    assert "mean IoU 0.5123, pixel accuracy 0.9000, on 4 images of shapes (val)" in card
    assert "| 2 | car | `#ff0000` | 0.250 |" in card
    assert "secret" not in config + card
    assert str(tmp_path) not in config + card


def test_shards_are_read_together_and_missing_ones_are_named(tmp_path):
    parts = {"a": np.ones(2, np.float32)}, {"b": np.zeros(3, np.float32)}
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"model-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}})
    )
    found = files.read(index)
    assert {name: value.tolist() for name, value in found.items()} == {"a": [1, 1], "b": [0] * 3}
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"1 of the 2 files.*model-1\.safetensors"):
        files.read(index)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="not a readable index"):
        files.read(index)


def test_verify_compares_a_trained_model_with_its_own_weights(saved, model):
    pytest.importorskip("torch")
    report = fcn_jax.verify_model(str(saved), sizes=[(32, 32)], batch=1)
    assert report.equal, report
    assert report.weights["source"] == str(saved)
    assert report.settings["spec"]["num_classes"] == 3
