"""The contract suites: honest plugins pass, and each kind of lie is caught."""

import dataclasses
import math

import jax.numpy as jnp
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import Backbone, FeatureSpec, Head, NoOptions, TorchBridge
from fcn_jax.convert.rules import Op, Rule, Table, batch_norm, conv, drop
from fcn_jax.errors import ConfigError
from fcn_jax.models.fcn import FCN32S
from fcn_jax.models.resnet import RESNET18
from fcn_jax.testing import check_backbone, check_head


class Tiny(nnx.Module):
    """Two strided convolutions with batch normalisation: strides 2 and 4."""

    def __init__(self, *, dtype, param_dtype, rngs):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv1 = nn.Conv(3, 4, 3, stride=2, padding=1, rngs=rngs, **types)
        self.bn1 = nn.BatchNorm(4, **types)
        self.conv2 = nn.Conv(4, 6, 3, stride=2, padding=1, rngs=rngs, **types)

    def __call__(self, x):
        a = nnx.relu(self.bn1(self.conv1(x)))
        return {"a": a, "b": nnx.relu(self.conv2(a))}


class Unnormalised(Tiny):
    """Normalises by the batch's statistics, in eval mode too."""

    def __call__(self, x):
        self.bn1.use_running_average = False
        return super().__call__(x)


class Noisy(Tiny):
    """Drops at random, in eval mode too."""

    def __init__(self, *, rngs, **types):
        super().__init__(rngs=rngs, **types)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        self.dropout.deterministic = False
        return {name: self.dropout(value) for name, value in super().__call__(x).items()}


class Swapped(Tiny):
    """Returns its features from deep to shallow."""

    def __call__(self, x):
        return dict(reversed(super().__call__(x).items()))


class Widened(Tiny):
    """Returns float32 whatever the compute dtype."""

    def __call__(self, x):
        return {name: value.astype(jnp.float32) for name, value in super().__call__(x).items()}


class Averaging(Tiny):
    """Subtracts the whole array's mean, whatever part of it the image fills."""

    def __call__(self, x):
        return {name: value - value.mean((1, 2), keepdims=True) for name, value in super().__call__(x).items()}


class Slicing(Tiny):
    """Cuts off a row and a column by itself."""

    def __call__(self, x):
        return super().__call__(x[:, :-1, :-1])


class Infinite(Tiny):
    """Has a gradient that is not finite: of a square root at 0."""

    def __call__(self, x):
        features = super().__call__(x)
        return {**features, "b": jnp.sqrt(0 * features["b"])}


def up(stride):
    return lambda size: math.ceil(size / stride)


def up_but_one(stride):
    return lambda size: math.ceil((size - 1) / stride)


SPECS = (FeatureSpec("a", 4, 2, up(2)), FeatureSpec("b", 6, 4, up(4)))
TABLE = Table(conv("conv1", bias=True), batch_norm("bn1"), conv("conv2", bias=True), drop("fc.*", "classifier"))


def torch_reference(options, output_stride, eps=1e-5, relu=True):
    import torch

    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 4, 3, 2, 1)
            self.bn1 = torch.nn.BatchNorm2d(4, eps=eps)
            self.conv2 = torch.nn.Conv2d(4, 6, 3, 2, 1)
            self.fc = torch.nn.Linear(6, 10)

        def forward(self, x):
            a = self.bn1(self.conv1(x)).relu()
            b = self.conv2(a)
            return {"a": a, "b": b.relu() if relu else b}

    return Reference()


def backbone(module=Tiny, specs=SPECS, table=TABLE, reference=None, **fields):
    return Backbone(
        **{
            "name": "tiny",
            "summary": "for tests",
            "output_strides": (4,),
            "features": lambda options, output_stride: specs,
            "build": lambda options, *, output_stride, **types: module(**types),
            "torch": TorchBridge(tables=lambda options: {"torchvision": table}, reference=reference),
            **fields,
        }
    )


def changed(index, **fields):
    specs = list(SPECS)
    specs[index] = dataclasses.replace(specs[index], **fields)
    return tuple(specs)


def test_an_honest_backbone_passes():
    check_backbone(backbone(maskable=True))
    check_backbone(backbone(torch=None))


def test_an_honest_backbone_equals_its_reference():
    pytest.importorskip("torch")
    check_backbone(backbone(reference=torch_reference))


@pytest.mark.parametrize(
    ("liar", "complaint"),
    [
        (
            backbone(specs=changed(0, channels=5)),
            r"'a' of an input of \(1, 64, 64, 3\) has shape .*, promised is \(1, 32, 32, 5\)",
        ),
        (backbone(specs=changed(1, stride=8)), "deepest feature has stride 8"),
        (
            backbone(specs=changed(1, stride=8), output_strides=(8,)),
            r"stride is 8, but size\(512\) is 128 and size\(520\) is 130",
        ),
        (backbone(specs=changed(1, stride=8, size=up(8)), output_strides=(8,)), r"promised is \(1, 8, 8, 6\)"),
        (backbone(specs=changed(1, size=lambda n: n // 4)), r"has shape \(1, 17, 25, 6\), promised is \(1, 16, 24, 6\)"),
        (backbone(specs=changed(0, size=lambda n: 200 - n)), "size shrinks"),
        (backbone(specs=SPECS[::-1]), "they go from shallow to deep"),
        (backbone(specs=changed(0, name="b")), "each name must be there once"),
        (backbone(specs=changed(0, name="c")), r"it returns \['a', 'b'\], its descriptor promises \['c', 'b'\]"),
        (backbone(Swapped), r"it returns \['b', 'a'\]"),
        (backbone(Widened), "is float32 where the compute dtype is bfloat16"),
        (backbone(Unnormalised), "in eval mode a call changes bn1"),
        (backbone(Noisy), "differs between two calls in eval mode"),
        (backbone(Infinite), "the gradient is not finite at"),
        (backbone(Averaging, maskable=True), "'a' of an image depends on what lies beside it in its array"),
        (
            backbone(
                Slicing, maskable=True, specs=tuple(dataclasses.replace(spec, size=up_but_one(spec.stride)) for spec in SPECS)
            ),
            "not known: this network slices or pads by itself",
        ),
        (backbone(output_strides=()), "must name at least one"),
        (backbone(api_version=(2, 0)), "api_version"),
        (backbone(options=int), "must be a frozen dataclass"),
        (backbone(table=Table(conv("conv1", bias=True), batch_norm("bn1"))), r"has no rule for 'conv2\.bias'"),
        (
            backbone(torch=TorchBridge(lambda options: {"torchvision": TABLE}, alone=lambda options: {"d2l": TABLE})),
            "must be there",
        ),
        (
            backbone(
                torch=TorchBridge(
                    lambda options: {"torchvision": TABLE}, alone=lambda options: {"torchvision": Table(conv("conv1", bias=True))}
                )
            ),
            r"has no rule for 'bn1\.bias'",
        ),
        (
            backbone(table=Table(Rule("conv1.bias", "conv2.bias"), TABLE.rules)),
            r"gives both 'conv1.bias' and 'conv2.bias' the name 'conv1.bias'|turns 'conv1.bias' into 'conv1.bias', but that back",
        ),
        (
            backbone(table=Table(Rule("x.{i}", "conv{i}.kernel"), Rule("x.1", "bn1.mean"), TABLE.rules)),
            "the name 'x.1'|but that back",
        ),
    ],
)
def test_a_backbones_lie_is_caught(liar, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_backbone(liar)


def test_an_operation_that_loses_something_is_caught():
    lossy = Op("lossy", lambda x: x, lambda x: x.round(2))
    with pytest.raises(AssertionError, match=r"'lossy' does not bring 'conv1.kernel' of shape .* back"):
        check_backbone(backbone(table=Table(Rule("conv1.weight", "conv1.kernel", lossy), TABLE.rules)))


@pytest.mark.parametrize(
    ("table", "settings", "complaint"),
    [
        (Table(TABLE.rules), {}, r"surplus 2: fc\.weight, fc\.bias"),
        (
            Table(Rule("other.weight", "conv1.kernel"), TABLE.rules, *TABLE.drops),
            {},
            r"missing 1: other\.weight",
        ),
        (TABLE, {"eps": 1e-2}, r"differs from its PyTorch reference: bn1: error \d"),
        (TABLE, {"relu": False}, r"differs from its PyTorch reference: b: error \d"),
    ],
)
def test_a_reference_that_is_not_equal_is_caught(table, settings, complaint):
    pytest.importorskip("torch")

    def reference(options, output_stride):
        return torch_reference(options, output_stride, **settings)

    with pytest.raises(AssertionError, match=complaint):
        check_backbone(backbone(table=table, reference=reference))


def test_a_reference_that_shows_no_features_is_caught():
    torch = pytest.importorskip("torch")

    def reference(options, output_stride):
        made = torch_reference(options, output_stride)
        made.forward = lambda x: torch.zeros(1)
        return made

    with pytest.raises(AssertionError, match="shows no a, b; it must return the features by name"):
        check_backbone(backbone(reference=reference))


class Top(nnx.Module):
    """A 1x1 convolution, each pixel repeated `stride` times."""

    def __init__(self, feature, num_classes, **types):
        self.name, self.stride = feature.name, feature.stride
        self.conv = nn.Conv(feature.channels, num_classes, 1, **types)

    def __call__(self, features, *, out_hw):
        logits = self.conv(features[self.name]).repeat(self.stride, 1).repeat(self.stride, 2)
        return logits[:, : out_hw[0], : out_hw[1]]


class Uncropped(Top):
    """Returns whole feature pixels."""

    def __call__(self, features, *, out_hw):
        return super().__call__(features, out_hw=(10**6, 10**6))


class OneClassTooMany(Top):
    """Makes room for a class of its own."""

    def __init__(self, feature, num_classes, **types):
        super().__init__(feature, num_classes + 1, **types)


class Mixing(Top):
    """Looks at the whole batch."""

    def __call__(self, features, *, out_hw):
        return super().__call__({name: value - value.mean() for name, value in features.items()}, out_hw=out_hw)


def head(module=Top, select=lambda options, specs: (specs[-1].name,), **fields):
    return Head(
        **{
            "name": "top",
            "summary": "for tests",
            "select": select,
            "build": lambda options, features, *, num_classes, **types: module(features[-1], num_classes, **types),
            "torch": TorchBridge(tables=lambda options: {"torchvision": Table(conv("conv", bias=True))}),
            **fields,
        }
    )


def refuse(options, specs):
    raise ConfigError("needs a feature of stride 3")


def needs_rounding_down(options, specs):
    if specs[0].stride != 2:
        raise ConfigError("needs a feature of stride 2")
    return (specs[0].name, specs[-1].name)


@pytest.mark.parametrize("select", [lambda options, specs: (specs[-1].name,), needs_rounding_down])
def test_an_honest_head_passes(select):
    check_head(head(select=select))


@pytest.mark.parametrize(
    ("liar", "complaint"),
    [
        (head(Uncropped), r"has shape \(1, 96, 128, 7\), promised is \(1, 65, 97, 7\)"),
        (head(OneClassTooMany), r"has shape \(1, 64, 64, 8\), promised is \(1, 64, 64, 7\)"),
        (head(Mixing), "depends on the rest of its batch"),
        (head(select=lambda options, specs: ("layer4",)), r"select gave \('layer4',\); it must name some of"),
        (head(select=lambda options, specs: ()), r"select gave \(\)"),
        (head(select=refuse), "refuses every backbone: .*needs a feature of stride 3"),
        (head(torch=TorchBridge(tables=lambda options: {"torchvision": Table()})), r"has no rule for 'conv\.bias'"),
        (head(torch=TorchBridge(tables=lambda options: {"d2l": Table()})), "the scheme 'torchvision' must be there"),
    ],
)
def test_a_heads_lie_is_caught(liar, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_head(liar)


def test_fcn32s_keeps_its_promises():
    check_head(FCN32S)


@pytest.mark.slow
def test_resnet18_keeps_its_promises():
    pytest.importorskip("torch")
    check_backbone(RESNET18)


def test_options_are_a_table():
    with pytest.raises(ConfigError, match="unknown key 'width'"):
        check_backbone(backbone(options=NoOptions), {"width": 3})
