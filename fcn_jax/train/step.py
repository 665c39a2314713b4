"""The training step: a pure function of state and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fcn_jax.errors import ConfigError
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.nn import REMAT_NAMES
from fcn_jax.nn._blocks import recompute_blocks
from fcn_jax.nn._split_rows import split_rows
from fcn_jax.nn._subpixel import prefers_subpixel
from fcn_jax.plugins.api import Preprocess
from fcn_jax.train import ema, groups
from fcn_jax.train.losses import Losses, default_losses
from fcn_jax.train.sharding import Placement


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step.

    Attributes:
        step: i32[], number of steps taken.
        params: parameters, f32.
        batch_stats: running statistics, f32 and i32, and `nn.Buffer` values, which no step changes.
        opt_state: state of the optimizer.
        ema: averages of the parameters and float statistics, f32, see `fcn_jax.train.ema`; or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None


Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make(
    model: Segmenter,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    *,
    losses: Losses | None = None,
    aux_weight: float = 0.5,
    accumulate_steps: int = 1,
    remat: bool | Literal["blocks"] = False,
    blocks: bool | None = None,
    ema_decay: float | None = None,
    ema_warmup: bool = False,
    frozen: frozenset[str] = frozenset(),
    freeze_batch_norm: Sequence[str] = (),
    placement: Placement | None = None,
) -> tuple[TrainState, Step]:
    """Make the initial state and the training step of a model.

    Args:
        model: the model, which is set to train mode. Its arrays are copied.
        optimizer: optimizer of the parameters that are trained.
        preprocess: the backbone's preprocessing.
        losses: the loss of each head's logits; by default cross entropy.
        aux_weight: weight of the auxiliary head's loss, if the model has such a head.
        accumulate_steps: parts in which a batch is computed, one after the other; must divide the
            images of a batch on each device. More parts take less memory. Loss and gradient are
            those of the whole batch, but batch normalization sees one part at a time. Every loss
            must be a `fcn_jax.api.MeanLoss`.
        remat: with True, keep only the outputs of convolutions and the moments of batch
            normalization for the backward pass, and compute normalizations and activations again
            there. With "blocks", keep only the inputs of the backbone's blocks, and compute each
            block again; see `fcn_jax.nn.call_block`.
        blocks: compute the loss from sub-pixel logits, if the head has them. By default on GPUs and
            TPUs, where that saves a copy of the logits.
        ema_decay: decay of the averages of the weights, above 0 and below 1; None for no averages.
        ema_warmup: let the decay rise to `ema_decay`; see `fcn_jax.train.ema.new_weight`.
        frozen: names of parameters that are not trained. They have no gradient, no state of the
            optimizer and no averages.
        freeze_batch_norm: globs over names of batch normalizations whose running statistics are
            used and do not change; see `fcn_jax.train.groups.freeze_batch_norm`.
        placement: where state and batch lie; None for one device.

    Returns:
        The state at step 0, and the function `step(state, batch) -> (state, metrics)`, to be jitted
        with the state donated. `batch` is {"image": u8[N,h,w,C] (or f32), "mask": u8[N,h,w]}, or,
        for the task "multilabel", "mask": u8[N,h,w,K] of 0, 1 and 255. `metrics` is {"loss": f32[],
        "grad_norm": f32[]} and, if there are several losses, "losses": {name: f32[]}, those of the
        main head without their weights.

    Raises:
        ConfigError: with `accumulate_steps`, a loss needs the whole batch.
    """
    losses = losses or default_losses()
    if accumulate_steps > 1 and losses.of_whole_batches:
        raise ConfigError(
            f"optim.accumulate_steps is {accumulate_steps}, and the loss of a whole batch is not a "
            f"mean over its parts with {', '.join(losses.of_whole_batches)}; set "
            "optim.accumulate_steps to 1, or use losses that are means over pixels, such as "
            "cross_entropy and focal"
        )
    several = len(losses.terms) > 1
    subpixel = prefers_subpixel() if blocks is None else blocks
    model.train()
    groups.freeze_batch_norm(model, freeze_batch_norm)
    # Train and eval mode have different graphs, so the mode is set before the split. `rest` holds
    # random keys, such as dropout's. They never change; each step folds its number into them.
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    rest = states.pop()

    def reduced(grads: Any) -> Any:
        return placement.reduced(grads) if placement else grads

    @jax.jit  # One program. Separate calls would compile one for each shape.
    def initial(params: Any, batch_stats: Any) -> TrainState:
        # The state is donated to the step; the model's own arrays must survive that.
        params, batch_stats = jax.tree.map(jnp.copy, (params, batch_stats))
        trained, _ = groups.trained(params, frozen)
        average = None
        if ema_decay is not None:
            average = jax.tree.map(jnp.copy, ema.averaged(trained, batch_stats))
        opt_state = optimizer.init(trained)
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, average)

    state = initial(*states)
    del states

    def loss_of(
        trained: Any,
        fixed: Any,
        batch_stats: Any,
        keys: Any,
        batch: Mapping[str, jax.Array],
        divisors: Any,
    ) -> Any:
        # Without the copy, updating the statistics under value_and_grad is a trace-level error.
        network = nnx.merge(graphdef, trained, fixed, batch_stats, keys, copy=True)
        images = normalize(batch["image"], preprocess)
        in_blocks = subpixel and batch["mask"].ndim == 3  # not if labels have an axis of classes
        with recompute_blocks(remat == "blocks"):
            outputs = network.subpixel_outputs(images) if in_blocks else network.outputs(images)
        loss, values = losses(outputs, batch["mask"], aux_weight, divisors)
        return loss, (nnx.state(network, nnx.BatchStat), values if several else {})

    if remat is True:
        policy = jax.checkpoint_policies.save_only_these_names(*REMAT_NAMES)
        loss_of = jax.checkpoint(loss_of, policy=policy)
    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def accumulated(
        trained: Any, fixed: Any, batch_stats: Any, keys: Any, batch: Any, divisors: Any
    ) -> Any:
        def add(total: Any, part: Any) -> tuple[Any, None]:
            sums, batch_stats = total
            number, batch = part
            (loss, (batch_stats, values)), grads = gradient(
                trained, fixed, batch_stats, _fold(keys, number), batch, divisors
            )
            added = jax.tree.map(jnp.add, sums, (loss, values, reduced(grads)))
            return (added, batch_stats), None

        # Each part takes every accumulate_steps-th image, so that it lies on all devices.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate_steps, *x.shape[1:]).swapaxes(0, 1), dict(batch)
        )
        zeros = {term.name: jnp.zeros(()) for term in losses.terms} if several else {}
        sums = jnp.zeros(()), zeros, jax.tree.map(jnp.zeros_like, trained)
        ((loss, values, grads), batch_stats), _ = jax.lax.scan(
            add, (sums, batch_stats), (jnp.arange(accumulate_steps), parts)
        )
        return (loss, (batch_stats, values)), grads

    @split_rows(placement.mesh.shape["spatial"] if placement else 1)
    def step(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        divisors = losses.divisors(batch["mask"])
        keys = _fold(rest, state.step)
        whole = state.params, state.batch_stats
        params, batch_stats = placement.gathered(whole) if placement else whole
        compute = gradient if accumulate_steps == 1 else accumulated
        result = compute(*groups.trained(params, frozen), batch_stats, keys, batch, divisors)
        (loss, (batch_stats, values)), grads = result
        grads = reduced(grads)
        trained, fixed = groups.trained(state.params, frozen)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        params = nnx.merge_state(trained, fixed)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        if values:
            metrics["losses"] = values
        average = state.ema
        if ema_decay is not None:
            weight = ema.new_weight(state.step, ema_decay, warmup=ema_warmup)
            average = ema.updated(average, ema.averaged(trained, batch_stats), weight)
        return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

    return state, step


def batch_shapes(
    batch_size: int,
    crop_size: tuple[int, int],
    sharding: jax.sharding.Sharding | None,
    *,
    channels: int = 3,
    dtype: str = "uint8",
    mask_channels: int | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a training batch, to compile the step without one.

    `channels` and `dtype` are those of the images; `mask_channels` is the number of classes of the
    task "multilabel", and None for others.
    """
    shape = (batch_size, *crop_size)
    image = jax.ShapeDtypeStruct((*shape, channels), jnp.dtype(dtype), sharding=sharding)
    labels = shape if mask_channels is None else (*shape, mask_channels)
    return {"image": image, "mask": jax.ShapeDtypeStruct(labels, jnp.uint8, sharding=sharding)}


def _fold(keys: Any, number: jax.Array) -> Any:
    """Fold a number into each random key; other leaves stay as they are."""

    def fold(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.fold_in(leaf, number) if is_key else leaf

    return jax.tree.map(fold, keys)
