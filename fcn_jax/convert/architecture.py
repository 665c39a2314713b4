"""Guesses the architecture of a state dict by names and shapes, for error messages."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from fcn_jax.convert.reading import WRAPPERS

Shapes = Mapping[str, tuple[int, ...]]


def guess(shapes: Shapes) -> str | None:
    """Guess the architecture of a state dict.

    Args:
        shapes: shapes of its tensors by name.

    Returns:
        A description such as "a torchvision ResNet-50 (bottleneck blocks 3, 4, 6, 3; 1000
        classes)", or None.
    """
    plain = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): shape
        for name, shape in shapes.items()
    }
    network = _by_signature(plain) or _resnet(plain) or _by_late_signature(plain)
    found = (what for mark, what in _AROUND.items() if any(map(re.compile(mark).search, plain)))
    around = next(found, None)
    if network and around:
        return f"{network}, within {around}"
    return network or around


def backbone_of(guessed: str | None, registered: Collection[str]) -> str | None:
    """The registered backbone that a guess names, such as "resnet34"; None if there is none."""
    found = re.match(
        r"(?:a torchvision (ResNet)-(\d+) \((?:basic|bottleneck)|(VGG)-(\d+))", guessed or ""
    )
    name = "".join(part for part in found.groups() if part).lower() if found else ""
    if guessed is not None and name.startswith("vgg") and "with batch normalization" in guessed:
        name += "_bn"
    return name if name in registered else None


def _has(shapes: Shapes, ending: str) -> str | None:
    """The prefix before a name: "", or up to a dot; None if no name has this ending."""
    return next(
        (name[: -len(ending)] for name in shapes if name == ending or name.endswith(f".{ending}")),
        None,
    )


_BY_NAME = {
    "model.diffusion_model.input_blocks.0.0.weight": "Stable Diffusion (CompVis's names)",
    "down_blocks.0.resnets.0.conv1.weight": "a diffusion U-Net of diffusers",
    "image_encoder.patch_embed.proj.weight": "Segment Anything (SAM)",
    "image_encoder.trunk.patch_embed.proj.weight": "Segment Anything 2 (SAM 2)",
    "visual.class_embedding": "CLIP with a vision transformer",
    "visual.attnpool.q_proj.weight": "CLIP with a ResNet",
    "vision_model.embeddings.class_embedding": "CLIP of transformers",
    "bottom_up.stem.conv1.weight": "a network of Detectron2, on a ResNet with names res2 to res5",
    "backbone.stem.conv1.weight": "a network of Detectron2, on a ResNet with names res2 to res5",
    "backbone.dark2.0.conv.weight": "YOLOX",
    "backbone.backbone.stem.conv.conv.weight": "YOLOX",
    "model.0.conv.weight": "a YOLO of ultralytics",
    "model.0.conv.conv.weight": "a YOLO",
    "embeddings.word_embeddings.weight": "BERT or another language model",
    "layers.0.self_attn.q_proj.weight": "a language model",
    "h.0.attn.c_attn.weight": "GPT-2 or another language model",
    "inc.double_conv.0.weight": "a U-Net of milesial's Pytorch-UNet",
    "denseblock1.denselayer1.norm1.weight": "a DenseNet",
    "Conv2d_1a_3x3.conv.weight": "Inception v3",
    "features.3.squeeze.weight": "a SqueezeNet",
    "trunk_output.block1.block1-0.f.a.0.weight": "torchvision's RegNet",
    "stage2.0.branches.0.0.conv1.weight": "an HRNet",
    "encoder.block.0.0.attention.self.query.weight": "a SegFormer of transformers (MiT encoder)",
    "stages.0.blocks.0.attention.q_proj.weight": "a SegFormer of transformers (MiT encoder)",
    "block1.0.attn.q.weight": "a SegFormer (MiT encoder)",
    "encoder.layers.encoder_layer_0.self_attention.in_proj_weight": (
        "torchvision's vision transformer (ViT)"
    ),
    "encoder.layer.0.layer_scale1.lambda1": "DINOv2 of transformers",
    "encoder.layer.0.attention.attention.query.weight": (
        "a vision transformer (ViT) of transformers"
    ),
    "blocks.0.ls1.gamma": "DINOv2 (a vision transformer)",
    "blocks.0.gamma_1": "DINOv3 or BEiT (a vision transformer)",
    "blocks.0.attn.relative_position_bias_table": "a Swin transformer",
    "features.1.0.attn.relative_position_bias_table": "torchvision's Swin transformer",
    "encoder.layers.0.blocks.0.attention.self.query.weight": "a Swin transformer of transformers",
    "blocks.0.attn.qkv.weight": "a vision transformer (ViT, in timm's names)",
    "stages.0.blocks.0.conv_dw.weight": "a ConvNeXt in timm's names",
    "stages.0.0.dwconv.weight": "a ConvNeXt in its authors' names",
    "features.1.0.layer_scale": "torchvision's ConvNeXt",
    "_blocks.0._depthwise_conv.weight": "an EfficientNet in lukemelas's names",
    "conv_stem.weight": "an EfficientNet or MobileNet in timm's names",
    "features.1.0.block.0.0.weight": "torchvision's EfficientNet",
    "features.1.conv.0.0.weight": "torchvision's MobileNetV2",
    "features.1.block.0.0.weight": "torchvision's MobileNetV3",
    "backbone.1.block.0.0.weight": "torchvision's MobileNetV3",
    "inception3a.branch1.conv.weight": "GoogLeNet",
    "entry_flow_conv1.conv.weight": "an Xception",
    "basenet.slice1.0.weight": "CRAFT",
}

_SMP = "(encoder.*, decoder.*, segmentation_head.*)"

_AROUND = {
    r"\bdecoder\.blocks\.0\.conv1\.0\.weight$": f"an SMP U-Net {_SMP}",
    r"\bdecoder\.p5\.weight$": f"an SMP FPN {_SMP}",
    r"\bdecoder\.psp\.": f"an SMP PSPNet or UPerNet {_SMP}",
    r"\bdecoder\.(0\.convs|aspp)\.": f"an SMP DeepLab {_SMP}",
    r"\bsegmentation_head\.": f"a network of segmentation_models_pytorch {_SMP}",
    r"\b(rpn|roi_heads)\.": "a detector (rpn.*, roi_heads.*)",
    r"\b(decode_head|auxiliary_head)\.": "a network of mmsegmentation (backbone.*, decode_head.*)",
    r"\bclassifier\.0\.convs\.": "torchvision's DeepLabV3 (backbone.*, classifier.*)",
    r"\bclassifier\.(cbr|low_classifier)\.": "torchvision's LR-ASPP (backbone.*, classifier.*)",
    r"\bclassifier\.final_conv\.": "fcn-jax's fcn32s (backbone.*, classifier.*)",
    r"\bclassifier\.1\.running_mean$": "torchvision's FCN (backbone.*, classifier.*)",
    r"\bbackbone\.layer4\..*": "a network around it (backbone.*)",
    r"\blora_(A|B|up|down)\.": "a LoRA adapter, which holds changes of weights, not weights",
}
"""Regular expressions for names, which match from the start of a part -> networks around others."""


def _by_signature(shapes: Shapes) -> str | None:
    for ending, what in _BY_NAME.items():
        prefix = _has(shapes, ending)
        if prefix is not None:
            return f"{what}{_classes(shapes, prefix, ' ({} classes)')}"
    return None


def _by_late_signature(shapes: Shapes) -> str | None:
    """Networks that only a few names show: VGG, AlexNet."""
    prefix = _has(shapes, "features.0.weight")
    first = shapes.get(f"{prefix}features.0.weight", ())
    if prefix is not None and len(first) == 4:
        if first[-1] == 11:
            return "AlexNet"
        layer = re.compile(rf"{re.escape(prefix)}features\.\d+\.weight")
        layers = [n for n, shape in shapes.items() if layer.fullmatch(n) and len(shape) == 4]
        if first[-1] == 3 and len(layers) in (8, 10, 13, 16):
            has_norm = f"{prefix}features.1.running_mean" in shapes
            norm = " with batch normalization" if has_norm else ""
            classes = _classes(shapes, prefix, " ({} classes)")
            return f"VGG-{len(layers) + 3}{norm}{classes}"
    if _has(shapes, "conv1_1.weight") is not None:
        return "VGG in Caffe's names"
    return None


_RESNETS: Mapping[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "ResNet-18",
    (False, (3, 4, 6, 3)): "ResNet-34",
    (True, (3, 4, 6, 3)): "ResNet-50",
    (True, (3, 4, 23, 3)): "ResNet-101",
    (True, (3, 8, 36, 3)): "ResNet-152",
    (True, (2, 2, 2, 2)): "ResNet-26",
}


def _resnet(shapes: Shapes) -> str | None:
    """A ResNet with torchvision's names, or with those of its children in a Sequential."""
    for stages in (("layer1", "layer2", "layer3", "layer4"), ("4", "5", "6", "7")):
        prefix = _has(shapes, f"{stages[0]}.0.conv1.weight")
        if prefix is None:
            continue
        blocks = tuple(
            len({name for name in shapes if conv.fullmatch(name)})
            for conv in (re.compile(rf"{re.escape(prefix)}{s}\.\d+\.conv1\.weight") for s in stages)
        )
        block = f"{prefix}{stages[0]}.0."
        bottleneck = f"{block}conv3.weight" in shapes
        known = _RESNETS.get((bottleneck, blocks))
        name = f"torchvision {known}" if known else "ResNet"
        middle = shapes.get(f"{block}conv2.weight", ())
        if bottleneck and len(middle) == 4:
            if middle[1] < middle[0]:
                name = name.replace("ResNet", "ResNeXt") + f" ({middle[0] // middle[1]} groups)"
            elif middle[0] > 64:
                name = name.replace("ResNet", "Wide ResNet")
        if f"{block}se.fc1.weight" in shapes or f"{block}se_module.fc1.weight" in shapes:
            name += " with squeeze-excite"
        if f"{prefix}stem.0.weight" in shapes or f"{prefix}conv1.0.weight" in shapes:
            name += (
                " with a deep stem of three convolutions (ResNetV1c of mmsegmentation, "
                "ResNet-D of timm)"
            )
        kind = "bottleneck" if bottleneck else "basic"
        classes = _classes(shapes, prefix, "; {} classes")
        return f"a {name} ({kind} blocks {', '.join(map(str, blocks))}{classes})"
    return None


_CLASSIFIERS = (
    "head.weight",
    "head.fc.weight",
    "classifier.weight",
    "classifier.6.weight",
    "fc.weight",
    "heads.head.weight",
)


def _classes(shapes: Shapes, prefix: str, text: str) -> str:
    """The number of classes, formatted by `text`; "" if there is no classifier."""
    found = [shapes.get(prefix + name, ()) for name in _CLASSIFIERS]
    return next((text.format(shape[0]) for shape in found if len(shape) == 2), "")
