"""LR-ASPP and torchvision's model with it: the plugin contract, and torchvision's results."""

import jax
import numpy as np
import pytest
from fcn_jax_mobilenet.lraspp import LRASPP, LRASPP_MOBILENET_V3_LARGE
from flax import nnx

import fcn_jax
from fcn_jax.api import FeatureSpec
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.hub import available
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build, build_model
from fcn_jax.models.spec import registered_spec, select_features
from fcn_jax.plugins.options import validate
from fcn_jax.testing import check_head

NAME = "lraspp_mobilenet_v3_large"


def specs(*strides, offset=0):
    return tuple(
        FeatureSpec(f"f{i}", 4, stride, lambda n, s=stride: -(-n // s), offset)
        for i, stride in enumerate(strides)
    )


@pytest.mark.slow
def test_meets_the_contract():
    check_head("lraspp", {"inter_channels": 12})


@pytest.mark.parametrize(
    ("strides", "wanted"),
    [
        ((2, 4, 8, 16, 16, 16), ("f2", "f5")),  # torchvision's
        ((2, 4, 8, 16, 32, 32), ("f2", "f5")),
        ((4, 8, 8, 16), ("f2", "f3")),
        ((2, 4, 8, 8, 8, 8), ("f1", "f5")),
        ((2, 4), ("f0", "f1")),
    ],
)
def test_takes_a_feature_of_stride_8_or_half_the_deepest_stride(strides, wanted):
    assert LRASPP.select(LRASPP.options(), specs(*strides)) == wanted


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        (
            specs(4, 16),
            r"of stride 8 in addition to the deepest, of stride 16; .* offers f0 \(4\), f1 \(16\)",
        ),
        (
            specs(8, 8),
            r"of stride 4 in addition to the deepest, of stride 8; .* offers f0 \(8\), f1 \(8\)",
        ),
        (specs(1), r"needs a feature of stride 0\.5 in addition"),
        (specs(8, 16, offset=3), "head 'lraspp' does not crop .* 'f0' begins 3 pixels before it"),
    ],
)
def test_rejects_a_backbone_without_the_features(features, complaint):
    with pytest.raises(ConfigError, match=complaint):
        select_features(LRASPP, LRASPP.options(), features)


def test_rejects_options_out_of_range():
    with pytest.raises(ConfigError, match="'inter_channels' is 0; input should be greater than 0"):
        validate(LRASPP, {"inter_channels": 0})


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "mobilenet_v3_small"])
def test_fits_other_backbones_at_any_size(backbone, output_stride):
    model = nnx.eval_shape(
        lambda: build_model(backbone, "lraspp", 5, output_stride=output_stride, rngs=nnx.Rngs(0))
    )
    model.eval()
    graphdef, state = nnx.split(model)
    for height, width in ((1, 1), (33, 47), (64, 65)):
        x = jax.ShapeDtypeStruct((2, height, width, 3), np.float32)
        logits = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
        assert logits.shape == (2, height, width, 5)


def abstract():
    return nnx.eval_shape(lambda: build(registered_spec(NAME), rngs=nnx.Rngs(0)))


def test_state_dict_of_torchvision_converts_both_ways_bit_for_bit(torchvision):
    import torch

    with torch.device("meta"):
        network = LRASPP_MOBILENET_V3_LARGE.reference_model(num_classes=21, aux=False)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(tuple(value.shape), np.float32)
        if value.is_floating_point()
        else np.asarray(rng.integers(1000))
        for name, value in network.state_dict().items()
    }
    tensors |= {
        name: np.abs(value) for name, value in tensors.items() if name.endswith("running_var")
    }
    model = abstract()
    record = load_torch(model, tensors)
    assert (record.scope, record.key_format, record.dropped) == ("model", "torchvision", {})
    assert sorted(record.loaded.values()) == sorted(tensors)
    back = to_torch(model)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert (back[name].dtype, back[name].shape) == (value.dtype, value.shape), name
        assert back[name].tobytes() == value.tobytes(), name


def test_imagenet_weights_fill_only_the_backbone(torchvision):
    import torch

    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape)
            for name, value in torchvision.models.mobilenet_v3_large().state_dict().items()
        }
    record = load_torch(
        abstract(), {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    )
    assert (record.scope, len(record.loaded)) == ("backbone", 308)
    assert sorted(record.dropped) == [
        f"classifier.{i}.{name}" for i in (0, 3) for name in ("bias", "weight")
    ]


def test_weights_match_torchvision(torchvision):
    theirs = torchvision.models.get_model_weights(NAME)
    ours = LRASPP_MOBILENET_V3_LARGE.weights
    assert ours.keys() == theirs.__members__.keys() - {"DEFAULT"}
    published = ours["COCO_WITH_VOC_LABELS_V1"]
    assert published.url == theirs.COCO_WITH_VOC_LABELS_V1.url
    assert published.url.endswith(f"-{published.sha256}.pth")
    scores = theirs.COCO_WITH_VOC_LABELS_V1.meta["_metrics"]["COCO-val2017-VOC-labels"]
    assert f"mIoU {scores['miou']}, pixel accuracy {scores['pixel_acc']}" in published.summary
    assert sorted(available(registered_spec(NAME))) == [
        "COCO_WITH_VOC_LABELS_V1",
        "IMAGENET1K_V1",
        "IMAGENET1K_V2",
    ]


@pytest.mark.slow
def test_model_matches_the_class_of_torchvision(torchvision, monkeypatch):
    from fcn_jax.verify import model

    monkeypatch.delattr(model, "build_reference")  # its descriptor builds it
    report = fcn_jax.verify_model(NAME, sizes=[(65, 97)], batch=2, grad=True)
    assert report.equal, report
    assert len(report.coverage.loaded) == 319
    assert report.skipped == ()


@pytest.mark.slow
def test_predictions_match_torchvision(torchvision):
    import torch

    torch.manual_seed(0)
    network = LRASPP_MOBILENET_V3_LARGE.reference_model(num_classes=21, aux=False).eval()
    image = np.random.default_rng(0).integers(0, 256, (75, 100, 3), np.uint8)
    mask = fcn_jax.Predictor(fcn_jax.load(NAME, network.state_dict()))(image)
    assert (mask.shape, mask.dtype) == ((75, 100), np.uint8)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor((0.485, 0.456, 0.406)).reshape(3, 1, 1)) / torch.tensor(
        (0.229, 0.224, 0.225)
    ).reshape(3, 1, 1)
    with torch.no_grad():
        wanted = network(x)["out"].argmax(1)[0].numpy()
    assert (mask == wanted).mean() > 0.99
