"""One training step: a pure function of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fcn_jax.api import Preprocess
from fcn_jax.config import OptimConfig
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.train.losses import segmentation_loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step.

    Attributes:
        step: i32[], steps taken.
        params: parameters, f32.
        batch_stats: running statistics, f32 and i32.
        opt_state: the optimiser's.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make(
    model: Segmenter,
    optimizer: Callable[[Any], optax.GradientTransformation],
    preprocess: Preprocess,
    aux_weight: float = OptimConfig().aux_weight,
) -> tuple[TrainState, Step]:
    """Split a model into its state and a step over it.

    Args:
        model: as `build_model` returns it; its arrays are not touched.
        optimizer: parameters -> optimiser.
        preprocess: the backbone's.
        aux_weight: of the auxiliary head's loss, if the model has one.

    Returns:
        The state at step 0, and `step(state, {"image": u8[N,h,w,3], "mask": u8[N,h,w]}) -> (state, {"loss": f32[], "grad_norm": f32[]})`,
        to be jitted with the state donated.
    """
    model.train()
    # Train and eval mode are different graphs, so the mode is set before the split. What is neither parameter nor statistic is the
    # keys of dropout and its like; they stay as they are, and each step folds its number into them.
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, batch_stats, rest = states
    transform = optimizer(params)
    # The step donates its state, and must not take the model's own arrays with it.
    params, batch_stats = jax.tree.map(jnp.copy, (params, batch_stats))
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, transform.init(params))

    def fold(leaf: jax.Array, step: jax.Array) -> jax.Array:
        return jax.random.fold_in(leaf, step) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            keys = jax.tree.map(lambda leaf: fold(leaf, state.step), rest)
            # Without the copy, writing the statistics under value_and_grad is an error of trace levels.
            network = nnx.merge(graphdef, params, state.batch_stats, keys, copy=True)
            outputs = network.outputs(normalize(batch["image"], preprocess))
            return segmentation_loss(outputs, batch["mask"], aux_weight), nnx.state(network, nnx.BatchStat)

        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return state, step
