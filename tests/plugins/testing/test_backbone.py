"""check_backbone: correct backbones pass, and each broken promise is found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import Backbone, FeatureSpec, NoOptions, TorchBridge, ceil_size
from fcn_jax.errors import ConfigError
from fcn_jax.models.resnet import RESNET18
from fcn_jax.plugins.testing.contract import check_eval_mode
from fcn_jax.plugins.testing.subject import Network, Subject
from fcn_jax.pytorch.rules import Op, Rule, Table, batch_norm, conv, drop
from fcn_jax.testing import check_backbone


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
    """Normalizes with the batch's statistics, even in eval mode."""

    def __call__(self, x):
        self.bn1.use_running_average = False
        return super().__call__(x)


class Noisy(Tiny):
    """Drops values at random, even in eval mode."""

    def __init__(self, *, rngs, **types):
        super().__init__(rngs=rngs, **types)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        self.dropout.deterministic = False
        return {name: self.dropout(value) for name, value in super().__call__(x).items()}


class Calls(nnx.Variable):
    """A kind of state that only this plugin has."""


class Counting(Tiny):
    """Counts its calls, even in eval mode, and has an unused random key."""

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
    """Has such state, and does not change it."""

    def counts(self, x):
        return 0


class Remembering(Tiny):
    """Stores a mean of its input."""

    def __call__(self, x):
        self.seen = nnx.Variable(x.mean())
        return super().__call__(x)


class Swapped(Tiny):
    """Returns its features from deep to shallow."""

    def __call__(self, x):
        return dict(reversed(super().__call__(x).items()))


class Widened(Tiny):
    """Returns float32 for any compute dtype."""

    def __call__(self, x):
        return {name: value.astype(jnp.float32) for name, value in super().__call__(x).items()}


class Infinite(Tiny):
    """Has a gradient that is not finite, of a square root at 0."""

    def __call__(self, x):
        features = super().__call__(x)
        return {**features, "b": jnp.sqrt(0 * features["b"])}


SPECS = (FeatureSpec("a", 4, 2, ceil_size(2)), FeatureSpec("b", 6, 4, ceil_size(4)))
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


def test_accepts_unchanged_state_of_other_kinds():
    check_eval_mode(
        Network(Subject("tiny"), Still, lambda module, inputs: module(*inputs)),
        [np.zeros((3, 9, 9, 3), np.float32)],
    )


def test_accepts_a_correct_backbone():
    check_backbone(backbone())
    check_backbone(backbone(torch=None))


@pytest.mark.needs_torch
@pytest.mark.slow
def test_accepts_an_equal_reference():
    check_backbone(backbone(reference=torch_reference))


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (
            backbone(specs=changed(0, channels=5)),
            r"for an input of \(1, 64, 64, 3\), 'a' has shape .*; promised is \(1, 32, 32, 5\)",
        ),
        (backbone(specs=changed(1, stride=8)), "deepest feature has stride 8"),
        (
            backbone(specs=changed(1, stride=8), output_strides=(8,)),
            r"stride is 8, but size\(512\) is 128 and size\(520\) is 130",
        ),
        (
            backbone(specs=changed(1, stride=8, size=ceil_size(8)), output_strides=(8,)),
            r"promised is \(1, 8, 8, 6\)",
        ),
        (
            backbone(specs=changed(1, size=lambda n: n // 4)),
            r"has shape \(1, 17, 25, 6\); promised is \(1, 16, 24, 6\)",
        ),
        (backbone(specs=changed(0, size=lambda n: 200 - n)), "`size` decreases"),
        (
            backbone(specs=changed(0, size=lambda n: (n - 1) // 2)),
            "feature 'a': it covers no image of 1 to 4 pixels: .* 1 cells of 2",
        ),
        (
            backbone(specs=changed(1, offset=4)),
            "feature 'b': it covers no image of 1 to 8 pixels: .* begins 4 pixels before the image",
        ),
        (backbone(specs=SPECS[::-1]), "their order must be shallow to deep"),
        (backbone(specs=changed(0, name="b")), "each name must occur once"),
        (
            backbone(specs=changed(0, name="c")),
            r"it returns \['a', 'b'\]; its descriptor promises \['c', 'b'\]",
        ),
        (backbone(Swapped), r"it returns \['b', 'a'\]"),
        (backbone(Widened), "is float32; the compute dtype is bfloat16"),
        (backbone(Unnormalized), "in eval mode a call changes bn1"),
        (backbone(Counting), "in eval mode a call changes calls$"),
        (backbone(Remembering), "in eval mode a call changes seen$"),
        (backbone(Noisy), "differs between two calls in eval mode"),
        (backbone(Infinite), "the gradient is not finite at"),
        (backbone(output_strides=()), "must name at least one"),
        (
            backbone(
                features=lambda options, stride: changed(1, size=lambda n: ceil_size(4)(n)),
            ),
            "two calls of `features` give specs that are not equal",
        ),
        (
            backbone(api_version=(3, 0)),
            r"backbone 'tiny': it was written for version 3\.0 .*: upgrade fcn-jax",
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
            "a table for the key format 'torchvision' is required",
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
            r"gives both 'conv1.bias' and 'conv2.bias' the name 'conv1.bias'"
            r"|maps 'conv1.bias' to 'conv1.bias', but",
        ),
        (
            backbone(
                table=Table(Rule("x.{i}", "conv{i}.kernel"), Rule("x.1", "bn1.mean"), TABLE.rules)
            ),
            "the name 'x.1'|but 'x.1' to",
        ),
    ],
)
def test_rejects_a_broken_promise(broken, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_backbone(broken)


def test_rejects_an_operation_that_loses_digits():
    lossy = Op("lossy", lambda x: x, lambda x: x.round(2))
    with pytest.raises(
        AssertionError, match=r"'lossy' is not inverted exactly for 'conv1.kernel' of shape"
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
def test_rejects_a_different_reference(table, settings, complaint):
    def reference(options, output_stride):
        return torch_reference(options, output_stride, **settings)

    with pytest.raises(AssertionError, match=complaint):
        check_backbone(backbone(table=table, reference=reference))


@pytest.mark.needs_torch
def test_rejects_a_reference_without_features():
    import torch

    def reference(options, output_stride):
        made = torch_reference(options, output_stride)
        made.forward = lambda x: torch.zeros(1)
        return made

    with pytest.raises(
        AssertionError, match="lacks features a, b; it must return the features by name"
    ):
        check_backbone(backbone(reference=reference))


@pytest.mark.slow
@pytest.mark.needs_torch
def test_accepts_resnet18():
    check_backbone(RESNET18)


def test_rejects_unknown_options():
    with pytest.raises(ConfigError, match="unknown key 'width'"):
        check_backbone(backbone(options=NoOptions), {"width": 3})
