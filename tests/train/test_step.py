import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax.api import Preprocess
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import ModelSpec, build
from fcn_jax.train import step as train_step
from fcn_jax.train.losses import cross_entropy

# Bright squares are class 1: easy to learn.
IMAGE = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1)).repeat(8, 1).repeat(8, 2).repeat(3, 3).astype(np.uint8)
MASK = (IMAGE[..., 0] > 127).astype(np.uint8)
MASK[:, 0] = 255
BATCH = {"image": IMAGE, "mask": MASK}
RATE = 0.1


def make(dropout=0.0, rate=RATE, dtype="float32"):
    model = build(ModelSpec("tiny", "fcn32s", 2, {"width": 6, "dropout": dropout}, dtype=dtype), rngs=nnx.Rngs(0))
    return model, *train_step.make(model, lambda params: optax.sgd(rate, momentum=0.9), Preprocess())


@pytest.fixture(scope="module")
def made(tiny_plugin):
    """A model without dropout, its state, and its step, jitted without donation so that the tests can share the state."""
    model, state, step = make()
    return model, state, jax.jit(step)


def test_the_loss_falls_and_the_statistics_move(made):
    _, state, step = made
    losses = []
    for _ in range(30):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]
    assert int(state.step) == 30
    statistics = state.batch_stats["backbone"]["bn1"]
    assert int(statistics["num_batches_tracked"][...]) == 30
    assert np.asarray(statistics["mean"][...]).any()


def test_a_step_is_the_gradient_of_the_loss_at_the_normalised_images(made):
    model, state, step = made
    stepped, metrics = step(state, BATCH)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def expected(params):
        def loss(params):
            return cross_entropy(nnx.merge(graphdef, params, rest, copy=True)(normalize(IMAGE, Preprocess())), MASK)

        return jax.value_and_grad(loss)(params)

    loss, grads = expected(params)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.global_norm(grads)), rel=1e-4)
    jax.tree.map(lambda new, old, g: np.testing.assert_allclose(new, old - RATE * g, atol=1e-5), stepped.params, params, grads)


def test_the_auxiliary_heads_loss_is_added_by_its_weight(tiny_plugin):
    spec = ModelSpec(
        "tiny", "fcn32s", 2, {"width": 6, "dropout": 0.0}, aux_head="fcn", aux_head_options={"dropout": 0.0}, aux_feature="deep"
    )
    model = build(spec, rngs=nnx.Rngs(0))
    model.train()

    def losses(aux_weight):
        state, step = train_step.make(model, lambda params: optax.sgd(RATE), Preprocess(), aux_weight)
        stepped, metrics = jax.jit(step)(state, BATCH)
        moved = np.abs(
            np.asarray(stepped.params["aux_head"]["conv2"]["bias"][...] - state.params["aux_head"]["conv2"]["bias"][...])
        )
        return float(metrics["loss"]), moved.max()

    alone, still = losses(0.0)
    half, moved = losses(0.5)
    outputs = nnx.clone(model).outputs(normalize(IMAGE, Preprocess()))
    assert alone == pytest.approx(float(cross_entropy(outputs["out"], MASK)), rel=1e-5)
    assert half - alone == pytest.approx(0.5 * float(cross_entropy(outputs["aux"], MASK)), rel=1e-4)
    assert still == 0 < moved


def test_ignored_pixels_change_no_parameter(made):
    _, state, step = made
    stepped, metrics = step(state, {"image": IMAGE, "mask": np.full_like(MASK, 255)})
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0
    jax.tree.map(np.testing.assert_array_equal, stepped.params, state.params)


def test_the_state_is_donated_and_the_models_own_arrays_are_not(tiny_plugin):
    model, state, step = make()
    given = jax.tree.leaves(state.params)
    jax.block_until_ready(jax.jit(step, donate_argnums=0)(state, BATCH))
    assert all(leaf.is_deleted() for leaf in given)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(model)))


def test_all_is_decided_by_the_seed_and_dropout_by_the_step(tiny_plugin):
    # With nothing learned, only the dropped values change from step to step.
    _, state, step = make(dropout=0.5, rate=0.0)
    _, same, _ = make(dropout=0.5, rate=0.0)
    jax.tree.map(np.testing.assert_array_equal, state.params, same.params)
    step = jax.jit(step)

    def losses(state, start):
        state = train_step.TrainState(jnp.asarray(start, jnp.int32), state.params, state.batch_stats, state.opt_state)
        found = []
        for _ in range(3):
            state, metrics = step(state, BATCH)
            found.append(float(metrics["loss"]))
        return found

    first = losses(state, 0)
    assert len(set(first)) == 3
    assert losses(same, 0) == first
    assert losses(state, 1)[:2] == first[1:], "a step that is resumed drops what it would have dropped"


def test_bfloat16_keeps_parameters_and_statistics_in_float32(tiny_plugin):
    _, state, step = make(dtype="bfloat16")
    stepped, metrics = jax.eval_shape(step, state, BATCH)
    assert {leaf.dtype for leaf in jax.tree.leaves((stepped.params, metrics))} == {jnp.dtype(jnp.float32)}
    jax.tree.map(lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape) or pytest.fail(f"{a} {b}"), stepped, state)
