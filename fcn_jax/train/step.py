"""One training step: a pure function of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fcn_jax.config import OptimConfig
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.nn import REMAT_NAMES
from fcn_jax.plugins.api import IGNORE_INDEX, Preprocess
from fcn_jax.runtime.compiler import prefers_blocks
from fcn_jax.train.losses import segmentation_loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step.

    Attributes:
        step: i32[], steps taken.
        params: parameters, f32.
        batch_stats: running statistics, f32 and i32; and kernels that are `nn.Buffer`, which no
            step changes.
        opt_state: the optimizer's.
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
    *,
    aux_weight: float = OptimConfig().aux_weight,
    accumulate_steps: int = 1,
    remat: bool = False,
    blocks: bool | None = None,
) -> tuple[TrainState, Step]:
    """Split a model into its state and a step over it.

    Args:
        model: as `build_model` returns it; its arrays are not touched.
        optimizer: parameters -> optimizer.
        preprocess: the backbone's.
        aux_weight: of the auxiliary head's loss, if the model has one.
        accumulate_steps: parts that the batch is computed in, one after the other, which takes less
            memory. Loss and gradient are those of the whole batch, but batch normalization sees a
            part at a time. Divides the batch's images on each device.
        remat: keep only the convolutions' outputs and moments for the backward pass, and compute
            normalizations and activations again there.
        blocks: compute the loss in the head's block layout, if it has one; by default on GPUs and
            TPUs, where that saves copying the logits.

    Returns:
        The state at step 0, and `step(state, {"image": u8[N,h,w,3], "mask": u8[N,h,w]}) -> (state,
        {"loss": f32[], "grad_norm": f32[]})`, to be jitted with the state donated.
    """
    in_blocks = prefers_blocks() if blocks is None else blocks
    model.train()
    # Train and eval mode are different graphs, so the mode is set before the split. What is neither
    # parameter nor statistic is the keys of dropout and its like; they stay as they are, and each
    # step folds its number into them.
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, batch_stats, rest = states
    transform = optimizer(params)

    @jax.jit  # one program: by themselves they would be one for each shape, a megabyte each
    def initial(params: Any, batch_stats: Any) -> TrainState:
        # The step donates its state, and must not take the model's own arrays with it.
        params, batch_stats = jax.tree.map(jnp.copy, (params, batch_stats))
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, transform.init(params))

    state = initial(params, batch_stats)

    def loss_of(
        params: Any, batch_stats: Any, keys: Any, batch: Mapping[str, jax.Array], count: jax.Array
    ) -> Any:
        # Without the copy, writing the statistics under value_and_grad is an error of trace levels.
        network = nnx.merge(graphdef, params, batch_stats, keys, copy=True)
        images = normalize(batch["image"], preprocess)
        outputs = network.subpixel_outputs(images) if in_blocks else network.outputs(images)
        return segmentation_loss(outputs, batch["mask"], aux_weight, count=count), nnx.state(
            network, nnx.BatchStat
        )

    if remat:
        loss_of = jax.checkpoint(
            loss_of,
            policy=jax.checkpoint_policies.save_only_these_names(*REMAT_NAMES),
        )
    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def step(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        count = (batch["mask"] != IGNORE_INDEX).sum()
        keys = _folded(rest, state.step)
        if accumulate_steps == 1:
            (loss, batch_stats), grads = gradient(
                state.params, state.batch_stats, keys, batch, count
            )
        else:

            def add(total: Any, part: Any) -> tuple[Any, None]:
                loss, batch_stats, grads = total
                number, batch = part
                (more, batch_stats), added = gradient(
                    state.params, batch_stats, _folded(keys, number), batch, count
                )
                return (loss + more, batch_stats, jax.tree.map(jnp.add, grads, added)), None

            # Every accumulate_steps-th image, so that each part lies on all devices as the batch
            # does.
            parts = jax.tree.map(
                lambda x: x.reshape(-1, accumulate_steps, *x.shape[1:]).swapaxes(0, 1), dict(batch)
            )
            start = (jnp.zeros(()), state.batch_stats, jax.tree.map(jnp.zeros_like, state.params))
            (loss, batch_stats, grads), _ = jax.lax.scan(
                add, start, (jnp.arange(accumulate_steps), parts)
            )
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return state, step


def _folded(keys: Any, number: jax.Array) -> Any:
    """Random keys with a number folded into each; what is no key stays as it is."""

    def fold(leaf: jax.Array) -> jax.Array:
        return (
            jax.random.fold_in(leaf, number)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        )

    return jax.tree.map(fold, keys)
