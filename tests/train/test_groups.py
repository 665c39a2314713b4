"""Which parameters are trained, how, and what that says."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

import fcn_jax
from fcn_jax import nn
from fcn_jax.api import ModelSpec
from fcn_jax.config import OptimConfig, ParamGroup
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build_backbone
from fcn_jax.train import groups

PARAMS = {
    "backbone": {"conv": np.zeros((3, 2)), "norm": np.zeros(2)},
    "head": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)},
}


def multipliers(**settings):
    rates = groups.assign(OptimConfig(weight_decay=0.1, **settings), PARAMS)
    return {name: (rate.lr_mult, rate.weight_decay) for name, rate in rates.items()}


def test_freeze_matches_names_and_modules_around_them():
    for globs in (["backbone"], ["backbone.*"], ["backbone.conv", "*.norm"]):
        rates = groups.assign(OptimConfig(freeze=tuple(globs)), PARAMS)
        assert groups.frozen_names(rates) == {"backbone.conv", "backbone.norm"}
    assert groups.frozen_names(groups.assign(OptimConfig(), PARAMS)) == frozenset()


def test_freeze_takes_precedence_over_param_groups():
    found = multipliers(
        freeze=("backbone.conv",), param_groups=(ParamGroup(match="backbone.*", lr_mult=3),)
    )
    assert found["backbone.conv"][0] == 0
    assert found["backbone.norm"][0] == 3
    assert found["head.kernel"][0] == 1


def test_decay_norm_and_bias_false_applies_within_param_groups():
    found = multipliers(
        decay_norm_and_bias=False, param_groups=(ParamGroup(match="head.*", decay_mult=2),)
    )
    assert {name: decay for name, (_, decay) in found.items()} == {
        "backbone.conv": 0.1,
        "backbone.norm": 0,
        "head.kernel": 0.2,
        "head.bias": 0,
    }


@pytest.mark.parametrize(
    "param_groups",
    [(ParamGroup(match="bakbone.*"),), (ParamGroup(match="*"), ParamGroup(match="head.*"))],
)
def test_rejects_a_param_group_without_parameters(param_groups):
    number = len(param_groups) - 1
    with pytest.raises(
        ConfigError,
        match=rf"optim\.param_groups\[{number}\]: no parameter is left for (bakbone|head)\.\*; "
        r"names look like backbone\.conv, head\.kernel",
    ):
        multipliers(param_groups=param_groups)


def test_reports_all_globs_without_parameters_together():
    with pytest.raises(ConfigError) as caught:
        multipliers(
            freeze=("head", "bakbone.*"),
            param_groups=(ParamGroup(match="head.*", lr_mult=3), ParamGroup(match="neck.*")),
        )
    assert str(caught.value) == (
        "optim.freeze[1]: bakbone.* matches nothing; optim.param_groups[0]: no parameter is left "
        "for head.*; optim.freeze and groups before it decide about all that it matches; "
        "optim.param_groups[1]: no parameter is left for neck.*; names look like backbone.conv, "
        "head.kernel"
    )


def test_parameter_names_match_the_modules():
    class Net(nnx.Module):
        def __init__(self):
            self.stage = nnx.List([nn.Conv(1, 1, 1, rngs=nnx.Rngs(0))])
            self.bn = nn.BatchNorm(1)

    state = nnx.state(Net(), nnx.Param)
    assert sorted(groups.parameter_names(state)) == [
        "bn.bias",
        "bn.scale",
        "stage.0.bias",
        "stage.0.kernel",
    ]


def test_reinitialized_kernels_get_their_own_rate_unless_a_setting_names_them():
    config = OptimConfig(
        param_groups=(ParamGroup(match="backbone.stem.*", lr_mult=2),), freeze=("backbone.still",)
    )
    names = [
        "backbone.stem.kernel",
        "backbone.conv.kernel",
        "backbone.still.kernel",
        "backbone.bn.scale",
        "head.conv.kernel",
    ]
    found = groups.with_reinitialized(config, names, 6.0).param_groups
    assert [(group.match, group.lr_mult) for group in found] == [
        ("backbone.stem.*", 2),
        ("backbone.conv.kernel", 6),
    ]
    assert groups.with_reinitialized(config, names, 1.0) is config
    assert groups.with_reinitialized(config, (), 6.0) is config


# ------------------------------------------------------------------------------------------ layers


def shapes_of(backbone, **settings):
    """A model without values."""
    return nnx.eval_shape(
        lambda: fcn_jax.build_model(backbone, num_classes=3, rngs=nnx.Rngs(0), **settings)
    )


def test_layers_of_a_resnet_are_its_stem_and_blocks():
    layers = groups.backbone_layers(shapes_of("resnet18"))
    assert list(layers) == [
        "backbone.conv1",
        *(f"backbone.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)),
    ]
    assert "backbone.layer2.0.downsample.conv.kernel" in layers["backbone.layer2.0"]


def test_layer_decay_multiplies_by_the_distance_to_the_head():
    model = shapes_of("resnet18")
    layers = groups.backbone_layers(model)
    config = OptimConfig(
        layer_decay=0.5, param_groups=(ParamGroup(match="backbone.layer4.*", lr_mult=3),)
    )
    rates = groups.assign(config, nnx.state(model, nnx.Param), layers)
    expected = {
        "backbone.conv1.conv.kernel": (0.5**9, 0),
        "backbone.layer1.0.conv2.bn.scale": (0.5**8, 1),
        "backbone.layer3.1.conv1.conv.kernel": (0.5**3, 6),
        "backbone.layer4.1.conv2.conv.kernel": (3 * 0.5, 8),
        "head.final_conv.kernel": (1, None),
    }
    assert {name: (rates[name].lr_mult, rates[name].layer) for name in expected} == expected
    notes = groups.notes(rates, layers, model)
    assert notes == [
        "learning rates of the backbone's 9 layers are multiplied by 0.00195 (backbone.conv1) to "
        "1.5 (backbone.layer4.1); parameters.json lists them"
    ]


class Block(nnx.Module):
    """A block whose own layers are a list, which is no list of blocks."""

    def __init__(self, rngs):
        self.block = nnx.List(
            [nn.Conv(2, 2, 1, rngs=rngs), nn.LayerNorm(2), nn.Linear(2, 2, rngs=rngs)]
        )
        self.scale = nn.LayerScale(2)


class Stage(nnx.Module):
    """A stage, as in ConvNeXt."""

    def __init__(self, rngs):
        self.downsample = nnx.List([nn.LayerNorm(2), nn.Conv(2, 2, 2, rngs=rngs)])
        self.blocks = nnx.List([Block(rngs), Block(rngs)])


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem = nn.Conv(3, 2, 4, rngs=rngs)
        self.position = nnx.Param(np.zeros((1, 4, 2)))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.a_stages = nnx.List([Stage(rngs), Stage(rngs)])
        self.norm = nn.LayerNorm(2)


class Model(nnx.Module):
    def __init__(self):
        self.backbone = Network()
        self.head = nn.Conv(2, 3, 1, rngs=nnx.Rngs(0))


def test_layers_follow_the_order_of_definition_through_stages():
    model = Model()
    layers = groups.backbone_layers(model)
    assert list(layers) == [
        "backbone.stem",
        *(f"backbone.a_stages.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)),
    ]
    assert "backbone.position" in layers["backbone.stem"], "all before the first block is the stem"
    second = layers["backbone.a_stages.1.blocks.0"]
    assert "backbone.a_stages.1.downsample.1.kernel" in second
    assert "backbone.a_stages.1.blocks.0.block.0.kernel" in second
    last = layers["backbone.a_stages.1.blocks.1"]
    assert "backbone.norm.scale" in last, "a normalization after the last block belongs to it"
    assert "backbone.a_stages.1.blocks.1.block.2.kernel" in last
    found = [name for names in layers.values() for name in names]
    backbone = {n for n in groups.parameter_names(nnx.state(model, nnx.Param)) if "backbone" in n}
    assert len(found) == len(set(found))
    assert set(found) == backbone, "each parameter of the backbone is in one layer"


BLOCKS = {
    "convnext_atto": ("stem", "stages.{}.blocks.{}", 0, (2, 2, 6, 2)),
    "efficientnet_lite0": ("stem", "blocks.{}.{}", 0, (1, 2, 2, 3, 3, 4, 1)),
    "swin_tiny_patch4_window7_224": ("patch_embed", "layers.{}.blocks.{}", 0, (2, 2, 6, 2)),
    "vit_tiny_patch16_224": ("embed", "blocks.{1}", 0, (12,)),
    "mit_b0": ("patch_embed1", "block{}.{}", 1, (2, 2, 2, 2)),
}
"""Backbone -> its stem, names of its blocks, number of the first stage, blocks of each stage.

The blocks are those of timm's `param_groups_layer_decay`, except for MiT, which timm lacks.
"""


@pytest.mark.parametrize("backbone", ["mobilenet_v3_large", "vgg16", *BLOCKS])
def test_every_parameter_of_other_backbones_is_in_one_layer(backbone):
    from fcn_jax.plugins import registry

    if backbone not in registry.default().names("backbones"):
        pytest.skip("its plugin is not installed")
    layers = {}

    def build():
        network = build_backbone(ModelSpec(backbone, None), rngs=nnx.Rngs(0))
        layers.update(groups.backbone_layers(SimpleNamespace(backbone=network)))
        return network

    network = nnx.eval_shape(build)  # sorts the attributes of the result by name
    found = [name for names in layers.values() for name in names]
    assert len(found) == len(set(found))
    names = groups.parameter_names(nnx.state(network, nnx.Param))
    assert set(found) == {f"backbone.{name}" for name in names}
    if backbone not in BLOCKS:
        assert len(layers) == {"mobilenet_v3_large": 17, "vgg16": 15}[backbone]
        return
    stem, block, start, depths = BLOCKS[backbone]
    blocks = [block.format(s, i) for s, n in enumerate(depths, start) for i in range(n)]
    assert [name.removeprefix("backbone.") for name in layers] == [stem, *blocks]


# ------------------------------------------------------------------------------------------ freeze


def test_freeze_batch_norm_sets_the_named_ones_to_eval_mode():
    model = shapes_of("resnet18")
    model.train()
    groups.freeze_batch_norm(model, ("backbone.layer1", "*.layer2.0.conv1.bn"))
    frozen = {
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nn.BatchNorm) and module.use_running_average
    }
    assert frozen == {
        *(f"backbone.layer1.{i}.conv{j}.bn" for i in (0, 1) for j in (1, 2)),
        "backbone.layer2.0.conv1.bn",
    }
    with pytest.raises(
        ConfigError,
        match=r"optim\.freeze_batch_norm\[0\]: head matches nothing; names of batch "
        r"normalizations: backbone\.conv1\.bn, backbone\.layer1\.0\.conv1\.bn",
    ):
        groups.freeze_batch_norm(model, ("head",))
    with pytest.raises(ConfigError, match="none, because the model has no batch normalization"):
        groups.freeze_batch_norm(Model(), ("*",))


def test_notes_name_frozen_parameters_and_moving_statistics():
    model = shapes_of("resnet18")
    model.train()
    rates = groups.assign(OptimConfig(freeze=("backbone.layer1",)), nnx.state(model, nnx.Param))
    notes = groups.notes(rates, {}, model)
    assert len(notes) == 2
    # Four convolutions 3x3, 64 -> 64, and four normalizations of 64 channels are frozen.
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    frozen = 4 * (9 * 64 * 64 + 2 * 64)
    assert notes[0] == f"trained: {sum(sizes) - frozen:,} of {sum(sizes):,} parameters"
    assert notes[1].startswith("4 batch normalizations are frozen, and their statistics still")
    groups.freeze_batch_norm(model, ("backbone.layer1",))
    assert groups.notes(rates, {}, model) == notes[:1]
