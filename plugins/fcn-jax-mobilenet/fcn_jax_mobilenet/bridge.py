"""What ties MobileNets to torchvision's: names, and the networks that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fcn_jax.api import TorchBridge, Weights
from fcn_jax.pytorch.rules import Rule, Table, conv, conv_norm, drop

_CLASSIFIER = drop(
    "classifier.*",
    "the classifier of ImageNet's classes, which a segmentation network does not have",
)


def v2_rules() -> list[Rule]:
    """MobileNetV2's names within `features`."""
    rules = conv_norm("{i}.0", "{i}.1", "features.{i}")
    # torchvision's blocks are Sequentials that hold their last convolution and normalization
    # directly, one place earlier in the first block, which does not expand.
    for block, last in (("1", 1), ("{i}", 2)):
        theirs = f"{block}.conv"
        rules += conv_norm(
            f"{theirs}.{last}", f"{theirs}.{last + 1}", f"features.{block}.block.{last}"
        )
    return rules + conv_norm("{i}.conv.{k}.0", "{i}.conv.{k}.1", "features.{i}.block.{k}")


def v3_rules() -> list[Rule]:
    """MobileNetV3's names within `features`."""
    return [
        *conv_norm("{i}.0", "{i}.1", "features.{i}"),
        *conv_norm("{i}.block.{k}.0", "{i}.block.{k}.1", "features.{i}.block.{k}"),
        *conv("{i}.block.{k}.fc{n}", "features.{i}.block.{k}.fc{n}", bias=True),
    ]


def bridge(
    rules: list[Rule], make_features: Callable[[Any, int], Any], weights: Mapping[str, Weights]
) -> TorchBridge:
    """What ties a MobileNet to torchvision's.

    Its segmentation models take the network's `features` alone, in an `IntermediateLayerGetter`:
    `backbone.0.0.weight` there is `features.0.0.weight` in ImageNet's files.

    Args:
        rules: of the names in `features`.
        make_features: options, output stride -> torchvision's `features`, with random weights.
        weights: published files.
    """

    def reference(options: Any, output_stride: int) -> Any:
        from fcn_jax.pytorch.reference import import_torchvision

        getter = import_torchvision().models._utils.IntermediateLayerGetter
        features = make_features(options, output_stride)
        # torchvision's `stage_indices`, found as its `models/segmentation/lraspp.py` does.
        strided = [i for i, layer in enumerate(features) if getattr(layer, "_is_cn", False)]
        return getter(
            features,
            {str(i): f"c{number}" for number, i in enumerate([0, *strided, len(features) - 1])},
        )

    table = Table(rules)
    return TorchBridge(
        tables=lambda options: {"torchvision": table},
        standalone_tables=lambda options: {
            "torchvision": table.under("features.", "") + Table(_CLASSIFIER),
            "segmentation": table,
        },
        reference=reference,
        weights=weights,
    )


def v2_features(options: Any, output_stride: int) -> Any:
    """MobileNetV2 of torchvision with random weights, dilated after it is built."""
    from fcn_jax.pytorch.reference import import_torchvision

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
    """MobileNetV3 of torchvision with random weights; its own settings of a block say how it is dilated."""
    from fcn_jax.pytorch.reference import import_torchvision

    source = import_torchvision().models.mobilenetv3
    settings, last_channel = source._mobilenet_v3_conf(
        name,
        width_mult=options.width_mult,
        reduced_tail=options.reduced_tail,
        dilated=output_stride == 16,
    )
    if output_stride == 8:
        # torchvision offers no such network, but its blocks do.
        reached, dilation = 2, 1
        for setting in settings:
            if reached * setting.stride > output_stride:
                dilation *= setting.stride
            else:
                reached *= setting.stride
            setting.dilation = dilation
    return source.MobileNetV3(settings, last_channel).features
