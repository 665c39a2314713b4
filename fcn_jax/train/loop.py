"""The training loop, from top to bottom."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax import atomic, checkpoint, registry
from fcn_jax.api import Source
from fcn_jax.compiler import compiler_options
from fcn_jax.config import Config, parse
from fcn_jax.convert.initial import load_initial
from fcn_jax.data.pipeline import eval_examples, steps_per_epoch, train_batches
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import CheckpointError, ConfigError, TrainingError
from fcn_jax.infer import draw
from fcn_jax.infer.metrics import ConfusionMatrix, Scores
from fcn_jax.infer.predictor import Predictor, evaluate
from fcn_jax.memory import give_back_freed_memory
from fcn_jax.models.names import named
from fcn_jax.models.segmenter import ModelSpec, build
from fcn_jax.models.segmenter import describe as describe_model
from fcn_jax.train import logs, optim, sharding
from fcn_jax.train import step as train_step
from fcn_jax.train.signals import StopRequest


@dataclasses.dataclass(frozen=True)
class Result:
    """How a training run ended.

    Attributes:
        run: its directory.
        step: steps taken.
        scores: of the last evaluation, or None if there was none.
        stopped_by: name of the signal that stopped it early, or None if it is finished.
    """

    run: Path
    step: int
    scores: Scores | None
    stopped_by: str | None


def train(config: Config, run: str | Path, *, resume: bool = False) -> Result:
    """Train a network by a recipe.

    Writes to the run directory: `config.json`, `versions.json`, `metrics.jsonl`, `checkpoints/`, `samples/`.

    Args:
        config: the recipe.
        run: directory to write; made if missing.
        resume: go on from the run's last checkpoint, if there is one. Everything goes on as if it had never stopped: parameters,
            optimiser, statistics, and the position in the data.

    Returns:
        How it ended.

    Raises:
        ConfigError: a setting that does not fit the data, the model or the run.
        DataError, WeightsError, CheckpointError, PluginError: as their docstrings say.
        TrainingError: the loss was not finite; the evidence lies in the run directory.
    """
    run = Path(run)
    _claim(run, config, resume)

    # ------------------------------------------------------------------------------------------------------------------- mesh
    mesh = sharding.data_mesh(config.data.batch_size, config.optim.micro_steps)
    everywhere, batch_sharding = sharding.on_every_device(mesh), sharding.over_batch(mesh)
    shard = (jax.process_index(), jax.process_count())

    # ------------------------------------------------------------------------------------------------------------------- data
    parts = ModelSpec(**config.model.model_dump())
    preprocess = describe_model(
        parts
    ).backbone.preprocess  # a misspelt name is told before data are prepared, which may take a while
    dataset = registry.default().dataset(config.data.dataset)
    root = Path(config.data.root) if config.data.root else None
    train_source, val_source = dataset.open(root, config.data.train_split), dataset.open(root, config.data.val_split)
    batches = train_batches(
        train_source,
        augment=Augment(
            crop=config.data.crop,
            scale=config.data.scale,
            flip=config.data.flip,
            brightness=config.data.brightness,
            contrast=config.data.contrast,
            saturation=config.data.saturation,
        ),
        batch_size=config.data.batch_size // shard[1],
        seed=config.train.seed,
        workers=config.data.workers,
        shard=shard,
    )
    epoch_steps = steps_per_epoch(train_source, config.data.batch_size // shard[1], shard)
    total_steps = epoch_steps * config.train.epochs

    # ------------------------------------------------------------------------------------------------------------------ model
    model_spec = dataclasses.replace(parts, num_classes=len(train_source.classes))
    model = build(model_spec, rngs=nnx.Rngs(config.train.seed))
    weights = (
        load_initial(model, config.init.weights, config.init.reinit, drop=config.init.drop, key=config.init.key)
        if config.init.weights
        else None
    )
    spec = checkpoint.describe(model_spec, train_source.classes, dataclasses.asdict(weights) if weights else None)

    # -------------------------------------------------------------------------------------------------------------- optimiser
    settings = optim.with_fresh(config.optim, weights.reinit if weights else (), config.init.reinit_lr)
    state, step = train_step.make(
        model,
        lambda params: optim.make(settings, total_steps, params),
        preprocess,
        aux_weight=config.optim.aux_weight,
        micro_steps=config.optim.micro_steps,
        remat=config.optim.remat,
        loop_blocks=config.optim.loop_blocks,
    )
    state = jax.device_put(state, everywhere)
    rate = optim.schedule(config.optim, total_steps)

    # ----------------------------------------------------------------------------------------------------------------- resume
    run.mkdir(parents=True, exist_ok=True)  # not before: a recipe that does not fit leaves nothing behind
    checkpoints = checkpoint.Checkpoints(run)
    start = (checkpoints.latest_step() or 0) if resume else 0
    if start:
        state, position = _restored(checkpoints, start, state)
        batches.set_state(position)
    # Or the values that it was built with would be kept beside the state's. The first step deletes these: until it is given others, for an
    # evaluation, nothing may read the model.
    nnx.update(model, state.params, state.batch_stats)
    atomic.write_json(run / "config.json", json.loads(config.to_json()))
    atomic.write_json(run / "versions.json", {**logs.versions(), "plugins": spec.plugins, "weights": spec.weights})
    records = logs.Records(run / "metrics.jsonl", start)
    progress = logs.Progress(total_steps, start)
    counted = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    progress.say(
        f"{config.model.backbone} + {config.model.head}, {counted:,} parameters, {config.model.dtype}, "
        f"{len(train_source.classes)} classes; "
        f"{config.data.dataset}: {len(train_source)} train, {len(val_source)} val images; {mesh.size} x {jax.devices()[0].device_kind}"
    )
    if weights:
        progress.say(f"initial weights: {weights}")
    if resume:
        progress.say(f"resuming {run} after step {start}" if start else f"{run} has no checkpoint yet: starting at step 0")

    # ---------------------------------------------------------------------------------------------------------------- compile
    probe = sharding.place_batch(_zeros(config, shard[1]), batch_sharding)
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0, compiler_options=compiler_options()).lower(state, probe).compile()
    del step  # JAX keeps what it traced as long as the function is there
    records.write(step=start, event="compile", compile_seconds=time.perf_counter() - began)
    give_back_freed_memory()  # the compiler's
    predictor: Predictor | None = None

    # ------------------------------------------------------------------------------------------------------------------ steps
    scores: Scores | None = None
    number = saved = start
    window = logs.Window(config.data.batch_size, start)
    pending: tuple[int, dict[str, jax.Array], dict[str, np.ndarray]] | None = None
    # A step takes its memory when it is dispatched, on CPUs the host's: two of them would take twice as much, and gain nothing, as the
    # next batch is prepared beside the step anyway. Its inputs are waited for, too, or `memory.free_after_each_call` would be in vain.
    one_at_a_time = jax.default_backend() == "cpu"
    try:
        with StopRequest() as stop:
            while number < total_steps and not stop.signal:
                with window.waiting():
                    batch = next(batches)
                placed = sharding.place_batch(batch, batch_sharding)
                if one_at_a_time:
                    jax.block_until_ready((state, placed))
                state, metrics = compiled(state, placed)
                number += 1
                if number == start + 1 and one_at_a_time:
                    jax.block_until_ready(state)
                    give_back_freed_memory()  # what the first call needed for itself
                # The loss is read one step late, so that the host prepares a batch while the device computes.
                if pending:
                    loss = _finite_loss(pending, run, state)
                    progress.update(pending[0], (pending[0] - 1) // epoch_steps + 1, loss, window.images_per_second(pending[0]))
                pending = (number, metrics, batch)

                if number % config.train.log_every == 0 or number == total_steps:
                    loss = _finite_loss(pending, run, state)
                    figures = window.figures(number)
                    records.write(
                        step=number,
                        event="train",
                        epoch=number / epoch_steps,
                        loss=loss,
                        grad_norm=float(metrics["grad_norm"]),
                        lr=float(rate(number - 1)),
                        **figures,
                        peak_memory_gib=logs.peak_memory(),
                    )
                    progress.update(number, (number - 1) // epoch_steps + 1, loss, figures["images_per_second"])
                    window.restart(number)

                # -------------------------------------------------------------------------------------- evaluation, checkpoint
                if number % (epoch_steps * config.train.eval_every) == 0 or number == total_steps:
                    _finite_loss(pending, run, state)
                    began = time.perf_counter()
                    nnx.update(model, state.params, state.batch_stats)
                    if predictor is None:
                        predictor = Predictor(model, val_source.classes)
                    predictor.update(model)
                    scores = _evaluate(predictor, val_source, run / "samples" / f"step_{number:07d}", config)
                    records.write(
                        step=number,
                        event="val",
                        epoch=number / epoch_steps,
                        seconds=time.perf_counter() - began,
                        **scores.to_dict(val_source.classes),
                    )
                    progress.say(
                        f"epoch {number // epoch_steps}: val mIoU {scores.miou:.4f}, pixel accuracy {scores.pixel_accuracy:.4f} "
                        f"({len(val_source)} images in {time.perf_counter() - began:.0f} s)"
                    )
                    _save(checkpoints, number, state, batches.get_state(), spec, {checkpoint.METRIC: scores.miou})
                    saved = number
                    window.pause(time.perf_counter() - began)
                elif config.train.checkpoint_every and number % config.train.checkpoint_every == 0:
                    _finite_loss(pending, run, state)
                    _save(checkpoints, number, state, batches.get_state(), spec, None)
                    saved = number

            # -------------------------------------------------------------------------------------------------------- report
            if pending:
                _finite_loss(pending, run, state)
            if number > saved:
                _save(checkpoints, number, state, batches.get_state(), spec, None)
            checkpoints.close()
            stopped_by = stop.signal.name if stop.signal and number < total_steps else None
    finally:
        progress.close()
        records.close()
        batches.close()
    return Result(run, number, scores, stopped_by)


def _claim(run: Path, config: Config, resume: bool) -> None:
    """Make sure that nothing of another run is overwritten, and that a resumed run keeps its recipe."""
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run}: a run is a directory; this is a file")
    recorded = run / "config.json"
    if not resume:
        if run.exists() and any(run.iterdir()):
            raise ConfigError(f"{run}: exists and is not empty; go on with --resume, or name another directory with --run")
    elif recorded.exists():
        before, now = read_config(run).model_dump(mode="json"), config.model_dump(mode="json")
        changed = sorted(f"{s}.{k}" for s in now for k in now[s] if now[s][k] != before[s][k] and f"{s}.{k}" not in _FREE)
        if changed:
            raise ConfigError(
                f"{run}: --resume keeps the run's recipe, but not here: {', '.join(changed)}; leave that as it was, or start another run"
            )


_FREE = frozenset({"data.root", "data.workers", "train.log_every", "train.samples"})
"""Settings that may change when a run goes on: none of them changes what is computed."""


def read_config(run: Path) -> Config:
    """The recipe that a run directory records. Raises `CheckpointError` if it has none."""
    path = run / "config.json"
    try:
        return parse(json.loads(path.read_text()), str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run}: no run to resume here (no readable config.json)") from error


def _zeros(config: Config, processes: int) -> dict[str, np.ndarray]:
    shape = (config.data.batch_size // processes, *config.data.crop)
    return {"image": np.zeros((*shape, 3), np.uint8), "mask": np.zeros(shape, np.uint8)}


def _items(state: train_step.TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state as a checkpoint's items `model` and `train`."""
    arrays = {name: leaf[...] for part in (state.params, state.batch_stats) for name, leaf in named(part).items()}
    return arrays, {"step": state.step, "opt_state": state.opt_state}


def _save(
    checkpoints: checkpoint.Checkpoints,
    number: int,
    state: train_step.TrainState,
    position: Any,
    spec: checkpoint.Spec,
    metrics: Mapping[str, float] | None,
) -> None:
    model, rest = _items(state)
    checkpoints.save(number, model=model, train=rest, data=position, spec=spec, metrics=metrics)


def _finite_loss(
    pending: tuple[int, dict[str, jax.Array], dict[str, np.ndarray]], run: Path, state: train_step.TrainState
) -> float:
    """The loss of a step, once it is computed. Raises `TrainingError`, leaving the evidence in the run, if it is not finite."""
    number, metrics, batch = pending
    loss = float(metrics["loss"])
    if math.isfinite(loss):
        return loss
    folder = run / "nonfinite"
    folder.mkdir(exist_ok=True)
    names = optim.parameter_names(state.params)
    broken = [n for n, leaf in zip(names, jax.tree.leaves(state.params), strict=True) if not bool(jax.numpy.isfinite(leaf).all())]
    np.savez_compressed(folder / "batch.npz", image=batch["image"], mask=batch["mask"])
    report = {
        "step": number,
        "loss": str(loss),
        "grad_norm": str(float(metrics["grad_norm"])),
        "nonfinite_parameters_after": broken,
    }
    atomic.write_json(folder / "report.json", report)
    raise TrainingError(
        f"the loss of step {number} is {loss}; the batch and the names of the {len(broken)} parameters that are no longer finite are in "
        f"{folder}. The checkpoints before it are whole; lower optim.lr or add optim.warmup_steps"
    )


def _restored(
    checkpoints: checkpoint.Checkpoints, number: int, state: train_step.TrainState
) -> tuple[train_step.TrainState, Any]:
    arrays, rest = _items(state)
    stored, rest, position = checkpoints.restore(number, model=arrays, train=rest)

    def filled(tree: nnx.State) -> nnx.State:
        flat = [(path, leaf.replace(stored[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(tree)]
        return nnx.from_flat_state(flat)

    restored = train_step.TrainState(rest["step"], filled(state.params), filled(state.batch_stats), rest["opt_state"])
    return restored, position


def _evaluate(predictor: Predictor, source: Source, folder: Path, config: Config) -> Scores:
    """Score the whole set at native size, and draw its first images."""
    matrix = ConfusionMatrix(len(source.classes))
    for index, seen in enumerate(evaluate(predictor, eval_examples(source, workers=config.data.workers), matrix)):
        if index < config.train.samples:
            example = seen.example
            picture = draw.panel(example.image, example.mask, seen.prediction, source.classes)
            draw.write_image(folder / f"{os.path.basename(example.id)}.png", picture)
    return matrix.scores()
