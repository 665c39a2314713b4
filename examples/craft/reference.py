"""CRAFT in PyTorch: a text detector, as in clovaai/CRAFT-pytorch (MIT license).

Baek et al. 2019, arXiv:1904.01941. The encoder is torchvision's `vgg16_bn` without its last three
layers, cut into slices whose names and indices the published weights have.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate

SLICES = ((0, 12), (12, 19), (19, 29), (29, 39))
"""Ranges of `vgg16_bn().features`. Each but the first begins with a ReLU."""

PLAN = (1, 1, "pool", 2, 2, "pool", 4, 4, 4, "pool", 8, 8, 8, "pool", 8, 8)
"""Convolutions of `vgg16_bn().features`, by their channels in multiples of the first one's."""


def vgg16_bn_features(base: int) -> list[nn.Module]:
    """The layers of torchvision's encoder, by index; `base` is 64 there."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in PLAN:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        conv = nn.Conv2d(channels, entry * base, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(entry * base), nn.ReLU(inplace=True)]
        channels = entry * base
    return layers


class Encoder(nn.Module):
    """VGG-16 up to conv5_2, and two convolutions instead of its linear layers."""

    def __init__(self, base: int) -> None:
        super().__init__()
        layers = vgg16_bn_features(base)
        for number, (start, end) in enumerate(SLICES, start=1):
            named = {str(index): layers[index] for index in range(start, end)}
            self.add_module(f"slice{number}", nn.Sequential())
            for name, layer in named.items():
                getattr(self, f"slice{number}").add_module(name, layer)
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(8 * base, 16 * base, 3, padding=6, dilation=6),
            nn.Conv2d(16 * base, 16 * base, 1),
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for number in range(1, 6):
            x = getattr(self, f"slice{number}")(x)
            features.append(x)  # the next slice begins with a ReLU in place, which changes it
        return features[::-1]


class DoubleConv(nn.Module):
    """1x1 and 3x3 convolution, each with batch normalization and ReLU."""

    def __init__(self, in_channels: int, middle: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, middle, 1),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Craft(nn.Module):
    """Images [N,3,H,W] -> scores [N,2,H/2,W/2]: of text, and of links between its characters."""

    def __init__(self, base: int = 64) -> None:
        super().__init__()
        self.basenet = Encoder(base)
        self.upconv1 = DoubleConv(24 * base, 8 * base, 4 * base)
        self.upconv2 = DoubleConv(12 * base, 4 * base, 2 * base)
        self.upconv3 = DoubleConv(6 * base, 2 * base, base)
        self.upconv4 = DoubleConv(3 * base, base, base // 2)
        half, quarter = base // 2, base // 4
        self.conv_cls = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, quarter, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(quarter, quarter, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(quarter, 2, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deepest, *others = self.basenet(x)
        y = deepest
        for number, feature in enumerate(others, start=1):
            if number > 1:
                size = feature.shape[2:]
                y = interpolate(y, size=size, mode="bilinear", align_corners=False)
            y = getattr(self, f"upconv{number}")(torch.cat([y, feature], dim=1))
        return self.conv_cls(y)
