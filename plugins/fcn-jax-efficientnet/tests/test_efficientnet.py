"""EfficientNets against the plugin contract and timm's networks."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from fcn_jax_efficientnet import backbones
from fcn_jax_efficientnet.architecture import SCALES, Architecture, BlockPlan
from fcn_jax_efficientnet.network import Block
from flax import nnx

from fcn_jax import verify
from fcn_jax.api import Backbone, ModelSpec
from fcn_jax.convert.export import export_weights
from fcn_jax.convert.load import import_weights
from fcn_jax.convert.tables import tables
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build_backbone
from fcn_jax.models.names import leaves
from fcn_jax.plugins.options import validate
from fcn_jax.pytorch import Table, conv, conv_norm
from fcn_jax.testing import check_backbone

BACKBONES = {value.name: value for value in vars(backbones).values() if isinstance(value, Backbone)}
SMALL = ("efficientnet_lite0", "tf_efficientnet_lite0", "efficientnet_b0", "tf_efficientnet_b0")
EACH = [
    pytest.param(name, marks=() if name in SMALL else pytest.mark.slow)
    for name in sorted(BACKBONES)
]


def abstract(name, output_stride=32, **options):
    """A backbone with shapes instead of arrays."""
    spec = ModelSpec(name, None, backbone_options=options, output_stride=output_stride)
    return nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0)))


def reference(name, output_stride=32, **options):
    backbone = BACKBONES[name]
    return backbone.torch.reference(backbone.options(**options), output_stride)


def random_like(shapes, seed=0):
    rng = np.random.default_rng(seed)
    drawn = {
        name: rng.integers(0, 1000, shape)
        if name.endswith("tracked")
        else rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }
    return drawn | {
        name: np.abs(value) for name, value in drawn.items() if name.endswith("running_var")
    }


def test_there_are_13_sizes_of_two_origins():
    names = [f"{origin}efficientnet_{size}" for origin in ("", "tf_") for size in SCALES]
    assert list(BACKBONES) == names
    assert len(names) == 26


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_b0"])
def test_meets_the_contract(name):
    check_backbone(name, {"drop_path_rate": 0.2})


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("efficientnet_lite0", (16, 24, 40, 112, 320)),
        ("tf_efficientnet_b0", (16, 24, 40, 112, 320)),
        ("tf_efficientnet_lite4", (24, 32, 56, 160, 448)),
        ("efficientnet_b7", (32, 48, 80, 224, 640)),
    ],
)
def test_features_have_the_promised_channels_and_sizes(name, channels):
    backbone = BACKBONES[name]
    assert backbone.output_strides == (32, 16, 8)
    for output_stride in backbone.output_strides:
        specs = backbone.features(backbone.options(), output_stride)
        assert specs == backbone.features(backbone.options(), output_stride)
        assert tuple(spec.channels for spec in specs) == channels
        strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
        assert [(spec.name, spec.stride, spec.size(65)) for spec in specs] == [
            (f"c{i}", stride, math.ceil(65 / stride)) for i, stride in enumerate(strides, start=1)
        ]


@pytest.mark.parametrize("name", EACH)
def test_names_shapes_and_number_of_parameters_match_timm(timm, name):
    import torch

    table = tables(ModelSpec(name, None))["backbone", "torchvision"]
    ours, parameters = {}, 0
    for path, leaf in leaves(abstract(name)).items():
        key, rule = table.to_torch(f"backbone.{path}")
        ours[key] = rule.op.to_torch(np.empty(leaf.shape, np.float32)).shape
        parameters += leaf.size if isinstance(leaf, nnx.Param) else 0
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    dropped = ("conv_head.", "bn2.", "classifier.")
    assert ours == {key: tuple(x.shape) for key, x in theirs.items() if not key.startswith(dropped)}
    assert f"{parameters / 1e6:.1f} M parameters" in BACKBONES[name].summary


def settings_of(layer):
    return (layer.stride, layer.dilation, layer.groups, layer.padding)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", SMALL)
def test_layers_match_the_settings_of_timm(timm, name, output_stride):
    import torch
    from timm.layers import BatchNormAct2d
    from timm.layers.conv2d_same import Conv2dSame

    theirs = dict(reference(name, output_stride).named_modules())
    table = BACKBONES[name].torch.tables_of(None)["torchvision"]
    seen = 0
    for path, layer in nnx.iter_modules(abstract(name, output_stride)):
        path = ".".join(map(str, path))
        if hasattr(layer, "groups"):
            other = theirs[table.to_torch(f"{path}.kernel")[0].removesuffix(".weight")]
            sizes = other.stride, other.dilation, (other.groups,) * 2
            assert sizes == tuple((n, n) for n in (layer.stride, layer.dilation, layer.groups))
            if layer.padding == "same" and not isinstance(other, Conv2dSame):
                # timm pads stride 1 by constants, which are equal.
                assert layer.stride == 1
                assert other.padding[0] == layer.dilation * (other.kernel_size[0] // 2)
            elif layer.padding != "same":
                assert other.padding == (layer.padding, layer.padding)
        elif hasattr(layer, "momentum"):
            other = theirs[table.to_torch(f"{path}.scale")[0].removesuffix(".weight")]
            assert isinstance(other, BatchNormAct2d)
            assert (layer.eps, layer.momentum) == (other.eps, other.momentum)
        else:
            continue
        seen += 1
    kinds = torch.nn.Conv2d, BatchNormAct2d
    assert seen == sum(isinstance(layer, kinds) for layer in theirs.values())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_b0"])
def test_rates_of_stochastic_depth_match_timm(timm, name):
    theirs = {
        layer.removesuffix(".drop_path"): module.drop_prob
        for layer, module in reference(name, drop_path_rate=0.2).named_modules()
        if type(module).__name__ == "DropPath"
    }
    ours = {
        f"blocks.{s}.{b}": block.drop.rate
        for s, stage in enumerate(abstract(name, drop_path_rate=0.2).blocks)
        for b, block in enumerate(stage)
        if block.drop is not None
    }
    # timm also makes layers that it does not use, in blocks without a shortcut.
    assert ours == pytest.approx({name: theirs[name] for name in ours})
    assert len(ours) == 9
    assert abstract(name).blocks[4][2].drop is None


def test_initial_values_match_timm(timm):
    import torch

    torch.manual_seed(0)
    name = "efficientnet_b0"
    theirs, spec = reference(name).state_dict(), ModelSpec(name, None)
    ours = export_weights(build_backbone(spec, rngs=nnx.Rngs(0)), spec, "torchvision")
    assert ours.keys() == theirs.keys()
    compared = 0
    for key, value in theirs.items():
        found, wanted = ours[key].astype(np.float64), value.numpy().astype(np.float64)
        if found.size > 400 and wanted.std() > 0:
            assert abs(found.mean()) < 5 * wanted.std() / math.sqrt(found.size), key
            assert found.std() == pytest.approx(wanted.std(), rel=6 / math.sqrt(found.size)), key
            compared += 1
        elif wanted.std() == 0:
            np.testing.assert_array_equal(found, wanted, err_msg=key)
    assert compared > 60


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"drop_path_rate": 1.0}, "'drop_path_rate' is 1.0; input should be .* and less than 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
        ({"drop_rate": 0.1}, "Did you mean 'drop_path_rate'"),
    ],
)
def test_rejects_options_out_of_range(table, complaint):
    with pytest.raises(ConfigError, match=complaint):
        validate(backbones.EFFICIENTNET_B0, table)


def test_weights_are_those_of_timm_with_the_same_preprocessing(timm):
    for name, backbone in BACKBONES.items():
        for tag, published in backbone.torch.weights.items():
            if tag == "IN1K_PIP":
                continue
            theirs = timm.get_pretrained_cfg(f"{name}.{tag.lower()}")
            file = published.url.rpartition("/")[2]
            assert file == theirs.url.rpartition("/")[2]
            assert file.endswith(f"-{published.sha256}.pth")
            ours = backbone.preprocess
            for field in ("mean", "std"):
                # Google's is 127/255 and 128/255; timm rounds to 0.5.
                scaled = [value / ours.scale for value in getattr(ours, field)]
                assert scaled == pytest.approx(getattr(theirs, field), abs=0.0021)


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("size", [(6, 7), (5, 9)])
@pytest.mark.parametrize(
    ("kind", "stride", "dilation"), [("lite0", 2, 1), ("b0", 2, 1), ("b0", 1, 2)]
)
def test_a_block_and_its_gradients_match_timm(timm, kind, stride, dilation, size):
    import torch
    from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite

    plan = Architecture(kind, tensorflow=True)
    squeezed = 0 if plan.lite else 2
    block = BlockPlan(8, 48, 8, 5, stride, squeezed, dilation, residual=stride == 1)
    types = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    ours = Block(plan, block, 0.0, **types)
    torch.manual_seed(0)
    theirs = InvertedResidual(
        8,
        8,
        5,
        stride,
        dilation,
        exp_ratio=6,
        pad_type="same",
        act_layer=torch.nn.ReLU6 if plan.lite else torch.nn.SiLU,
        norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=1e-3),
        se_layer=functools.partial(SqueezeExcite, rd_ratio=1 / 24) if squeezed else None,
    )
    table = Table(
        conv_norm("conv_pw", "bn1", "expand"),
        conv_norm("conv_dw", "bn2", "depthwise"),
        conv_norm("conv_pwl", "bn3", "project"),
        conv("se.conv_reduce", bias=True),
        conv("se.conv_expand", bias=True),
    )
    report = verify.compare(
        theirs,
        ours,
        np.random.default_rng(0).standard_normal((2, *size, 8), np.float32),
        rules=table,
        layout="NHWC",
        sensitive=False,
    )
    assert report.equal, str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("efficientnet_lite0", 32),
        ("tf_efficientnet_lite0", 16),
        ("efficientnet_b0", 8),
        ("tf_efficientnet_b0", 32),
    ],
)
def test_logits_layers_and_gradients_match_timm(timm, name, output_stride):
    report = verify.verify_model(
        name, sizes=[(65, 98)], batch=2, grad=True, output_stride=output_stride, num_classes=5
    )
    assert report.equal, str(report)
    assert not report.skipped


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_b0"])
def test_files_of_timm_fill_the_backbone_and_convert_back(timm, name):
    import torch

    with torch.device("meta"):
        shapes = {k: tuple(x.shape) for k, x in timm.create_model(name).state_dict().items()}
    tensors = random_like(shapes)
    module, spec = abstract(name), ModelSpec(name, None)
    record = import_weights(module, spec, tensors)
    assert (record.key_format, record.scope) == ("torchvision", "backbone")
    assert {key.split(".")[0] for key in record.dropped} == {"conv_head", "bn2", "classifier"}
    back = export_weights(module, spec, "torchvision")
    assert {*back, *record.dropped} == {*tensors}
    for key, value in back.items():
        assert value.tobytes() == tensors[key].astype(value.dtype).tobytes(), key
