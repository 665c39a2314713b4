"""Training steps: right ones pass in every mode, and each kind of wrong one is caught."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import ModelSpec, Preprocess
from fcn_jax.config import OptimConfig, ParamGroup
from fcn_jax.convert.load import load_torch
from fcn_jax.convert.tables import tables
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build
from fcn_jax.nn import _batch_norm
from fcn_jax.train import ema, groups, optim
from fcn_jax.train.schedules import schedule
from fcn_jax.verify import ADAMW, SGD, jax_side, runs, verify_model
from fcn_jax.verify.criterion import FLOOR
from fcn_jax.verify.ports.nnx_port import NnxPort
from fcn_jax.verify.randomize import randomize
from fcn_jax.verify.reference import build_reference
from fcn_jax.verify.sides import paired
from fcn_jax.verify.training import Plan, compare_training

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("tiny_plugin")

SPEC = ModelSpec("tiny", "fcn32s", 3, {"width": 4})
SIZE = (33, 49)


def draw(step, attempt):
    """A batch of noise, brighter where the label is higher."""
    rng = np.random.default_rng([step, attempt])
    labels = rng.integers(0, 3, (2, 3, 4)).repeat(11, 1).repeat(13, 2)[:, : SIZE[0], : SIZE[1]]
    images = 60 * labels[..., None] + rng.integers(0, 100, (2, *SIZE, 3))
    return images.astype(np.uint8), labels.astype(np.uint8)


@functools.cache
def reference():
    torch.manual_seed(0)
    network = build_reference(SPEC)
    randomize(network, 0)
    return network


def compare(plan, attempts=1, dtype="float32", draw=draw):
    spec = dataclasses.replace(SPEC, dtype=dtype)
    model = jax_side.blank(lambda: build(spec, rngs=nnx.Rngs(0)))
    load_torch(model, reference().state_dict())
    table = tables(spec)["model", "torchvision"]
    port = NnxPort(model, lambda m, x: m.outputs(*x))
    with paired(reference(), port, table, dtype) as pair:
        plan = dataclasses.replace(plan, recipe=runs.recipe_for(plan.recipe, model))
        return compare_training(pair, model, draw, Preprocess(), plan, lambda _: None, attempts)


def failed(sections):
    return [(s.title, c) for s in sections for c in s.comparisons if not c.equal]


GROUPS = (
    ParamGroup(match="backbone.conv2.*", lr_mult=0),
    ParamGroup(match="*.bias", lr_mult=2, decay_mult=0),
)


@pytest.mark.parametrize(
    "recipe",
    [
        SGD,
        ADAMW,
        OptimConfig(lr=0.1, schedule="cosine", warmup_steps=3, clip_norm=0.5, param_groups=GROUPS),
        OptimConfig(lr=0.1, momentum=0.0, schedule="constant", freeze_batch_norm=("*",)),
    ],
)
def test_right_steps_are_equal_and_conclusive_for_every_tensor(recipe):
    before = {name: x.clone() for name, x in reference().state_dict().items()}
    sections = compare(Plan(4, recipe=recipe))
    assert [s.title for s in sections] == [
        f"training with {recipe.name}, step {i}" for i in (1, 2, 3, 4)
    ]
    assert not failed(sections)
    assert not any(s.inconclusive for s in sections)
    for section in sections:
        names = [c.name for c in section.comparisons]
        assert names == ["loss", *(n for n in before)]
    after = reference().state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


@pytest.mark.parametrize("recipe", ["sgd", "adamw-ema"])
def test_averages_are_those_of_pytorch(recipe):
    sections = compare(Plan(3, recipe=AVERAGED if recipe == "sgd" else recipe))
    assert not failed(sections)
    name = recipe.removesuffix("-ema")
    assert [s.title for s in sections] == [
        f"training with {name} and EMA, step {i}" for i in (1, 2, 3)
    ]
    assert not any(s.inconclusive for s in sections)
    names = [c.name for c in sections[2].comparisons]
    averaged = [name.removeprefix("EMA of ") for name in names if name.startswith("EMA of ")]
    state = reference().state_dict()
    assert averaged == [name for name in state if not name.endswith("num_batches_tracked")]


def first_average_forgotten(monkeypatch):
    """The average starts from the initial values, as if a step had been averaged before."""
    weight = ema.new_weight
    monkeypatch.setattr(ema, "new_weight", lambda step, *a, **k: weight(step + 1, *a, **k))


def averages_before_the_step(monkeypatch):
    """Off by one: the average of a step has the values before it."""
    original = ema.updated
    monkeypatch.setattr(ema, "updated", lambda old, new, weight: original(old, old, weight))


@pytest.mark.parametrize("recipe", ["sgd", "adamw-ema"])
@pytest.mark.parametrize("fault", [first_average_forgotten, averages_before_the_step])
def test_wrong_averages_are_caught(monkeypatch, fault, recipe):
    fault(monkeypatch)
    found = failed(compare(Plan(2, recipe=AVERAGED if recipe == "sgd" else recipe)))
    assert {c.name.startswith("EMA of ") for _, c in found} == {True}
    assert found[0][0] == f"training with {recipe.removesuffix('-ema')} and EMA, step 1"


def test_wrong_decay_of_averaged_weights_is_caught(monkeypatch):
    changed(param_groups=())(monkeypatch)
    names = {c.name for _, c in failed(compare(Plan(1, recipe="adamw-ema")))}
    assert {"backbone.conv1.bias", "EMA of backbone.conv1.bias"} <= names


AVERAGED = SGD.model_copy(update={"ema_decay": 0.9})


def changed(**changes):
    """A recipe on JAX's side that differs from PyTorch's."""

    def fault(monkeypatch):
        make = optim.make
        monkeypatch.setattr(
            optim, "make", lambda recipe, *rest: make(recipe.model_copy(update=changes), *rest)
        )
        assign = groups.assign
        monkeypatch.setattr(
            groups, "assign", lambda recipe, *rest: assign(recipe.model_copy(update=changes), *rest)
        )

    return fault


def optimizer(make):
    """Another optimizer on JAX's side: (recipe, learning rate by step) -> transformation."""

    def fault(monkeypatch):
        monkeypatch.setattr(
            optim, "make", lambda recipe, steps, rates: make(recipe, schedule(recipe, steps))
        )

    return fault


def decay_after_momentum(recipe, rate):
    return optax.chain(
        optax.trace(recipe.momentum),
        optax.add_decayed_weights(recipe.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def dampened(recipe, rate):
    """Momentum as an average, not as a sum."""
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.ema(recipe.momentum, debias=False),
        optax.scale_by_learning_rate(rate),
    )


def adam(recipe, rate, *, correct=True, eps_root=0.0):
    """AdamW with PyTorch's settings except for what is wrong."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), zeros, zeros

    def update(grads, state, params):
        count, m, v = state[0] + 1, *state[1:]
        b1, b2 = recipe.betas or (0.9, 0.999)
        eps = 0.0 if eps_root else recipe.eps
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)
        c1, c2 = (-jnp.expm1(count * np.log(b)) if correct else 1.0 for b in (b1, b2))
        steps = jax.tree.map(lambda m, v: (m / c1) / (jnp.sqrt(v / c2 + eps_root) + eps), m, v)
        moved = jax.tree.map(
            lambda s, p: -rate(count - 1) * (s + recipe.weight_decay * p), steps, params
        )
        return moved, (count, m, v)

    return optax.GradientTransformation(init, update)


def wrong_count(monkeypatch):
    original = nn.BatchNorm.__call__

    def call(self, x):
        y = original(self, x)
        self.num_batches_tracked.set_value(self.num_batches_tracked[...] + 1)
        return y

    monkeypatch.setattr(nn.BatchNorm, "__call__", call)


def biased_variance(monkeypatch):
    original = _batch_norm.batch_norm_train

    def biased(x, *settings):
        y, mean, var = original(x, *settings)
        count = x.size // x.shape[-1]
        return y, mean, var * ((count - 1) / count)

    monkeypatch.setattr(_batch_norm, "batch_norm_train", biased)


def wrong_norm_momentum(monkeypatch):
    monkeypatch.setattr(
        nn.BatchNorm,
        "_moved",
        lambda self, old, new: 0.9 * old + 0.11 * jax.lax.stop_gradient(new),
    )


def unfrozen(monkeypatch):
    make = runs.step.make
    monkeypatch.setattr(
        runs.step, "make", lambda *a, **k: make(*a, **{**k, "freeze_batch_norm": ()})
    )


PLAIN = ADAMW.model_copy(update={"param_groups": ()})


@pytest.mark.parametrize(
    ("recipe", "fault", "step", "name"),
    [
        (SGD, changed(momentum=0.91), 2, "backbone.conv1.weight"),
        (SGD, changed(lr=0.0101), 1, "backbone.conv1.weight"),
        (SGD, changed(weight_decay=2e-4), 1, "backbone.conv1.weight"),
        (SGD, changed(power=1.0), 2, "backbone.conv1.weight"),
        (SGD, optimizer(decay_after_momentum), 2, "backbone.conv1.weight"),
        (SGD, optimizer(dampened), 1, "backbone.conv1.weight"),
        (ADAMW, changed(param_groups=()), 1, "backbone.conv1.bias"),
        (ADAMW, changed(warmup_steps=3), 1, "backbone.conv1.weight"),
        (ADAMW, changed(betas=(0.9, 0.99)), 2, "backbone.conv1.weight"),
        (PLAIN, optimizer(functools.partial(adam, correct=False)), 1, "backbone.conv1.weight"),
        (PLAIN, optimizer(functools.partial(adam, eps_root=1e-10)), 1, "backbone.conv1.weight"),
        (
            SGD.model_copy(update={"clip_norm": 0.02}),
            changed(clip_norm=None),
            1,
            "backbone.conv1.weight",
        ),
        (SGD, wrong_count, 1, "backbone.bn1.num_batches_tracked"),
        (SGD, biased_variance, 1, "backbone.bn1.running_var"),
        (SGD, wrong_norm_momentum, 1, "backbone.bn1.running_mean"),
        (SGD.model_copy(update={"freeze_batch_norm": ("*",)}), unfrozen, 1, "loss"),
    ],
)
def test_wrong_step_is_caught_at_the_first_step_that_shows_it(
    monkeypatch, recipe, fault, step, name
):
    fault(monkeypatch)
    found = failed(compare(Plan(2, recipe=recipe)))
    assert found
    title, first = found[0]
    assert (title, first.name) == (f"training with {recipe.name}, step {step}", name)
    assert first.excess > 3


def test_own_adam_of_these_tests_is_right(monkeypatch):
    optimizer(adam)(monkeypatch)
    assert not failed(compare(Plan(2, recipe=PLAIN)))


def test_all_sides_start_from_what_the_condition_leaves(monkeypatch):
    seen = []

    def condition(network, images):
        assert network.training
        assert images.dtype == torch.float64
        assert images.shape == (2, 3, *SIZE)
        with torch.no_grad():
            network.backbone.conv2.bias.add_(1.0)
        seen.append(network.backbone.conv2.bias.detach().clone())

    starts = []
    after = runs.JaxRun.after

    def spied(self, values, *batch):
        starts.append(values["backbone.conv2.bias"])
        return after(self, values, *batch)

    monkeypatch.setattr(runs.JaxRun, "after", spied)
    assert not failed(compare(Plan(2, condition=condition)))
    for ours, theirs in zip(starts, seen, strict=True):
        np.testing.assert_array_equal(ours, theirs.float().numpy())
    assert len(starts) == 2


def test_step_is_repeated_on_another_batch_from_the_same_state(monkeypatch):
    """An error of a single batch, such as a jump at a kink, does not fail the port."""
    drawn = []

    def recorded(step, attempt):
        drawn.append((step, attempt))
        return draw(step, attempt)

    after = runs.JaxRun.after

    def jumps(self, values, images, labels):
        loss, new = after(self, values, images, labels)
        jumped = np.array_equal(images, draw(2, 0)[0])
        return loss, {name: x * (1 + 1e-3 * jumped) for name, x in new.items()}

    monkeypatch.setattr(runs.JaxRun, "after", jumps)
    sections = compare(Plan(3), attempts=3, draw=recorded)
    assert not failed(sections)
    assert drawn == [(1, 0), (2, 0), (2, 1), (3, 0)]
    assert [s.attempts for s in sections] == [1, 2, 1]
    assert failed(compare(Plan(2)))


def test_change_below_the_rounding_of_the_tensor_is_measured_in_units_of_rounding():
    """A learning rate so small that float32 parameters do not move."""
    tiny = OptimConfig(lr=1e-12, schedule="constant")
    sections = compare(Plan(1, recipe=tiny))
    assert not failed(sections)
    assert not sections[0].inconclusive
    by_name = {c.name: c for c in sections[0].comparisons}
    assert FLOOR["float32"] < by_name["backbone.conv1.weight"].limit < 0.5


def test_free_runs_compare_what_accumulates():
    sections = compare(Plan(3, mode="free"))
    assert [s.title for s in sections] == [
        "training with sgd, after step 1",
        "training with sgd, each step",
        "training with sgd, after step 3",
    ]
    assert not failed(sections)
    assert [c.name for c in sections[1].comparisons][-3:] == [
        "loss, step 3",
        "all parameters, step 3",
        "all running statistics, step 3",
    ]
    first, *_, last = (c for c in sections[1].comparisons if "parameters" in c.name)
    assert first.error > 0
    assert last.error > 0


def test_free_runs_catch_a_wrong_momentum(monkeypatch):
    changed(momentum=0.91)(monkeypatch)
    found = failed(compare(Plan(2, mode="free")))
    assert "all parameters, step 2" in [c.name for _, c in found]


def test_free_runs_with_frozen_statistics_leave_them_unchanged():
    frozen = SGD.model_copy(update={"freeze_batch_norm": ("*",)})
    first, each, last = compare(Plan(2, mode="free", recipe=frozen))
    assert not failed([first, each, last])
    assert {c.error for c in last.comparisons if "running" in c.name} == {0.0}


def test_seeds_compare_the_distribution_of_errors():
    (section,) = compare(Plan(2, mode="seeds", seeds=4))
    assert section.title == "training with sgd, step 2 over 4 seeds"
    names = [c.name for c in section.comparisons]
    kinds = (
        "loss",
        "kernel",
        "bias",
        "scale",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    )
    assert sorted(names) == sorted(f"{k}, {q}" for k in kinds for q in ("median", "90 % quantile"))
    assert not failed([section])
    by_name = {c.name: c for c in section.comparisons}
    assert 0 < by_name["kernel, median"].error <= by_name["kernel, 90 % quantile"].error
    assert by_name["kernel, median"].reference_error > 0


@pytest.mark.slow
def test_seeds_catch_an_error_above_pytorchs_own(monkeypatch):
    changed(weight_decay=1.1e-4)(monkeypatch)
    (section,) = compare(Plan(2, mode="seeds", seeds=3))
    assert "kernel, median" in [c.name for _, c in failed([section])]


def test_bfloat16_steps_are_compared_with_bfloat16_of_pytorch():
    sections = compare(Plan(2), dtype="bfloat16")
    assert not failed(sections)
    assert not any(s.inconclusive for s in sections)
    assert max(c.reference_error for c in sections[0].comparisons) > 1e-4


def test_bfloat16_steps_with_a_wrong_learning_rate_are_caught(monkeypatch):
    changed(lr=0.02)(monkeypatch)
    assert failed(compare(Plan(1), dtype="bfloat16"))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"train_mode": "loose"}, "train_mode is 'loose': expected one of synced, free, seeds"),
        (
            {"train_recipes": ["lamb"]},
            "train_recipes has 'lamb': expected sgd, adamw, adamw-ema, or",
        ),
        ({"train_seeds": 1}, "train_seeds is 1: expected 2 or more"),
        (
            {"train_recipes": [OptimConfig(accumulate_steps=2)]},
            "train_recipe.accumulate_steps is 2: expected 1",
        ),
    ],
)
def test_rejects_invalid_settings(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        verify_model("tiny", train_steps=1, **settings)


@pytest.mark.slow
def test_several_recipes_are_compared_in_one_report():
    report = verify_model(
        "tiny",
        sizes=[SIZE],
        num_classes=3,
        train_steps=2,
        train_recipes=["sgd", "adamw", "adamw-ema"],
    )
    assert report.equal, report
    titles = [s.title for s in report.sections if s.title.startswith("training")]
    names = ("sgd", "adamw", "adamw and EMA")
    assert titles == [f"training with {n}, step {i}" for n in names for i in (1, 2)]
    # The loss, ten parameters and three statistics, of which all but a count are averaged.
    compared = 6 * 14 + 2 * 12
    assert report.trained == (compared, 0)
    line = f"training: {compared} changes are compared, 0 of them inconclusive (0.0%)"
    assert line in str(report)
    assert report.to_dict()["training"] == {"compared": compared, "inconclusive": 0}
