"""DeepLabv3 and DeepLabv3+: the plugin contract, torchvision's models, and options."""

import importlib.util
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from fcn_jax_deeplab.aspp import rates_at
from fcn_jax_deeplab.deeplabv3 import DEEPLABV3, DeepLabV3Options
from fcn_jax_deeplab.deeplabv3plus import DEEPLABV3PLUS, DeepLabV3PlusOptions
from flax import nnx

import fcn_jax
from fcn_jax.api import FeatureSpec
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.hub import available
from fcn_jax.convert.load import load_torch
from fcn_jax.data.datasets.shapes import draw_scene
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build
from fcn_jax.models.names import leaves
from fcn_jax.models.spec import registered_spec, resolve, select_features
from fcn_jax.plugins import registry
from fcn_jax.plugins.options import validate
from fcn_jax.testing import check_head
from fcn_jax.verify.randomize import randomize

SMALL = {"channels": 8}
WHOLE = ("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large")


@pytest.fixture(autouse=True)
def plugins(plugin_project):
    return plugin_project(Path(__file__).parents[1] / "pyproject.toml")


@pytest.fixture(scope="module")
def torchvision():
    pytest.importorskip("torch")
    return pytest.importorskip("fcn_jax.pytorch.reference").import_torchvision()


# Where a whole network is filled with numbers, the deeper ResNet shows nothing more.
FILLED = [
    pytest.param(name, marks=pytest.mark.slow if name == "deeplabv3_resnet101" else ())
    for name in WHOLE
]


@pytest.fixture(params=WHOLE)
def whole(request):
    """The name of each registered model whose backbone is installed."""
    if "mobilenet" in request.param and importlib.util.find_spec("fcn_jax_mobilenet") is None:
        pytest.skip("needs fcn-jax-mobilenet")
    return request.param


def spec(name, channels, stride, offset=0):
    return FeatureSpec(name, channels, stride, lambda size: -(-size // stride), offset)


def drawn(model, seed=0):
    """Give random values to a model that has only shapes; its own initialization takes long."""
    rng = np.random.default_rng(seed)
    for path, leaf in leaves(model).items():
        value = rng.standard_normal(leaf.shape, np.float32) * np.float32(
            np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        )
        leaf.set_value(
            np.abs(value).astype(leaf.dtype)
            if path.endswith(("var", "num_batches_tracked"))
            else value
        )
    return model


def blank(name):
    return nnx.eval_shape(lambda: build(registered_spec(name), rngs=nnx.Rngs(0)))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["deeplabv3", "deeplabv3plus"])
def test_meets_the_contract(head):
    check_head(head, SMALL)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (DEEPLABV3, {}),
        (DEEPLABV3, {"rates": (2, 20)}),  # one rate within the feature, one past it
        (DEEPLABV3PLUS, {"low_channels": 5}),
        (DEEPLABV3PLUS, {"depth": 1, "rates": (3,)}),
    ],
)
def test_training_and_gradients_match_torch(torchvision, head, options):
    """Compare logits and gradients of parameters and features with PyTorch's in float64."""
    import torch

    options = head.options(channels=6, dropout=0.0, **options)
    features = (spec("a", 4, 4), spec("b", 7, 16))
    features = tuple(
        feature for feature in features if feature.name in head.select(options, features)
    )
    batch, hw = 5, (65, 97)
    rng = np.random.default_rng(0)
    inputs = {
        f.name: rng.standard_normal((batch, *map(f.size, hw), f.channels), np.float32)
        for f in features
    }
    weights = rng.standard_normal((batch, *hw, 3), np.float32)

    torch.manual_seed(0)
    reference = (
        head.torch.reference(options=options, features=features, num_classes=3).double().train()
    )
    state = {name: value.numpy().copy() for name, value in reference.state_dict().items()}
    given = [
        torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=torch.float64, requires_grad=True)
        for x in inputs.values()
    ]
    logits = torch.nn.functional.interpolate(
        reference(*given), size=hw, mode="bilinear", align_corners=False
    )
    (logits * torch.tensor(weights.transpose(0, 3, 1, 2).copy())).sum().backward()
    table = head.torch.tables_of(options)["torchvision"]

    module = head.build(options, features, num_classes=3, rngs=nnx.Rngs(0))
    for path, leaf in leaves(module).items():
        name, rule = table.to_torch(path)
        leaf.set_value(jax.numpy.asarray(rule.op.to_jax(state[name]), leaf.dtype))
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(params, inputs):
        def loss(params, inputs):
            found = nnx.merge(graphdef, params, rest, copy=True)(inputs, out_hw=hw)
            return (found * weights).sum(), found

        return jax.grad(loss, (0, 1), has_aux=True)(params, inputs)

    (grads, grads_of_inputs), found = run(params, inputs)

    def close(name, ours, theirs):
        assert ours.shape == theirs.shape, name
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs), name

    close("logits", np.asarray(found), logits.detach().numpy().transpose(0, 2, 3, 1))
    for (name, ours), theirs in zip(grads_of_inputs.items(), given, strict=True):
        close(name, np.asarray(ours), theirs.grad.numpy().transpose(0, 2, 3, 1))
    compared = 0
    for path, leaf in nnx.to_flat_state(grads):
        name, rule = table.to_torch(".".join(map(str, path)))
        close(
            name, np.asarray(leaf[...]), rule.op.to_jax(reference.get_parameter(name).grad.numpy())
        )
        compared += 1
    assert compared == len(list(reference.parameters()))


@pytest.mark.parametrize(
    ("stride", "rates"),
    [(4, (24, 48, 72)), (8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9)), (128, (1, 2, 2))],
)
def test_rates_follow_the_stride(stride, rates):
    assert rates_at(stride) == rates
    assert rates_at(stride, (5, 7)) == (5, 7)


@pytest.mark.parametrize("head", [DEEPLABV3, DEEPLABV3PLUS])
def test_convolutions_dilate_by_the_rates(head):
    features = (spec("a", 4, 4), spec("b", 6, 16))

    def dilations(**options):
        options = head.options(channels=4, **options)
        selected = [
            feature for feature in features if feature.name in head.select(options, features)
        ]
        module = nnx.eval_shape(
            lambda: head.build(options, selected, num_classes=3, rngs=nnx.Rngs(0))
        )
        assert all(
            branch.conv.padding == branch.conv.dilation for branch in list(module.aspp.convs)[1:]
        )
        return [branch.conv.dilation for branch in module.aspp.convs]

    assert dilations() == [1, 6, 12, 18]
    assert dilations(rates=(12, 24, 36)) == [1, 12, 24, 36]
    assert dilations(rates=(2,)) == [1, 2]


@pytest.mark.parametrize(
    ("head", "table", "complaint"),
    [
        ("deeplabv3", {"rates": []}, r"'rates' is \[\]; input should have at least 1 item"),
        ("deeplabv3", {"rates": [6, 0]}, r"'rates\.1' is 0; input should be greater than 0"),
        ("deeplabv3", {"rates": [6, 1.5]}, r"'rates.*1\.5"),
        ("deeplabv3", {"channels": 0}, "'channels' is 0; input should be greater than 0"),
        ("deeplabv3", {"dropout": 1.0}, r"'dropout' is 1\.0; .* 0 and less than 1"),
        ("deeplabv3", {"rate": [6]}, "unknown key 'rate'. Did you mean 'rates'"),
        ("deeplabv3plus", {"depth": 0}, "'depth' is 0; input should be greater than 0"),
        (
            "deeplabv3plus",
            {"low_channels": 0},
            "'low_channels' is 0; input should be greater than 0",
        ),
        (
            "deeplabv3plus",
            {"dropout": -0.1},
            r"'dropout' is -0\.1; input should be greater than or equal to 0",
        ),
    ],
)
def test_rejects_options_out_of_range(plugins, head, table, complaint):
    with pytest.raises(ConfigError, match=complaint):
        validate(plugins.head(head), table)


def test_deeplabv3_takes_the_deepest_feature():
    assert DEEPLABV3.select(DeepLabV3Options(), [spec("a", 4, 8), spec("b", 4, 8)]) == ("b",)


def test_deeplabv3plus_takes_the_deepest_feature_of_stride_4_and_the_deepest_of_all():
    features = [spec("a", 4, 4), spec("b", 4, 4), spec("c", 4, 8), spec("d", 4, 8)]
    assert DEEPLABV3PLUS.select(DeepLabV3PlusOptions(), features) == ("b", "d")


@pytest.mark.parametrize("strides", [(2, 8, 16), (4,), (2, 4)])
def test_deeplabv3plus_names_the_missing_feature(strides):
    offered = ", ".join(rf"f{i} \({stride}\)" for i, stride in enumerate(strides))
    with pytest.raises(
        ConfigError,
        match=rf"needs a feature of stride 4 and a deeper one.*offers {offered}\. Use",
    ):
        DEEPLABV3PLUS.select(
            DeepLabV3PlusOptions(), [spec(f"f{i}", 4, stride) for i, stride in enumerate(strides)]
        )


@pytest.mark.parametrize(
    ("head", "at_fault"),
    [(DEEPLABV3, "'b' begins 100 pixels"), (DEEPLABV3PLUS, "'a' begins 100 pixels")],
)
def test_rejects_features_of_a_padded_image(head, at_fault):
    with pytest.raises(ConfigError, match=f"begin at the image's corner; {at_fault}"):
        select_features(head, head.options(), [spec("a", 4, 4, 100), spec("b", 4, 16, 100)])


def test_training_needs_two_images_as_in_pytorch():
    head = DEEPLABV3.build(
        DeepLabV3Options(channels=4), [spec("a", 3, 8)], num_classes=2, rngs=nnx.Rngs(0)
    )
    head.train()
    with pytest.raises(ValueError, match="more than one value per channel"):
        head({"a": np.ones((1, 5, 6, 3), np.float32)}, out_hw=(40, 48))


def test_depth_1_matches_the_names_of_the_published_head():
    """`DeepLabHeadV3Plus(2048, 256, 21)` of VainF/DeepLabV3Plus-Pytorch."""
    features = (spec("low", 256, 4), spec("out", 2048, 8))
    options = DeepLabV3PlusOptions(depth=1)
    module = nnx.eval_shape(
        lambda: DEEPLABV3PLUS.build(options, features, num_classes=21, rngs=nnx.Rngs(0))
    )
    table = DEEPLABV3PLUS.torch.tables_of(options)["torchvision"]
    kernels = {
        table.to_torch(path)[0]: leaf.shape
        for path, leaf in leaves(module).items()
        if path.endswith("kernel")
    }
    assert kernels == {
        "project.0.weight": (1, 1, 256, 48),
        "aspp.convs.0.0.weight": (1, 1, 2048, 256),
        "aspp.convs.1.0.weight": (3, 3, 2048, 256),
        "aspp.convs.2.0.weight": (3, 3, 2048, 256),
        "aspp.convs.3.0.weight": (3, 3, 2048, 256),
        "aspp.convs.4.1.weight": (1, 1, 2048, 256),
        "aspp.project.0.weight": (1, 1, 1280, 256),
        "classifier.0.weight": (3, 3, 304, 256),
        "classifier.3.weight": (1, 1, 256, 21),
    }


# -------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("whole", FILLED, indirect=True)
def test_names_and_shapes_of_models_match_torchvision(torchvision, whole, plugins):
    reference = plugins.model(whole).reference_model(num_classes=21, aux=True)
    model = blank(whole)
    wanted = {name: tuple(value.shape) for name, value in reference.state_dict().items()}
    assert {name: value.shape for name, value in to_torch(drawn(model)).items()} == wanted
    dilations = [
        layer.dilation[0]
        for layer in reference.classifier[0].convs.modules()
        if hasattr(layer, "dilation")
    ]
    assert (
        dilations
        == [*(branch.conv.dilation for branch in model.head.aspp.convs), 1]
        == [1, 12, 24, 36, 1]
    )


def test_auxiliary_head_takes_the_feature_of_torchvision(whole):
    (feature,) = resolve(registered_spec(whole)).heads["aux"].features
    wanted = ("c2", 40, 8) if "mobilenet" in whole else ("layer3", 1024, 8)
    assert (feature.name, feature.channels, feature.stride) == wanted


def test_published_weights_match_torchvision(torchvision, whole):
    theirs = torchvision.models.get_model_weights(whole).COCO_WITH_VOC_LABELS_V1
    ours = available(registered_spec(whole))["COCO_WITH_VOC_LABELS_V1"]
    assert ours.url == theirs.url
    assert theirs.url.endswith(f"-{ours.sha256}.pth")
    scores = theirs.meta["_metrics"]["COCO-val2017-VOC-labels"]
    assert f"mIoU {scores['miou']}, pixel accuracy {scores['pixel_acc']}" in ours.summary


@pytest.mark.parametrize("whole", FILLED, indirect=True)
def test_model_converts_to_torchvision_and_back_bit_for_bit(torchvision, whole, plugins):
    import torch

    tensors = to_torch(drawn(blank(whole)))
    reference = plugins.model(whole).reference_model(num_classes=21, aux=True)
    reference.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, strict=True
    )
    other = blank(whole)
    record = load_torch(other, reference.state_dict())
    assert record.scope == "model"
    assert not record.dropped
    again = to_torch(other)
    assert tensors.keys() == again.keys()
    assert all(tensors[name].tobytes() == again[name].tobytes() for name in tensors)


def test_error_names_the_distribution_of_a_missing_backbone(plugins, monkeypatch):
    left = registry.Registry(
        [entry for entry in plugins.entries() if entry.distribution != "fcn-jax-mobilenet"]
    )
    monkeypatch.setattr(registry, "default", lambda: left)
    monkeypatch.setattr(metadata, "distribution", Mock(side_effect=metadata.PackageNotFoundError))
    with pytest.raises(
        ConfigError, match="fcn-jax-mobilenet is not installed: pip install fcn-jax-mobilenet"
    ) as caught:
        fcn_jax.load("deeplabv3_mobilenet_v3_large", weights="COCO_WITH_VOC_LABELS_V1")
    assert "\n" not in str(caught.value)
    assert "COCO_WITH_VOC_LABELS_V1" in available(registered_spec("deeplabv3_resnet50")), (
        "the others are still there"
    )


@pytest.mark.slow
def test_predictions_with_weights_of_torchvision_match_torchvision(torchvision, plugins):
    import torch

    torch.manual_seed(0)
    reference = plugins.model("deeplabv3_resnet50").reference_model(num_classes=21, aux=True)
    randomize(reference, 0)
    reference.eval()
    predictor = fcn_jax.Predictor(
        fcn_jax.load("deeplabv3_resnet50", weights=reference.state_dict())
    )
    image, _ = draw_scene(0, (97, 130))
    mask = predictor(image)
    mean, std = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
    with torch.no_grad():
        x = torch.from_numpy(
            ((image / np.float32(255) - mean) / std).transpose(2, 0, 1)[None].copy()
        )
        wanted = reference(x)["out"][0].argmax(0).numpy()
    assert mask.shape == wanted.shape == (97, 130)
    assert len(np.unique(wanted)) > 1
    assert (mask == wanted).mean() > 0.999


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("deeplabv3_resnet50", marks=pytest.mark.slow),
        pytest.param("deeplabv3_mobilenet_v3_large", marks=pytest.mark.exhaustive),
    ],
)
def test_model_matches_torchvision(torchvision, name):
    if "mobilenet" in name:
        pytest.importorskip("fcn_jax_mobilenet")
    report = fcn_jax.verify_model(name, sizes=[(65, 97)], batch=2, grad=True)
    assert report.equal, report


@pytest.mark.slow
def test_deeplabv3plus_on_a_resnet_matches_torch(torchvision):
    report = fcn_jax.verify_model(
        "resnet18", head="deeplabv3plus", output_stride=16, sizes=[(65, 97)], batch=2, grad=True
    )
    assert report.equal, report
