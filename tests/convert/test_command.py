"""`fcn-jax convert`: weights to a checkpoint, and back to PyTorch."""

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
from fcn_jax.convert.export import to_torch
from fcn_jax.errors import CheckpointError, ConfigError, WeightsError
from fcn_jax.models.build import build_backbone
from fcn_jax.models.names import leaves
from fcn_jax.models.spec import registered_spec
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch import files
from tests.helpers import scenes

CLASSES = 3


@pytest.fixture(scope="module")
def trained(make_model, tmp_path_factory):
    """A checkpoint of a model with values as after training, and the model in eval mode."""
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
    checkpoint.save_model(directory, checkpoint.make_spec(model.spec), checkpoint.arrays(model))
    return directory, model


@pytest.fixture(scope="module")
def backbone(trained, tmp_path_factory):
    """A checkpoint of that model's backbone alone."""
    directory = tmp_path_factory.mktemp("backbone") / "model"
    report = {"dropped": {"fc.weight": "the classifier"}}
    checkpoint.save_model(
        directory,
        checkpoint.make_spec(ModelSpec(head=None), weights=report),
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
    """Assert that a network with the file's weights computes `ours`, to 1e-5 of the maximum."""
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


@pytest.mark.parametrize("suffix", [pytest.param(".pth", marks=pytest.mark.slow), ".safetensors"])
def test_export_gives_the_same_logits_in_pytorch(trained, torchvision, tmp_path, suffix):
    directory, model = trained
    report = export_file(directory, tmp_path / f"out{suffix}")
    assert (report.key_format, report.scope, len(report.tensors)) == ("torchvision", "model", 124)
    network = torch_segmenter(torchvision, CLASSES)
    assert_same_output(model, network, tmp_path / f"out{suffix}")
    assert {int(b) for n, b in network.named_buffers() if n.endswith("num_batches_tracked")} == {11}


@pytest.mark.slow
def test_d2l_export_gives_the_same_logits_in_pytorch(trained, d2l_network, tmp_path):
    directory, model = trained
    export_file(directory, tmp_path / "out.pth", key_format="d2l")
    assert_same_output(model, d2l_network(CLASSES), tmp_path / "out.pth")


@pytest.mark.slow
def test_exports_a_backbone_with_its_own_names(backbone, trained, make_resnet18, tmp_path):
    import torch

    report = export_file(backbone, tmp_path / "out.pth")
    assert (report.scope, len(report.tensors)) == ("backbone", 120)
    assert "1 had been dropped on import: fc.weight" in str(report)
    network = make_resnet18()
    network.fc = network.avgpool = torch.nn.Identity()
    network.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    export_file(backbone, tmp_path / "d2l.safetensors", key_format="d2l")
    sequential = torch.nn.Sequential(*list(make_resnet18().children())[:-2])

    class Deepest(nnx.Module):
        def __init__(self, backbone):
            self.backbone = backbone

        def __call__(self, x):
            return self.backbone(x)["layer4"]

    assert_same_output(Deepest(trained[1].backbone), sequential, tmp_path / "d2l.safetensors")


@pytest.mark.parametrize("model", ["fcn32s_resnet18", "resnet18"])
def test_convert_and_export_return_the_file_bit_for_bit(
    make_model, make_resnet18, tmp_path, monkeypatch, model
):
    whole = model != "resnet18"
    source = (
        to_torch(make_model(21, seed=5))
        if whole
        else {n: t.numpy() for n, t in make_resnet18().state_dict().items()}
    )
    files.write(tmp_path / "in.safetensors", source)
    # To draw initial values, all of which the file replaces, would take most of the time.
    build = make_model(21) if whole else make_model(21).backbone
    monkeypatch.setattr("fcn_jax.convert.command._build", lambda spec, rngs: build)
    report = convert_file(tmp_path / "in.safetensors", model, tmp_path / "checkpoint")
    monkeypatch.undo()
    back = export_file(tmp_path / "checkpoint", tmp_path / "out.safetensors")
    assert dict(back.dropped) == report.dropped
    assert set(report.dropped) == (set() if whole else {"fc.weight", "fc.bias"})
    found = files.read(tmp_path / "out.safetensors")
    assert found.keys() == source.keys() - set(report.dropped)
    for name, value in found.items():
        assert (value.dtype, value.tobytes()) == (source[name].dtype, source[name].tobytes()), name


def test_exports_safetensors_without_torch(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    export_file(trained[0], tmp_path / "out.safetensors")
    assert len(files.read(tmp_path / "out.safetensors")) == 124
    with pytest.raises(
        WeightsError, match=r"out\.pth.*pip install 'fcn-jax\[torch\]', or use \.safetensors"
    ):
        export_file(trained[0], tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_export_rejects_bad_arguments_and_writes_nothing(trained, backbone, tmp_path):
    (tmp_path / "there.pth").write_text("mine")
    with pytest.raises(WeightsError, match=r"there\.pth: exists; name another file"):
        export_file(trained[0], tmp_path / "there.pth")
    assert (tmp_path / "there.pth").read_text() == "mine"
    with pytest.raises(
        WeightsError, match=r"ends in \.pth, \.pt, \.safetensors; this one ends in ''"
    ):
        export_file(trained[0], tmp_path / "folder")
    with pytest.raises(
        ConfigError,
        match=r"format 'keras' .* offered by resnet18 \+ fcn32s; offered: torchvision, d2l",
    ):
        export_file(trained[0], tmp_path / "out.pth", key_format="keras")
    with pytest.raises(
        ConfigError,
        match=r"format 'keras' .* is not offered by resnet18; offered: torchvision, d2l",
    ):
        export_file(backbone, tmp_path / "out.pth", key_format="keras")
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        export_file(tmp_path / "none", tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["there.pth"]


def test_convert_rejects_directories(trained, tmp_path):
    with pytest.raises(WeightsError, match=r"a directory; .*fcn-jax export"):
        convert_file(trained[0], "fcn32s_resnet18", tmp_path / "out")


def test_convert_rejects_backbone_weights_for_a_model(backbone, make_model, tmp_path, monkeypatch):
    export_file(backbone, tmp_path / "backbone.safetensors")
    monkeypatch.setattr("fcn_jax.convert.command._build", lambda spec, rngs: make_model(21))
    with pytest.raises(
        WeightsError, match="holds the backbone alone; convert it with --model resnet18"
    ):
        convert_file(tmp_path / "backbone.safetensors", "fcn32s_resnet18", tmp_path / "out")
    assert registered_spec("resnet18").head is None


@pytest.mark.slow
def test_trained_network_gives_the_same_logits_in_pytorch(torchvision, tmp_path):
    data = scenes.write_scenes(tmp_path / "data", train=16)
    recipe = scenes.write_recipe(tmp_path, scenes.RECIPE.replace('"tiny"', '"resnet18"'))
    run = tmp_path / "run"
    assert cli.main(scenes.arguments(recipe, data, run, "--set", "train.epochs=2")) == 0
    assert cli.main(["export", str(run), "-o", str(tmp_path / "out.pth")]) == 0
    model, spec = checkpoint.load_model(run)
    assert any(
        np.asarray(leaf[...]).any()
        for path, leaf in leaves(model).items()
        if path.endswith("conv1.bn.mean")
    )
    assert_same_output(
        model, torch_segmenter(torchvision, spec.model.num_classes), tmp_path / "out.pth"
    )


@pytest.fixture(scope="module")
def backbone_state(make_resnet18):
    return {name: tensor.numpy() for name, tensor in make_resnet18().state_dict().items()}


def test_converts_a_complete_file_without_initializing(tmp_path, backbone_state, monkeypatch):
    traced = []
    build = command.build_backbone

    def watched(*args, **kwargs):
        module = build(*args, **kwargs)
        traced.append(isinstance(module.conv1.conv.kernel.get_value(), jax.core.Tracer))
        return module

    monkeypatch.setattr(command, "build_backbone", watched)
    files.write(tmp_path / "backbone.safetensors", backbone_state)
    convert_file(tmp_path / "backbone.safetensors", "resnet18", tmp_path / "out")
    assert traced == [True]
    arrays = checkpoint.read_arrays(tmp_path / "out")
    np.testing.assert_array_equal(
        arrays["layer4.1.conv2.conv.kernel"],
        backbone_state["layer4.1.conv2.weight"].transpose(2, 3, 1, 0),
    )


def test_initializes_missing_tensors_from_the_seed(tmp_path, backbone_state):
    counts = "num_batches_tracked"
    partial = {
        name: value
        for name, value in backbone_state.items()
        if name != "layer4.0.conv1.weight" and counts not in name
    }
    files.write(tmp_path / "backbone.safetensors", partial)
    report = convert_file(
        tmp_path / "backbone.safetensors",
        "resnet18",
        tmp_path / "out",
        reinit=["layer4.0.conv1.weight"],
        seed=3,
    )
    assert report.reinit == ["backbone.layer4.0.conv1.conv.kernel"]
    arrays = checkpoint.read_arrays(tmp_path / "out")
    fresh = leaves(build_backbone(registered_spec("resnet18"), rngs=nnx.Rngs(3)))
    assert arrays.keys() == fresh.keys()
    np.testing.assert_array_equal(
        arrays["layer4.0.conv1.conv.kernel"], fresh["layer4.0.conv1.conv.kernel"][...]
    )
    assert not np.array_equal(
        arrays["layer4.0.conv2.conv.kernel"], fresh["layer4.0.conv2.conv.kernel"][...]
    )
    assert all(value == 0 for path, value in arrays.items() if counts in path)
