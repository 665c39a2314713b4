"""The contenders' networks: PyTorch's, the same with the head as a product, and plain Flax."""

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
    """`ConvTranspose2d` of kernel 2s, stride s, padding s/2 as the product of `fcn_jax.nn`."""

    def __init__(self, original: torch.nn.ConvTranspose2d) -> None:
        """Take over the parameters."""
        super().__init__()
        self.weight, self.bias, self.stride = original.weight, original.bias, original.stride[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """f[N, I, H, W] -> f[N, O, s H, s W]."""
        batch, channels, rows, cols = x.shape
        stride, out = self.stride, self.weight.shape[1]
        # Block (b, c) of s x s pixels sees the four input pixels b - i, c - j through the kernel's
        # bands i, j.
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


def in_torch(model: Segmenter, *, product: bool = False) -> torch.nn.Sequential:
    """d2l's network with the values of a ResNet + fcn32s model, channels_last, in train mode."""
    spec = model.spec
    stride = model.features[-1].stride
    # torchvision refuses to dilate a BasicBlock, and a benchmark has no need to.
    dilate = {32: None, 16: [False, False, True], 8: [False, True, True]}[stride]
    trunk = getattr(import_torchvision().models, spec.backbone)(
        weights=None, replace_stride_with_dilation=dilate
    )
    network = torch.nn.Sequential(*list(trunk.children())[:-2])
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
    """A reference backbone that returns its features by name, without hooks."""

    def __init__(self, backbone: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.models.feature_extraction import create_feature_extractor

        self.extractor = create_feature_extractor(backbone, names)

    def forward(self, x: torch.Tensor) -> Any:
        return self.extractor(x)


class _Logits(torch.nn.Module):
    """The logits alone of what gives outputs by name."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)["out"]  # type: ignore[no-any-return]


def original(setting: Setting, model: Segmenter) -> torch.nn.Module:
    """The PyTorch reference of a registered model, with the library's values, channels_last.

    That is a whole model's own class where its descriptor has it, otherwise the parts' references
    put together.
    """
    descriptor = (
        registry.default().model(setting.model) if registered_spec(setting.model).head else None
    )
    if descriptor is not None and descriptor.reference_model is not None:
        network, names = (
            descriptor.reference_model(num_classes=setting.num_classes, aux=False),
            descriptor.names,
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


_ZEROS = nnx.initializers.zeros_init()  # take no time to draw, and values are taken over
_conv = functools.partial(nnx.Conv, kernel_init=_ZEROS)


class _Norm(nnx.BatchNorm):
    def __init__(self, channels: int, **types: Any) -> None:
        super().__init__(channels, momentum=0.9, epsilon=1e-5, **types)


class _Block(nnx.Module):
    """torchvision's BasicBlock in Flax's own layers."""

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


class _Trunk(nnx.Module):
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
"""What `PlainFlax` can build: blocks of each stage."""


class PlainFlax(nnx.Module):
    """d2l's network on ResNet-18 or 34, only of `flax.nnx`'s layers; sizes of multiples of 32."""

    def __init__(self, model: Segmenter) -> None:
        """Take over a model's values."""
        spec = model.spec
        types: dict[str, Any] = {"dtype": jnp.dtype(spec.dtype), "rngs": nnx.Rngs(0)}
        self.backbone = _Trunk(BASIC_DEPTHS[spec.backbone], **types)
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
        """f[N, H, W, 3] -> f[N, H, W, K]."""
        return self.head["transpose_conv"](self.head["final_conv"](self.backbone(x)))

    def outputs(self, x: jax.Array) -> dict[str, jax.Array]:
        """The logits by name, as the training step asks for them."""
        return {"out": self(x)}
