"""The training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax.api import ModelSpec, Preprocess
from fcn_jax.models.build import build
from fcn_jax.models.preprocess import normalize
from fcn_jax.train import step as train_step
from fcn_jax.train.losses import cross_entropy

# Bright squares are class 1: easy to learn.
IMAGE = (
    np.random.default_rng(0)
    .integers(0, 256, (4, 4, 4, 1))
    .repeat(8, 1)
    .repeat(8, 2)
    .repeat(3, 3)
    .astype(np.uint8)
)
MASK = (IMAGE[..., 0] > 127).astype(np.uint8)
MASK[:, 0] = 255
BATCH = {"image": IMAGE, "mask": MASK}
RATE = 0.1


def make(dropout=0.0, rate=RATE, dtype="float32"):
    model = build(
        ModelSpec("tiny", "fcn32s", 2, {"width": 6, "dropout": dropout}, dtype=dtype),
        rngs=nnx.Rngs(0),
    )
    return model, *train_step.make(model, optax.sgd(rate, momentum=0.9), Preprocess())


@pytest.fixture(scope="module")
def made(tiny_plugin):
    """A model without dropout, its state, and its step.

    The step is jitted without donation, so that the tests can share the state.
    """
    model, state, step = make()
    return model, state, jax.jit(step)


def test_steps_lower_the_loss_and_update_the_statistics(made):
    _, state, step = made
    losses = []
    for _ in range(30):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]
    assert int(state.step) == 30
    statistics = state.batch_stats["backbone"]["conv1"]["bn"]
    assert int(statistics["num_batches_tracked"][...]) == 30
    assert np.asarray(statistics["mean"][...]).any()


def test_step_follows_the_gradient_of_the_loss_on_normalized_images(made):
    model, state, step = made
    stepped, metrics = step(state, BATCH)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def expected(params):
        def loss(params):
            return cross_entropy(
                nnx.merge(graphdef, params, rest, copy=True)(normalize(IMAGE, Preprocess())), MASK
            )

        return jax.value_and_grad(loss)(params)

    loss, grads = expected(params)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - RATE * g, atol=1e-5),
        stepped.params,
        params,
        grads,
    )


@pytest.mark.slow
def test_adds_the_auxiliary_loss_times_its_weight(tiny_plugin):
    spec = ModelSpec(
        "tiny",
        "fcn32s",
        2,
        {"width": 6, "dropout": 0.0},
        aux_head="fcn",
        aux_head_options={"dropout": 0.0},
        aux_feature="deep",
    )
    model = build(spec, rngs=nnx.Rngs(0))
    model.train()

    def losses(aux_weight):
        state, step = train_step.make(model, optax.sgd(RATE), Preprocess(), aux_weight=aux_weight)
        stepped, metrics = jax.jit(step)(state, BATCH)
        moved = np.abs(
            np.asarray(
                stepped.params["aux_head"]["conv2"]["bias"][...]
                - state.params["aux_head"]["conv2"]["bias"][...]
            )
        )
        return float(metrics["loss"]), moved.max()

    alone, still = losses(0.0)
    half, moved = losses(0.5)
    outputs = nnx.clone(model).outputs(normalize(IMAGE, Preprocess()))
    assert alone == pytest.approx(float(cross_entropy(outputs["out"], MASK)), rel=1e-5)
    assert half - alone == pytest.approx(0.5 * float(cross_entropy(outputs["aux"], MASK)), rel=1e-4)
    assert still == 0 < moved


def stepped(model, **settings):
    state, step = train_step.make(model, optax.sgd(RATE, momentum=0.9), Preprocess(), **settings)
    return jax.jit(step)(state, BATCH)


def test_remat_changes_no_value_and_rematerializes(made):
    model = made[0]
    plain, again = stepped(model), stepped(model, remat=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        plain[0].params,
        again[0].params,
    )

    def saved(**settings):
        state, step = train_step.make(model, optax.sgd(RATE), Preprocess(), **settings)
        return str(jax.make_jaxpr(step)(state, BATCH))

    assert "remat" in saved(remat=True)
    assert "remat" not in saved()


@pytest.mark.slow
def test_accumulated_steps_match_the_whole_batch_without_batch_statistics(
    tiny_plugin,
):
    # In eval mode batch normalization uses its running statistics, so that images are independent.
    # The ignored pixels are spread unevenly over the parts.
    model, *_ = make()
    mask = np.array(MASK)
    mask[:1] = 255
    batch = {"image": IMAGE, "mask": mask}
    found = []
    for accumulate_steps in (1, 2, 4):
        state, step = train_step.make(
            _WithoutStatistics(model),
            optax.sgd(RATE),
            Preprocess(),
            accumulate_steps=accumulate_steps,
        )
        found.append(jax.jit(step)(state, batch))
    for state, metrics in found[1:]:
        assert float(metrics["loss"]) == pytest.approx(float(found[0][1]["loss"]), rel=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            state.params,
            found[0][0].params,
        )


class _WithoutStatistics(nnx.Module):
    """A model whose batch normalization stays in eval mode."""

    def __init__(self, model):
        self.model = nnx.clone(model)

    def train(self):
        self.model.eval()

    def outputs(self, x):
        return self.model.outputs(x)


@pytest.mark.slow
def test_accumulated_steps_update_the_statistics_once_per_part(tiny_plugin):
    model, *_ = make(dropout=0.5)
    state, _ = stepped(model, accumulate_steps=2)
    assert int(state.batch_stats["backbone"]["conv1"]["bn"]["num_batches_tracked"][...]) == 2
    whole, _ = stepped(model)
    assert int(whole.batch_stats["backbone"]["conv1"]["bn"]["num_batches_tracked"][...]) == 1


def test_frozen_batch_norm_normalizes_with_the_running_statistics(tiny_plugin):
    model, *_ = make()
    norm = model.backbone.conv1.bn
    norm.mean[...] += 0.25
    norm.var[...] *= 2.0
    before = nnx.state(model, nnx.BatchStat)
    frozen, metrics = stepped(model, freeze_batch_norm=("*",))
    jax.tree.map(np.testing.assert_array_equal, frozen.batch_stats, before)
    evaluated = nnx.clone(model)
    evaluated.eval()
    loss = cross_entropy(evaluated(normalize(IMAGE, Preprocess())), MASK)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    for name in ("scale", "bias"):  # they are trained
        assert (
            frozen.params["backbone"]["conv1"]["bn"][name][...] != getattr(norm, name)[...]
        ).any()
    moving, other = stepped(model)
    assert int(moving.batch_stats["backbone"]["conv1"]["bn"]["num_batches_tracked"][...]) == 1
    assert float(other["loss"]) != pytest.approx(float(loss), rel=1e-3)


def test_batch_of_ignored_pixels_changes_no_parameter(made):
    _, state, step = made
    stepped, metrics = step(state, {"image": IMAGE, "mask": np.full_like(MASK, 255)})
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0
    jax.tree.map(np.testing.assert_array_equal, stepped.params, state.params)


def test_donates_the_state_but_not_the_models_arrays(tiny_plugin):
    model, state, step = make()
    given = jax.tree.leaves(state.params)
    jax.block_until_ready(jax.jit(step, donate_argnums=0)(state, BATCH))
    assert all(leaf.is_deleted() for leaf in given)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(model)))


def test_seed_decides_the_parameters_and_step_decides_dropout(tiny_plugin):
    # With nothing learned, only the dropped values change from step to step.
    _, state, step = make(dropout=0.5, rate=0.0)
    _, same, _ = make(dropout=0.5, rate=0.0)
    jax.tree.map(np.testing.assert_array_equal, state.params, same.params)
    step = jax.jit(step)

    def losses(state, start):
        state = train_step.TrainState(
            jnp.asarray(start, jnp.int32), state.params, state.batch_stats, state.opt_state
        )
        found = []
        for _ in range(3):
            state, metrics = step(state, BATCH)
            found.append(float(metrics["loss"]))
        return found

    first = losses(state, 0)
    assert len(set(first)) == 3
    assert losses(same, 0) == first
    assert losses(state, 1)[:2] == first[1:], "a resumed step drops the same values"


def test_bfloat16_keeps_parameters_and_statistics_in_float32(tiny_plugin):
    _, state, step = make(dtype="bfloat16")
    stepped, metrics = jax.eval_shape(step, state, BATCH)
    assert {leaf.dtype for leaf in jax.tree.leaves((stepped.params, metrics))} == {
        jnp.dtype(jnp.float32)
    }
    jax.tree.map(
        lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape) or pytest.fail(f"{a} {b}"),
        stepped,
        state,
    )
