"""ConvNeXts against the plugin contract and timm's networks."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from fcn_jax_convnext import backbones
from fcn_jax_convnext.architecture import Architecture
from fcn_jax_convnext.bridge import bridge
from fcn_jax_convnext.network import ConvNeXt
from flax import nnx

from fcn_jax import nn, verify
from fcn_jax.api import Backbone, ModelSpec
from fcn_jax.convert.export import export_weights
from fcn_jax.convert.load import import_weights
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.build import build_backbone
from fcn_jax.models.names import leaves
from fcn_jax.testing import check_backbone

BACKBONES = {value.name: value for value in vars(backbones).values() if isinstance(value, Backbone)}
TINY = {
    1: Architecture(1, "tiny", (1, 2, 1, 1), 8),  # linear layers in timm
    2: Architecture(2, "atto", (1, 1, 1, 1), 8),  # 1x1 convolutions in timm
}
OPTIONS = backbones.ConvNeXtOptions()


def abstract(name, output_stride=32, **options):
    """A backbone with shapes instead of arrays."""
    spec = ModelSpec(name, None, backbone_options=options, output_stride=output_stride)
    return nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0)))


def random_like(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def test_there_are_nine_sizes_of_both_versions():
    assert [name for name in BACKBONES if name.startswith("convnext_")] == [
        f"convnext_{size}"
        for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge")
    ]
    assert len(BACKBONES) == 18


@pytest.mark.parametrize(
    ("version", "output_stride"), [pytest.param(1, 32, marks=pytest.mark.slow), (2, 8)]
)
def test_features_and_gradients_match_timm(timm, agree, version, output_stride):
    plan = TINY[version]
    link = bridge(plan, {})
    port = ConvNeXt(plan, output_stride=output_stride, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).standard_normal((1, 37, 50, 3)).astype(np.float32)
    agree(link.reference(OPTIONS, output_stride), port, link.tables, image)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "output_stride"), [(1, 32), (2, 16), (1, 8)])
def test_layers_features_and_gradients_match_timm(timm, version, output_stride):
    import torch

    plan = TINY[version]
    torch.manual_seed(0)
    link = bridge(plan, {})
    reference = link.reference(OPTIONS, output_stride)
    for name, parameter in reference.named_parameters():
        if name.endswith(("gamma", "grn.weight", "bias")):  # their initial values hide faults
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    port = ConvNeXt(plan, output_stride=output_stride, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).standard_normal((2, 37, 50, 3)).astype(np.float32)
    report = verify.compare(
        reference, port, image, rules=link.tables, layout="NHWC", sensitive=False
    )
    assert report.equal, str(report)
    # In timm they are parameters of the block, not modules.
    assert {name.rpartition(".")[2] for name in report.skipped} <= {"gamma"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if "tiny" in name or "atto" in name else pytest.mark.slow)
        for name in BACKBONES
    ],
)
def test_names_shapes_and_number_of_parameters_match_timm(timm, name):
    import torch

    table = BACKBONES[name].torch.tables
    ours, parameters = {}, 0
    for path, leaf in leaves(abstract(name)).items():
        key, rule = table.to_torch(path)
        ours[key] = rule.op.to_torch(np.empty(leaf.shape, np.float32)).shape
        parameters += leaf.size
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    assert ours == {k: tuple(x.shape) for k, x in theirs.items() if not k.startswith("head.")}
    assert f"{parameters / 1e6:.1f} M parameters" in BACKBONES[name].summary


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_layers_match_the_settings_of_timm(timm, output_stride):
    name = "convnext_tiny"
    network = BACKBONES[name].torch.reference(backbones.ConvNeXtOptions(0.3), output_stride)
    theirs, table = dict(network.named_modules()), BACKBONES[name].torch.tables
    seen = 0
    for path, layer in nnx.iter_modules(abstract(name, output_stride, drop_path_rate=0.3)):
        path = ".".join(map(str, path))
        if isinstance(layer, nn.Conv):
            other = theirs[table.to_torch(f"{path}.kernel")[0].removesuffix(".weight")]
            assert (layer.stride, layer.dilation) == (other.stride[0], other.dilation[0])
            assert layer.groups == other.groups
        elif isinstance(layer, nn.LayerNorm):
            assert layer.eps == theirs[table.to_torch(f"{path}.scale")[0][:-7]].eps
        elif isinstance(layer, nn.StochasticDepth):
            assert layer.rate == pytest.approx(theirs[f"{path}_path"].drop_prob, rel=1e-5)
        else:
            continue
        seen += 1
    assert seen == 22 + 22 + 17


def test_features_have_the_promised_channels_and_sizes():
    backbone = BACKBONES["convnext_tiny"]
    for output_stride in backbone.output_strides:
        specs = backbone.features(OPTIONS, output_stride)
        assert specs == backbone.features(OPTIONS, output_stride)
        strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        assert [(spec.name, spec.channels, spec.stride, spec.size(65)) for spec in specs] == [
            (f"stage{i}", 96 * 2**i, stride, 65 // stride) for i, stride in enumerate(strides)
        ]


def test_initial_values_are_those_of_timm(timm):
    import torch

    torch.manual_seed(0)
    theirs = bridge(TINY[2], {}).reference(OPTIONS, 32).state_dict()
    table = bridge(TINY[2], {}).tables
    for path, leaf in leaves(ConvNeXt(TINY[2], rngs=nnx.Rngs(0))).items():
        wanted, found = theirs[table.to_torch(path)[0]].numpy(), np.asarray(leaf[...])
        if wanted.std() == 0:
            np.testing.assert_array_equal(found, wanted.reshape(found.shape), err_msg=path)
        elif found.size > 500:
            assert abs(found.mean()) < 5 * wanted.std() / math.sqrt(found.size), path
            assert found.std() == pytest.approx(wanted.std(), rel=6 / math.sqrt(found.size)), path


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_timm_and_of_the_authors_fill_the_backbone_and_convert_back(timm, version):
    from timm.models.convnext import checkpoint_filter_fn

    name = {1: "convnext_atto", 2: "convnextv2_atto"}[version]
    module, spec = abstract(name), ModelSpec(name, None)
    table = BACKBONES[name].torch.tables_of(None, standalone=True)
    shapes = {}
    for path, leaf in leaves(module).items():
        key, rule = table["facebook"].to_torch(path)
        shapes[key] = rule.op.to_torch(np.empty(leaf.shape, np.float32)).shape
    theirs = random_like({**shapes, "norm.weight": (4,), "norm.bias": (4,), "head.weight": (3, 4)})
    record = import_weights(module, spec, theirs)
    assert (record.key_format, record.scope) == ("facebook", "backbone")
    assert set(record.dropped) == {"norm.weight", "norm.bias", "head.weight"}
    for key, value in export_weights(module, spec, "facebook").items():
        assert value.tobytes() == theirs[key].tobytes(), key
    # timm reads the same file with the same result.
    import torch

    with torch.device("meta"):
        network = timm.create_model(name)
    ours = export_weights(module, spec, "torchvision")
    converted = checkpoint_filter_fn({k: torch.tensor(v) for k, v in theirs.items()}, network)
    for key, value in ours.items():
        np.testing.assert_array_equal(value, converted[key].numpy(), err_msg=key)
    again = abstract(name)
    assert import_weights(again, spec, ours).key_format == "torchvision"
    for path, leaf in leaves(again).items():
        np.testing.assert_array_equal(leaf[...], leaves(module)[path][...])


def test_weights_are_those_of_timm_with_the_same_preprocessing_and_license(timm):
    for name, backbone in BACKBONES.items():
        for repository, published in backbone.torch.weights.items():
            theirs = timm.get_pretrained_cfg(repository.removeprefix("timm/"))
            assert repository == f"{theirs.hf_hub_id}"
            assert repository.startswith(f"timm/{name}.")
            assert published.url == f"hf://{repository}"
            assert published.license == theirs.license
            assert bool(published.restricted) == (theirs.license != "apache-2.0")
            assert backbone.preprocess.mean == pytest.approx(theirs.mean)
            assert backbone.preprocess.std == pytest.approx(theirs.std)
    assert not BACKBONES["convnextv2_small"].torch.weights


def test_restricted_weights_need_acceptance(monkeypatch):
    monkeypatch.delenv("FCN_JAX_ACCEPT_LICENSE", raising=False)
    with pytest.raises(WeightsError, match=r"no commercial use.*--accept-license cc-by-nc-4\.0"):
        import_weights(
            abstract("convnextv2_atto"),
            ModelSpec("convnextv2_atto", None),
            "timm/convnextv2_atto.fcmae_ft_in1k",
        )


@pytest.mark.parametrize("size", [(31, 64), (40, 3)])
def test_rejects_images_smaller_than_the_output_stride(size):
    port = nnx.eval_shape(lambda: ConvNeXt(TINY[1], rngs=nnx.Rngs(0)))
    with pytest.raises(ConfigError, match=rf"at least 32x32 pixels, got {size[0]}x{size[1]}"):
        port(jnp.zeros((1, *size, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_meets_the_contract(name):
    check_backbone(name, {"drop_path_rate": 0.2})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "output_stride"), [("convnext_atto", 16), ("convnextv2_atto", 32)]
)
def test_models_match_timm(timm, name, output_stride, dtype):
    report = verify.verify_model(
        name,
        sizes=[(65, 98)],
        batch=2,
        grad=True,
        output_stride=output_stride,
        num_classes=5,
        dtype=dtype,
    )
    assert report.equal, str(report)
