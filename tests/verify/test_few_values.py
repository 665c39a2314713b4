"""Batch normalizations of few values: their failures prove nothing, all others still count."""

import collections
import math
import re

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax import nn, verify, verify_model
from fcn_jax.pytorch.rules import Table, batch_norm, conv
from fcn_jax.verify import Comparison, Report, Section, few_values
from fcn_jax.verify.criterion import MIN_VALUES
from fcn_jax.verify.randomize import randomize
from fcn_jax.verify.sides import called
from fcn_jax.verify.torch_side import TorchSide

torch = pytest.importorskip("torch")

TABLE = Table(
    conv("conv1", bias=True), batch_norm("bn1"), conv("conv2", bias=True), batch_norm("bn2")
)


def reference():
    """A normalization at a stride of 2, and one at a stride of 16."""
    layers = {
        "conv1": torch.nn.Conv2d(3, 4, 3, 2, 1),
        "bn1": torch.nn.BatchNorm2d(4),
        "act": torch.nn.ReLU(),
        "conv2": torch.nn.Conv2d(4, 4, 8, 8),
        "bn2": torch.nn.BatchNorm2d(4),
    }
    torch.manual_seed(0)
    network = torch.nn.Sequential(collections.OrderedDict(layers))
    randomize(network, 0)
    return network


class Port(nnx.Module):
    def __init__(self, momentum=0.1, eps=1e-5):
        rngs = nnx.Rngs(0)
        self.conv1 = nn.Conv(3, 4, 3, stride=2, padding=1, rngs=rngs)
        self.bn1 = nn.BatchNorm(4, eps=eps)
        self.conv2 = nn.Conv(4, 4, 8, stride=8, rngs=rngs)
        self.bn2 = nn.BatchNorm(4)
        self.bn1.momentum = momentum

    def __call__(self, x):
        return self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))


def images(batch, length):
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, length, length, 3)).astype(np.float32)


def side():
    made = TorchSide(reference(), "float32", called)
    made.train(False)
    return made


def compare(batch, length, **settings):
    return verify.compare(reference(), Port(**settings), images(batch, length), rules=TABLE)


@pytest.mark.parametrize(
    ("batch", "length", "values"), [(2, 16, 2), (3, 16, 3), (4, 16, 4), (1, 32, 4), (1, 16, 1)]
)
def test_counts_the_values_of_a_channel(batch, length, values):
    few = few_values.find(side(), [images(batch, length)])
    assert few.layers == ({"bn2": values} if values < MIN_VALUES else {})
    assert few.impossible == (values == 1)
    if few.layers:
        kinds = ("running_mean", "running_var", "num_batches_tracked")
        assert few.before == {f"bn1.{kind}" for kind in kinds}
        needed = batch * math.ceil(4 / values)
        assert f"bn2 must normalize {values if values > 1 else 'a single'}" in few.reason
        assert few.reason.endswith(f"use a batch of {needed} or larger inputs")


@settings(max_examples=15, deadline=None)
@given(st.integers(16, 60), st.integers(1, 3))
def test_remedy_is_the_smallest_size_that_has_enough_values(length, batch):
    x = images(batch, length)
    few = few_values.find(SIDE, [x], resize=True)
    if not few.layers:
        return
    smallest = int(re.search(r"at least (\d+)x\1 pixels or a batch of", few.remedy)[1])
    assert not few_values.find(SIDE, [images(batch, smallest)]).layers
    assert few_values.find(SIDE, [images(batch, smallest - 1)]).layers


SIDE = side()


def section(title="train mode"):
    names = ("output", "bn1.running_mean", "bn2.running_mean")
    wrong = [Comparison(name, (4,), 1e-3, 2e-7, 1e-6, 1e-3) for name in names]
    right = Comparison("bn1.running_var", (4,), 1e-7, 2e-7, 1e-6, 1e-7)
    return Section(title, 3.0, (*wrong, right))


def test_failures_after_such_a_layer_are_inconclusive():
    few = few_values.find(side(), [images(2, 16)])
    settled = few.settled(section(), few.before)
    assert settled.unstable == ("output", "bn2.running_mean")
    assert [c.name for c in settled.failures] == ["bn1.running_mean"], "it does not depend on bn2"
    assert settled.mark == "FAILED"
    assert Report("net", "float32", sections=[settled]).verdict.startswith("NOT EQUAL: net in ")
    settled = few.settled(section("gradients"))
    report = Report("net", "float32", sections=[settled])
    assert (settled.mark, report.equal, report.failures) == ("INCONCLUSIVE", False, [])
    assert report.verdict == (
        "INCONCLUSIVE: net in float32: gradients: 3 of 4 tensors are over their limits, which "
        "proves nothing, because in train mode, bn2 must normalize 2 values per channel (at least "
        "4 are needed); use a batch of 4 or larger inputs"
    )
    again = Report.from_dict(report.to_dict())
    assert again.verdict == report.verdict


def test_faults_are_kept():
    few = few_values.find(side(), [images(2, 16)])
    nan = Comparison("output", (4,), np.inf, 2e-7, 1e-6, np.inf, "has NaN")
    assert few.settled(Section("train mode", 3.0, (nan,))).mark == "FAILED"


def test_enough_values_excuse_nothing():
    few = few_values.find(side(), [images(4, 16)])
    assert few.settled(section()) == section()


def test_single_value_has_no_train_mode():
    report = compare(1, 16)
    assert report.verdict.startswith(
        "INCONCLUSIVE: Port in float32: train mode: not compared, because in train mode, bn2 must "
        "normalize a single value per channel (at least 4 are needed); use a batch of 4"
    )
    assert [s.title for s in report.sections if s.comparisons] == [
        *("layers, isolated", "layers, accumulated", "outputs")
    ]
    wrong = compare(1, 16, eps=1e-2)
    assert wrong.verdict.startswith("NOT EQUAL: Port in float32: bn1: error"), "eval mode counts"


def test_wrong_momentum_before_such_a_layer_is_not_equal():
    report = compare(2, 16, momentum=0.2)
    assert report.verdict.startswith("NOT EQUAL"), str(report)
    assert report.failure.startswith("bn1.running_mean: error")


@pytest.mark.slow
def test_smallest_images_of_resnet18_are_not_called_unequal():
    report = verify_model("fcn32s_resnet18", sizes=[(32, 32)], num_classes=3, grad=True)
    assert report.verdict.startswith(("INCONCLUSIVE", "EQUAL")), str(report)
    assert not report.failures
    larger = verify_model("fcn32s_resnet18", sizes=[(33, 33)], num_classes=3, grad=True)
    assert larger.equal, str(larger)
