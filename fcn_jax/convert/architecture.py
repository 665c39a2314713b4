"""Guesses the architecture of a state dict by names and shapes, for error messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

Shapes = Mapping[str, tuple[int, ...]]

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def guess(shapes: Shapes) -> str | None:
    """Guess the architecture of a state dict.

    Args:
        shapes: shapes of its tensors by name.

    Returns:
        A description such as "a torchvision ResNet-50 (bottleneck blocks 3, 4, 6, 3; 1000
        classes)", or None.
    """
    plain = {_WRAPPERS.sub("", name): shape for name, shape in shapes.items()}
    network = _by_signature(plain) or _resnet(plain) or _by_late_signature(plain)
    around = next(
        (what for mark, what in _FRAMES if any(re.search(mark, name) for name in plain)), None
    )
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


_EARLY: tuple[tuple[str, str], ...] = (
    ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion (CompVis's names)"),
    ("down_blocks.0.resnets.0.conv1.weight", "a diffusion U-Net of diffusers"),
    ("image_encoder.patch_embed.proj.weight", "Segment Anything (SAM)"),
    ("image_encoder.trunk.patch_embed.proj.weight", "Segment Anything 2 (SAM 2)"),
    ("visual.class_embedding", "CLIP with a vision transformer"),
    ("visual.attnpool.q_proj.weight", "CLIP with a ResNet"),
    ("vision_model.embeddings.class_embedding", "CLIP of transformers"),
    ("bottom_up.stem.conv1.weight", "a network of Detectron2, on a ResNet with names res2 to res5"),
    ("backbone.stem.conv1.weight", "a network of Detectron2, on a ResNet with names res2 to res5"),
    ("backbone.dark2.0.conv.weight", "YOLOX"),
    ("backbone.backbone.stem.conv.conv.weight", "YOLOX"),
    ("model.0.conv.weight", "a YOLO of ultralytics"),
    ("model.0.conv.conv.weight", "a YOLO"),
    ("embeddings.word_embeddings.weight", "BERT or another language model"),
    ("layers.0.self_attn.q_proj.weight", "a language model"),
    ("h.0.attn.c_attn.weight", "GPT-2 or another language model"),
    ("inc.double_conv.0.weight", "a U-Net of milesial's Pytorch-UNet"),
    ("denseblock1.denselayer1.norm1.weight", "a DenseNet"),
    ("Conv2d_1a_3x3.conv.weight", "Inception v3"),
    ("features.3.squeeze.weight", "a SqueezeNet"),
    ("trunk_output.block1.block1-0.f.a.0.weight", "torchvision's RegNet"),
    ("stage2.0.branches.0.0.conv1.weight", "an HRNet"),
    ("encoder.block.0.0.attention.self.query.weight", "a SegFormer of transformers (MiT encoder)"),
    ("stages.0.blocks.0.attention.q_proj.weight", "a SegFormer of transformers (MiT encoder)"),
    ("block1.0.attn.q.weight", "a SegFormer (MiT encoder)"),
    (
        "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
        "torchvision's vision transformer (ViT)",
    ),
    ("encoder.layer.0.layer_scale1.lambda1", "DINOv2 of transformers"),
    (
        "encoder.layer.0.attention.attention.query.weight",
        "a vision transformer (ViT) of transformers",
    ),
    ("blocks.0.ls1.gamma", "DINOv2 (a vision transformer)"),
    ("blocks.0.gamma_1", "DINOv3 or BEiT (a vision transformer)"),
    ("blocks.0.attn.relative_position_bias_table", "a Swin transformer"),
    ("features.1.0.attn.relative_position_bias_table", "torchvision's Swin transformer"),
    ("encoder.layers.0.blocks.0.attention.self.query.weight", "a Swin transformer of transformers"),
    ("blocks.0.attn.qkv.weight", "a vision transformer (ViT, in timm's names)"),
    ("stages.0.blocks.0.conv_dw.weight", "a ConvNeXt in timm's names"),
    ("stages.0.0.dwconv.weight", "a ConvNeXt in its authors' names"),
    ("features.1.0.layer_scale", "torchvision's ConvNeXt"),
    ("_blocks.0._depthwise_conv.weight", "an EfficientNet in lukemelas's names"),
    ("conv_stem.weight", "an EfficientNet or MobileNet in timm's names"),
    ("features.1.0.block.0.0.weight", "torchvision's EfficientNet"),
    ("features.1.conv.0.0.weight", "torchvision's MobileNetV2"),
    ("features.1.block.0.0.weight", "torchvision's MobileNetV3"),
    ("backbone.1.block.0.0.weight", "torchvision's MobileNetV3"),
    ("inception3a.branch1.conv.weight", "GoogLeNet"),
    ("entry_flow_conv1.conv.weight", "an Xception"),
    ("basenet.slice1.0.weight", "CRAFT"),
)

_FRAMES: tuple[tuple[str, str], ...] = (
    (
        r"(^|\.)decoder\.blocks\.0\.conv1\.0\.weight$",
        "an SMP U-Net (encoder.*, decoder.*, segmentation_head.*)",
    ),
    (r"(^|\.)decoder\.p5\.weight$", "an SMP FPN (encoder.*, decoder.*, segmentation_head.*)"),
    (
        r"(^|\.)decoder\.psp\.",
        "an SMP PSPNet or UPerNet (encoder.*, decoder.*, segmentation_head.*)",
    ),
    (
        r"(^|\.)decoder\.(0\.convs|aspp)\.",
        "an SMP DeepLab (encoder.*, decoder.*, segmentation_head.*)",
    ),
    (
        r"(^|\.)segmentation_head\.",
        "a network of segmentation_models_pytorch (encoder.*, decoder.*, segmentation_head.*)",
    ),
    (r"(^|\.)(rpn|roi_heads)\.", "a detector (rpn.*, roi_heads.*)"),
    (
        r"(^|\.)(decode_head|auxiliary_head)\.",
        "a network of mmsegmentation (backbone.*, decode_head.*)",
    ),
    (r"(^|\.)classifier\.0\.convs\.", "torchvision's DeepLabV3 (backbone.*, classifier.*)"),
    (
        r"(^|\.)classifier\.(cbr|low_classifier)\.",
        "torchvision's LR-ASPP (backbone.*, classifier.*)",
    ),
    (r"(^|\.)classifier\.final_conv\.", "fcn-jax's fcn32s (backbone.*, classifier.*)"),
    (r"(^|\.)classifier\.1\.running_mean$", "torchvision's FCN (backbone.*, classifier.*)"),
    (r"(^|\.)backbone\.layer4\..*", "a network around it (backbone.*)"),
    (
        r"(^|\.)lora_(A|B|up|down)\.",
        "a LoRA adapter, which holds changes of weights, not weights",
    ),
)


def _by_signature(shapes: Shapes) -> str | None:
    for ending, what in _EARLY:
        prefix = _has(shapes, ending)
        if prefix is not None:
            return what + _classes(
                shapes,
                prefix,
                (
                    "head.weight",
                    "head.fc.weight",
                    "classifier.weight",
                    "fc.weight",
                    "heads.head.weight",
                ),
            )
    return None


def _by_late_signature(shapes: Shapes) -> str | None:
    """Networks that only a few names show: VGG, AlexNet."""
    prefix = _has(shapes, "features.0.weight")
    first = shapes.get(f"{prefix}features.0.weight", ())
    if prefix is not None and len(first) == 4:
        if first[-1] == 11:
            return "AlexNet"
        layers = [
            n
            for n, s in shapes.items()
            if re.fullmatch(re.escape(prefix) + r"features\.\d+\.weight", n) and len(s) == 4
        ]
        if first[-1] == 3 and len(layers) in (8, 10, 13, 16):
            norm = (
                " with batch normalization" if f"{prefix}features.1.running_mean" in shapes else ""
            )
            return f"VGG-{len(layers) + 3}{norm}" + _classes(
                shapes, prefix, ("classifier.6.weight",)
            )
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
    stages: tuple[Callable[[int], str], ...] = (lambda i: f"layer{i}.", lambda i: f"{i + 3}.")
    for stage in stages:
        prefix = _has(shapes, f"{stage(1)}0.conv1.weight")
        if prefix is None:
            continue
        blocks = []
        for i in range(1, 5):
            numbers = {
                int(found.group(1))
                for name in shapes
                if (found := re.match(re.escape(prefix + stage(i)) + r"(\d+)\.conv1\.weight", name))
            }
            blocks.append(len(numbers))
        block = f"{prefix}{stage(1)}0."
        bottleneck = f"{block}conv3.weight" in shapes
        name = _RESNETS.get((bottleneck, tuple(blocks)), "a ResNet")
        middle = shapes.get(f"{block}conv2.weight", ())
        if bottleneck and len(middle) == 4:
            if middle[1] < middle[0]:
                name = name.replace("ResNet", "ResNeXt") + f" ({middle[0] // middle[1]} groups)"
            elif middle[0] > 64:
                name = name.replace("ResNet", "Wide ResNet")
        variant = ""
        if f"{block}se.fc1.weight" in shapes or f"{block}se_module.fc1.weight" in shapes:
            variant = " with squeeze-excite"
        if f"{prefix}stem.0.weight" in shapes or f"{prefix}conv1.0.weight" in shapes:
            variant += (
                " with a deep stem of three convolutions (ResNetV1c of mmsegmentation, "
                "ResNet-D of timm)"
            )
        kind = "bottleneck" if bottleneck else "basic"
        classes = shapes.get(f"{prefix}fc.weight")
        ends = f"; {classes[0]} classes" if classes and len(classes) == 2 else ""
        if name == "a ResNet":
            return f"a ResNet{variant} ({kind} blocks {', '.join(map(str, blocks))}{ends})"
        return f"a torchvision {name}{variant} ({kind} blocks {', '.join(map(str, blocks))}{ends})"
    return None


def _classes(shapes: Shapes, prefix: str, names: tuple[str, ...]) -> str:
    for name in names:
        shape = shapes.get(prefix + name)
        if shape is not None and len(shape) == 2:
            return f" ({shape[0]} classes)"
    return ""
