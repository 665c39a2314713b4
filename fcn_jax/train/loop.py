"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.config import Config
from fcn_jax.convert.load import init_from
from fcn_jax.data import value_range
from fcn_jax.data.labels.remap import Remap
from fcn_jax.data.pipeline import steps_per_epoch, train_batches
from fcn_jax.data.splits import open_splits
from fcn_jax.data.training_set import training_set
from fcn_jax.data.transforms import Augment
from fcn_jax.eval.metrics import Scores
from fcn_jax.models.build import build
from fcn_jax.models.spec import resolve
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import LossContext
from fcn_jax.runtime import atomic, versions
from fcn_jax.runtime.compiler import compiler_options
from fcn_jax.runtime.memory import peak_memory, trim_malloc
from fcn_jax.runtime.progress import Progress
from fcn_jax.train import auto, groups, logs, losses, optim, sharding
from fcn_jax.train import step as train_step
from fcn_jax.train.early_stopping import EarlyStopping
from fcn_jax.train.ending import after_a_step, before_any_step
from fcn_jax.train.other_protocols import OtherProtocols
from fcn_jax.train.records import Records
from fcn_jax.train.run_directory import RunDirectory
from fcn_jax.train.saving import Completed, close_quietly, restored, save_after_error
from fcn_jax.train.schedules import schedule
from fcn_jax.train.settings import (
    claim,
    for_classes,
    require_memory,
    require_same_split,
    require_steps,
    require_units,
    require_valid,
    settings_at_fault,
)
from fcn_jax.train.signals import StopNow, StopRequest
from fcn_jax.train.speed import Speed
from fcn_jax.train.validation import Validation


@dataclasses.dataclass(frozen=True)
class Result:
    """How a training run ended.

    Attributes:
        run: run directory.
        step: number of steps taken.
        scores: scores of the last evaluation, or None if there was none.
        stopped_by: name of the signal that stopped the run early, or None if it is finished.
        saved: step of the newest checkpoint, or None if there is none.
        was_finished: the run was already finished, and nothing was done.
    """

    run: Path
    step: int
    scores: Scores | None
    stopped_by: str | None
    saved: int | None = None
    was_finished: bool = False


def train(config: Config, run: str | Path, *, resume: bool = False) -> Result:
    """Train a model.

    Writes `config.json`, `versions.json`, `parameters.json`, `metrics.jsonl`, `checkpoints/`,
    `samples/` and `evaluations/` to the run directory, which is made once the training step is
    compiled. Whatever ends the run after its first step, the work up to the last completed step is
    saved if possible; the error says so.

    Training runs in one process, on all of its devices.

    Args:
        config: settings.
        run: run directory; made if missing.
        resume: continue from the run's last checkpoint, if there is one. Parameters, optimizer,
            statistics and the position in the data continue as if the run had never stopped.

    Returns:
        How the run ended.

    Raises:
        ConfigError: a setting does not fit the data, the model or the run.
        DataError, WeightsError, CheckpointError, PluginError: as their docstrings say.
        WriteError: the run directory cannot be written.
        TrainingError: the run cannot continue: the loss is not finite, the disk or the memory is
            full, input workers were killed, or an unexpected error occurred, which is chained.
    """
    with StopRequest() as stop, contextlib.ExitStack() as held:
        try:
            return _train(config.with_absolute_paths(), Path(run), resume, stop, held)
        except StopNow:
            assert stop.signal is not None
            return Result(Path(run), 0, None, stop.signal.name)


def _train(
    config: Config, run: Path, resume: bool, stop: StopRequest, held: contextlib.ExitStack
) -> Result:
    entered = time.perf_counter()
    directory = held.enter_context(RunDirectory(run))
    if resume:
        config = auto.as_recorded(config, run)
    logs.require_installed(config.log)
    claim(run, config, resume)
    # What is wrong is rejected here, because preparing the data may take a while.
    require_valid(config)
    preprocess = resolve(config.model).preprocess

    # ----------------------------------------------------------------------------------------- data
    earlier = checkpoint.latest_spec(run) if resume else None
    dataset = registry.default().dataset(config.data.dataset)
    config, decided = auto.find_classes(config, dataset)
    data = config.data
    # A resumed run scales images as it did before.
    recorded = value_range.from_json(earlier[1].value_range) if earlier else None
    opened = open_splits(
        dataset,
        Path(data.root) if data.root else None,
        (data.train_split, data.val_split),
        classes=data.classes,
        value_range=data.value_range or recorded,
        channels=config.model.in_channels,
        keep_stored=config.model.mean is not None,
        damaged=data.damaged,
        remap=Remap.of(data),
    )
    require_units(config.model, opened.value_range)
    config, more_decided = auto.decide(config, opened)
    data = config.data
    train_source, left_out = training_set(
        opened.sources[data.train_split],
        data.crop_size,
        drop_small=data.drop_small,
        void_as_background=data.void_as_background,
    )
    val_source = opened.sources[data.val_split]
    mesh = sharding.data_mesh(data.batch_size, config.optim.accumulate_steps)
    everywhere, batch_sharding = sharding.on_every_device(mesh), sharding.over_batch(mesh)
    batches = train_batches(
        train_source,
        augment=Augment.of(data, config.augment),
        batch_size=data.batch_size,
        seed=config.train.seed,
        num_workers=data.num_workers,
    )
    held.callback(batches.close)
    epoch_steps = steps_per_epoch(train_source, data.batch_size)
    total_steps = epoch_steps * config.train.epochs

    def evaluation_is_due(number: int) -> bool:
        return number % (epoch_steps * config.train.eval_every_epochs) == 0 or number == total_steps

    require_steps(config, total_steps)
    if earlier:
        require_same_split(run, earlier[1].split, opened.identity, config.data.train_split)
        stopping = EarlyStopping.read(config, run, earlier[0])
        is_over = earlier[0] >= total_steps or stopping.is_over
        if is_over and checkpoint.is_evaluated(run, earlier[0]):
            return Result(run, earlier[0], None, None, earlier[0], was_finished=True)

    # ---------------------------------------------------------------------------------------- model
    model_spec = for_classes(config.model, train_source.classes)
    with settings_at_fault("the model cannot be built", config):
        model = build(model_spec, rngs=nnx.Rngs(config.train.seed))
    weights, init = None, config.init
    if earlier:  # The file that a run started from need not exist any more.
        record = earlier[1].weights
    else:
        if init.weights:
            weights = init_from(model, init.weights, init.reinit, drop=init.drop, key=init.key)
        record = dataclasses.asdict(weights) if weights else None
    criterion = losses.build(
        losses.select(config.losses(), config.model.task),
        LossContext(
            len(train_source.classes), model_spec.task, opened.class_pixels, opened.image_pixels
        ),
        earlier[1].losses if earlier else None,
    )
    spec = checkpoint.make_spec(
        model_spec,
        train_source.classes,
        weights=record,
        value_range=value_range.to_json(opened.value_range),
        split=opened.identity,
        losses=criterion.record(),
    )

    # ------------------------------------------------------------------------------------ optimizer
    reinitialized = record["reinit"] if record else ()
    settings = groups.with_reinitialized(config.optim, reinitialized, init.reinit_lr_mult)
    with settings_at_fault("the optimizer cannot be made", config):
        layers = groups.backbone_layers(model) if settings.layer_decay is not None else {}
        rates = groups.assign(settings, nnx.state(model, nnx.Param), layers)
        state, step = train_step.make(
            model,
            optim.make(settings, total_steps, rates),
            preprocess,
            losses=criterion,
            aux_weight=config.optim.aux_weight,
            accumulate_steps=config.optim.accumulate_steps,
            remat=config.optim.remat,
            ema_decay=config.optim.ema_decay,
            ema_warmup=config.optim.ema_warmup,
            frozen=groups.frozen_names(rates),
            freeze_batch_norm=settings.freeze_batch_norm,
        )
        state = jax.device_put(state, everywhere)
    rate, rate_notes = schedule(config.optim, total_steps), groups.notes(rates, layers, model)
    # Only the state holds values from here on: each step deletes those of the step before.
    graphdef, *states = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    random_keys = states.pop()
    del model, states

    # -------------------------------------------------------------------------------------- compile
    progress = held.enter_context(
        Progress("training", total_steps, done=earlier[0] if earlier else 0, keep=True)
    )
    counted = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    progress.say(
        f"{config.model.backbone} + {config.model.head}, {counted:,} parameters, "
        f"{config.model.dtype}, {len(train_source.classes)} classes; {config.data.dataset}: "
        f"{len(train_source)} train, {len(val_source)} val images; "
        f"{mesh.size} x {jax.devices()[0].device_kind}"
    )
    started = [f"initial weights: {weights}"] if weights else []
    notes = (*decided, *opened.notes, *more_decided, *left_out, *started, *rate_notes)
    for note in notes:
        progress.say(note)
    began = time.perf_counter()
    with settings_at_fault("the training step cannot be compiled", config):
        traced = jax.jit(step, donate_argnums=0, compiler_options=compiler_options()).lower(
            state,
            train_step.batch_shapes(
                data.batch_size,
                data.crop_size,
                batch_sharding,
                channels=config.model.in_channels,
                dtype=value_range.dtype_of(opened.value_range),
            ),
        )
        compiled = traced.compile()
        del step, traced  # JAX keeps the traced program as long as the function exists.
        require_memory(compiled)
    compile_seconds = time.perf_counter() - began
    trim_malloc()  # the compiler's memory

    # --------------------------------------------------------------------------------------- resume
    stop.at_once = False
    # The directory is made only now: a recipe that does not fit leaves nothing behind.
    directory.open(lambda: claim(run, config, resume))
    checkpoints = checkpoint.Checkpoints(run)
    held.callback(close_quietly, checkpoints)
    reached = Completed(0, state, batches.get_state())
    del state
    if resume:
        reached = restored(checkpoints, reached, progress.say)
        batches.set_state(reached.position)
        progress.say(
            f"resuming {run} after step {reached.number}"
            if reached.number
            else f"{run} has no checkpoint yet: starting at step 0"
        )
    start = saved = reached.number
    directory.keep = start > 0
    evaluate_first = (
        start > 0 and evaluation_is_due(start) and not checkpoint.is_evaluated(run, start)
    )
    atomic.write_json(run / "config.json", json.loads(config.to_json()))
    made_with = {
        **versions.environment(),
        "plugins": spec.plugins,
        "dataset": registry.default().record("datasets", config.data.dataset),
        "weights": spec.weights,
        "losses": {name: registry.default().record("losses", name) for name in config.loss},
    }
    atomic.write_json(run / "versions.json", made_with)
    atomic.write_json(
        run / "parameters.json", {name: dataclasses.asdict(rate) for name, rate in rates.items()}
    )
    records = Records(run / "metrics.jsonl", start, evaluate_again=evaluate_first)
    stopping = EarlyStopping.read(config, run, start)
    held.callback(records.close)
    log = held.enter_context(
        logs.start(config, run, start, evaluate_again=evaluate_first, say=progress.say)
    )
    records.write(
        step=start,
        event="compile",
        time=time.time(),
        setup_seconds=time.perf_counter() - entered - compile_seconds,
        compile_seconds=compile_seconds,
    )

    # ---------------------------------------------------------------------------------------- steps
    scores: Scores | None = None
    validation = Validation(graphdef, random_keys, val_source, config, run, progress.say, log)
    other_protocols = OtherProtocols(graphdef, random_keys, val_source, config, progress.say)
    speed = Speed(data.batch_size, start)
    # On CPUs a step allocates its memory when it is dispatched, so two steps at once would take
    # twice as much, and save no time: the next batch is prepared during the step anyway. The inputs
    # are awaited, too, or `memory.disable_async_dispatch` would have no effect.
    one_at_a_time = jax.default_backend() == "cpu"
    scored = "raw" if config.optim.ema_decay is None else "ema"  # the weights that are evaluated

    def write(**record: Any) -> None:
        records.write(**record)
        log.record(record)

    def save_now() -> None:
        nonlocal saved
        began = time.perf_counter()
        reached.require_finite(run)
        saved = reached.number  # a save that fails is not tried twice
        reached.save(checkpoints, spec)
        seconds = time.perf_counter() - began  # the files are written during the next steps
        records.write(step=saved, event="checkpoint", seconds=seconds)

    def evaluate_now() -> None:
        nonlocal scores
        number, began = reached.number, time.perf_counter()
        found = validation.scores(number, reached.state, stop)
        others = None if found is None else other_protocols.scores(reached.state, stop)
        if found is None or others is None:
            return
        scores, seconds = found, time.perf_counter() - began
        write(
            step=number,
            event="val",
            epoch=number / epoch_steps,
            seconds=seconds,
            weights=scored,
            **scores.to_dict(val_source.classes),
            **({"also": other_protocols.to_dict(others)} if others else {}),
        )
        progress.say(
            f"epoch {number // epoch_steps}: val {'(ema) ' * (scored == 'ema')}{scores.summary()} "
            f"({len(val_source)} images in {seconds:.0f} s)"
        )
        for name, other in others.items():
            progress.say(f"epoch {number // epoch_steps}: val by {name}: {other.summary()}")
        checkpoints.score(number, scores.miou, scored)
        stopping.add(number, scores)

    def show(number: int, loss: float, images_per_second: float) -> None:
        epoch = (number - 1) // epoch_steps + 1
        figures = f"epoch {epoch}, loss {loss:.4f}, {images_per_second:.1f} images/s"
        progress.update(number, text=figures)

    try:
        if evaluate_first:
            with speed.paused():
                evaluate_now()
        while reached.number < total_steps and not stop.signal and not stopping.is_over:
            with speed.waiting():
                batch = next(batches)
            placed = jax.device_put(batch, batch_sharding)
            if one_at_a_time:
                jax.block_until_ready((reached.state, placed))
            before = reached
            state, metrics = compiled(before.state, placed)
            number = before.number + 1
            reached = Completed(number, state, batches.get_state(), metrics, batch)
            if number == start + 1:
                directory.keep = True
                if one_at_a_time:
                    jax.block_until_ready(reached.state)
                    trim_malloc()  # the first call takes more than later ones
            # The loss is read one step late, so that the host prepares a batch while the device
            # computes.
            if before.metrics:
                loss = before.loss(run, reached.state)
                show(before.number, loss, speed.images_per_second(before.number))
            del state, before

            if number % config.train.log_every_steps == 0 or number == total_steps:
                loss = reached.loss(run, reached.state)
                figures, by_loss = speed.figures(number), metrics.get("losses", {})
                write(
                    step=number,
                    event="train",
                    epoch=number / epoch_steps,
                    loss=loss,
                    grad_norm=float(metrics["grad_norm"]),
                    **({"losses": {k: float(x) for k, x in by_loss.items()}} if by_loss else {}),
                    lr=float(rate(number - 1)),
                    **figures,
                    peak_memory_gib=peak_memory(),
                )
                show(number, loss, figures["images_per_second"])
                checkpoints.check()
                speed.restart(number)

            # --------------------------------------------------------------- checkpoint, evaluation
            # The checkpoint comes first, so that an error in an evaluation costs no training.
            every = config.train.checkpoint_every_steps
            histograms = config.log.histograms_every_steps
            with speed.paused():
                if evaluation_is_due(number):
                    save_now()
                    evaluate_now()
                elif every and number % every == 0:
                    save_now()
                if histograms and number % histograms == 0:
                    log.histograms(number, reached.state.params)

        # -------------------------------------------------------------------------------------- end
        if reached.number > saved:
            save_now()
        checkpoints.finish()
        if stopping.is_over:
            progress.say(f"early stopping after step {reached.number}: {stopping}")
        is_over = reached.number >= total_steps or stopping.is_over
        finished = is_over and checkpoint.is_evaluated(run, reached.number)
        stopped_by = stop.signal.name if stop.signal and not finished else None
        records.write(
            step=reached.number,
            event="end",
            finished=finished,
            stopped_by=stopped_by,
            early=stopping.is_over,
            seconds=time.perf_counter() - entered,
        )
    except BaseException as error:
        if reached.number == 0:
            raise before_any_step(error) from error
        problem = save_after_error(checkpoints, reached, saved, spec)
        latest = checkpoints.latest_step()
        raise after_a_step(error, run, reached.number, latest, problem) from error
    return Result(run, reached.number, scores, stopped_by, checkpoints.latest_step())
