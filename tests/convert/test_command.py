"""Weights to a checkpoint and back to PyTorch, as `fcn-jax convert` does both."""

import collections
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import checkpoint, cli
from fcn_jax.convert import command
from fcn_jax.convert.command import convert_file, export_file
from fcn_jax.convert.engine import leaves, to_torch
from fcn_jax.errors import CheckpointError, ConfigError, WeightsError
from fcn_jax.models.segmenter import ModelSpec, build_backbone, by_name
from fcn_jax.pytorch import files
from tests.helpers import scenes

CLASSES = 3


@pytest.fixture(scope="module")
def trained(make_model, tmp_path_factory):
    """A checkpoint of a model whose every array is as if trained, and the model in eval mode."""
    model = make_model(CLASSES)
    rng = np.random.default_rng(0)
    for path, leaf in leaves(model).items():
        value = np.asarray(leaf[...])
        if path.endswith("num_batches_tracked"):
            leaf[...] = jnp.asarray(11)
        elif path.endswith(("scale", "var")):
            leaf[...] = jnp.asarray(rng.uniform(0.5, 1.5, value.shape), jnp.float32)
        else:
            leaf[...] = jnp.asarray(value + 0.02 * rng.standard_normal(value.shape), jnp.float32)
    model.eval()
    directory = tmp_path_factory.mktemp("trained") / "model"
    checkpoint.save_model(directory, checkpoint.describe(model.spec), checkpoint.arrays(model))
    return directory, model


@pytest.fixture(scope="module")
def trunk(trained, tmp_path_factory):
    """A checkpoint of that model's backbone alone."""
    directory = tmp_path_factory.mktemp("trunk") / "model"
    record = {"dropped": {"fc.weight": "the classifier"}}
    checkpoint.save_model(
        directory,
        checkpoint.describe(ModelSpec(head=None), weights=record),
        checkpoint.arrays(trained[1].backbone),
    )
    return directory


def torch_segmenter(torchvision, num_classes):
    """The same network from torchvision's parts, with the names of its segmentation models."""
    import torch
    from torchvision.models._utils import IntermediateLayerGetter

    head = [
        ("final_conv", torch.nn.Conv2d(512, num_classes, 1)),
        (
            "transpose_conv",
            torch.nn.ConvTranspose2d(num_classes, num_classes, 64, padding=16, stride=32),
        ),
    ]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = IntermediateLayerGetter(
                torchvision.models.resnet18(weights=None), {"layer4": "out"}
            )
            self.classifier = torch.nn.Sequential(collections.OrderedDict(head))

        def forward(self, x):
            return self.classifier(self.backbone(x)["out"])

    return Network()


def assert_same_output(ours, network, file):
    """A network that loads the file strictly gives what `ours` gives, to 1e-5 of the largest value."""
    import torch

    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(file, weights_only=True)
    network.load_state_dict(state, strict=True)
    network.eval()
    x = np.random.default_rng(1).standard_normal((2, 64, 96, 3), np.float32)
    with torch.no_grad():
        theirs = network(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    graphdef, state = nnx.split(ours)
    found = np.asarray(jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x))
    assert np.abs(found - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pytorch_gives_the_same_logits_from_an_export(trained, torchvision, tmp_path, suffix):
    directory, model = trained
    record = export_file(directory, tmp_path / f"out{suffix}")
    assert (record.names, record.scope, len(record.tensors)) == ("torchvision", "model", 124)
    network = torch_segmenter(torchvision, CLASSES)
    assert_same_output(model, network, tmp_path / f"out{suffix}")
    assert {int(b) for n, b in network.named_buffers() if n.endswith("num_batches_tracked")} == {11}


def test_the_chapters_network_gives_the_same_logits_from_an_export(
    trained, chapter_network, tmp_path
):
    directory, model = trained
    export_file(directory, tmp_path / "out.pth", names="d2l")
    assert_same_output(model, chapter_network(CLASSES), tmp_path / "out.pth")


def test_a_backbone_alone_goes_back_under_its_own_names(trunk, trained, make_resnet18, tmp_path):
    import torch

    record = export_file(trunk, tmp_path / "out.pth")
    assert (record.scope, len(record.tensors)) == ("backbone", 120)
    assert "1 had been dropped on import: fc.weight" in str(record)
    network = make_resnet18()
    network.fc = network.avgpool = torch.nn.Identity()
    network.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    export_file(trunk, tmp_path / "d2l.safetensors", names="d2l")
    sequential = torch.nn.Sequential(*list(make_resnet18().children())[:-2])

    class Deepest(nnx.Module):
        def __init__(self, backbone):
            self.backbone = backbone

        def __call__(self, x):
            return self.backbone(x)["layer4"]

    assert_same_output(Deepest(trained[1].backbone), sequential, tmp_path / "d2l.safetensors")


@pytest.mark.parametrize("model", ["fcn32s_resnet18", "resnet18"])
def test_a_file_goes_to_a_checkpoint_and_back_bit_for_bit(
    make_model, make_resnet18, tmp_path, monkeypatch, model
):
    whole = model != "resnet18"
    source = (
        to_torch(make_model(21, seed=5))
        if whole
        else {n: t.numpy() for n, t in make_resnet18().state_dict().items()}
    )
    files.write(tmp_path / "in.safetensors", source)
    # Drawing the initial values, all of which the file replaces, is most of the time that this
    # takes.
    build = make_model(21) if whole else make_model(21).backbone
    monkeypatch.setattr("fcn_jax.convert.command._build", lambda spec, rngs: build)
    record = convert_file(tmp_path / "in.safetensors", model, tmp_path / "checkpoint")
    monkeypatch.undo()
    back = export_file(tmp_path / "checkpoint", tmp_path / "out.safetensors")
    assert dict(back.dropped) == record.dropped
    assert set(record.dropped) == (set() if whole else {"fc.weight", "fc.bias"})
    found = files.read(tmp_path / "out.safetensors")
    assert found.keys() == source.keys() - set(record.dropped)
    for name, value in found.items():
        assert (value.dtype, value.tobytes()) == (source[name].dtype, source[name].tobytes()), name


def test_safetensors_are_exported_without_torch(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    export_file(trained[0], tmp_path / "out.safetensors")
    assert len(files.read(tmp_path / "out.safetensors")) == 124
    with pytest.raises(
        WeightsError, match=r"out\.pth.*pip install 'fcn-jax\[torch\]', or use \.safetensors"
    ):
        export_file(trained[0], tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(trained, trunk, tmp_path):
    (tmp_path / "there.pth").write_text("mine")
    with pytest.raises(WeightsError, match=r"there\.pth: exists; name another file"):
        export_file(trained[0], tmp_path / "there.pth")
    assert (tmp_path / "there.pth").read_text() == "mine"
    with pytest.raises(WeightsError, match=r"ends in \.pth, \.pt, \.safetensors; this one in ''"):
        export_file(trained[0], tmp_path / "folder")
    with pytest.raises(
        ConfigError,
        match=r"names='keras' is not offered by resnet18 \+ fcn32s; offered: torchvision, d2l",
    ):
        export_file(trained[0], tmp_path / "out.pth", names="keras")
    with pytest.raises(
        ConfigError, match=r"names='keras' is not offered by resnet18; offered: torchvision, d2l"
    ):
        export_file(trunk, tmp_path / "out.pth", names="keras")
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        export_file(tmp_path / "none", tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["there.pth"]


def test_a_directory_is_no_file_to_import(trained, tmp_path):
    with pytest.raises(WeightsError, match=r"a directory; .*--to-torch"):
        convert_file(trained[0], "fcn32s_resnet18", tmp_path / "out")


def test_a_backbones_weights_are_no_whole_model(trunk, make_model, tmp_path, monkeypatch):
    export_file(trunk, tmp_path / "trunk.safetensors")
    monkeypatch.setattr("fcn_jax.convert.command._build", lambda spec, rngs: make_model(21))
    with pytest.raises(
        WeightsError, match="holds the backbone alone; convert it with --model resnet18"
    ):
        convert_file(tmp_path / "trunk.safetensors", "fcn32s_resnet18", tmp_path / "out")
    assert by_name("resnet18").head is None


@pytest.mark.slow
def test_a_network_trained_here_gives_the_same_logits_in_pytorch(torchvision, tmp_path):
    data = scenes.write_scenes(tmp_path / "data", train=16)
    recipe = tmp_path / "resnet.toml"
    recipe.write_text(scenes.RECIPE.replace('"tiny"', '"resnet18"'))
    run = tmp_path / "run"
    assert (
        cli.main(
            [
                "train",
                str(recipe),
                "--data",
                str(data),
                "--run",
                str(run),
                "--set",
                "train.epochs=2",
            ]
        )
        == 0
    )
    assert cli.main(["convert", str(run), "--to-torch", "-o", str(tmp_path / "out.pth")]) == 0
    model, spec = checkpoint.load(run)
    assert any(
        np.asarray(leaf[...]).any()
        for path, leaf in leaves(model).items()
        if path.endswith("conv1.bn.mean")
    )
    assert_same_output(
        model, torch_segmenter(torchvision, spec.model.num_classes), tmp_path / "out.pth"
    )


@pytest.fixture(scope="module")
def trunk_state(make_resnet18):
    return {name: tensor.numpy() for name, tensor in make_resnet18().state_dict().items()}


def test_a_whole_file_is_converted_without_drawing_anything(tmp_path, trunk_state, monkeypatch):
    traced = []
    build = command.build_backbone

    def watched(*args, **kwargs):
        module, specs = build(*args, **kwargs)
        traced.append(isinstance(module.conv1.conv.kernel.get_value(), jax.core.Tracer))
        return module, specs

    monkeypatch.setattr(command, "build_backbone", watched)
    files.write(tmp_path / "trunk.safetensors", trunk_state)
    convert_file(tmp_path / "trunk.safetensors", "resnet18", tmp_path / "out")
    assert traced == [True]
    arrays = checkpoint.read_arrays(tmp_path / "out")
    np.testing.assert_array_equal(
        arrays["layer4.1.conv2.conv.kernel"],
        trunk_state["layer4.1.conv2.weight"].transpose(2, 3, 1, 0),
    )


def test_what_the_file_leaves_open_is_drawn_from_the_seed(tmp_path, trunk_state):
    counts = "num_batches_tracked"
    partial = {
        name: value
        for name, value in trunk_state.items()
        if name != "layer4.0.conv1.weight" and counts not in name
    }
    files.write(tmp_path / "trunk.safetensors", partial)
    record = convert_file(
        tmp_path / "trunk.safetensors",
        "resnet18",
        tmp_path / "out",
        reinit=["layer4.0.conv1.weight"],
        seed=3,
    )
    assert record.reinit == ["backbone.layer4.0.conv1.conv.kernel"]
    arrays = checkpoint.read_arrays(tmp_path / "out")
    fresh = leaves(build_backbone(by_name("resnet18"), rngs=nnx.Rngs(3))[0])
    assert arrays.keys() == fresh.keys()
    np.testing.assert_array_equal(
        arrays["layer4.0.conv1.conv.kernel"], fresh["layer4.0.conv1.conv.kernel"][...]
    )
    assert not np.array_equal(
        arrays["layer4.0.conv2.conv.kernel"], fresh["layer4.0.conv2.conv.kernel"][...]
    )
    assert all(value == 0 for path, value in arrays.items() if counts in path)
