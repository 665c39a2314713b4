"""Sums of losses: from a recipe to the training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax import config
from fcn_jax.api import Loss, LossContext, ModelSpec, Preprocess
from fcn_jax.errors import ConfigError, PluginError
from fcn_jax.models.build import build
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins import registry
from fcn_jax.plugins.entry import Entry
from fcn_jax.train import losses
from fcn_jax.train import step as train_step
from fcn_jax.train.losses import builtin, terms

CONTEXT = LossContext(3, "multiclass", np.array([600, 300, 100]), np.array([1000, 600, 400]))
NAMES = ("cross_entropy", "ohem", "focal", "dice", "jaccard", "tversky", "lovasz")


@pytest.fixture(autouse=True)
def own_losses(monkeypatch):
    """Register the losses of this package's source, whatever is installed."""
    entries = [e for e in registry.default().entries() if e.kind != "losses"]
    module = "fcn_jax.train.losses.builtin"
    entries += [
        Entry("losses", name, "fcn-jax", "0.1.0", f"{module}:{name.upper()}")
        for name in (*NAMES, "bce")
    ]
    entries.append(Entry("losses", "of_a_stranger", "acme", "1.0", f"{__name__}:OF_A_STRANGER"))
    plugins = registry.Registry(entries)
    monkeypatch.setattr(registry, "default", lambda: plugins)


def _strange(options, context):
    return lambda logits, labels: jnp.where(labels == 255, 0, logits[..., 0] ** 2).mean()


OF_A_STRANGER = Loss(name="of_a_stranger", summary="", build=_strange)


def made(tables, context=CONTEXT, **more):
    parsed = config.parse({"loss": tables})
    return losses.build(losses.select(parsed.losses(), context.task), context, **more)


def batch(classes=3, shape=(2, 6, 8), seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((*shape, classes)).astype(np.float32)
    return logits, np.where(rng.random(shape) < 0.2, 255, rng.integers(0, classes, shape))


# ------------------------------------------------------------------------------------------- recipe


def test_default_is_cross_entropy_with_the_same_bits():
    logits, labels = batch()
    default = made({"cross_entropy": {}})
    for loss in (default, losses.default_losses()):
        value, values = loss({"out": logits}, labels, 0.5)
        assert float(value) == float(losses.cross_entropy(logits, labels))
        assert values == {"cross_entropy": value}
    assert config.parse({}).losses() == {"cross_entropy": {"weight": 1.0}}


def test_sums_losses_by_weight_and_adds_the_auxiliary_head():
    out, labels = batch()
    aux, _ = batch(seed=1)
    loss = made({"cross_entropy": {"weight": 2.0}, "dice": {"weight": 0.5}, "of_a_stranger": {}})
    value, values = loss({"out": out, "aux": aux}, labels, 0.25)

    def alone(name, logits):
        return float(made({name: {}})({"out": logits}, labels, 0.0)[0])

    names = ("cross_entropy", "dice", "of_a_stranger")
    assert {k: float(v) for k, v in values.items()} == pytest.approx(
        {name: alone(name, out) for name in names}
    )
    expected = [
        sum(w * alone(n, z) for w, n in zip((2, 0.5, 1), names, strict=True)) for z in (out, aux)
    ]
    assert float(value) == pytest.approx(expected[0] + 0.25 * expected[1], rel=1e-6)


@pytest.mark.parametrize(
    ("tables", "messages"),
    [
        ({"dcie": {}}, ["no loss is named 'dcie'. Did you mean 'dice'?"]),
        (
            {"dice": {"smoth": 1}, "focal": {"gamma": -1}, "nothing": {}},
            [
                "the options of loss 'dice' are wrong: unknown key 'smoth'. Did you mean 'smooth'?",
                "'gamma' is -1; input should be greater than or equal to 0",
                " (in [loss.focal]); ",
                "no loss is named 'nothing'",
            ],
        ),
        (
            {"cross_entropy": {"class_weights": "median"}},
            ["'class_weights': expected a list with a number of at least 0", "'median_frequency'"],
        ),
        ({"cross_entropy": {"class_weights": [0, 0, 0]}}, ["all weights are 0"]),
        ({"cross_entropy": {"class_weights": [1, -1, 1]}}, ["expected a list with a number"]),
        (
            {"cross_entropy": {"class_weights": [1, 2]}, "focal": {"alpha": 0.25}},
            [
                "loss.cross_entropy: class_weights has 2 numbers; expected 3, one for each class",
                "loss.focal: alpha is 0.25; with softmax, give a list of 3 numbers",
            ],
        ),
        (
            {"dice": {"classes": [1, 3]}},
            ["loss.dice: classes has the label 3; the labels are 0 to"],
        ),
        ({"dice": {"classes": [1, 1]}}, ["expected a list of different labels"]),
        ({"bce": {}}, ["'bce' does not support model.task = 'multiclass', only binary and"]),
        ({"dice": {"weight": -1}}, ["loss.dice.weight is -1"]),
        ({"dice": {"weight": 0}}, ["loss is", "at least one above 0"]),
        ({}, ["expected at least one loss"]),
        ({"dice": 3}, ["loss.dice is 3: expected a table, such as [loss.dice]"]),
        ({"ohem": {"threshold": 0}}, ["greater than 0.0 and less than or equal to 1.0"]),
    ],
    ids=str,
)
def test_rejects_wrong_losses(tables, messages):
    with pytest.raises(ConfigError) as caught:
        made(tables)
    for message in messages:
        assert message in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"bce": {"pos_weight": [1.0]}}, "a binary task has one class: give one number"),
        ({"focal": {"alpha": [1, 2]}}, "with sigmoids, give one number"),
        ({"dice": {"classes": [1]}}, "a binary task has one class; leave it out"),
        ({"of_a_stranger": {}}, "Available: bce, cross_entropy, dice"),
    ],
    ids=str,
)
def test_rejects_options_that_a_binary_task_does_not_have(tables, message):
    with pytest.raises(ConfigError, match=message):
        made(tables, LossContext(2, "binary"))


def test_reports_a_plugin_that_cannot_be_built(monkeypatch):
    def broken(options, context):
        raise RuntimeError("no such thing")

    loss = Loss(name="of_a_stranger", summary="", build=broken)
    monkeypatch.setattr(sys.modules[__name__], "OF_A_STRANGER", loss)
    with pytest.raises(PluginError, match=r"loss 'of_a_stranger' of acme.*RuntimeError: no such"):
        made({"of_a_stranger": {}})


# ------------------------------------------------------------------------------------ class weights


def test_class_weights_from_frequencies():
    context = LossContext(
        4, "multiclass", np.array([600, 300, 0, 100]), np.array([1000, 600, 0, 400])
    )
    inverse = builtin.frequency_weights("inverse_frequency", context)
    assert inverse == pytest.approx([1000 / 1800, 1000 / 900, 0, 1000 / 300])
    frequencies = np.array([0.6, 0.5, 0.25])
    expected = 0.5 / frequencies
    found = builtin.frequency_weights("median_frequency", context)
    assert found == pytest.approx([*expected[:2], 0, expected[2]])
    with pytest.raises(ConfigError, match="no labeled pixels are counted"):
        builtin.frequency_weights("median_frequency", LossContext(4))


def test_records_computed_weights_and_uses_them_again():
    first = made({"cross_entropy": {"class_weights": "inverse_frequency"}, "dice": {"weight": 2}})
    record = json.loads(json.dumps(first.record()))
    assert record["cross_entropy"]["class_weights"] == pytest.approx([1000 / 1800, 10 / 9, 10 / 3])
    assert record["dice"] == {"weight": 2.0, "smooth": 0.0, "log": False, "classes": None}
    other = LossContext(3, "multiclass", np.array([1, 1, 1]), np.array([3, 3, 3]))
    again = made(
        {"cross_entropy": {"class_weights": "inverse_frequency"}, "dice": {"weight": 2}},
        other,
        recorded=record,
    )
    assert again.record() == first.record()


# ------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("name", [*NAMES, "of_a_stranger"])
def test_subpixel_logits_give_the_values_and_gradients_of_images(name):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 3, 4, 3, 4, 4)).astype(np.float32)
    labels = np.where(rng.random((2, 10, 13)) < 0.2, 255, rng.integers(0, 3, (2, 10, 13)))
    loss = made({name: {"min_kept": 20} if name == "ohem" else {}})

    def value(values, *, images):
        logits = SubpixelLogits(values, top=1, left=2, height=10, width=13)
        return loss({"out": logits.images if images else logits}, labels, 0.0)[0]

    run = jax.jit(jax.value_and_grad(value), static_argnames="images")
    (one, one_grad), (other, other_grad) = run(values, images=False), run(values, images=True)
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    np.testing.assert_allclose(one_grad, other_grad, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_logits_get_gradients_in_bfloat16_from_float32_sums(name):
    logits, labels = batch(shape=(2, 24, 32))
    narrow = jnp.asarray(logits, jnp.bfloat16)
    run = jax.jit(jax.value_and_grad(lambda z: made({name: {}})({"out": z}, labels, 0.0)[0]))
    value, grad = run(narrow)
    expected, expected_grad = run(narrow.astype(jnp.float32))
    assert grad.dtype == jnp.bfloat16
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(
        grad.astype(np.float32), expected_grad, rtol=2e-2, atol=1e-3 * np.abs(expected_grad).max()
    )


# ------------------------------------------------------------------------------------------ devices

PROCESS = """
import json
import jax
import numpy as np
from fcn_jax.api import LossContext
from fcn_jax.config import MeshConfig
from fcn_jax.train import sharding
from fcn_jax.train.losses import builtin, terms

rng = np.random.default_rng(0)
placement = sharding.make_placement(MeshConfig(), 4)
found = {}
for task in ("multiclass", "binary", "multilabel"):
    channels = 1 if task == "binary" else 4
    logits = rng.standard_normal((4, 6, 8, channels)).astype(np.float32)
    shape = logits.shape if task == "multilabel" else logits.shape[:3]
    labels = rng.integers(0, 4 if task == "multiclass" else 2, shape)
    labels[rng.random(shape) < 0.2] = 255
    labels[2:] = np.where(labels[2:] == 1, 0, labels[2:])  # the second device lacks a class
    for name in ("cross_entropy", "ohem", "focal", "dice", "jaccard", "tversky", "lovasz", "bce"):
        descriptor = getattr(builtin, name.upper())
        if task not in descriptor.tasks:
            continue
        options = descriptor.options(**({"min_kept": 9} if name == "ohem" else {}))
        built = descriptor.build(options, LossContext(2 if task == "binary" else 4, task))
        loss = terms.Losses((terms.Term("a", 1.0, built, True, {}),))
        run = jax.jit(jax.value_and_grad(lambda z, y: loss({"out": z}, y, 0.0)[0]))
        alone = run(logits, labels)
        value, grad = run(*jax.device_put((logits, labels), placement.batch))
        assert len(grad.sharding.device_set) == 2
        change = np.abs(np.asarray(grad) - np.asarray(alone[1])).max()
        found[f"{name} {task}"] = [float(value), float(alone[0]), float(change)]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_batch_on_two_devices_has_the_loss_of_one():
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", PROCESS],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 21
    for name, (value, alone, change) in found.items():
        assert value == pytest.approx(alone, rel=1e-5), name
        assert change < 1e-6, name


# --------------------------------------------------------------------------------------------- step

IMAGE = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
MASK = (IMAGE[..., 0] > 127).astype(np.uint8)
MASK[0] = 255


@pytest.fixture
def tiny(tiny_plugin, own_losses, monkeypatch):
    """A model without batch statistics and dropout, so that images are independent."""
    from importlib import metadata
    from pathlib import Path

    folder = str(Path(__file__).parents[1] / "fixtures" / "tiny")
    known = registry.default().entries()
    more, _ = registry.read_metadata(metadata.distributions(path=[folder]))
    plugins = registry.Registry([*known, *more])
    monkeypatch.setattr(registry, "default", lambda: plugins)

    def make(task="multiclass", num_classes=2, **settings):
        spec = ModelSpec(
            "tiny", "fcn32s", num_classes, task=task, backbone_options={"width": 6, "dropout": 0.0}
        )
        model = build(spec, rngs=nnx.Rngs(0))

        class Still(nnx.Module):
            def __init__(self):
                self.model, self.spec = model, model.spec

            def train(self):
                self.model.eval()

            def outputs(self, x):
                return self.model.outputs(x)

            def subpixel_outputs(self, x):
                return self.model.subpixel_outputs(x)

        state, step = train_step.make(Still(), optax.sgd(0.1), Preprocess(), **settings)
        return state, jax.jit(step)

    return make


@pytest.mark.slow
def test_step_reports_each_loss_and_accumulates_means(tiny):
    context = LossContext(2, "multiclass", np.array([3, 1]), np.array([4, 4]))
    mean = made(
        {
            "cross_entropy": {"class_weights": "inverse_frequency", "label_smoothing": 0.1},
            "focal": {"weight": 0.5},
            "lovasz": {"per_image": True},
        },
        context,
    )
    found = []
    for parts in (1, 2):
        state, step = tiny(losses=mean, accumulate_steps=parts)
        found.append(step(state, {"image": IMAGE, "mask": MASK}))
    (whole, metrics), *others = found
    assert metrics["losses"].keys() == {"cross_entropy", "focal", "lovasz"}
    expected = sum(
        w * float(metrics["losses"][k])
        for k, w in (("cross_entropy", 1), ("focal", 0.5), ("lovasz", 1))
    )
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-6)
    for state, more in others:
        for name, value in metrics["losses"].items():
            assert float(more["losses"][name]) == pytest.approx(float(value), rel=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            state.params,
            whole.params,
        )


def test_step_rejects_parts_of_a_batch_for_losses_of_the_whole(tiny):
    with pytest.raises(ConfigError, match=r"accumulate_steps is 2.*with dice, lovasz; set"):
        tiny(losses=made({"cross_entropy": {}, "dice": {}, "lovasz": {}}), accumulate_steps=2)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    ("task", "classes", "name"),
    [("binary", 1, "cross_entropy"), ("binary", 1, "dice"), ("multilabel", 3, "bce")],
)
def test_binary_and_multilabel_steps_lower_the_loss(tiny, task, classes, name, blocks):
    context = LossContext(2 if task == "binary" else classes, task)
    state, step = tiny(task, classes, losses=made({name: {}}, context), blocks=blocks)
    mask = MASK if task == "binary" else np.stack([MASK, MASK, np.where(MASK == 255, 255, 1)], -1)
    found = []
    for _ in range(8):
        state, metrics = step(state, {"image": IMAGE, "mask": mask})
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0]
    assert "losses" not in metrics


def test_a_single_loss_is_not_reported_twice(tiny):
    state, step = tiny(losses=terms.default_losses())
    _, metrics = step(state, {"image": IMAGE, "mask": MASK})
    assert metrics.keys() == {"loss", "grad_norm"}
