"""The training loop, from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax import atomic, checkpoint, registry
from fcn_jax.api import Source
from fcn_jax.compiler import compiler_options
from fcn_jax.config import Config, read_run, same_plugins
from fcn_jax.convert.initial import load_initial
from fcn_jax.data import value_range
from fcn_jax.data.pipeline import eval_examples, steps_per_epoch, train_batches
from fcn_jax.data.splits import Splits, open_splits
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import CheckpointError, ConfigError, FcnJaxError, TrainingError, WriteError
from fcn_jax.infer import draw
from fcn_jax.infer.metrics import ConfusionMatrix, Scores
from fcn_jax.infer.predictor import Predictor, evaluate
from fcn_jax.memory import give_back_freed_memory
from fcn_jax.models.names import named
from fcn_jax.models.segmenter import ModelSpec, build
from fcn_jax.models.segmenter import describe as describe_model
from fcn_jax.train import logs, optim, sharding
from fcn_jax.train import step as train_step
from fcn_jax.train.run_directory import RunDirectory
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


@dataclasses.dataclass(frozen=True)
class _Reached:
    """What a checkpoint after the last completed step holds."""

    number: int
    state: train_step.TrainState
    position: Any


_Pending = tuple[int, dict[str, jax.Array], dict[str, np.ndarray]]
"""A step whose loss was not looked at yet: its number, metrics and batch."""


def train(config: Config, run: str | Path, *, resume: bool = False) -> Result:
    """Train a network by a recipe.

    Writes to the run directory: `config.json`, `versions.json`, `metrics.jsonl`, `checkpoints/`, `samples/`. The directory is made when
    the training step is compiled. Whatever ends the run after its first step, the work up to the last completed step is saved, where
    that is possible; the error says so.

    Args:
        config: the recipe.
        run: directory to write; made if missing.
        resume: go on from the run's last checkpoint, if there is one. Everything goes on as if it had never stopped: parameters,
            optimizer, statistics, and the position in the data.

    Returns:
        How it ended.

    Raises:
        ConfigError: a setting that does not fit the data, the model or the run.
        DataError, WeightsError, CheckpointError, PluginError: as their docstrings say.
        WriteError: the run directory cannot be written.
        TrainingError: the run could not go on: the loss was not finite, the disk or the memory is full, input workers were killed, or
            an error that nobody foresaw. What was raised is chained.
    """
    with StopRequest() as stop, contextlib.ExitStack() as held:
        try:
            return _train(config.anchored(), Path(run), resume, stop, held)
        except StopNow:
            assert stop.signal is not None
            return Result(Path(run), 0, None, stop.signal.name)


def _train(config: Config, run: Path, resume: bool, stop: StopRequest, held: contextlib.ExitStack) -> Result:
    directory = held.enter_context(RunDirectory(run))
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
    earlier = checkpoint.latest_spec(run) if resume else None
    opened = _open_data(config, earlier[1] if earlier else None)
    train_source, val_source = opened.sources[config.data.train_split], opened.sources[config.data.val_split]
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
    if total_steps >= 2**31:
        raise ConfigError(f"train.epochs is {config.train.epochs}: that makes {total_steps} steps; want fewer than {2**31}")

    def evaluation_is_due(number: int) -> bool:
        return number % (epoch_steps * config.train.eval_every) == 0 or number == total_steps

    if earlier and earlier[0] >= total_steps and checkpoint.is_evaluated(run, earlier[0]):
        return Result(run, earlier[0], None, None, earlier[0], was_finished=True)

    # ------------------------------------------------------------------------------------------------------------------ model
    model_spec = dataclasses.replace(parts, num_classes=len(train_source.classes))
    with _settings_at_fault("the model cannot be built", config):
        model = build(model_spec, rngs=nnx.Rngs(config.train.seed))
    if earlier:  # the file that a run started from need not be there any more
        weights, record = None, earlier[1].weights
    else:
        init = config.init
        weights = load_initial(model, init.weights, init.reinit, drop=init.drop, key=init.key) if init.weights else None
        record = dataclasses.asdict(weights) if weights else None
    spec = checkpoint.describe(model_spec, train_source.classes, record, value_range.to_json(opened.value_range))

    # -------------------------------------------------------------------------------------------------------------- optimizer
    settings = optim.with_fresh(config.optim, record["reinit"] if record else (), config.init.reinit_lr)
    with _settings_at_fault("the optimizer cannot be made", config):
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
    with _settings_at_fault("the training step cannot be compiled", config):
        traced = jax.jit(step, donate_argnums=0, compiler_options=compiler_options()).lower(
            state, _shapes(config, batch_sharding)
        )
        compiled = traced.compile()
        del step, traced  # JAX keeps what it traced as long as the function is there
        _require_memory(compiled)
    compile_seconds = time.perf_counter() - began
    give_back_freed_memory()  # the compiler's

    # ----------------------------------------------------------------------------------------------------------------- resume
    stop.at_once = False
    directory.open(lambda: _claim(run, config, resume))  # not before: a recipe that does not fit leaves nothing behind
    checkpoints = checkpoint.Checkpoints(run)
    held.callback(_close_quietly, checkpoints)
    start, position = 0, batches.get_state()
    if resume:
        start, state, position = _restored(checkpoints, state, position, progress)
        batches.set_state(position)
        progress.say(f"resuming {run} after step {start}" if start else f"{run} has no checkpoint yet: starting at step 0")
    directory.keep = start > 0
    evaluate_first = start > 0 and evaluation_is_due(start) and not checkpoints.evaluated(start)
    # Or the values that it was built with would be kept beside the state's. The first step deletes these: until it is given others, for an
    # evaluation, nothing may read the model.
    nnx.update(model, state.params, state.batch_stats)
    atomic.write_json(run / "config.json", json.loads(config.to_json()))
    dataset = registry.default().record("datasets", config.data.dataset)
    atomic.write_json(
        run / "versions.json", {**logs.versions(), "plugins": spec.plugins, "dataset": dataset, "weights": spec.weights}
    )
    records = logs.Records(run / "metrics.jsonl", start, evaluate_again=evaluate_first)
    held.callback(records.close)
    records.write(step=start, event="compile", compile_seconds=compile_seconds)
    predictor: Predictor | None = None

    # ------------------------------------------------------------------------------------------------------------------ steps
    scores: Scores | None = None
    saved = start
    reached = _Reached(start, state, position)
    del state
    window = logs.Window(config.data.batch_size, start)
    pending: _Pending | None = None
    samples = _Samples(progress)
    # A step takes its memory when it is dispatched, on CPUs the host's: two of them would take twice as much, and gain nothing, as the
    # next batch is prepared beside the step anyway. Its inputs are waited for, too, or `memory.free_after_each_call` would be in vain.
    one_at_a_time = jax.default_backend() == "cpu"

    def save() -> None:
        nonlocal saved
        if pending:
            _require_finite(pending, run, reached.state)
        saved = reached.number  # what fails is not tried twice
        _save(checkpoints, reached, spec)

    def evaluate_now() -> None:
        nonlocal predictor, scores
        number, began = reached.number, time.perf_counter()
        nnx.update(model, reached.state.params, reached.state.batch_stats)
        if predictor is None:
            predictor = Predictor(model, val_source.classes)
        predictor.update(model)
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
            reached = _Reached(reached.number + 1, state, batches.get_state())
            del state
            number = reached.number
            if number == start + 1:
                directory.keep = True
                if one_at_a_time:
                    jax.block_until_ready(reached.state)
                    give_back_freed_memory()  # what the first call needed for itself
            # The loss is read one step late, so that the host prepares a batch while the device computes.
            if pending:
                loss = _finite_loss(pending, run, reached.state)
                progress.update(pending[0], (pending[0] - 1) // epoch_steps + 1, loss, window.images_per_second(pending[0]))
            pending = (number, metrics, batch)

            if number % config.train.log_every == 0 or number == total_steps:
                loss = _finite_loss(pending, run, reached.state)
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
                checkpoints.check()
                window.restart(number)

            # ------------------------------------------------------------------------------------------ checkpoint, evaluation
            # In this order: what goes wrong in an evaluation costs no training.
            if evaluation_is_due(number):
                began = time.perf_counter()
                save()
                window.pause(time.perf_counter() - began)
                evaluate_now()
            elif config.train.checkpoint_every and number % config.train.checkpoint_every == 0:
                save()

        # ------------------------------------------------------------------------------------------------------------- report
        if reached.number > saved:
            save()
        checkpoints.finish()
    except BaseException as error:
        if reached.number == 0:
            raise _before_any_step(error) from error
        problem = _save_the_work(checkpoints, reached, pending, saved, spec)
        raise _after_a_step(error, run, reached.number, checkpoints.latest_step(), problem) from error
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


# -------------------------------------------------------------------------------------------------------------- settings of the user


@contextlib.contextmanager
def _settings_at_fault(what: str, config: Config) -> Iterator[None]:
    """Whatever goes wrong inside comes from the settings: the parts of the model were tried with others."""
    try:
        yield
    except FcnJaxError:
        raise
    except MemoryError as error:
        raise ConfigError(f"{what}: {_TOO_LARGE}") from error
    except Exception as error:
        if _out_of_memory(error) or isinstance(error, OverflowError):  # no size of an array
            raise ConfigError(f"{what}: {_TOO_LARGE}") from error
        model, data = config.model, config.data
        tables = {"backbone_options": model.backbone_options, "head_options": model.head_options}
        named = {
            "model.backbone": model.backbone,
            "model.head": model.head,
            "model.aux_head": model.aux_head,
            "model.output_stride": model.output_stride,
            **{f"model.{name}": table or None for name, table in tables.items()},
            "data.crop": list(data.crop),
            "data.batch_size": data.batch_size,
            "optim.micro_steps": config.optim.micro_steps if config.optim.micro_steps > 1 else None,
        }
        settings = ", ".join(f"{name} = {value}" for name, value in named.items() if value is not None)
        raise ConfigError(f"{what} with {settings}: {_gist(error)} (--debug shows where)") from error


_TOO_LARGE = "it takes more memory than there is; lower data.batch_size or data.crop, or raise optim.micro_steps"


def _require_memory(compiled: Any) -> None:
    """Raise `ConfigError` where a program for CPUs needs more memory than the machine has; the system would kill the process."""
    if jax.default_backend() != "cpu":
        return
    with contextlib.suppress(AttributeError, OSError, ValueError, NotImplementedError):
        analysis = compiled.memory_analysis()
        needed = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > available:
            raise ConfigError(
                f"a training step needs {needed / 2**30:.0f} GiB of memory, and this machine has {available / 2**30:.0f}; lower "
                "data.batch_size or data.crop, or raise optim.micro_steps"
            )


def _claim(run: Path, config: Config, resume: bool) -> None:
    """Make sure that nothing of another run is overwritten, and that a resumed run keeps its recipe."""
    if not resume:
        if run.exists() and any(run.iterdir()):
            raise ConfigError(f"{run}: exists and is not empty; go on with --resume, or name another directory with --run")
        return
    if not run.exists() or not any(run.iterdir()):
        return
    before, now = read_run(run), config
    tables = [same_plugins(recipe.anchored().model_dump(mode="json")) for recipe in (before, now)]
    changed = [f"{s}.{k}" for s, values in tables[1].items() for k in values if values[k] != tables[0][s][k]]
    changed = sorted(name for name in changed if name not in _FREE)
    if changed == ["train.epochs"]:
        if now.optim.schedule == "constant":
            return
        raise ConfigError(
            f"{run}: train.epochs cannot change from {before.train.epochs} to {now.train.epochs}, because the learning rates of "
            f"optim.schedule = '{now.optim.schedule}' follow from it; leave it as it was, or start another run from the parameters of "
            f"this one: fcn-jax train --init {shlex.quote(str(run))} --run NEW --set train.epochs={now.train.epochs}"
        )
    if changed:
        raise ConfigError(
            f"{run}: --resume keeps the run's recipe, but not here: {', '.join(changed)}; leave that as it was, or start another run "
            f"from the parameters of this one: --init {shlex.quote(str(run))} --run NEW"
        )


_FREE = frozenset({"data.root", "data.workers", "train.log_every", "train.samples", "train.checkpoint_every"})
"""Settings that may change when a run goes on: none of them changes what is computed."""


def _shapes(config: Config, sharding: jax.sharding.NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (config.data.batch_size, *config.data.crop)
    shapes = {"image": (*shape, 3), "mask": shape}
    return {name: jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding) for name, shape in shapes.items()}


# ---------------------------------------------------------------------------------------------------------- whatever ends a run early


def _save_the_work(
    checkpoints: checkpoint.Checkpoints, reached: _Reached, pending: _Pending | None, saved: int, spec: checkpoint.Spec
) -> str | None:
    """Save the last completed step, if it is not; the reason if that cannot be done."""
    problem = None
    if reached.number > saved:
        if jax.process_count() > 1:
            problem = "other processes would have to take part in saving it"
        elif any(leaf.is_deleted() for leaf in jax.tree.leaves(reached.state)):
            problem = "the step that failed had taken over its memory"
        else:
            try:
                if pending and not (math.isfinite(float(pending[1]["loss"])) and bool(_all_finite(reached.state.params))):
                    problem = "its numbers are not finite"
                else:
                    _save(checkpoints, reached, spec)
            except Exception as error:
                problem = _gist(error)
    try:
        checkpoints.finish()
    except Exception as error:
        problem = problem or _gist(error)
    return problem


def _after_a_step(error: BaseException, run: Path, number: int, saved: int | None, problem: str | None) -> BaseException:
    """The error to raise in place of another, which says what is saved and how to go on."""
    again = f"fcn-jax train --run {shlex.quote(str(run))} --resume"
    if saved is None:
        kept = "there is no checkpoint to go on from"
    elif isinstance(error, TrainingError) and problem is None and saved < number:
        kept = f"the last checkpoint is of step {saved}"
    else:
        kept = f"the work up to step {saved} is saved; go on with: {again}"
    if problem:
        kept = f"step {number} cannot be saved ({problem}); {kept}"
    said = f"{_said(error)}. Stopped after step {number}: {kept}"
    return _like(error, said)


def _before_any_step(error: BaseException) -> BaseException:
    return error if isinstance(error, FcnJaxError) else _like(error, _said(error))


def _like(error: BaseException, message: str) -> BaseException:
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(message)
    if isinstance(error, FcnJaxError) and not isinstance(error, WriteError | CheckpointError):
        return type(error)(message)
    # A disk that is full, or a folder that is gone, is no mistake in the input.
    return TrainingError(message)


def _said(error: BaseException) -> str:
    if isinstance(error, FcnJaxError):
        return str(error).rstrip(".")
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError) or _out_of_memory(error):
        return f"out of memory: lower data.batch_size, data.crop or data.workers, or raise optim.micro_steps ({_gist(error)})"
    return f"{_gist(error)} (--debug shows where)"


def _gist(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0][:300] if lines else ""
    return line if isinstance(error, FcnJaxError) and line else f"{type(error).__name__}{': ' if line else ''}{line}"


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _close_quietly(checkpoints: checkpoint.Checkpoints) -> None:
    with contextlib.suppress(Exception):  # what could not be saved was said
        checkpoints.close()


# --------------------------------------------------------------------------------------------------------------------------- parts


def _items(state: train_step.TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state as a checkpoint's items `model` and `train`."""
    arrays = {name: leaf[...] for part in (state.params, state.batch_stats) for name, leaf in named(part).items()}
    return arrays, {"step": state.step, "opt_state": state.opt_state}


def _save(checkpoints: checkpoint.Checkpoints, reached: _Reached, spec: checkpoint.Spec) -> None:
    model, rest = _items(reached.state)
    checkpoints.save(reached.number, model=model, train=rest, data=reached.position, spec=spec)


@jax.jit
def _all_finite(params: Any) -> jax.Array:
    return jax.numpy.stack([jax.numpy.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def _require_finite(pending: _Pending, run: Path, state: train_step.TrainState) -> None:
    """Raise `TrainingError` if a step's loss is not finite, or the parameters after it are not: what is saved must be good."""
    _finite_loss(pending, run, state)
    if not bool(_all_finite(state.params)):
        raise _evidence(pending, run, state)


def _finite_loss(pending: _Pending, run: Path, state: train_step.TrainState) -> float:
    """The loss of a step, once it is computed. Raises `TrainingError`, leaving the evidence in the run, if it is not finite."""
    loss = float(pending[1]["loss"])
    if math.isfinite(loss):
        return loss
    raise _evidence(pending, run, state)


def _evidence(pending: _Pending, run: Path, state: train_step.TrainState) -> TrainingError:
    number, metrics, batch = pending
    loss, folder = float(metrics["loss"]), run / "nonfinite"
    names = optim.parameter_names(state.params)
    broken = [n for n, leaf in zip(names, jax.tree.leaves(state.params), strict=True) if not bool(jax.numpy.isfinite(leaf).all())]
    report = {
        "step": number,
        "loss": str(loss),
        "grad_norm": str(float(metrics["grad_norm"])),
        "nonfinite_parameters_after": broken,
    }
    what = f"the loss of step {number} is {loss}"
    if math.isfinite(loss):
        what += f", but after it {len(broken)} parameters are not finite"
    try:
        with atomic.replacing(folder / "batch.npz") as temporary:
            np.savez_compressed(temporary, image=batch["image"], mask=batch["mask"])
        atomic.write_json(folder / "report.json", report)
        where = f"the batch and the names of the {len(broken)} parameters that are no longer finite are in {folder}"
    except WriteError as error:
        where = str(error)
    return TrainingError(f"{what}; {where}. Start another run with a lower optim.lr, or with optim.warmup_steps")


def _restored(
    checkpoints: checkpoint.Checkpoints, state: train_step.TrainState, position: Any, progress: logs.Progress
) -> tuple[int, train_step.TrainState, Any]:
    """Step, state and position in the data of the newest checkpoint that is whole; those given where there is none."""
    arrays, rest = _items(state)
    found = checkpoints.restore(model=arrays, train=rest)
    if found is None:
        return 0, state, position
    for fault in found.skipped:
        progress.say(f"warning: {fault}; it is set aside, and the one before it is taken, of step {found.step}")

    def filled(tree: nnx.State) -> nnx.State:
        flat = [(path, leaf.replace(found.model[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(tree)]
        return nnx.from_flat_state(flat)

    restored = train_step.TrainState(
        found.train["step"], filled(state.params), filled(state.batch_stats), found.train["opt_state"]
    )
    return found.step, restored, found.data


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
                    self._progress.say(f"warning: {error}; the training goes on without sample pictures")
                self._failed = True

        return write


def _evaluate(
    predictor: Predictor, source: Source, write: Callable[[str, np.ndarray], None], config: Config, stop: StopRequest
) -> Scores | None:
    """Score the whole set at native size, and draw its first images; None where a stop was asked for before the end."""
    matrix = ConfusionMatrix(len(source.classes))
    with contextlib.closing(eval_examples(source, workers=config.data.workers)) as examples:
        for index, seen in enumerate(evaluate(predictor, examples, matrix)):
            if index < config.train.samples:
                example = seen.example
                write(example.id, draw.panel(example.image, example.mask, seen.prediction, source.classes))
            if stop.signal:
                return None
    return matrix.scores()
