"""The networks of the contenders: PyTorch, PyTorch with a matrix product as head, plain Flax."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from benchmarks.setting import Setting
from fcn_jax import to_torch
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import registered_spec
from fcn_jax.plugins import registry
from fcn_jax.pytorch.reference import import_torchvision
from fcn_jax.verify.reference import build_reference


class ProductHead(torch.nn.Module):
    """A `ConvTranspose2d` of kernel 2s, stride s and padding s/2 as a matrix product.

    `fcn_jax.nn` computes it in the same way.
    """

    def __init__(self, layer: torch.nn.ConvTranspose2d) -> None:
        """Use the parameters of a layer."""
        super().__init__()
        self.weight, self.bias, self.stride = layer.weight, layer.bias, layer.stride[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map f[N,I,H,W] to f[N,O,sH,sW]."""
        batch, channels, rows, cols = x.shape
        stride, out = self.stride, self.weight.shape[1]
        # A block (b, c) of s x s output pixels depends on four input pixels, (b - i, c - j) for i
        # and j of 0 and 1. Band (i, j) of the kernel multiplies each.
        matrix = self.weight.view(channels, out, 2, stride, 2, stride).permute(2, 4, 0, 3, 5, 1)
        padded = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        neighbors = [
            padded[:, 1 - i : 2 - i + rows, 1 - j : 2 - j + cols] for i in (0, 1) for j in (0, 1)
        ]
        blocks = torch.cat(neighbors, -1) @ matrix.reshape(4 * channels, stride * stride * out)
        blocks = blocks.view(batch, rows + 1, cols + 1, stride, stride, out).permute(
            0, 1, 3, 2, 4, 5
        )
        full = blocks.reshape(batch, (rows + 1) * stride, (cols + 1) * stride, out) + self.bias
        half = stride // 2
        return full[:, half : half + rows * stride, half : half + cols * stride].permute(0, 3, 1, 2)


def torch_d2l(model: Segmenter, *, product: bool = False) -> torch.nn.Sequential:
    """Build d2l's network in PyTorch, channels_last and in train mode.

    Args:
        model: a ResNet with the head `fcn32s`, whose parameters are copied.
        product: compute the head as a matrix product.
    """
    spec = model.spec
    stride = model.features[-1].stride
    # torchvision cannot dilate a BasicBlock. No benchmark needs it.
    dilate = {32: None, 16: [False, False, True], 8: [False, True, True]}[stride]
    backbone = getattr(import_torchvision().models, spec.backbone)(
        weights=None, replace_stride_with_dilation=dilate
    )
    network = torch.nn.Sequential(*list(backbone.children())[:-2])
    network.add_module(
        "final_conv", torch.nn.Conv2d(model.features[-1].channels, spec.num_classes, 1)
    )
    groups = spec.num_classes if spec.head_options.get("upsampling") == "depthwise" else 1
    head = torch.nn.ConvTranspose2d(
        spec.num_classes,
        spec.num_classes,
        2 * stride,
        stride=stride,
        padding=stride // 2,
        groups=groups,
    )
    network.add_module("transpose_conv", head)
    network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in to_torch(model, key_format="d2l").items()}
    )
    if product:
        network.transpose_conv = ProductHead(head)
    return network.to(memory_format=torch.channels_last)


class _Features(torch.nn.Module):
    """A reference backbone that returns its features by name and uses no hooks."""

    def __init__(self, backbone: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.models.feature_extraction import create_feature_extractor

        self.extractor = create_feature_extractor(backbone, names)

    def forward(self, x: torch.Tensor) -> Any:
        return self.extractor(x)


class _Logits(torch.nn.Module):
    """A network that returns only the logits of another, which returns outputs by name."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)["out"]  # type: ignore[no-any-return]


def torch_reference(setting: Setting, model: Segmenter) -> torch.nn.Module:
    """Build the PyTorch reference of a model, channels_last, and copy the model's parameters.

    If the descriptor of a registered model has a reference, that is used. Otherwise the reference
    is built from those of the backbone and the head.
    """
    descriptor = (
        registry.default().model(setting.model) if registered_spec(setting.model).head else None
    )
    if descriptor is not None and descriptor.reference_model is not None:
        network, names = (
            descriptor.reference_model(num_classes=setting.num_classes, aux=False),
            descriptor.key_format,
        )
    else:
        network, names = build_reference(model.spec), "torchvision"
    network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in to_torch(model, key_format=names).items()}
    )
    features = [feature.name for feature in model.features]
    if descriptor is None and set(features) <= {
        name for name, _ in network.backbone.named_modules()
    }:
        network.backbone = _Features(network.backbone.eval(), features)
    return _Logits(network).to(memory_format=torch.channels_last)


def torch_network(setting: Setting, model: Segmenter, *, product: bool = False) -> torch.nn.Module:
    """Build the PyTorch network of a setting: d2l's, or the reference of the model."""
    return torch_d2l(model, product=product) if setting.is_d2l else torch_reference(setting, model)


_ZEROS = nnx.initializers.zeros_init()  # random values would take time, and they are replaced
_conv = functools.partial(nnx.Conv, kernel_init=_ZEROS)


class _Norm(nnx.BatchNorm):
    def __init__(self, channels: int, **types: Any) -> None:
        super().__init__(channels, momentum=0.9, epsilon=1e-5, **types)


class _Block(nnx.Module):
    """torchvision's BasicBlock, built from Flax's layers."""

    def __init__(self, in_channels: int, channels: int, stride: int, **types: Any) -> None:
        def conv(in_channels: int, size: int, stride: int) -> nnx.Conv:
            return _conv(
                in_channels,
                channels,
                (size, size),
                stride,
                padding=size // 2,
                use_bias=False,
                **types,
            )

        self.conv1, self.bn1 = conv(in_channels, 3, stride), _Norm(channels, **types)
        self.conv2, self.bn2 = conv(channels, 3, 1), _Norm(channels, **types)
        shortcut = stride > 1 or in_channels != channels
        self.downsample = (
            nnx.Dict(conv=conv(in_channels, 1, stride), bn=_Norm(channels, **types))
            if shortcut
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = (
            x if self.downsample is None else self.downsample["bn"](self.downsample["conv"](x))
        )
        y = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(y)) + shortcut)


class _Backbone(nnx.Module):
    def __init__(self, depths: tuple[int, ...], **types: Any) -> None:
        self.conv1 = _conv(3, 64, (7, 7), 2, padding=3, use_bias=False, **types)
        self.bn1 = _Norm(64, **types)
        in_channels = 64
        for i, depth in enumerate(depths):
            blocks = []
            for b in range(depth):
                blocks.append(_Block(in_channels, 64 << i, 2 if i and not b else 1, **types))
                in_channels = 64 << i
            setattr(self, f"layer{i + 1}", nnx.List(blocks))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x)
        return x


BASIC_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Number of blocks in each stage, for each backbone that `PlainFlax` can build."""


class PlainFlax(nnx.Module):
    """d2l's network with ResNet-18 or 34, built from `flax.nnx`'s layers.

    Image sizes must be multiples of 32.
    """

    def __init__(self, model: Segmenter) -> None:
        """Build the network and copy the parameters of a model."""
        spec = model.spec
        types: dict[str, Any] = {"dtype": jnp.dtype(spec.dtype), "rngs": nnx.Rngs(0)}
        self.backbone = _Backbone(BASIC_DEPTHS[spec.backbone], **types)
        self.head = nnx.Dict(
            final_conv=_conv(512, spec.num_classes, (1, 1), **types),
            transpose_conv=nnx.ConvTranspose(
                spec.num_classes,
                spec.num_classes,
                (64, 64),
                (32, 32),
                padding=((47, 47), (47, 47)),
                kernel_init=_ZEROS,
                **types,
            ),
        )
        values = leaves(model)
        for path, leaf in leaves(self).items():
            value = values[path][...]
            # lax.conv_transpose, unlike PyTorch, does not flip the kernel.
            leaf[...] = (
                value[::-1, ::-1] if path == "head.transpose_conv.kernel" else jnp.copy(value)
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f[N,H,W,3] to f[N,H,W,K]."""
        return self.head["transpose_conv"](self.head["final_conv"](self.backbone(x)))

    def outputs(self, x: jax.Array) -> dict[str, jax.Array]:
        """Return the logits by name, as the training step requires."""
        return {"out": self(x)}
