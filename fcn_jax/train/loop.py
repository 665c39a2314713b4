"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled

from fcn_jax import checkpoint
from fcn_jax.config import Config
from fcn_jax.data import value_range
from fcn_jax.eval.metrics import Scores
from fcn_jax.plugins import registry
from fcn_jax.runtime import atomic, distributed, versions
from fcn_jax.runtime.compiler import compiler_options
from fcn_jax.runtime.memory import trim_malloc
from fcn_jax.runtime.progress import Progress
from fcn_jax.train import auto, logs, processes
from fcn_jax.train.early_stopping import EarlyStopping
from fcn_jax.train.ending import after_a_step, before_any_step
from fcn_jax.train.groups import Rate
from fcn_jax.train.inputs import Inputs, open_inputs
from fcn_jax.train.mirror import Mirror
from fcn_jax.train.profiling import Profile, Steps
from fcn_jax.train.records import Records
from fcn_jax.train.run_directory import RunDirectory
from fcn_jax.train.saving import (
    Completed,
    close_quietly,
    restored,
    retention,
    save_after_error,
)
from fcn_jax.train.settings import (
    claim,
    other_order,
    placement_of,
    require_memory,
    require_same_split,
    require_steps,
    require_still,
    require_valid,
    settings_at_fault,
)
from fcn_jax.train.setup import Setup
from fcn_jax.train.setup import make as make_setup
from fcn_jax.train.sharding import Placement
from fcn_jax.train.signals import StopNow, StopRequest
from fcn_jax.train.step import Step, TrainState, batch_shapes
from fcn_jax.train.steps import Loop


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


def train(config: Config, run: str | Path, *, profile: Steps | None = None) -> Result:
    """Train a model, or continue the run in the directory from its last checkpoint.

    Parameters, optimizer, statistics and the position in the data continue as if the run had never
    stopped.

    Writes `config.json`, `versions.json`, `parameters.json`, `metrics.jsonl`, `checkpoints/`,
    `samples/` and `evaluations/` to the run directory, which is made once the training step is
    compiled. Whatever ends the run after its first step, the work up to the last completed step is
    saved if possible; the error says so.

    Training runs on all devices. Several processes that `fcn_jax.runtime.distributed` or
    `jax.distributed.initialize` has joined train together: all call this function with the same
    arguments, and the first one writes all files but checkpoints.

    Args:
        config: settings.
        run: run directory; made if missing. A run in it must have the same settings.
        profile: steps to trace, into `profile/` of the run directory; none by default.

    Returns:
        How the run ended.

    Raises:
        ConfigError: a setting does not fit the data, the model or the run.
        DataError, WeightsError, CheckpointError, PluginError: as their docstrings say.
        WriteError: the run directory cannot be written.
        TrainingError: the run cannot continue: the loss is not finite, the disk or the memory is
            full, input workers were killed, or an unexpected error occurred, which is chained.
    """
    with (
        StopRequest(distributed.announce_stop) as stop,
        distributed.sharing_stops(stop.receive),
        contextlib.ExitStack() as held,
    ):
        try:
            return _train(config.with_absolute_paths(), Path(run), profile, stop, held)
        except StopNow:
            assert stop.signal is not None
            distributed.announce_stop(stop.signal, leaving=True)
            return Result(Path(run), 0, None, stop.signal.name)
        except distributed.PeerStopped as peer:
            return Result(Path(run), 0, None, peer.signal.name)
        except Exception as error:
            raise distributed.cause(error) from error


def _train(
    config: Config,
    run: Path,
    profile: Steps | None,
    stop: StopRequest,
    held: contextlib.ExitStack,
) -> Result:
    entered = time.perf_counter()
    directory = held.enter_context(RunDirectory(run))
    mirror = Mirror(run, config.train.checkpoint_dir)
    config = auto.as_recorded(config, mirror.home)
    logs.require_installed(config.log)
    continues = claim(run, config, mirror.home)
    # What is wrong is rejected here, because preparing the data may take a while.
    require_valid(config)

    # ----------------------------------------------------------------------------------------- data
    earlier = checkpoint.latest_spec(mirror.store) if continues else None
    inputs = open_inputs(config, earlier[1].value_range if earlier else None)
    config, total_steps = inputs.config, inputs.total_steps
    placement, data = placement_of(config), config.data
    rows = processes.rows_of(placement.batch, (data.batch_size, *data.crop_size))
    batches = inputs.batches(rows)
    held.callback(batches.close)
    require_steps(config, total_steps)
    distributed.require_same(
        {
            "recipe": _shared(config),
            "training images": inputs.identity,
            "validation images": len(inputs.val),
            "continues a run": continues,
            "last checkpoint": earlier[0] if earlier else None,
        }
    )
    if earlier:
        require_same_split(run, earlier[1].split, inputs.identity, config.data.train_split)
        stopping = EarlyStopping.read(config, earlier[0], mirror.home, mirror.store)
        is_over = earlier[0] >= total_steps or stopping.is_over
        if is_over and checkpoint.is_evaluated(mirror.store, earlier[0]):
            return Result(run, earlier[0], None, None, earlier[0], was_finished=True)
    traced = range(0)
    if profile and distributed.is_first():
        traced = profile.after(earlier[0] if earlier else 0, total_steps)

    # --------------------------------------------------------------------------------------- set up
    setup, state, step = make_setup(
        config,
        inputs.train.classes,
        total_steps,
        inputs.pixels,
        earlier[1] if earlier else None,
        placement=placement,
    )
    state = processes.place_state(state, placement)
    spec = checkpoint.make_spec(
        setup.spec,
        inputs.train.classes,
        weights=setup.weights,
        value_range=value_range.to_json(inputs.value_range),
        split=inputs.identity,
        losses=setup.losses.record(),
        order=inputs.order,
    )
    progress = held.enter_context(
        Progress("training", total_steps, done=earlier[0] if earlier else 0, keep=True)
    )
    _describe(inputs, setup, state, placement, progress.say)
    if earlier and (warning := other_order(earlier[1].order, inputs.order)):
        progress.say(warning)
    began = time.perf_counter()
    compiled = _compile(inputs, step, state, placement)
    del step  # JAX keeps the traced program as long as the function exists.
    compile_seconds = time.perf_counter() - began
    trim_malloc()  # the compiler's memory

    # --------------------------------------------------------------------------------------- resume
    processes.begin_together(stop)
    # The directory is made only now: a recipe that does not fit leaves nothing behind.
    directory.open(lambda: require_still(run, config, mirror.home, continues))
    mirror.fetch()
    # Before the checkpoints: a directory with a recipe is a run, however early it is killed.
    _write_settings(run, config, spec, setup.rates)
    checkpoints = checkpoint.Checkpoints(mirror.store, retention(config.train))
    held.callback(close_quietly, checkpoints)
    reached = Completed(0, state, batches.get_state())
    del state
    if continues:
        reached = restored(checkpoints, reached, progress.say)
        batches.set_state(reached.position)
        progress.say(
            f"resuming {run} after step {reached.number}"
            if reached.number
            else f"{run} has no checkpoint yet: starting at step 0"
        )
    start = reached.number
    directory.keep = start > 0
    evaluate_first = (
        start > 0
        and inputs.is_evaluated(start)
        and not checkpoint.is_evaluated(mirror.store, start)
    )
    records = Records(run / "metrics.jsonl", start, evaluate_again=evaluate_first)
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
    traces = Profile(run, traced, progress.say)
    held.callback(traces.close)
    loop = Loop(
        run=run,
        mirror=mirror,
        inputs=inputs,
        setup=setup,
        spec=spec,
        compiled=compiled,
        batches=batches,
        placement=placement,
        rows=rows,
        checkpoints=checkpoints,
        records=records,
        log=log,
        progress=progress,
        profile=traces,
        stop=stop,
        reached=reached,
    )
    del reached  # The loop replaces its state at each step.
    try:
        finished = loop.run_steps(directory, evaluate_first=evaluate_first)
        stopped_by = stop.signal.name if stop.signal and not finished else None
        records.write(
            step=loop.reached.number,
            event="end",
            finished=finished,
            stopped_by=stopped_by,
            early=loop.stopping.is_over,
            seconds=time.perf_counter() - entered,
        )
    except BaseException as error:
        error, number = distributed.cause(error), loop.reached.number
        if number == 0:
            raise before_any_step(error) from error
        problem = save_after_error(checkpoints, loop.reached, loop.saved, spec)
        latest = checkpoints.latest_step()
        raise after_a_step(error, run, number, latest, problem) from error
    latest = checkpoints.latest_step()
    return Result(run, loop.reached.number, loop.scores, stopped_by, latest)


def _shared(config: Config) -> dict[str, Any]:
    """Return the settings that must be the same in all processes."""
    table = config.model_dump(mode="json")
    for name in ("root", "num_workers"):
        del table["data"][name]
    return table


def _describe(
    inputs: Inputs,
    setup: Setup,
    state: TrainState,
    placement: Placement,
    say: Callable[[str], None],
) -> None:
    """Print what is trained, and on what."""
    model = inputs.config.model
    counted = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(
        f"{model.backbone} + {model.head}, {counted:,} parameters, {model.dtype}, "
        f"{len(inputs.train.classes)} classes; {inputs.config.data.dataset}: "
        f"{len(inputs.train)} train, {len(inputs.val)} val images; {placement}"
    )
    for note in (*inputs.notes, *setup.notes):
        say(note)


def _compile(inputs: Inputs, step: Step, state: TrainState, placement: Placement) -> Compiled:
    """Compile the training step, which deletes the arrays of the state that it receives.

    Raises:
        ConfigError: that is impossible, or the step needs more memory than there is.
    """
    config = inputs.config
    with settings_at_fault("the training step cannot be compiled", config):
        traced = jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(placement.of(state), placement.everywhere),
            compiler_options=compiler_options(),
        ).lower(
            state,
            batch_shapes(
                config.data.batch_size,
                config.data.crop_size,
                placement.batch,
                channels=config.model.in_channels,
                dtype=value_range.dtype_of(inputs.value_range),
                mask_channels=inputs.mask_channels,
            ),
        )
        compiled = traced.compile()
        require_memory(compiled)
    return compiled


def _write_settings(
    run: Path, config: Config, spec: checkpoint.Spec, rates: Mapping[str, Rate]
) -> None:
    """Write `config.json`, `versions.json` and `parameters.json`. Raises `WriteError`."""
    if not distributed.is_first():
        return
    plugins = registry.default()
    made_with = {
        **versions.environment(),
        "processes": distributed.count(),
        "plugins": spec.plugins,
        "dataset": plugins.record("datasets", config.data.dataset),
        "weights": spec.weights,
        "losses": {name: plugins.record("losses", name) for name in config.loss},
    }
    atomic.write_json(run / "config.json", json.loads(config.to_json()))
    atomic.write_json(run / "versions.json", made_with)
    atomic.write_json(
        run / "parameters.json", {name: dataclasses.asdict(rate) for name, rate in rates.items()}
    )
