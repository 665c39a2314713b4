"""The steps of a run, with its evaluations, checkpoints and records."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled

from fcn_jax import checkpoint
from fcn_jax.data.pipeline import TrainIterator
from fcn_jax.eval.metrics import Scores
from fcn_jax.runtime import distributed
from fcn_jax.runtime.memory import peak_memory, trim_malloc
from fcn_jax.runtime.progress import Progress
from fcn_jax.train.early_stopping import EarlyStopping
from fcn_jax.train.inputs import Inputs
from fcn_jax.train.logs import Logs
from fcn_jax.train.mirror import Mirror
from fcn_jax.train.other_protocols import OtherProtocols
from fcn_jax.train.processes import AgreedStop, on_this_process, place_batch
from fcn_jax.train.profiling import Profile
from fcn_jax.train.records import Records
from fcn_jax.train.run_directory import RunDirectory
from fcn_jax.train.saving import Completed
from fcn_jax.train.setup import Setup
from fcn_jax.train.sharding import Placement
from fcn_jax.train.signals import StopRequest
from fcn_jax.train.speed import Speed
from fcn_jax.train.validation import Validation


@dataclasses.dataclass(kw_only=True)
class Loop:
    """The steps of a run, from the one that is reached to the last one.

    Attributes:
        run: run directory.
        mirror: where its checkpoints are, and copies of its records.
        inputs: the images.
        setup: what is trained.
        spec: for checkpoints.
        compiled: the training step. It deletes the arrays of the state that it receives.
        batches: training batches, at the position of `reached`.
        placement: where batches lie.
        rows: images of a batch that this process reads.
        checkpoints: receives checkpoints.
        records: receives records of steps, evaluations and checkpoints.
        log: receives the records that others show, too.
        progress: the progress bar.
        profile: traces some of the steps.
        stop: ends the run after a step.
        reached: the last completed step.
        saved: the step of the last checkpoint that was begun.
        scores: of the last evaluation, or None.
    """

    run: Path
    mirror: Mirror
    inputs: Inputs
    setup: Setup
    spec: checkpoint.Spec
    compiled: Compiled
    batches: TrainIterator
    placement: Placement
    rows: Sequence[int] | None
    checkpoints: checkpoint.Checkpoints
    records: Records
    log: Logs
    progress: Progress
    profile: Profile
    stop: StopRequest
    reached: Completed
    saved: int = dataclasses.field(init=False)
    scores: Scores | None = None

    def __post_init__(self) -> None:
        """Raises `ConfigError` if the section `eval` of the recipe is wrong."""
        self._config, self._start = self.inputs.config, self.reached.number
        self.saved = self._start
        places = self.mirror.home, self.mirror.store
        self.stopping = EarlyStopping.read(self._config, self._start, *places)
        model = self.setup.graphdef, self.setup.random_keys, self.inputs.val, self._config
        self._validation = Validation(*model, self.run, self.progress.say, self.log)
        self._other_protocols = OtherProtocols(*model, self.progress.say)
        self._speed = Speed(self._config.data.batch_size, self._start)
        # On CPUs a step allocates its memory when it is dispatched, so two steps at once would take
        # twice as much, and save no time: the next batch is prepared during the step anyway. The
        # inputs are awaited, too, or `memory.disable_async_dispatch` would have no effect.
        self._one_at_a_time = jax.default_backend() == "cpu"
        self._stop = AgreedStop(self.stop)

    @property
    def is_over(self) -> bool:
        """Whether no step is left to take."""
        return self.reached.number >= self.inputs.total_steps or self.stopping.is_over

    def run_steps(self, directory: RunDirectory, *, evaluate_first: bool) -> bool:
        """Take the steps, save the last one, and return whether the run is finished.

        Args:
            directory: kept from the first step on.
            evaluate_first: begin with an evaluation of the step that is reached.

        Raises:
            TrainingError, CheckpointError, WriteError, DataError: as `train` says.
        """
        if evaluate_first:
            with self._speed.paused():
                self._evaluate()
        while not self.is_over and not self._stop.is_reached():
            self.profile.before_step(self.reached.number + 1)
            self._take_step()
            with self._speed.paused():
                self.profile.after_step(self.reached.number, self.reached.state)
            if self.reached.number == self._start + 1:
                directory.keep = True
                if self._one_at_a_time:
                    trim_malloc()  # the first call takes more than later ones
            self._after_step()
        if self.reached.number > self.saved:
            self._save()
        self.checkpoints.finish()
        if self.stopping.is_over:
            self.progress.say(f"early stopping after step {self.reached.number}: {self.stopping}")
        # The first process has written the scores.
        return self.is_over and distributed.first_decides(
            lambda: checkpoint.is_evaluated(self.mirror.store, self.reached.number)
        )

    def _take_step(self) -> None:
        with self._speed.waiting():
            batch = next(self.batches)
        placed = place_batch(batch, self.placement, self.rows, self._config.data.batch_size)
        before = self.reached
        if self._one_at_a_time:
            jax.block_until_ready((before.state, placed))
        state, metrics = self.compiled(before.state, placed)
        number = before.number + 1
        self.reached = Completed(number, state, self.batches.get_state(), metrics, batch)
        if self._one_at_a_time and number == self._start + 1:
            jax.block_until_ready(state)
        # The loss is read one step late, so that the host prepares a batch while the device
        # computes.
        if before.metrics:
            loss = before.loss(self.run, state)
            self._show(before.number, loss, self._speed.images_per_second(before.number))

    def _after_step(self) -> None:
        number, config = self.reached.number, self._config
        if number % config.train.log_every_steps == 0 or number == self.inputs.total_steps:
            self._log_step()
        # The checkpoint comes first, so that an error in an evaluation costs no training.
        every, histograms = config.train.checkpoint_every_steps, config.log.histograms_every_steps
        with self._speed.paused():
            if self.inputs.is_evaluated(number):
                self._save()
                self._evaluate()
            elif every and number % every == 0:
                self._save()
            if histograms and number % histograms == 0:
                self.log.histograms(number, on_this_process(self.reached.state.params))

    def _log_step(self) -> None:
        number, metrics = self.reached.number, self.reached.metrics
        assert metrics is not None
        loss = self.reached.loss(self.run, self.reached.state)
        by_loss: Any = metrics.get("losses")  # a dictionary
        figures = self._speed.figures(number)
        self._write(
            step=number,
            event="train",
            epoch=number / self.inputs.epoch_steps,
            loss=loss,
            grad_norm=float(metrics["grad_norm"]),
            **({"losses": {k: float(x) for k, x in by_loss.items()}} if by_loss else {}),
            lr=float(self.setup.schedule(number - 1)),
            **figures,
            peak_memory_gib=peak_memory(),
        )
        self._show(number, loss, figures["images_per_second"])
        self.checkpoints.check()
        self._speed.restart(number)

    def _save(self) -> None:
        began = time.perf_counter()
        self.reached.require_finite(self.run)
        self.saved = self.reached.number  # a save that fails is not tried twice
        self.mirror.push()
        self.reached.save(self.checkpoints, self.spec)
        seconds = time.perf_counter() - began  # the files are written during the next steps
        self.records.write(step=self.saved, event="checkpoint", seconds=seconds)

    def _evaluate(self) -> None:
        number, began = self.reached.number, time.perf_counter()
        found = self._validation.scores(number, self.reached.state, self.stop)
        others = None
        if found is not None:
            others = self._other_protocols.scores(self.reached.state, self.stop)
        if found is None or others is None:
            self._stop.agree()
            return
        self.scores, seconds = found, time.perf_counter() - began
        weights = "raw" if self._config.optim.ema_decay is None else "ema"
        epoch_steps = self.inputs.epoch_steps
        self._write(
            step=number,
            event="val",
            epoch=number / epoch_steps,
            seconds=seconds,
            weights=weights,
            **found.to_dict(self.inputs.val.classes),
            **({"also": self._other_protocols.to_dict(others)} if others else {}),
        )
        say, epoch = self.progress.say, number // epoch_steps
        say(
            f"epoch {epoch}: val {'(ema) ' * (weights == 'ema')}{found.summary()} "
            f"({len(self.inputs.val)} images in {seconds:.0f} s)"
        )
        for name, other in others.items():
            say(f"epoch {epoch}: val by {name}: {other.summary()}")
        self.mirror.push()
        self.checkpoints.score(number, found.miou, weights)
        self.stopping.add(number, found)

    def _show(self, number: int, loss: float, images_per_second: float) -> None:
        epoch = (number - 1) // self.inputs.epoch_steps + 1
        figures = f"epoch {epoch}, loss {loss:.4f}, {images_per_second:.1f} images/s"
        self.progress.update(number, text=figures)

    def _write(self, **record: Any) -> None:
        self.records.write(**record)
        self.log.record(record)
