"""The contract suites: honest plugins pass, and each kind of lie is caught."""

import dataclasses
import math
import re
import subprocess
import sys
import textwrap
import threading
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax import cli, nn
from fcn_jax.api import (
    Backbone,
    Classes,
    Dataset,
    Example,
    FeatureSpec,
    Head,
    Model,
    ModelSpec,
    NoOptions,
    Record,
    TorchBridge,
    Weights,
    require_no_offset,
)
from fcn_jax.data.datasets.shapes import draw_scene
from fcn_jax.data.transforms import resize
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.models.fcn import FCN32S
from fcn_jax.models.resnet import RESNET18
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins import registry
from fcn_jax.plugins.testing.contract import check_eval_mode
from fcn_jax.plugins.testing.imports import import_cost
from fcn_jax.plugins.testing.subject import Subject
from fcn_jax.pytorch.rules import Op, Rule, Table, batch_norm, conv, drop
from fcn_jax.testing import check_backbone, check_dataset, check_head, check_model


class Tiny(nnx.Module):
    """Two strided convolutions with batch normalization: strides 2 and 4."""

    def __init__(self, *, dtype, param_dtype, rngs):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv1 = nn.Conv(3, 4, 3, stride=2, padding=1, rngs=rngs, **types)
        self.bn1 = nn.BatchNorm(4, **types)
        self.conv2 = nn.Conv(4, 6, 3, stride=2, padding=1, rngs=rngs, **types)

    def __call__(self, x):
        a = nnx.relu(self.bn1(self.conv1(x)))
        return {"a": a, "b": nnx.relu(self.conv2(a))}


class Unnormalized(Tiny):
    """Normalizes by the batch's statistics, in eval mode too."""

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


class Calls(nnx.Variable):
    """A kind of state of a plugin's own."""


class Counting(Tiny):
    """Counts its calls, in eval mode too, beside a random key that no one looks at."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.calls = Calls(jnp.zeros((), jnp.int32))
        self.key = Calls(jax.random.key(0))

    def __call__(self, x):
        self.calls[...] += self.counts(x)
        return super().__call__(x)

    def counts(self, x):
        return 1


class Still(Counting):
    """Has such state, and leaves it alone."""

    def counts(self, x):
        return 0


class Remembering(Tiny):
    """Keeps what it has seen."""

    def __call__(self, x):
        self.seen = nnx.Variable(x.mean())
        return super().__call__(x)


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
        return {
            name: value - value.mean((1, 2), keepdims=True)
            for name, value in super().__call__(x).items()
        }


class Slicing(Tiny):
    """Cuts off a row and a column by itself."""

    def __call__(self, x):
        return super().__call__(x[:, :-1, :-1])


class TwoRoundings(Tiny):
    """Halves the image in two ways, one of which rounds down."""

    def __call__(self, x):
        nn.max_pool(x, 2, 2)
        return super().__call__(x)


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
TABLE = Table(
    conv("conv1", bias=True),
    batch_norm("bn1"),
    conv("conv2", bias=True),
    drop("fc.*", "classifier"),
)


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
            "torch": TorchBridge(
                tables=lambda options: {"torchvision": table}, reference=reference
            ),
            **fields,
        }
    )


def changed(index, **fields):
    specs = list(SPECS)
    specs[index] = dataclasses.replace(specs[index], **fields)
    return tuple(specs)


def test_state_of_another_kind_may_be_there_and_stay():
    check_eval_mode(
        Subject(
            "tiny",
            lambda dtype: Still(dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)),
            lambda module, inputs: module(**inputs),
        ),
        {"x": np.zeros((3, 9, 9, 3), np.float32)},
    )


def test_an_honest_backbone_passes():
    check_backbone(backbone(maskable=True))
    check_backbone(backbone(torch=None))


@pytest.mark.needs_torch
def test_an_honest_backbone_equals_its_reference():
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
        (
            backbone(specs=changed(1, stride=8, size=up(8)), output_strides=(8,)),
            r"promised is \(1, 8, 8, 6\)",
        ),
        (
            backbone(specs=changed(1, size=lambda n: n // 4)),
            r"has shape \(1, 17, 25, 6\), promised is \(1, 16, 24, 6\)",
        ),
        (backbone(specs=changed(0, size=lambda n: 200 - n)), "size shrinks"),
        (
            backbone(specs=changed(0, size=lambda n: (n - 1) // 2)),
            "feature 'a' covers no image of 1 to 4 pixels; .* 1 cells of 2",
        ),
        (
            backbone(specs=changed(1, offset=4)),
            "feature 'b' covers no image of 1 to 8 pixels; .* the first 4 pixels before",
        ),
        (backbone(specs=SPECS[::-1]), "they go from shallow to deep"),
        (backbone(specs=changed(0, name="b")), "each name must be there once"),
        (
            backbone(specs=changed(0, name="c")),
            r"it returns \['a', 'b'\], its descriptor promises \['c', 'b'\]",
        ),
        (backbone(Swapped), r"it returns \['b', 'a'\]"),
        (backbone(Widened), "is float32 where the compute dtype is bfloat16"),
        (backbone(Unnormalized), "in eval mode a call changes bn1"),
        (backbone(Counting), "in eval mode a call changes calls$"),
        (backbone(Remembering), "in eval mode a call changes seen$"),
        (backbone(Noisy), "differs between two calls in eval mode"),
        (backbone(Infinite), "the gradient is not finite at"),
        (
            backbone(Averaging, maskable=True),
            "'a' of an image depends on what lies beside it in its array",
        ),
        (
            backbone(
                Slicing,
                maskable=True,
                specs=tuple(
                    dataclasses.replace(spec, size=up_but_one(spec.stride)) for spec in SPECS
                ),
            ),
            "not known: this network slices or pads by itself",
        ),
        (
            backbone(TwoRoundings, maskable=True),
            "of images of many sizes in an array of 128x192, .* 64x96 pixels is not known: this network has two such features",
        ),
        (backbone(output_strides=()), "must name at least one"),
        (
            backbone(api_version=(2, 0)),
            r"backbone 'tiny': it was written for version 2\.0 of the plugin contract .*: upgrade fcn-jax",
        ),
        (backbone(api_version="1.0"), "it has api_version '1.0'; it must be two integers"),
        (backbone(api_version=(1, False)), "it must be two integers"),
        (backbone(options=int), "must be a frozen dataclass"),
        (
            backbone(table=Table(conv("conv1", bias=True), batch_norm("bn1"))),
            r"has no rule for 'conv2\.bias'",
        ),
        (
            backbone(
                torch=TorchBridge(
                    lambda options: {"torchvision": TABLE},
                    standalone_tables=lambda options: {"d2l": TABLE},
                )
            ),
            "must be there",
        ),
        (
            backbone(
                torch=TorchBridge(
                    lambda options: {"torchvision": TABLE},
                    standalone_tables=lambda options: {
                        "torchvision": Table(conv("conv1", bias=True))
                    },
                )
            ),
            r"has no rule for 'bn1\.bias'",
        ),
        (
            backbone(table=Table(Rule("conv1.bias", "conv2.bias"), TABLE.rules)),
            r"gives both 'conv1.bias' and 'conv2.bias' the name 'conv1.bias'|turns 'conv1.bias' into 'conv1.bias', but that back",
        ),
        (
            backbone(
                table=Table(Rule("x.{i}", "conv{i}.kernel"), Rule("x.1", "bn1.mean"), TABLE.rules)
            ),
            "the name 'x.1'|but that back",
        ),
    ],
)
def test_a_backbones_lie_is_caught(liar, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_backbone(liar)


def test_an_operation_that_loses_something_is_caught():
    lossy = Op("lossy", lambda x: x, lambda x: x.round(2))
    with pytest.raises(
        AssertionError, match=r"'lossy' does not bring 'conv1.kernel' of shape .* back"
    ):
        check_backbone(
            backbone(table=Table(Rule("conv1.weight", "conv1.kernel", lossy), TABLE.rules))
        )


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
@pytest.mark.needs_torch
def test_a_reference_that_is_not_equal_is_caught(table, settings, complaint):
    def reference(options, output_stride):
        return torch_reference(options, output_stride, **settings)

    with pytest.raises(AssertionError, match=complaint):
        check_backbone(backbone(table=table, reference=reference))


@pytest.mark.needs_torch
def test_a_reference_that_shows_no_features_is_caught():
    import torch

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


class Doubled(Top):
    """Gives blocks of other logits than its own."""

    factor = 2

    def logits_in_blocks(self, features, *, out_hw):
        logits = self(features, out_hw=out_hw) * self.factor
        side = max(out_hw)
        padded = jnp.pad(logits, ((0, 0), (0, side - out_hw[0]), (0, side - out_hw[1]), (0, 0)))
        return SubpixelLogits(padded.transpose(0, 3, 1, 2)[:, None, None], 0, 0, *out_hw)


class Honest(Doubled):
    """Gives its own logits in one block."""

    factor = 1


class UncroppedBlocks(Honest):
    """Gives blocks of another size."""

    def logits_in_blocks(self, features, *, out_hw):
        return super().logits_in_blocks(features, out_hw=(out_hw[0] - 1, out_hw[1]))


class Blockless(Top):
    """Gives its logits as they are where blocks are asked for."""

    def logits_in_blocks(self, features, *, out_hw):
        return self(features, out_hw=out_hw)


class Uncropped(Top):
    """Returns whole feature pixels."""

    def __call__(self, features, *, out_hw):
        return super().__call__(features, out_hw=(10**6, 10**6))


class OneClassTooMany(Top):
    """Makes room for a class of its own."""

    def __init__(self, feature, num_classes, **types):
        super().__init__(feature, num_classes + 1, **types)


class Cropped(Top):
    """Cuts off what lies before the image."""

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


class HalvedTwice(Top):
    """Halves its feature in two ways, and goes on from the one that rounds up."""

    def __call__(self, features, *, out_hw):
        nn.max_pool(features[self.name], 2, 2)
        halved = nn.max_pool(features[self.name], 3, 2, 1)
        return super().__call__(features, out_hw=out_hw) + nn.global_average_pool(halved)[..., :1]


class Mixing(Top):
    """Looks at the whole batch."""

    def __call__(self, features, *, out_hw):
        return super().__call__(
            {name: value - value.mean() for name, value in features.items()}, out_hw=out_hw
        )


def deepest(options, specs):
    return (specs[-1].name,)


def no_offset(options, specs):
    require_no_offset("top", specs[-1:])
    return deepest(options, specs)


def head(module=Top, select=no_offset, **fields):
    return Head(
        **{
            "name": "top",
            "summary": "for tests",
            "select": select,
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


def no_offset_of_the_deepest(options, specs):
    require_no_offset("top", specs[-1:])
    return (specs[0].name, specs[-1].name)


def needs_rounding_down(options, specs):
    if specs[0].stride != 2:
        raise ConfigError("needs a feature of stride 2")
    return (specs[0].name, specs[-1].name)


@pytest.mark.parametrize(
    ("module", "select"), [(Top, no_offset), (Top, needs_rounding_down), (Cropped, deepest)]
)
def test_an_honest_head_passes(module, select):
    check_head(head(module, select))


def test_a_head_that_gives_its_logits_in_blocks_passes():
    check_head(head(Honest))


@pytest.mark.parametrize(
    ("liar", "complaint"),
    [
        (head(Uncropped), r"has shape \(1, 96, 128, 7\), promised is \(1, 65, 97, 7\)"),
        (head(OneClassTooMany), r"has shape \(1, 64, 64, 8\), promised is \(1, 64, 64, 7\)"),
        (head(Mixing), "depends on the rest of its batch"),
        (
            head(HalvedTwice, maskable=True),
            "in an array of 128x192, .* 2x3 pixels is not known: this network has two such features",
        ),
        (head(select=deepest), "its logits are not those of the image, but begin elsewhere"),
        (
            head(
                select=no_offset_of_the_deepest,
                torch=None,
                build=lambda options, features, *, num_classes, **types: Summing(
                    features, num_classes, **types
                ),
            ),
            "where a feature begins makes no difference to it; it must account for `offset`, or refuse it in `select`",
        ),
        (head(Doubled), r"logits_in_blocks differs from the head's logits \(by 1\.0e\+00\)"),
        (
            head(UncroppedBlocks),
            r"logits_in_blocks gives \(3, 64, 97, 7\), the head itself \(3, 65, 97, 7\)",
        ),
        (head(Blockless), "it must give fcn_jax.nn._subpixel.SubpixelLogits or None"),
        (
            head(select=lambda options, specs: ("layer4",)),
            r"select gave \('layer4',\); it must name some of",
        ),
        (head(select=lambda options, specs: ()), r"select gave \(\)"),
        (head(select=refuse), "refuses every backbone: .*needs a feature of stride 3"),
        (
            head(torch=TorchBridge(tables=lambda options: {"torchvision": Table()})),
            r"has no rule for 'conv\.bias'",
        ),
        (
            head(torch=TorchBridge(tables=lambda options: {"d2l": Table()})),
            "the scheme 'torchvision' must be there",
        ),
    ],
)
def test_a_heads_lie_is_caught(liar, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_head(liar)


def test_fcn32s_keeps_its_promises():
    check_head(FCN32S)


@pytest.mark.slow
@pytest.mark.needs_torch
def test_resnet18_keeps_its_promises():
    check_backbone(RESNET18)


def test_options_are_a_table():
    with pytest.raises(ConfigError, match="unknown key 'width'"):
        check_backbone(backbone(options=NoOptions), {"width": 3})


# ------------------------------------------------------------------------------------------------------------------ whole models


def whole(num_classes=3, **fields):
    names = {field.name for field in dataclasses.fields(ModelSpec)}
    settings = {name: value for name, value in fields.items() if name in names}
    return Model(
        **{
            "name": "whole",
            "summary": "for tests",
            "spec": ModelSpec(**{"num_classes": num_classes, **settings}),
            **{name: value for name, value in fields.items() if name not in names},
        }
    )


def test_an_honest_model_passes():
    check_model("fcn32s_resnet18")
    check_model(whole(aux_head="fcn", output_stride=16))


GOOD_WEIGHTS = Weights("https://example.org/net-0123abcd.pth", "0123abcd")


@pytest.mark.parametrize(
    ("liar", "complaint"),
    [
        (
            whole(backbone="resnet81"),
            "its parts do not make a model: no backbone is named 'resnet81'. Did you mean 'resnet18'",
        ),
        (whole(head="fcn31s"), "no head is named 'fcn31s'"),
        (whole(head_options={"depth": 3}), "unknown key 'depth'"),
        (whole(output_stride=7), "no output stride 7; it offers 32, 16, 8"),
        (whole(aux_head="fcn", aux_feature="layer9"), "aux_feature is 'layer9'"),
        (whole(num_classes=0), "num_classes is 0; it must be from 1 to 255"),
        (whole(name="dist:whole"), "must be one word without a colon"),
        (whole(summary="two\nlines"), "the summary must be one line"),
        (whole(api_version=(3, 0)), "api_version"),
        (
            whole(weights={"V1": dataclasses.replace(GOOD_WEIGHTS, sha256="0123")}),
            "at least 8 leading hexadecimal digits",
        ),
        (
            whole(weights={"V1": dataclasses.replace(GOOD_WEIGHTS, url="net.pth")}),
            "must be the address of a .pth or .safetensors",
        ),
        (whole(weights={"v1.pth": GOOD_WEIGHTS}), "reads as a file"),
    ],
)
def test_a_models_lie_is_caught(liar, complaint):
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        check_model(liar)


@pytest.mark.needs_torch
def test_an_original_with_other_tensors_is_caught():
    import torch

    with pytest.raises(AssertionError, match="against its PyTorch original: "):
        check_model(
            whole(
                reference_model=lambda num_classes, aux: torch.nn.Sequential(
                    torch.nn.Conv2d(3, num_classes, 1)
                )
            )
        )


# --------------------------------------------------------------------------------------------------------------------- datasets


class Pictures:
    """Three made-up pictures in memory."""

    def __init__(
        self, names=("a", "b"), palette=((0, 0, 0), (9, 9, 9)), ids=("0", "1", "2"), decode=None
    ):
        self.classes = Classes(names, palette)
        self.ids, self.change = ids, decode

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return Record(self.ids[index], b"picture", b"mask")

    def decode(self, record):
        if b"no picture" in (record.image, record.mask):
            raise DataError(f"{record.id}: no picture")
        example = Example(record.id, np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 1, np.uint8))
        return self.change(example) if self.change else example


class Trusting(Pictures):
    """Does not look at what it decodes."""

    def decode(self, record):
        return super().decode(record._replace(image=b"", mask=b""))


class Resizing(Pictures):
    """Decodes at other sizes; `resized` is what becomes of the pictures."""

    def __init__(self, resized=None):
        super().__init__()
        self.resized = resized

    def decode(self, record):
        mask = np.arange(60 * 80, dtype=np.uint8).reshape(60, 80) % 2
        image = (
            np.repeat(np.arange(80, dtype=np.uint8) * 3, 60 * 3).reshape(80, 60, 3).swapaxes(0, 1)
        )
        return super().decode(record)._replace(image=np.ascontiguousarray(image), mask=mask)

    def decode_resized(self, record, factor):
        example = resize(self.decode(record), factor)
        return (
            self.resized(example)
            if self.resized and (factor <= 0.5 or self.resized is brighter)
            else example
        )


class ResizingScenes(Resizing):
    """Pictures with edges and grain, as photographs have."""

    def decode(self, record):
        scene = draw_scene(0, (120, 160))[0] + np.random.default_rng(0).normal(0, 12, (120, 160, 3))
        image = np.clip(scene, 0, 255).astype(np.uint8)
        return super().decode(record)._replace(image=image, mask=image[..., 0] & 1)


class ResizingTrusting(Resizing):
    """Does not look at what it decodes at another size."""

    def decode_resized(self, record, factor):
        return super().decode_resized(record._replace(image=b"", mask=b""), factor)


class Unpicklable(Pictures):
    """Holds what cannot be sent to another process."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Restless:
    """Opened again, it holds another order."""

    def __init__(self):
        self.turn = 0

    def __call__(self):
        self.turn += 1
        return Pictures(ids=("0", "1") if self.turn % 2 else ("1", "0"))


def pictures(make=Pictures, splits=("train", "val"), error=DataError, **fields):
    def open_split(root, split):
        if split not in splits:
            raise error(f"no split {split}")
        return make()

    return Dataset(**{"name": "pictures", "summary": "for tests", "open": open_split, **fields})


def wide(example):
    return example._replace(image=example.image.astype(np.float32))


def tall(example):
    return example._replace(mask=example.mask[:3])


def unknown(example):
    return example._replace(mask=example.mask + 6)


def brighter(example):
    return example._replace(image=example.image + 1)


def mirrored(example):
    return example._replace(image=example.image[:, ::-1])


def shifted(example):
    return example._replace(image=np.roll(example.image, 1, axis=1))


def lowered(example):
    return example._replace(image=np.roll(example.image, 1, axis=0))


def relabeled(example):
    return example._replace(mask=1 - example.mask)


def cut(example):
    return Example(example.id, example.image[:-1], example.mask[:-1])


def renamed(example):
    return example._replace(id="x")


def test_an_honest_data_set_passes():
    check_dataset(pictures())
    check_dataset(pictures(Resizing))
    check_dataset(pictures(ResizingScenes))


@pytest.mark.parametrize(
    ("liar", "complaint"),
    [
        (pictures(error=KeyError), "a split 'no-such-split' raises KeyError"),
        (pictures(splits=("train", "val", "no-such-split")), "is opened; it must raise DataError"),
        (pictures(lambda: Pictures(ids=())), "holds no images"),
        (pictures(lambda: Pictures(ids=("0", "0"))), "images share a name: 0"),
        (pictures(lambda: Pictures(ids=(0, 1))), "an fcn_jax.api.Record with a name"),
        (pictures(Restless()), "opened twice, it holds other images or another order"),
        (pictures(Unpicklable), "does not pickle"),
        (pictures(lambda: Pictures(names=("a", "a"))), "each name must be there once"),
        (pictures(lambda: Pictures(palette=((0, 0, 0),))), "one RGB color"),
        (
            pictures(lambda: Pictures(decode=wide)),
            "the image is float32[4, 6, 3]; it must be uint8[H, W, 3]",
        ),
        (pictures(lambda: Pictures(decode=tall)), "the mask is uint8[3, 6]"),
        (pictures(lambda: Pictures(decode=unknown)), "labels 7; allowed are 0 to 1 and 255"),
        (pictures(lambda: Pictures(decode=renamed)), "decode calls it 'x'"),
        (pictures(Trusting), "decode takes a image that is not there"),
        (
            pictures(lambda: Resizing(brighter)),
            "decode_resized by 0.7: the image is 1.0 of 255 off",
        ),
        (pictures(lambda: Resizing(mirrored)), "decode_resized by 0.45: the image is"),
        (pictures(lambda: ResizingScenes(shifted)), "decode_resized by 0.45: the image is"),
        (pictures(lambda: ResizingScenes(lowered)), "decode_resized by 0.45: the image is"),
        (pictures(lambda: Resizing(relabeled)), "decode_resized by 0.45: the mask is another"),
        (
            pictures(lambda: Resizing(cut)),
            "decode_resized by 0.45: the image is uint8[26, 36, 3]; it must be uint8[27, 36, 3]",
        ),
        (pictures(lambda: Resizing(renamed)), "decode_resized by 0.45: it calls it 'x'"),
        (pictures(ResizingTrusting), "decode_resized takes a image that is not there"),
        (pictures(api_version=(9, 0)), "api_version"),
    ],
)
def test_a_data_sets_lie_is_caught(liar, complaint):
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        check_dataset(liar)


def write_folder(root, *splits):
    """A dataset of one image in each split."""
    for part in ("images", "masks"):
        for split in splits:
            (root / part / split).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 6), np.uint8)).save(root / part / split / "0.png")
    (root / "classes.txt").write_text("one\n")


def test_a_folder_is_held_against_the_contract_too(tmp_path):
    write_folder(tmp_path, "train", "val")
    noise = np.random.default_rng(0).integers(0, 256, (99, 131, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "val" / "0.jpg")
    (tmp_path / "images" / "val" / "0.png").unlink()
    Image.fromarray(noise[..., 0] & 0).save(tmp_path / "masks" / "val" / "0.png")
    check_dataset("folder", tmp_path)
    with pytest.raises(ConfigError, match="splits is empty; name at least one"):
        check_dataset("folder", tmp_path, splits=())
    with pytest.raises(AssertionError, match="a root that is a file is opened"):
        check_dataset(pictures(), tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        check_dataset("folder", tmp_path / "nowhere")


@pytest.mark.parametrize("pattern", ["rows", "columns", "chequers"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_regular_textures_pass_as_photographs_do(tmp_path, pattern, size):
    rows, columns = np.mgrid[:99, :131] // size
    texture = (
        {"rows": rows, "columns": columns, "chequers": rows + columns}[pattern] % 2 * np.uint8(255)
    )
    write_folder(tmp_path, "val")
    Image.fromarray(texture.astype(np.uint8)).save(
        tmp_path / "images" / "val" / "0.jpg", quality=92
    )
    (tmp_path / "images" / "val" / "0.png").unlink()
    Image.fromarray(np.zeros((99, 131), np.uint8)).save(tmp_path / "masks" / "val" / "0.png")
    check_dataset("folder", tmp_path, splits=("val",))


# --------------------------------------------------------------------------------------------------
# the command and the fixture


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A function that registers the modules it is given: name -> code, with a plugin PLUGIN each, of the kind "backbones"."""

    def register(**modules):
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        lines = [f"{name} = {name}:PLUGIN" for name in modules]
        (info / "entry_points.txt").write_text("\n".join(["[fcn_jax.backbones]", *lines]) + "\n")
        for name, code in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(tmp_path)
        points = [
            point
            for found in metadata.distributions(path=[str(tmp_path)])
            for point in found.entry_points
        ]
        plugins = registry.Registry(points)
        monkeypatch.setattr(registry, "default", lambda: plugins)

    yield register
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None)]:
        if Path(sys.modules[name].__file__).parent == tmp_path:
            del sys.modules[name]


NET = """
    from flax import nnx
    from fcn_jax import nn
    from fcn_jax.api import Backbone, FeatureSpec

    class Net(nnx.Module):
        def __init__(self, **settings):
            self.conv = nn.Conv(3, 4, 3, stride=2, padding=1, **settings)

        def __call__(self, x):
            return {{"only": self.conv(x)}}

    PLUGIN = Backbone(
        name="{name}",
        summary="one convolution",
        output_strides=(2,),
        features=lambda options, output_stride: (FeatureSpec("only", {channels}, 2, lambda n: -(-n // 2)),),
        build=lambda options, *, output_stride, **settings: Net(**settings),
    )
"""


def test_the_command_gives_a_verdict(registered, capsys):
    registered(
        honest_net=NET.format(name="honest_net", channels=4),
        lying_net=NET.format(name="lying_net", channels=5),
    )
    assert cli.main(["plugins", "check", "mine:honest_net"]) == 0
    shown = capsys.readouterr().out
    assert "backbone 'honest_net' of mine 1.0 (honest_net:PLUGIN)" in shown
    assert "s over fcn_jax itself, 1 modules" in shown
    assert "1.0; this fcn-jax has 1.0" in shown
    assert "every promise is kept" in shown
    assert cli.main(["plugins", "check", "lying_net"]) == 1
    assert (
        "BROKEN  contract     backbone 'lying_net' at output stride 2: 'only' of an input"
        in capsys.readouterr().out
    )


def test_a_name_of_several_kinds_is_checked_as_each_or_as_the_one_meant(
    tmp_path, monkeypatch, capsys
):
    write_folder(tmp_path, "train", "val")
    model = registry.Entry("models", "folder", "acme", "1", "nowhere:FOLDER")
    plugins = registry.Registry([registry.default().find("datasets", "folder"), model])
    monkeypatch.setattr(registry, "default", lambda: plugins)
    assert cli.main(["plugins", "check", "folder", "--data", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert (
        "'folder' is of several kinds, and --data for one of them: add --kind model or --kind dataset"
        in shown.err
    )
    assert not shown.out
    assert (
        cli.main(["plugins", "check", "folder", "--kind", "dataset", "--data", str(tmp_path)]) == 0
    )
    assert "every promise is kept" in capsys.readouterr().out
    assert cli.main(["plugins", "check", "folder", "--kind", "head"]) == 2
    assert "no head is named 'folder'" in capsys.readouterr().err
    assert cli.main(["plugins", "check", "folder", "--kind", "model"]) == 1
    assert "No module named 'nowhere'" in capsys.readouterr().out


def test_the_splits_of_a_data_set_are_chosen(tmp_path, capsys):
    write_folder(tmp_path, "train", "test", "extra")
    command = ["plugins", "check", "folder", "--data", str(tmp_path)]
    assert cli.main(command) == 2
    shown = capsys.readouterr().err
    assert "has no split 'val'. Available: extra, test, train." in shown
    assert shown.rstrip().endswith("Without --split, train and val are checked")
    assert cli.main([*command, "--split", "train", "--split", "test"]) == 0
    assert cli.main([*command, "--split", "nowhere"]) == 2
    assert "has no split 'nowhere'. Available: extra, test, train." in capsys.readouterr().err


def test_the_command_tells_of_an_import_that_is_heavy_or_fails_or_hangs(
    registered, capsys, tmp_path
):
    (tmp_path / "torch.py").write_text("")
    registered(
        heavy_net="import torch\n" + textwrap.dedent(NET.format(name="heavy_net", channels=4)),
        broken_net="1 / 0",
        slow_net="import time; time.sleep(600)",
    )
    assert cli.main(["plugins", "check", "broken_net"]) == 1
    assert (
        "BROKEN  import       backbone 'broken_net' of mine 1.0 (broken_net:PLUGIN) cannot be"
        in capsys.readouterr().out
    )
    assert cli.main(["plugins", "check", "slow_net", "--timeout", "2"]) == 1
    assert "BROKEN  import       timed out after 2 s at import" in capsys.readouterr().out
    cost = import_cost(registry.default().find("backbones", "heavy_net"))
    assert (cost.fault, cost.heavy) == (None, ("torch",))


def test_the_command_tells_of_a_network_that_cannot_be_built(registered, capsys):
    code = textwrap.dedent(NET.format(name="odd_net", channels=4)).replace(
        "Net(**settings)", "Net(settings)"
    )
    registered(odd_net=code)
    assert cli.main(["plugins", "check", "odd_net"]) == 1
    assert "it cannot be built or run: TypeError: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["resnet81"],
            "no backbone, head, model or dataset is named 'resnet81'. Did you mean 'resnet18'",
        ),
        (["resnet18", "--set", "depth=3"], "unknown key 'depth'"),
        (["resnet18", "--data", "x"], "--data is for a dataset"),
        (["resnet18", "--split", "val"], "--split is for a dataset"),
        (["no-such-nets:resnet18"], "no-such-nets is not installed: pip install no-such-nets"),
        (["fcn32s_resnet18", "--set", "width=3"], "--set is for the options of a backbone or head"),
        (["folder", "--data", "nowhere"], "does not exist"),
    ],
)
def test_the_command_exits_with_2_for_bad_input(arguments, complaint, capsys):
    assert cli.main(["plugins", "check", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_the_fixture_offers_the_suite(plugin_contract):
    assert plugin_contract.check_backbone is check_backbone
    assert {"check_backbone", "check_dataset", "check_head", "check_model"} <= set(
        plugin_contract.__all__
    )


@pytest.mark.parametrize("name", ["fcn-jax-tiny", "FCN_Jax.tiny"])
def test_a_fixture_registers_what_a_project_file_says(plugin_project, tmp_path, name):
    groups = '[project.entry-points."fcn_jax.heads"]\nnew_head = "mine:HEAD"\n[project.entry-points.other]\nx = "y"\n'
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "7"\n{groups}')
    assert "tiny" in registry.default().names("backbones"), (
        "the installed copy, which the project file stands in for"
    )
    plugins = plugin_project(tmp_path / "pyproject.toml")
    assert registry.default() is plugins
    assert plugins.find("heads", "new_head") == registry.Entry(
        "heads", "new_head", name, "7", "mine:HEAD"
    )
    assert "resnet18" in plugins.names("backbones")
    assert "tiny" not in plugins.names("backbones")


def test_the_pytest_plugin_costs_a_run_that_does_not_use_it_nothing(tmp_path):
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_it():\n    assert 'fcn_jax.plugins.testing.pytest_plugin' in sys.modules\n"
        "    assert not {'jax', 'flax', 'numpy', 'torch', 'pydantic'} & set(sys.modules)\n"
    )
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
