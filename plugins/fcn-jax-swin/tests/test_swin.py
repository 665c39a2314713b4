"""Swin transformers against the plugin contract and timm's networks."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from fcn_jax_swin import backbones
from fcn_jax_swin.architecture import Architecture
from fcn_jax_swin.backbones import SwinOptions
from fcn_jax_swin.bridge import bridge
from fcn_jax_swin.network import Swin
from flax import nnx

from fcn_jax import verify
from fcn_jax.api import Backbone, ModelSpec
from fcn_jax.convert.export import export_weights
from fcn_jax.convert.load import import_weights
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build_backbone
from fcn_jax.models.names import leaves
from fcn_jax.testing import check_backbone

BACKBONES = {value.name: value for value in vars(backbones).values() if isinstance(value, Backbone)}
NAME = "swin_tiny_patch4_window7_224"
TINY = Architecture("tiny", (2, 1, 1, 2), 8, 1, window=3)


def abstract(name, **options):
    """A backbone with shapes instead of arrays."""
    spec = ModelSpec(name, None, backbone_options=options)
    return nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0)))


def port_of(**options):
    return Swin(TINY, rngs=nnx.Rngs(0), **options)


def image(batch=2):
    """The maps have 10x17, 5x9, 3x5 and 2x3 pixels; windows 3x3."""
    return np.random.default_rng(0).standard_normal((batch, 37, 66, 3)).astype(np.float32)


def test_there_are_four_sizes():
    sizes = ("tiny", "small", "base", "large")
    assert list(BACKBONES) == [f"swin_{size}_patch4_window7_224" for size in sizes]


@pytest.mark.parametrize("always", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_features_and_gradients_match_timm(timm, agree, always):
    link = bridge(TINY, {})
    reference = link.reference(SwinOptions(always_partition=always), 32)
    agree(reference, port_of(always_partition=always), link.tables, image(1))


@pytest.mark.slow
@pytest.mark.parametrize("always", [False, True])
def test_layers_features_and_gradients_match_timm(timm, always):
    import torch

    torch.manual_seed(0)
    link = bridge(TINY, {})
    reference = link.reference(SwinOptions(always_partition=always), 32)
    for name, parameter in reference.named_parameters():
        if name.endswith(("bias", "table")):  # their initial values hide faults
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    port = port_of(always_partition=always)
    report = verify.compare(
        reference, port, image(), rules=link.tables, layout="NHWC", sensitive=False
    )
    assert report.equal, str(report)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name != NAME else ()) for name in BACKBONES],
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
    expected = {k: tuple(x.shape) for k, x in theirs.items()}
    assert ours == {k: shape for k, shape in expected.items() if k.split(".")[0] not in DROPPED}
    assert f"{parameters / 1e6:.1f} M parameters" in BACKBONES[name].summary


DROPPED = ("head", "norm")


@pytest.mark.parametrize("always", [False, True])
def test_settings_of_layers_match_timm(timm, always):
    options = SwinOptions(always_partition=always, drop_path_rate=0.2)
    theirs = BACKBONES[NAME].torch.reference(options, 32)
    ours = abstract(NAME, always_partition=always, drop_path_rate=0.2)
    assert ours.patch_embed.norm.eps == theirs.patch_embed.norm.eps
    for stage, other_stage in zip(ours.layers, theirs.layers, strict=True):
        for block, other in zip(stage.blocks, other_stage.blocks, strict=True):
            assert (block.shift, block.shift) == tuple(other.shift_size)
            assert (block.attn.window,) * 2 == tuple(other.window_size)
            assert block.attn.heads == other.attn.num_heads
            assert block.norm1.eps == block.norm2.eps == other.norm1.eps
            assert getattr(block.drop1, "rate", 0) == pytest.approx(
                getattr(other.drop_path1, "drop_prob", 0)
            )


def test_features_have_the_promised_channels_and_sizes():
    specs = BACKBONES[NAME].features(SwinOptions(), 32)
    assert specs == BACKBONES[NAME].features(SwinOptions(), 32)
    assert [(spec.name, spec.channels, spec.stride, spec.size(65)) for spec in specs] == [
        ("stage0", 96, 4, 17),
        ("stage1", 192, 8, 9),
        ("stage2", 384, 16, 5),
        ("stage3", 768, 32, 3),
    ]


def test_initial_values_are_those_of_timm(timm):
    import torch

    torch.manual_seed(0)
    link = bridge(TINY, {})
    theirs = link.reference(SwinOptions(), 32).state_dict()
    for path, leaf in leaves(port_of()).items():
        wanted, found = theirs[link.tables.to_torch(path)[0]].numpy(), np.asarray(leaf[...])
        if wanted.std() == 0:
            np.testing.assert_array_equal(found, wanted.reshape(found.shape), err_msg=path)
        elif found.size > 100:
            assert abs(found.mean()) < 6 * wanted.std() / math.sqrt(found.size), path
            assert found.std() == pytest.approx(wanted.std(), rel=6 / math.sqrt(found.size)), path


@pytest.mark.parametrize("scheme", ["torchvision", "microsoft"])
def test_files_of_timm_and_of_the_authors_fill_the_backbone_and_convert_back(timm, scheme):
    import torch
    from timm.models.swin_transformer import checkpoint_filter_fn

    module, spec = abstract(NAME), ModelSpec(NAME, None)
    table = BACKBONES[NAME].torch.tables_of(None, standalone=True)[scheme]
    rng, others = np.random.default_rng(0), ["head.weight", "layers.0.blocks.1.attn_mask"]
    tensors = {name: np.zeros((3, 4), np.float32) for name in others}
    for path, leaf in leaves(module).items():
        key, rule = table.to_torch(path)
        tensors[key] = rule.op.to_torch(rng.standard_normal(leaf.shape, np.float32))
    record = import_weights(module, spec, tensors)
    assert (record.key_format, record.scope) == (scheme, "backbone")
    assert sorted(record.dropped) == sorted(others)
    for key, value in export_weights(module, spec, scheme).items():
        assert value.tobytes() == tensors[key].tobytes(), key
    # timm reads the same file with the same result.
    with torch.device("meta"):
        network = timm.create_model(NAME)
    converted = checkpoint_filter_fn({k: torch.tensor(v) for k, v in tensors.items()}, network)
    for key, value in export_weights(module, spec, "torchvision").items():
        np.testing.assert_array_equal(value, converted[key].numpy(), err_msg=key)


def test_weights_are_those_of_timm_with_the_same_preprocessing_and_license(timm):
    for name, backbone in BACKBONES.items():
        assert backbone.torch.weights
        for repository, published in backbone.torch.weights.items():
            theirs = timm.get_pretrained_cfg(repository.removeprefix("timm/"))
            assert repository == theirs.hf_hub_id
            assert repository.startswith(f"timm/{name}.")
            assert (published.license, published.restricted) == (theirs.license, "")
            assert backbone.preprocess.mean == pytest.approx(theirs.mean)
            assert backbone.preprocess.std == pytest.approx(theirs.std)


def test_images_smaller_than_a_window_are_padded_and_empty_ones_rejected():
    port = nnx.eval_shape(port_of)
    features = nnx.eval_shape(lambda port, x: port(x), port, jnp.zeros((1, 1, 5, 3)))
    assert [x.shape[1:3] for x in features.values()] == [(1, 2), (1, 1), (1, 1), (1, 1)]
    with pytest.raises(ConfigError, match="images of at least one pixel, got 0x5"):
        port(jnp.zeros((1, 0, 5, 3)))


@pytest.mark.slow
def test_meets_the_contract():
    check_backbone(NAME, {"drop_path_rate": 0.2})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_match_timm(timm, dtype):
    report = verify.verify_model(
        NAME, head="fcn", sizes=[(65, 98)], batch=2, grad=True, num_classes=5, dtype=dtype
    )
    assert report.equal, str(report)
