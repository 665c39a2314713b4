"""The training loop, from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.config import Config
from fcn_jax.convert.load import init_from
from fcn_jax.data import value_range
from fcn_jax.data.pipeline import steps_per_epoch, train_batches
from fcn_jax.data.splits import Splits, open_splits
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import WriteError
from fcn_jax.eval import draw
from fcn_jax.eval.evaluate import choose_multiple, evaluate
from fcn_jax.eval.metrics import ConfusionMatrix, Scores
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.segmenter import build
from fcn_jax.models.segmenter import describe as describe_model
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Source
from fcn_jax.runtime import atomic
from fcn_jax.runtime.compiler import compiler_options
from fcn_jax.runtime.memory import trim_malloc
from fcn_jax.train import logs, optim, sharding
from fcn_jax.train import step as train_step
from fcn_jax.train.ending import after_a_step, before_any_step
from fcn_jax.train.run_directory import RunDirectory
from fcn_jax.train.saving import (
    Pending,
    Reached,
    close_quietly,
    finite_loss,
    require_finite,
    restored,
    save,
    save_the_work,
)
from fcn_jax.train.settings import (
    claim,
    require_meant,
    require_memory,
    require_same_split,
    require_steps,
    settings_at_fault,
)
from fcn_jax.train.signals import StopNow, StopRequest


@dataclasses.dataclass(frozen=True)
class Result:
    """How a training run ended.

    Attributes:
        run: its directory.
        step: steps taken.
        scores: of the last evaluation, or None if there was none.
        stopped_by: name of the signal that stopped it early, or None if it is finished.
        saved: step of the newest checkpoint, or None if there is none.
        was_finished: the run was finished already, and nothing was done.
    """

    run: Path
    step: int
    scores: Scores | None
    stopped_by: str | None
    saved: int | None = None
    was_finished: bool = False


def train(config: Config, run: str | Path, *, resume: bool = False) -> Result:
    """Train a network by a recipe.

    Writes to the run directory: `config.json`, `versions.json`, `metrics.jsonl`, `checkpoints/`,
    `samples/`. The directory is made when the training step is compiled. Whatever ends the run
    after its first step, the work up to the last completed step is saved, where that is possible;
    the error says so.

    Args:
        config: the recipe.
        run: directory to write; made if missing.
        resume: go on from the run's last checkpoint, if there is one. Everything goes on as if it
            had never stopped: parameters, optimizer, statistics, and the position in the data.

    Returns:
        How it ended.

    Raises:
        ConfigError: a setting that does not fit the data, the model or the run.
        DataError, WeightsError, CheckpointError, PluginError: as their docstrings say.
        WriteError: the run directory cannot be written.
        TrainingError: the run could not go on: the loss was not finite, the disk or the memory is
            full, input workers were killed, or an error that nobody foresaw. What was raised is
            chained.
    """
    with StopRequest() as stop, contextlib.ExitStack() as held:
        try:
            return _train(config.anchored(), Path(run), resume, stop, held)
        except StopNow:
            assert stop.signal is not None
            return Result(Path(run), 0, None, stop.signal.name)


def _train(
    config: Config, run: Path, resume: bool, stop: StopRequest, held: contextlib.ExitStack
) -> Result:
    directory = held.enter_context(RunDirectory(run))
    claim(run, config, resume)
    if not resume:
        require_meant(config)

    # ------------------------------------------------------------------------------------------------------------------- mesh
    mesh = sharding.data_mesh(config.data.batch_size, config.optim.accumulate_steps)
    everywhere, batch_sharding = sharding.on_every_device(mesh), sharding.over_batch(mesh)
    shard = (jax.process_index(), jax.process_count())

    # ------------------------------------------------------------------------------------------------------------------- data
    parts = config.model
    preprocess = (
        describe_model(parts).backbone.preprocess
    )  # a misspelt name is told before data are prepared, which may take a while
    earlier = checkpoint.latest_spec(run) if resume else None
    opened = _open_data(config, earlier[1] if earlier else None)
    train_source, val_source = (
        opened.sources[config.data.train_split],
        opened.sources[config.data.val_split],
    )
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
    held.callback(batches.close)
    epoch_steps = steps_per_epoch(train_source, config.data.batch_size // shard[1], shard)
    total_steps = epoch_steps * config.train.epochs

    def evaluation_is_due(number: int) -> bool:
        return number % (epoch_steps * config.train.eval_every_epochs) == 0 or number == total_steps

    require_steps(config, total_steps)
    if earlier:
        require_same_split(run, earlier[1].split, opened.identity, config.data.train_split)
    if earlier and earlier[0] >= total_steps and checkpoint.is_evaluated(run, earlier[0]):
        return Result(run, earlier[0], None, None, earlier[0], was_finished=True)

    # ------------------------------------------------------------------------------------------------------------------ model
    model_spec = dataclasses.replace(parts, num_classes=len(train_source.classes))
    with settings_at_fault("the model cannot be built", config):
        model = build(model_spec, rngs=nnx.Rngs(config.train.seed))
    if earlier:  # the file that a run started from need not be there any more
        weights, record = None, earlier[1].weights
    else:
        init = config.init
        weights = (
            init_from(model, init.weights, init.reinit, drop=init.drop, key=init.key)
            if init.weights
            else None
        )
        record = dataclasses.asdict(weights) if weights else None
    scaling = value_range.to_json(opened.value_range)
    spec = checkpoint.describe(model_spec, train_source.classes, record, scaling, opened.identity)

    # -------------------------------------------------------------------------------------------------------------- optimizer
    settings = optim.with_fresh(
        config.optim, record["reinit"] if record else (), config.init.reinit_lr_mult
    )
    with settings_at_fault("the optimizer cannot be made", config):
        state, step = train_step.make(
            model,
            lambda params: optim.make(settings, total_steps, params),
            preprocess,
            aux_weight=config.optim.aux_weight,
            accumulate_steps=config.optim.accumulate_steps,
            remat=config.optim.remat,
        )
        state = jax.device_put(state, everywhere)
    rate = optim.schedule(config.optim, total_steps)

    # ---------------------------------------------------------------------------------------------------------------- compile
    progress = logs.Progress(total_steps, earlier[0] if earlier else 0)
    held.callback(progress.close)
    counted = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    progress.say(
        f"{config.model.backbone} + {config.model.head}, {counted:,} parameters, {config.model.dtype}, "
        f"{len(train_source.classes)} classes; "
        f"{config.data.dataset}: {len(train_source)} train, {len(val_source)} val images; {mesh.size} x {jax.devices()[0].device_kind}"
    )
    for note in (*opened.notes, *([f"initial weights: {weights}"] if weights else [])):
        progress.say(note)
    began = time.perf_counter()
    with settings_at_fault("the training step cannot be compiled", config):
        traced = jax.jit(step, donate_argnums=0, compiler_options=compiler_options()).lower(
            state, _shapes(config, batch_sharding)
        )
        compiled = traced.compile()
        del step, traced  # JAX keeps what it traced as long as the function is there
        require_memory(compiled)
    compile_seconds = time.perf_counter() - began
    trim_malloc()  # the compiler's

    # ----------------------------------------------------------------------------------------------------------------- resume
    stop.at_once = False
    directory.open(
        lambda: claim(run, config, resume)
    )  # not before: a recipe that does not fit leaves nothing behind
    checkpoints = checkpoint.Checkpoints(run)
    held.callback(close_quietly, checkpoints)
    start, position = 0, batches.get_state()
    if resume:
        start, state, position = restored(checkpoints, state, position, progress)
        batches.set_state(position)
        progress.say(
            f"resuming {run} after step {start}"
            if start
            else f"{run} has no checkpoint yet: starting at step 0"
        )
    directory.keep = start > 0
    evaluate_first = start > 0 and evaluation_is_due(start) and not checkpoints.evaluated(start)
    # Free the values that the model was built with. The first step deletes the state's values, so
    # nothing may read the model before an evaluation gives it others.
    nnx.update(model, state.params, state.batch_stats)
    atomic.write_json(run / "config.json", json.loads(config.to_json()))
    dataset = registry.default().record("datasets", config.data.dataset)
    atomic.write_json(
        run / "versions.json",
        {**logs.versions(), "plugins": spec.plugins, "dataset": dataset, "weights": spec.weights},
    )
    records = logs.Records(run / "metrics.jsonl", start, evaluate_again=evaluate_first)
    held.callback(records.close)
    records.write(step=start, event="compile", compile_seconds=compile_seconds)
    predictor: Predictor | None = None

    # ------------------------------------------------------------------------------------------------------------------ steps
    scores: Scores | None = None
    saved = start
    reached = Reached(start, state, position)
    del state
    window = logs.Window(config.data.batch_size, start)
    pending: Pending | None = None
    samples = _Samples(progress)
    # A step takes its memory when it is dispatched, on CPUs the host's: two of them would take
    # twice as much, and gain nothing, as the next batch is prepared beside the step anyway. Its
    # inputs are waited for, too, or `memory.disable_async_dispatch` would be in vain.
    one_at_a_time = jax.default_backend() == "cpu"

    def save_now() -> None:
        nonlocal saved
        if pending:
            require_finite(pending, run, reached.state)
        saved = reached.number  # what fails is not tried twice
        save(checkpoints, reached, spec)

    def evaluate_now() -> None:
        nonlocal predictor, scores
        number, began = reached.number, time.perf_counter()
        if predictor is None:
            multiple, note = choose_multiple(val_source)
            if note:
                progress.say(f"val: {note}")
            predictor = Predictor(model, val_source.classes, pad_to_multiple=multiple)
        predictor.update(reached.state.params, reached.state.batch_stats)
        found = _evaluate(predictor, val_source, samples.of_step(run, number), config, stop)
        if found is None:
            return
        scores = found
        records.write(
            step=number,
            event="val",
            epoch=number / epoch_steps,
            seconds=time.perf_counter() - began,
            **scores.to_dict(val_source.classes),
        )
        progress.say(
            f"epoch {number // epoch_steps}: val {scores.summary()} ({len(val_source)} images in {time.perf_counter() - began:.0f} s)"
        )
        checkpoints.score(number, scores.miou)
        window.pause(time.perf_counter() - began)

    try:
        if evaluate_first:
            evaluate_now()
        while reached.number < total_steps and not stop.signal:
            with window.waiting():
                batch = next(batches)
            placed = sharding.place_batch(batch, batch_sharding)
            if one_at_a_time:
                jax.block_until_ready((reached.state, placed))
            state, metrics = compiled(reached.state, placed)
            reached = Reached(reached.number + 1, state, batches.get_state())
            del state
            number = reached.number
            if number == start + 1:
                directory.keep = True
                if one_at_a_time:
                    jax.block_until_ready(reached.state)
                    trim_malloc()  # what the first call needed for itself
            # The loss is read one step late, so that the host prepares a batch while the device
            # computes.
            if pending:
                loss = finite_loss(pending, run, reached.state)
                progress.update(
                    pending[0],
                    (pending[0] - 1) // epoch_steps + 1,
                    loss,
                    window.images_per_second(pending[0]),
                )
            pending = (number, metrics, batch)

            if number % config.train.log_every_steps == 0 or number == total_steps:
                loss = finite_loss(pending, run, reached.state)
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
                progress.update(
                    number, (number - 1) // epoch_steps + 1, loss, figures["images_per_second"]
                )
                checkpoints.check()
                window.restart(number)

            # ------------------------------------------------------------------------------------------ checkpoint, evaluation
            # In this order: what goes wrong in an evaluation costs no training.
            if evaluation_is_due(number):
                began = time.perf_counter()
                save_now()
                window.pause(time.perf_counter() - began)
                evaluate_now()
            elif (
                config.train.checkpoint_every_steps
                and number % config.train.checkpoint_every_steps == 0
            ):
                save_now()

        # ------------------------------------------------------------------------------------------------------------- report
        if reached.number > saved:
            save_now()
        checkpoints.finish()
    except BaseException as error:
        if reached.number == 0:
            raise before_any_step(error) from error
        problem = save_the_work(checkpoints, reached, pending, saved, spec)
        raise after_a_step(
            error, run, reached.number, checkpoints.latest_step(), problem
        ) from error
    finished = reached.number >= total_steps and checkpoints.evaluated(reached.number)
    stopped_by = stop.signal.name if stop.signal and not finished else None
    return Result(run, reached.number, scores, stopped_by, checkpoints.latest_step())


def _open_data(config: Config, earlier: checkpoint.Spec | None) -> Splits:
    """Both splits, checked; a resumed run scales images as it did before."""
    data = config.data
    recorded = value_range.from_json(earlier.value_range) if earlier else None
    return open_splits(
        registry.default().dataset(data.dataset),
        Path(data.root) if data.root else None,
        (data.train_split, data.val_split),
        value_range=data.value_range or recorded,
        damaged=data.damaged,
    )


def _shapes(
    config: Config, sharding: jax.sharding.NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (config.data.batch_size, *config.data.crop)
    shapes = {"image": (*shape, 3), "mask": shape}
    return {
        name: jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding)
        for name, shape in shapes.items()
    }


class _Samples:
    """Where sample pictures go. One that cannot be written is mentioned once: the training is worth more."""

    def __init__(self, progress: logs.Progress) -> None:
        self._progress = progress
        self._failed = False

    def of_step(self, run: Path, number: int) -> Callable[[str, np.ndarray], None]:
        """A function that writes a picture of a step by its image's ID."""
        folder = run / "samples" / f"step_{number:07d}"

        def write(name: str, picture: np.ndarray) -> None:
            try:
                draw.write_image(folder / f"{os.path.basename(name)}.png", picture)
            except (WriteError, OSError) as error:
                if not self._failed:
                    self._progress.say(
                        f"warning: {error}; the training goes on without sample pictures"
                    )
                self._failed = True

        return write


def _evaluate(
    predictor: Predictor,
    source: Source,
    write: Callable[[str, np.ndarray], None],
    config: Config,
    stop: StopRequest,
) -> Scores | None:
    """Score the whole set at native size, and draw its first images; None where a stop was asked for before the end."""
    matrix = ConfusionMatrix(len(source.classes))
    workers = config.data.workers
    with contextlib.closing(evaluate(predictor, source, matrix, workers=workers)) as seen:
        for index, (example, mask) in enumerate(seen):
            if index < config.train.samples:
                picture = draw.panel(example.image, example.mask, mask, source.classes)
                write(example.id, picture)
            if stop.signal:
                return None
    return matrix.scores()
