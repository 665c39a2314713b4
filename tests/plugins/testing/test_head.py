"""check_head: correct heads pass, and each broken promise is found."""

import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import Head, TorchBridge
from fcn_jax.errors import ConfigError
from fcn_jax.models.fcn import FCN32S
from fcn_jax.pytorch.rules import Table, conv
from fcn_jax.testing import check_head


class Top(nnx.Module):
    """A 1x1 convolution, each pixel repeated `stride` times."""

    def __init__(self, feature, num_classes, **types):
        self.name, self.stride = feature.name, feature.stride
        self.conv = nn.Conv(feature.channels, num_classes, 1, **types)

    def __call__(self, features, *, out_hw):
        logits = self.conv(features[self.name]).repeat(self.stride, 1).repeat(self.stride, 2)
        return logits[:, : out_hw[0], : out_hw[1]]


class Uncropped(Top):
    """Returns all logits of the feature, also those outside of the image."""

    def __call__(self, features, *, out_hw):
        return super().__call__(features, out_hw=(10**6, 10**6))


class OneClassTooMany(Top):
    """Returns one class too many."""

    def __init__(self, feature, num_classes, **types):
        super().__init__(feature, num_classes + 1, **types)


class Cropped(Top):
    """Crops the logits before the image's corner."""

    def __init__(self, feature, num_classes, **types):
        super().__init__(feature, num_classes, **types)
        self.top = feature.offset

    def __call__(self, features, *, out_hw):
        return super().__call__(features, out_hw=(out_hw[0] + self.top, out_hw[1] + self.top))[
            :, self.top :, self.top :
        ]


class Summing(nnx.Module):
    """Adds the shallowest feature, resized, to the deepest."""

    def __init__(self, features, num_classes, **types):
        self.names = nnx.static(tuple(feature.name for feature in features))
        self.convs = nnx.List(
            [nn.Conv(feature.channels, num_classes, 1, **types) for feature in features]
        )

    def __call__(self, features, *, out_hw):
        return sum(
            nn.resize_bilinear(conv(features[name]), out_hw)
            for name, conv in zip(self.names, self.convs, strict=True)
        )


class Mixing(Top):
    """Subtracts the mean of the whole batch."""

    def __call__(self, features, *, out_hw):
        return super().__call__(
            {name: value - value.mean() for name, value in features.items()}, out_hw=out_hw
        )


def head(module=Top, **fields):
    return Head(
        **{
            "name": "top",
            "summary": "for tests",
            "build": lambda options, features, *, num_classes, **types: module(
                features[-1], num_classes, **types
            ),
            "torch": TorchBridge(
                tables=lambda options: {"torchvision": Table(conv("conv", bias=True))}
            ),
            **fields,
        }
    )


def refuse(options, specs):
    raise ConfigError("needs a feature of stride 3")


def first_and_aligned_last(options, specs):
    if specs[-1].offset:
        raise ConfigError("needs a deepest feature without offset")
    return (specs[0].name, specs[-1].name)


def needs_rounding_down(options, specs):
    if specs[0].stride != 2:
        raise ConfigError("needs a feature of stride 2")
    return (specs[0].name, specs[-1].name)


@pytest.mark.parametrize(
    "correct",
    [head(), head(select=needs_rounding_down), head(Cropped, handles_offset=True)],
    ids=["resizes", "selects", "crops"],
)
def test_accepts_a_correct_head(correct):
    check_head(correct)


@pytest.mark.needs_torch
@pytest.mark.slow
def test_reference_with_the_argument_out_hw_receives_the_size():
    import torch

    received = set()

    class Reference(torch.nn.Module):
        def __init__(self, feature, num_classes):
            super().__init__()
            self.conv = torch.nn.Conv2d(feature.channels, num_classes, 1)
            self.stride = feature.stride

        def forward(self, x, out_hw):
            received.add(out_hw)
            y = self.conv(x).repeat_interleave(self.stride, 2)
            return y.repeat_interleave(self.stride, 3)[..., : out_hw[0], : out_hw[1]]

    check_head(
        head(
            torch=TorchBridge(
                tables=Table(conv("conv", bias=True)),
                reference=lambda options, features, num_classes: Reference(
                    features[-1], num_classes
                ),
            )
        )
    )
    assert received == {(65, 97)}


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (head(Uncropped), r"has shape \(1, 96, 128, 7\); promised is \(1, 65, 97, 7\)"),
        (head(OneClassTooMany), r"has shape \(1, 64, 64, 8\); promised is \(1, 64, 64, 7\)"),
        (head(Mixing), "depends on the rest of its batch"),
        (head(handles_offset=True), "its logits do not begin at the image's corner"),
        (
            head(
                handles_offset=True,
                select=first_and_aligned_last,
                torch=None,
                build=lambda options, features, *, num_classes, **types: Summing(
                    features, num_classes, **types
                ),
            ),
            "it ignores a feature's `offset`; crop by it, or do not set `handles_offset`",
        ),
        (
            head(select=lambda options, specs: ("layer4",)),
            r"select returned \('layer4',\); it must name some of",
        ),
        (head(select=lambda options, specs: ()), r"select returned \(\)"),
        (
            head(select=refuse),
            "does not accept the features of any backbone: .*needs a feature of stride 3",
        ),
        (
            head(torch=TorchBridge(tables=lambda options: {"torchvision": Table()})),
            r"has no rule for 'conv\.bias'",
        ),
        (
            head(torch=TorchBridge(tables=lambda options: {"d2l": Table()})),
            "a table for the key format 'torchvision' is required",
        ),
    ],
)
def test_rejects_a_broken_promise(broken, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_head(broken)


@pytest.mark.slow
def test_accepts_fcn32s():
    check_head(FCN32S)
