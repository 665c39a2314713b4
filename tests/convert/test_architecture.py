"""Guesses of the architecture of a state dict."""

import pytest

from fcn_jax.convert.architecture import guess

torch = pytest.importorskip("torch")


def shapes_of(torchvision, name, **options):
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(weights=None, **options)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet34", "a torchvision ResNet-34 (basic blocks 3, 4, 6, 3; 1000 classes)"),
        ("resnet50", "a torchvision ResNet-50 (bottleneck blocks 3, 4, 6, 3; 1000 classes)"),
        (
            "wide_resnet50_2",
            "a torchvision Wide ResNet-50 (bottleneck blocks 3, 4, 6, 3; 1000 classes)",
        ),
        (
            "resnext50_32x4d",
            "a torchvision ResNeXt-50 (32 groups) (bottleneck blocks 3, 4, 6, 3; 1000 classes)",
        ),
        ("vgg16", "VGG-16 (1000 classes)"),
        ("vgg11_bn", "VGG-11 with batch normalization (1000 classes)"),
        ("alexnet", "AlexNet"),
        ("mobilenet_v2", "torchvision's MobileNetV2"),
        ("mobilenet_v3_small", "torchvision's MobileNetV3"),
        ("efficientnet_b0", "torchvision's EfficientNet"),
        ("convnext_tiny", "torchvision's ConvNeXt"),
        ("swin_t", "torchvision's Swin transformer (1000 classes)"),
        ("vit_b_16", "torchvision's vision transformer (ViT) (1000 classes)"),
        ("densenet121", "a DenseNet"),
    ],
)
def test_recognizes_torchvision_networks(torchvision, name, expected):
    shapes = shapes_of(torchvision, name)
    assert guess(shapes) == expected
    assert guess({f"module._orig_mod.{name}": shape for name, shape in shapes.items()}) == expected


NAMES = {
    "encoder.layer1.0.conv1.weight decoder.blocks.0.conv1.0.weight": "SMP U-Net",
    "backbone.layer1.0.conv1.weight backbone.stem.0.weight decode_head.a.weight": "deep stem",
    "cls_token blocks.0.attn.qkv.weight": "vision transformer (ViT",
    "cls_token blocks.0.ls1.gamma": "DINOv2",
    "segformer.encoder.block.0.0.attention.self.query.weight": "SegFormer",
    "model.0.conv.weight model.1.conv.weight": "YOLO of ultralytics",
    "backbone.bottom_up.stem.conv1.weight": "Detectron2",
    "backbone.body.layer1.0.conv1.weight rpn.head.conv.weight": "a detector",
    "visual.class_embedding": "CLIP",
    "model.diffusion_model.input_blocks.0.0.weight": "Stable Diffusion",
    "bert.embeddings.word_embeddings.weight": "BERT",
    "model.layers.0.self_attn.q_proj.weight": "language model",
    "inc.double_conv.0.weight": "milesial",
}


@pytest.mark.parametrize("names", NAMES)
def test_recognizes_other_networks_by_a_few_names(names):
    found = guess(dict.fromkeys(names.split(), (2, 2, 3, 3)))
    assert found is not None
    assert NAMES[names] in found


def test_returns_none_for_unknown_names():
    assert guess({"a.weight": (1,), "b": ()}) is None
