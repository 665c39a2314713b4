"""The link between MobileNets and torchvision's: names, and reference networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fcn_jax.api import TorchBridge, Weights
from fcn_jax.pytorch import Rule, Table, conv, conv_norm, drop, import_torchvision

_CLASSIFIER = drop(
    "classifier.*", "the ImageNet classifier, which a segmentation model does not have"
)


def v2_rules() -> list[Rule]:
    """The rules of MobileNetV2's names in `features`."""
    rules = conv_norm("{i}.0", "{i}.1", "features.{i}")
    # torchvision's blocks are Sequentials. Their last convolution and normalization are direct
    # children, one position earlier in the first block, which does not expand.
    for block, last in (("1", 1), ("{i}", 2)):
        theirs = f"{block}.conv"
        rules += conv_norm(
            f"{theirs}.{last}", f"{theirs}.{last + 1}", f"features.{block}.block.{last}"
        )
    return rules + conv_norm("{i}.conv.{k}.0", "{i}.conv.{k}.1", "features.{i}.block.{k}")


def v3_rules() -> list[Rule]:
    """The rules of MobileNetV3's names in `features`."""
    return [
        *conv_norm("{i}.0", "{i}.1", "features.{i}"),
        *conv_norm("{i}.block.{k}.0", "{i}.block.{k}.1", "features.{i}.block.{k}"),
        *conv("{i}.block.{k}.fc{n}", "features.{i}.block.{k}.fc{n}", bias=True),
    ]


def bridge(
    rules: list[Rule], make_features: Callable[[Any, int], Any], weights: Mapping[str, Weights]
) -> TorchBridge:
    """The link between a MobileNet and torchvision's.

    torchvision's segmentation models wrap the network's `features` in an `IntermediateLayerGetter`:
    `features.0.0.weight` of an ImageNet file is `backbone.0.0.weight` there.

    Args:
        rules: rules of the names in `features`.
        make_features: (options, output stride) -> torchvision's `features`, with random weights.
        weights: published files.
    """

    def reference(options: Any, output_stride: int) -> Any:
        getter = import_torchvision().models._utils.IntermediateLayerGetter
        features = make_features(options, output_stride)
        # torchvision's `stage_indices`, found as in its `models/segmentation/lraspp.py`.
        strided = [i for i, layer in enumerate(features) if getattr(layer, "_is_cn", False)]
        stages = [0, *strided, len(features) - 1]
        return getter(features, {str(i): f"c{number}" for number, i in enumerate(stages)})

    table = Table(rules)
    return TorchBridge(
        tables=table,
        standalone_tables={
            "torchvision": table.under("features.", "") + Table(_CLASSIFIER),
            "segmentation": table,
        },
        reference=reference,
        weights=weights,
    )


def v2_features(options: Any, output_stride: int) -> Any:
    """Torchvision's MobileNetV2 with random weights, dilated after it is built."""
    features = import_torchvision().models.MobileNetV2(width_mult=options.width_mult).features
    reached, dilation = 2, 1
    for block in features[1:-1]:
        depthwise = block.conv[-3][0]
        before = dilation
        if reached * block.stride > output_stride:
            dilation *= block.stride
            depthwise.stride = (1, 1)
        else:
            reached *= block.stride
        own = before if block.stride == 2 else dilation
        depthwise.dilation = depthwise.padding = (own, own)
    return features


def v3_features(name: str, options: Any, output_stride: int) -> Any:
    """Torchvision's MobileNetV3 with random weights, dilated by its blocks' own settings."""
    source = import_torchvision().models.mobilenetv3
    settings, last_channel = source._mobilenet_v3_conf(
        name,
        width_mult=options.width_mult,
        reduced_tail=options.reduced_tail,
        dilated=output_stride == 16,
    )
    if output_stride == 8:
        # torchvision does not offer this network, but its blocks support it.
        reached, dilation = 2, 1
        for setting in settings:
            if reached * setting.stride > output_stride:
                dilation *= setting.stride
            else:
                reached *= setting.stride
            setting.dilation = dilation
    return source.MobileNetV3(settings, last_channel).features
