"""Vision transformers against the plugin contract and timm's networks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fcn_jax_vit import backbones
from fcn_jax_vit.architecture import FAMILIES, Architecture, ViTOptions
from fcn_jax_vit.bridge import bridge
from fcn_jax_vit.network import ViT
from flax import nnx

from fcn_jax import verify
from fcn_jax.api import Backbone, ModelSpec
from fcn_jax.convert.export import export_weights
from fcn_jax.convert.load import import_weights
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.build import build_backbone
from fcn_jax.models.names import leaves
from fcn_jax.plugins.options import validate
from fcn_jax.testing import check_backbone
from fcn_jax.train.groups import backbone_layers

BACKBONES = {value.name: value for value in vars(backbones).values() if isinstance(value, Backbone)}
SMALL = [name for name in BACKBONES if "small" in name]


def tiny(family, grid=5):
    """Two blocks of two heads."""
    plan = Architecture.of(family, "small")
    return dataclasses.replace(
        plan, channels=16, depth=2, heads=2, grid=0 if plan.is_rotary else grid
    )


def abstract(name, **options):
    """A backbone with shapes instead of arrays."""
    spec = ModelSpec(name, None, backbone_options=options)
    return nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0)))


def test_there_are_13_backbones():
    assert len(BACKBONES) == 13
    assert {backbone.output_strides for backbone in BACKBONES.values()} == {(16,), (14,)}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("vit", {"blocks": (2,)}),
        ("dinov2", {"normalize": False}),
        ("dinov2_reg", {"class_token": True}),
        ("dinov3", {}),
    ],
)
def test_features_and_gradients_match_timm(timm, agree, family, options):
    plan, options = tiny(family), ViTOptions(**options)
    link = bridge(plan, {})
    port = ViT(plan, options, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).standard_normal((2, 53, 100, 3)).astype(np.float32)
    agree(link.reference(options, plan.patch), port, link.tables_of(options)["torchvision"], image)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("vit", {"blocks": (2,)}),
        ("dinov2", {"normalize": False}),
        ("dinov2_reg", {"class_token": True}),
        ("dinov3", {}),
    ],
)
def test_layers_features_and_gradients_match_timm(timm, family, options):
    import torch

    plan, options = tiny(family), ViTOptions(**options)
    torch.manual_seed(0)
    link = bridge(plan, {})
    reference = link.reference(options, plan.patch)
    for name, parameter in reference.named_parameters():
        if name.endswith(("token", "gamma", "gamma_1", "gamma_2", "bias")):  # hide faults
            torch.nn.init.normal_(parameter, 0.3, 0.3)
    port = ViT(plan, options, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).standard_normal((2, 53, 100, 3)).astype(np.float32)
    report = verify.compare(
        reference,
        port,
        image,
        rules=link.tables_of(options)["torchvision"],
        layout="NHWC",
        sensitive=False,
    )
    assert report.equal, str(report)
    skipped = {name.rpartition(".")[2] for name in report.skipped}
    assert skipped <= {"embed", *(("ls1", "ls2") if plan.is_rotary else ())}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SMALL else pytest.mark.slow)
        for name in sorted(BACKBONES)
    ],
)
def test_names_shapes_and_number_of_parameters_match_timm(timm, name):
    import torch

    table = BACKBONES[name].torch.tables_of(ViTOptions())["torchvision"]
    ours, parameters = {}, 0
    for path, leaf in leaves(abstract(name)).items():
        key, rule = table.to_torch(path)
        ours[key] = rule.op.to_torch(np.empty(leaf.shape, np.float32)).shape
        parameters += leaf.size
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0, global_pool="token").state_dict()
    assert ours == {key: tuple(x.shape) for key, x in theirs.items()}
    assert f" {parameters / 1e6:.1f} M parameters" in BACKBONES[name].summary


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_of_layers_match_timm(timm, family):
    plan, options = tiny(family), ViTOptions(drop_path_rate=0.3)
    theirs = dict(bridge(plan, {}).reference(options, plan.patch).named_modules())
    port = nnx.eval_shape(lambda: ViT(plan, options, rngs=nnx.Rngs(0)))
    assert port.norm.eps == theirs["norm"].eps
    for i, block in enumerate(port.blocks):
        other = theirs[f"blocks.{i}"]
        assert block.norm1.eps == block.norm2.eps == other.norm1.eps
        assert block.attn.heads == other.attn.num_heads
        for ours, dropped in ((block.drop1, other.drop_path1), (block.drop2, other.drop_path2)):
            assert getattr(ours, "rate", 0) == pytest.approx(getattr(dropped, "drop_prob", 0))
    assert port.blocks[1].drop1.rate == 0.3


@pytest.mark.parametrize("family", ["dinov2_reg", "dinov3"])
def test_initial_values_are_those_of_timm(timm, family):
    import torch

    torch.manual_seed(0)
    plan = dataclasses.replace(tiny(family), channels=32)
    table = bridge(tiny(family), {}).tables_of(ViTOptions())["torchvision"]
    theirs = bridge(plan, {}).reference(ViTOptions(), plan.patch).state_dict()
    for path, leaf in leaves(ViT(plan, ViTOptions(), rngs=nnx.Rngs(0))).items():
        wanted, found = theirs[table.to_torch(path)[0]].numpy(), np.asarray(leaf[...])
        if wanted.std() == 0 or wanted.std() < 1e-9:
            np.testing.assert_allclose(found, wanted.reshape(found.shape), err_msg=path)
        elif found.size > 100:
            assert abs(found.mean()) < 6 * wanted.std() / math.sqrt(found.size), path
            assert found.std() == pytest.approx(wanted.std(), rel=6 / math.sqrt(found.size)), path


@pytest.mark.parametrize("name", SMALL)
def test_files_of_timm_fill_the_backbone_and_convert_back(timm, name):
    import torch

    with torch.device("meta"):
        shapes = {k: tuple(x.shape) for k, x in timm.create_model(name).state_dict().items()}
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    tensors["mask_token"] = np.zeros((1, 384), np.float32)
    options = {"blocks": [2, 4]}
    module, spec = abstract(name, **options), ModelSpec(name, None, backbone_options=options)
    record = import_weights(module, spec, tensors)
    assert (record.key_format, record.scope) == ("torchvision", "backbone")
    dropped = {key.split(".")[0] if "blocks" not in key else key[:9] for key in record.dropped}
    assert dropped >= {"mask_token", *(f"blocks.{i}." for i in range(4, 10))}
    assert not dropped & {"blocks.0.", "blocks.3.", "norm", "cls_token", "pos_embed"}
    back = export_weights(module, spec, "torchvision")
    assert {*back, *record.dropped} == {*tensors}
    for key, value in back.items():
        assert value.tobytes() == tensors[key].tobytes(), key


def test_weights_are_those_of_timm_with_the_same_preprocessing_and_license(timm):
    for name, backbone in BACKBONES.items():
        assert backbone.torch.weights
        for repository, published in backbone.torch.weights.items():
            theirs = timm.get_pretrained_cfg(repository.removeprefix("timm/"))
            assert repository == theirs.hf_hub_id
            assert repository.startswith(f"timm/{name}.")
            assert published.license == theirs.license
            assert bool(published.restricted) == (theirs.license != "apache-2.0")
            assert backbone.preprocess.mean == pytest.approx(theirs.mean)
            assert backbone.preprocess.std == pytest.approx(theirs.std)


def test_dinov3_needs_acceptance(monkeypatch):
    monkeypatch.delenv("FCN_JAX_ACCEPT_LICENSE", raising=False)
    name = "vit_small_patch16_dinov3"
    with pytest.raises(WeightsError, match=r"Meta's own terms.*--accept-license dinov3-license"):
        import_weights(abstract(name), ModelSpec(name, None), f"timm/{name}.lvd1689m")


@pytest.mark.parametrize(
    ("options", "names", "channels"),
    [
        ({}, ["block3", "block6", "block9", "block12"], 384),
        ({"blocks": (12,)}, ["block12"], 384),
        ({"blocks": (1, 5), "class_token": True}, ["block1", "block5"], 768),
    ],
)
def test_options_choose_the_features(options, names, channels):
    backbone = BACKBONES["vit_small_patch14_dinov2"]
    specs = backbone.features(ViTOptions(**options), 14)
    assert specs == backbone.features(ViTOptions(**options), 14)
    assert [spec.name for spec in specs] == names
    assert {(spec.channels, spec.stride, spec.size(29)) for spec in specs} == {(channels, 14, 2)}


def test_large_networks_have_features_of_24_blocks():
    assert Architecture.of("dinov2", "large").blocks(ViTOptions()) == (6, 12, 18, 24)


@pytest.mark.parametrize("blocks", [[3, 2], [1, 1], [3, 13]])
def test_rejects_blocks_that_do_not_exist_or_are_in_another_order(blocks):
    options = validate(BACKBONES["vit_small_patch16_224"], {"blocks": blocks})
    with pytest.raises(ConfigError, match=r"rising numbers from 1 to 12, such as \[3, 6, 9, 12\]"):
        BACKBONES["vit_small_patch16_224"].features(options, 16)


def test_rejects_block_0():
    with pytest.raises(ConfigError, match="blocks"):
        validate(BACKBONES["vit_small_patch16_224"], {"blocks": [0]})


@pytest.mark.parametrize("size", [(13, 64), (40, 3)])
def test_rejects_images_smaller_than_a_patch(size):
    port = nnx.eval_shape(lambda: ViT(tiny("dinov2"), ViTOptions(), rngs=nnx.Rngs(0)))
    with pytest.raises(ConfigError, match=rf"14x14 pixels, got {size[0]}x{size[1]}"):
        port(jnp.zeros((1, *size, 3)))


def test_shared_tokens_have_float32_gradients_in_bfloat16():
    """The gradient is summed over images; 256 + 1 is 256 in bfloat16."""
    embed = ViT(tiny("vit"), ViTOptions(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)).embed
    graphdef, state = nnx.split(embed)
    patches = jnp.zeros((515, 5, 5, 16), jnp.bfloat16)

    def total(state):
        return nnx.merge(graphdef, state).with_positions(patches).astype(jnp.float32).sum()

    np.testing.assert_array_equal(jax.grad(total)(state)["pos_embed"][...], 515.0)


def test_the_embedding_is_one_layer_for_layer_decay():
    class Model(nnx.Module):
        def __init__(self):
            self.backbone = ViT(tiny("dinov2_reg"), ViTOptions(), rngs=nnx.Rngs(0))

    layers = backbone_layers(Model())
    assert list(layers) == ["backbone.embed", "backbone.blocks.0", "backbone.blocks.1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_meets_the_contract(name):
    check_backbone(name, {"blocks": [1, 2], "class_token": True, "drop_path_rate": 0.2})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_models_match_timm(timm, name, dtype):
    report = verify.verify_model(
        name,
        head="fcn",
        sizes=[(65, 98)],
        batch=2,
        grad=True,
        num_classes=5,
        dtype=dtype,
        backbone_options={"blocks": [1, 2]},
    )
    assert report.equal, str(report)
