import math
import re

import jax
import numpy as np
import pytest
from flax import nnx

from fcn_jax.api import ModelSpec
from fcn_jax.convert.load import import_weights
from fcn_jax.convert.tables import tables
from fcn_jax.models.build import build_backbone
from fcn_jax.models.names import leaves
from fcn_jax.models.resnet_blocks import BasicBlock, Stage, stages
from fcn_jax.plugins import registry
from fcn_jax.testing import check_backbone

BASIC = ("resnet18", "resnet34")
BOTTLENECKS = (
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
LAYERS = ("layer1", "layer2", "layer3", "layer4")
# Each test of values compiles a network, so that compiling it fast matters more than running it
# fast.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


def abstract(name, output_stride=32):
    """A backbone with shapes instead of arrays, in eval mode, and its spec."""
    spec = ModelSpec(backbone=name, head=None, output_stride=output_stride)
    backbone = nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0)))
    backbone.eval()
    return backbone, spec


def shapes_of(name, size, batch=1, output_stride=32):
    graphdef, state = nnx.split(abstract(name, output_stride)[0])
    features = jax.eval_shape(
        lambda state, x: nnx.merge(graphdef, state)(x), state, np.zeros((batch, *size, 3))
    )
    return {name: value.shape for name, value in features.items()}


def features_of_both(name, output_stride, reference, size):
    """Features of our network and of `reference` in torch with the same weights, both NHWC."""
    import torch

    backbone, spec = abstract(name, output_stride)
    state = {
        key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")
    }
    import_weights(backbone, spec, state)
    x = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
    graphdef, arrays = nnx.split(backbone)
    ours = jax.jit(
        lambda arrays, x: nnx.merge(graphdef, arrays)(x), compiler_options=COMPILER_OPTIONS
    )(arrays, x)
    theirs = {}
    stem = reference.relu if hasattr(reference, "relu") else reference.act1  # act1 in timm
    modules = {"stem": stem} | {name: getattr(reference, name) for name in LAYERS}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, y, name=name: theirs.update({name: y.clone()}))
    with torch.no_grad():
        reference(torch.tensor(x.transpose(0, 3, 1, 2)))
    return ours, {layer: value.numpy().transpose(0, 2, 3, 1) for layer, value in theirs.items()}


def check_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert np.abs(ours[name] - value).max() < 1e-5 * np.abs(value).max(), name


# ---------------------------------------------------------------------------- names and shapes


@pytest.mark.parametrize("name", BASIC + BOTTLENECKS)
def test_names_shapes_and_counts_match_torchvision(torchvision, name):
    import torch

    with torch.device("meta"):
        theirs = {
            key: tuple(value.shape)
            for key, value in getattr(torchvision.models, name)(weights=None).state_dict().items()
        }
    backbone, spec = abstract(name, output_stride=8)
    by_format = {"torchvision": {}, "d2l": {}}
    for key_format, found in by_format.items():
        table = tables(spec)["backbone", key_format]
        for path, leaf in leaves(backbone).items():
            torch_name, rule = table.to_torch(f"backbone.{path}")
            found[torch_name] = rule.op.to_torch(
                np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
            ).shape
    assert by_format["torchvision"] == {
        key: shape for key, shape in theirs.items() if not key.startswith("fc.")
    }
    positions = {
        "conv1": "0",
        "bn1": "1",
        "layer1": "4",
        "layer2": "5",
        "layer3": "6",
        "layer4": "7",
    }
    assert by_format["d2l"] == {
        ".".join([positions[first], *rest]): shape
        for (first, *rest), shape in (
            (key.split("."), shape) for key, shape in by_format["torchvision"].items()
        )
    }
    tensors = {
        key: np.broadcast_to(np.zeros((), np.float32), shape) for key, shape in theirs.items()
    }
    record = import_weights(backbone, spec, tensors)
    assert len(record.loaded) == len(theirs) - 2
    assert set(record.dropped) == {"fc.weight", "fc.bias"}
    parameters = sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(backbone, nnx.Param))
    )
    assert f" {parameters / 1e6:.1f} M parameters" in registry.default().backbone(name).summary


@pytest.mark.parametrize("name", BASIC + BOTTLENECKS)
def test_named_weights_match_torchvision(torchvision, name):
    ours = registry.default().backbone(name).torch.weights
    published = {entry.name: entry for entry in torchvision.models.get_model_weights(name)}
    assert ours.keys() == published.keys()
    for key, weights in ours.items():
        assert weights.url == published[key].url
        assert weights.sha256 == re.search(r"-([0-9a-f]{8})\.pth$", weights.url)[1]
        accuracy = published[key].meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert weights.summary == f"ImageNet-1k, top-1 accuracy {accuracy}"


@pytest.mark.parametrize("name", BASIC + BOTTLENECKS)
def test_normalization_matches_torchvision(torchvision, name):
    preprocess = registry.default().backbone(name).preprocess
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert (list(preprocess.mean), list(preprocess.std)) == (theirs.mean, theirs.std)
    assert (preprocess.scale, preprocess.channel_order) == (1.0, "rgb")


def test_image_of_d2l_has_10_by_15_features_of_512_channels():
    shapes = shapes_of("resnet18", (320, 480))
    assert set(shapes) == {"stem", *LAYERS}
    assert shapes["layer4"] == (1, 10, 15, 512)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_features_have_the_promised_sizes(name, output_stride):
    backbone = registry.default().backbone(name)
    specs = backbone.features(backbone.options(), output_stride)
    assert [spec.stride for spec in specs] == [
        min(stride, output_stride) for stride in (2, 4, 8, 16, 32)
    ]
    for size in ((1, 1), (33, 31), (321, 487), (64, 95)):
        expected = {
            spec.name: (2, spec.size(size[0]), spec.size(size[1]), spec.channels) for spec in specs
        }
        assert shapes_of(name, size, 2, output_stride) == expected


def test_stage_begins_with_the_dilation_of_the_stage_before():
    assert stages(32) == [Stage(1, 1, 1), Stage(2, 1, 1), Stage(2, 1, 1), Stage(2, 1, 1)]
    assert stages(16) == [Stage(1, 1, 1), Stage(2, 1, 1), Stage(2, 1, 1), Stage(1, 1, 2)]
    assert stages(8) == [Stage(1, 1, 1), Stage(2, 1, 1), Stage(1, 1, 2), Stage(1, 2, 4)]


# -------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("size", [(33, 31), pytest.param((64, 97), marks=pytest.mark.slow)])
def test_features_match_torchvision(make_resnet18, size):
    check_equal(*features_of_both("resnet18", 32, make_resnet18(), size))


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("resnet50", 8),
        pytest.param("resnet50", 32, marks=pytest.mark.slow),
        pytest.param("resnet50", 16, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", 16, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", 8, marks=pytest.mark.slow),
        pytest.param("wide_resnet50_2", 8, marks=pytest.mark.slow),
        pytest.param("resnet152", 16, marks=pytest.mark.slow),
        pytest.param("resnext101_64x4d", 8, marks=pytest.mark.slow),
    ],
)
def test_features_of_bottleneck_networks_match_torchvision(
    torchvision, randomize, name, output_stride
):
    import torch

    torch.manual_seed(0)
    dilate = [False, output_stride <= 8, output_stride <= 16]
    reference = randomize(
        getattr(torchvision.models, name)(weights=None, replace_stride_with_dilation=dilate)
    )
    check_equal(*features_of_both(name, output_stride, reference, (65, 49)))


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("resnet18", 8),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (("resnet18", 32), ("resnet18", 16), ("resnet34", 8))
        ),
    ],
)
def test_features_of_dilated_basic_networks_match_timm(torchvision, randomize, name, output_stride):
    """torchvision refuses these. The reference is timm; that of the descriptor must match it."""
    import torch

    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = randomize(timm.create_model(name, pretrained=False, output_stride=output_stride))
    ours, expected = features_of_both(name, output_stride, theirs, (65, 49))
    check_equal(ours, expected)
    backbone = registry.default().backbone(name)
    reference = backbone.torch.reference(
        options=backbone.options(), output_stride=output_stride
    ).eval()
    reference.load_state_dict(theirs.state_dict())
    _, again = features_of_both(name, output_stride, reference, (65, 49))
    for layer, value in expected.items():
        np.testing.assert_allclose(
            again[layer], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=layer
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "resnext50_32x4d"])
def test_meets_the_contract(torchvision, name):
    check_backbone(name)


def test_initial_parameters_depend_only_on_the_seed():
    def kernels(seed):
        block = BasicBlock(2, 3, Stage(2, 1, 1), rngs=nnx.Rngs(seed))
        return [
            np.asarray(layer.conv.kernel[...])
            for layer in (block.conv1, block.conv2, block.downsample)
        ]

    for one, same, other in zip(kernels(0), kernels(0), kernels(1), strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)
