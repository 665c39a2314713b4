"""A stranger's ConvNeXt against torchvision's own class: faults that its initial values hide.

torchvision's layer scales start at 1e-6, so that a block adds next to nothing to its input.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn, verify, verify_model
from fcn_jax.pytorch.rules import Rule, Table
from fcn_jax.verify.randomize import randomize

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("torchvision")

PROJECT = Path(__file__).parents[1] / "fixtures" / "convnext"
TINY = {"depths": (2, 1, 1, 1), "width": 8}
IMAGES = np.random.default_rng(0).standard_normal((2, 41, 70, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def plugins(plugin_project, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT))
    return plugin_project(PROJECT / "pyproject.toml")


@pytest.fixture
def convnext():
    import acme_convnext

    yield acme_convnext
    sys.modules.pop("acme_convnext")


@pytest.fixture
def compare(convnext):
    """A function that compares the plugin with torchvision, both as they are now."""
    options = convnext.ConvNeXtOptions(**TINY)
    torch.manual_seed(0)
    reference = convnext.torch_reference(options, 32)
    randomize(reference, seed=0)

    def run(rules=convnext.TABLE, **settings):
        port = convnext.ConvNeXt(
            options,
            output_stride=32,
            dtype=np.float32,
            param_dtype=np.float32,
            rngs=nnx.Rngs(0),
        )
        settings = {"grad": False, "train": False, "sensitive": False, **settings}
        return verify.compare(reference, port, IMAGES, rules=rules, **settings)

    return run


def with_names(table, change):
    """The table, with other names in the state dict: path -> name."""
    rules = [
        Rule(change(rule.torch, rule.jax), rule.jax, rule.op, rule.optional) for rule in table.rules
    ]
    return Table(*rules)


def test_right_port_is_equal(compare):
    report = compare()
    assert report.equal, report
    layers = {c.name for c in report.sections[0].comparisons}
    block = {f"stages.0.1.{name}" for name in ("depthwise", "norm", "expand", "project")}
    assert {"downsamples.0", "downsamples.1.norm", "stages.0.1", *block} <= layers


@pytest.mark.slow
def test_swapped_layer_scales_are_found(compare, convnext):
    expanded = Table(*(r for r in convnext.TABLE.rules if "stages.0" not in r.jax))
    for rule in convnext.TABLE.rules:
        for b in (0, 1):
            if "stages.0" in rule.jax:
                other = 1 - b if "scale.scale" in rule.jax else b
                expanded.rules.append(
                    Rule(rule.torch.format(b=other), rule.jax.format(b=b), rule.op)
                )
    report = compare(expanded)
    assert report.failure.startswith("between stages.0.0.project and stages.0.1.depthwise: ")
    assert (
        "stages.0.0.scale.scale is loaded from 1.1.layer_scale, but the rest of stages.0.0 from 1.0"
        in report.failure
    )


@pytest.mark.slow
def test_wrong_epsilon_is_found(compare, convnext, monkeypatch):
    build = convnext.Block.__init__

    def wrong(self, channels, **settings):
        build(self, channels, **settings)
        self.norm.eps = 1e-5

    monkeypatch.setattr(convnext.Block, "__init__", wrong)
    report = compare()
    assert report.failure.startswith("stages.0.0.norm: error ")
    assert {c.name for c in report.sections[0].comparisons if not c.equal} >= {
        f"stages.{s}.0.norm" for s in range(4)
    }


@pytest.mark.slow
def test_approximate_gelu_is_found(compare, monkeypatch):
    monkeypatch.setattr(nn, "gelu", functools.partial(nn.gelu, approximate="tanh"))
    report = compare()
    assert report.failure.startswith(
        "stages.0.0, between stages.0.0.expand and stages.0.0.project: error "
    )


@pytest.mark.slow
def test_swapped_biases_are_found(compare, convnext):
    def change(name, path):
        if path.endswith("depthwise.bias"):
            return name.replace("block.0", "block.5")
        return name.replace("block.5", "block.0") if path.endswith("project.bias") else name

    report = compare(with_names(convnext.TABLE, change))
    assert report.failure.startswith("stages.0.0, between ")
    assert "stages.0.0.depthwise.bias is loaded from 1.0.block.5.bias" in report.failure


@pytest.mark.slow
def test_gradients_of_the_right_port_are_equal(compare):
    report = compare(train=True, grad=True, sensitive=True)
    assert report.equal, report
    assert report.not_proven == ()


@pytest.mark.slow
def test_check_finds_that_every_promise_is_kept(plugin_contract):
    plugin_contract.check_backbone("acme_convnext", {**TINY, "depths": [1, 1, 1, 1]})


@pytest.mark.slow
def test_verify_finds_it_equal_at_odd_sizes():
    report = verify_model(
        "acme_convnext",
        head="fcn32s",
        backbone_options={**TINY, "depths": [1, 1, 1, 1]},
        num_classes=3,
        sizes=[(65, 97)],
        grad=True,
    )
    assert report.equal, report


@pytest.mark.slow
def test_convnext_tiny_is_equal():
    report = verify_model("acme_convnext", num_classes=3, sizes=[(65, 97)], batch=1, grad=True)
    assert report.equal, report
