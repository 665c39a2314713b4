"""One Grain pipeline for every dataset: shuffle, decode, augment, batch; or, to evaluate, every image in order.

What a batch holds depends on the seed and the batch's index alone: not on the number of workers, on
timing, or on where a run was interrupted. Batches are u8; normalization is the device's work.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import os
import re
import signal
import sys
import weakref
from collections.abc import Generator
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from fcn_jax.data.transforms import Augment, resize
from fcn_jax.errors import ConfigError, FcnJaxError, TrainingError
from fcn_jax.plugins.api import Example, Record, Source

Batch = dict[str, np.ndarray]

_log = logging.getLogger(__name__)

_MAX_THREADS = 8
_TRACKER_WARNING = "ignore:resource_tracker:UserWarning"
_MAX_DEATHS = 3
"""How often in a row, without a batch or an image between them, workers may die before that is an error."""

# Grain has a thread of its own close the memory of an array that a worker shared. Where the garbage
# collector finds the array, and it finds the last one of every worker that came to its end, it has
# Python close that memory too, at the same time: the second close of the descriptor hits whatever
# another thread has just opened under its number, such as a checkpoint's file. Without that thread,
# an array's memory is closed where the array dies, and once.
SharedMemoryArray.enable_async_del = lambda *_, **__: None


def steps_per_epoch(source: Source, batch_size: int, shard: tuple[int, int] = (0, 1)) -> int:
    """Batches that `train_batches` gives in an epoch: `len(source) // (batch_size * number of shards)`.

    Raises:
        ConfigError: a value is out of range, or there are fewer images than one batch takes.
    """
    _check_shard(shard)
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: want 1 or more")
    steps = len(source) // (batch_size * shard[1])
    if steps == 0:
        share = f" in each of {shard[1]} processes" if shard[1] > 1 else ""
        raise ConfigError(
            f"batch_size = {batch_size}{share} takes more than the split's {len(source)} images; lower it"
        )
    return steps


def train_batches(
    source: Source,
    *,
    augment: Augment,
    batch_size: int,
    seed: int,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    epochs: int | None = None,
) -> TrainIterator:
    """Shuffled, augmented batches.

    Each epoch is one pass in an order of its own and has exactly `steps_per_epoch` batches; what is
    left over is dropped (other images in every epoch), and no batch straddles two epochs. All
    shards draw on one shuffle: together, the k-th batches of n shards hold the images, augmented
    alike, of the k-th batch of one process with n times the batch size.

    Args:
        source: the images.
        augment: makes every example of one size.
        batch_size: images in a batch of this shard.
        seed: 0 to 2**32 - 1.
        workers: processes that decode and augment; 0 uses threads of this process.
        shard: (index, count) of this process.
        epochs: after how many to stop; None never does.

    Returns:
        Iterator of {"image": u8[B,h,w,3], "mask": u8[B,h,w]}.

    Raises:
        ConfigError: a value is out of range, or there are fewer images than one batch takes.
    """
    steps = steps_per_epoch(source, batch_size, shard)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed = {seed}: want 0 to {2**32 - 1}")
    if epochs is not None and epochs < 1:
        raise ConfigError(f"epochs = {epochs}: want 1 or more, or none for no end")
    _check_workers(workers)
    index, count = shard
    batches = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        # Before the slice, so that an image's augmentation follows from its place in the whole
        # epoch, not in a shard.
        .random_map(_DecodeAndAugment(source, augment))
        .slice(slice(index, steps * batch_size * count, count))
        .batch(batch_size)
        .repeat(epochs)
    )
    return TrainIterator(batches, workers)


def eval_examples(
    source: Source, *, workers: int = 0, shard: tuple[int, int] = (0, 1)
) -> Generator[Example, None, None]:
    """Every image of a shard, whole and at its own size, in order.

    Args:
        source: the images.
        workers: processes that decode; 0 uses threads of this process.
        shard: (index, count) of this process. Shards are disjoint, and together are the whole set;
            they may differ by one image.

    Returns:
        Generator of examples; closing it stops the workers. Nothing is dropped or cropped. Workers
        that are killed are replaced.

    Raises:
        ConfigError: a value is out of range.
        TrainingError: from the generator: workers were killed again and again.
    """
    _check_shard(shard)
    _check_workers(workers)
    decoded = (
        grain.MapDataset.source(source).slice(slice(shard[0], None, shard[1])).map(_Decode(source))
    )
    return _examples(decoded, workers)


class TrainIterator(grain.DatasetIterator[Batch]):
    """Iterator over training batches that can be put at any batch.

    Its state is the index of the next batch, and so is the same whatever the number of workers: a
    run can go on with another.
    """

    def __init__(self, batches: grain.MapDataset[Batch], workers: int) -> None:
        """Read `batches` with `workers` processes, from the first on."""
        super().__init__()
        self._batches = batches
        self._workers = workers
        self._next_batch = 0
        self._deaths = _Deaths(workers)
        # At most one. In a list, so that whoever closes it first also drops it: Grain's iterators
        # and workers that outlive the interpreter's modules complain, at length. The finalizer also
        # runs at exit.
        self._running: list[grain.DatasetIterator[Batch]] = []
        weakref.finalize(self, _stop, self._running)

    def __next__(self) -> Batch:
        """The next batch.

        Workers that are killed are replaced, and the batches stay the same.

        Raises:
            DataError: an image of it cannot be decoded.
            TrainingError: workers were killed again and again.
        """
        if self._closed:
            raise ValueError("the iterator is closed")
        while True:
            try:
                if not self._running:
                    # An endless dataset has length sys.maxsize and is indexed by whole numbers, so
                    # that skipping reads nothing.
                    rest = self._batches.slice(slice(self._next_batch, sys.maxsize))
                    self._running.append(_prefetch(rest, self._workers, buffer=2))
                batch = {name: _own(array) for name, array in next(self._running[0]).items()}
            except FcnJaxError as error:
                _stop(self._running)
                # Grain rebuilds the worker's stack and adds notes of its own; the user's error is
                # one line, and this is the line.
                raise type(error)(*error.args) from None
            except RuntimeError as error:
                _stop(self._running)
                self._deaths.count(error, f"batch {self._next_batch}")
                continue
            self._deaths.reset()
            self._next_batch += 1
            return batch

    def get_state(self) -> dict[str, Any]:
        """The position, for a checkpoint: {"next_batch": int}."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position of `get_state`, forwards or back. Batches from there on are bit for bit what they were.

        Raises:
            ConfigError: it is not such a state.
        """
        position = state.get("next_batch")
        if not isinstance(position, (int, np.integer)) or position < 0:
            raise ConfigError(
                f"input pipeline: {state!r} is not a saved position; want {{'next_batch': 0 or more}}"
            )
        _stop(self._running)
        self._next_batch = int(position)

    def close(self) -> None:
        """Stop the workers. Can be called again; the iterator cannot be used any more."""
        _stop(self._running)
        self._closed = True


@dataclasses.dataclass(frozen=True)
class _DecodeAndAugment:
    """Record -> one element of a batch."""

    source: Source
    augment: Augment

    def __call__(self, record: Record, rng: np.random.Generator) -> Batch:
        example = self.augment.from_resized(functools.partial(self._resized, record), rng)
        return {"image": example.image, "mask": example.mask}

    def _resized(self, record: Record, factor: float) -> Example:
        decode_resized = getattr(self.source, "decode_resized", None)
        return (
            decode_resized(record, factor)
            if decode_resized
            else resize(self.source.decode(record), factor)
        )


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Record -> (id, image, mask)."""

    source: Source

    def __call__(self, record: Record) -> tuple[str, np.ndarray, np.ndarray]:
        return tuple(self.source.decode(record))  # type: ignore[return-value]


def _examples(decoded: grain.MapDataset[Any], workers: int) -> Generator[Example, None, None]:
    running: list[grain.DatasetIterator[Any]] = []
    stop = functools.partial(_stop, running)
    atexit.register(stop)  # for a generator that is left half-way, as in `TrainIterator`
    deaths, index = _Deaths(workers), 0
    try:
        while index < len(decoded):
            try:
                if not running:
                    running.append(
                        _prefetch(
                            decoded.slice(slice(index, None)) if index else decoded,
                            workers,
                            buffer=8,
                        )
                    )
                example = _own_example(next(running[0]))
            except RuntimeError as error:
                stop()
                deaths.count(error, f"image {index}")
                continue
            deaths.reset()
            index += 1
            yield example
    except FcnJaxError as error:
        raise type(error)(*error.args) from None
    finally:
        stop()
        atexit.unregister(stop)


class _Deaths:
    """Counts the workers that were killed, usually by the system for want of memory."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._in_a_row = 0

    def count(self, error: RuntimeError, at: str) -> None:
        """Log a death, so that the caller can start other workers. Raises `TrainingError` if it is one too many, else other errors."""
        found = _WORKER_ENDED.search(str(error)) if self._workers else None
        if found is None:
            raise error
        self._in_a_row += 1
        code = int(found[1])
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with status {code}"
        if self._in_a_row >= _MAX_DEATHS:
            raise TrainingError(
                f"input workers were {how} {self._in_a_row} times at {at}, most likely for want of memory (main or /dev/shm): "
                f"lower data.workers (now {self._workers}; 0 uses threads) or data.batch_size"
            ) from None
        _log.warning(
            "an input worker was %s at %s; its place is taken by another, and no batch changes",
            how,
            at,
        )

    def reset(self) -> None:
        """There was progress."""
        self._in_a_row = 0


# Grain's own error, which has no class.
_WORKER_ENDED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stop(running: list[grain.DatasetIterator[Any]]) -> None:
    while running:
        running.pop().close()


def _own(array: np.ndarray) -> np.ndarray:
    """The array, copied where it lies in the memory that a worker shares.

    That memory goes with Grain's array object, noisily where it lives until the interpreter exits;
    JAX may also alias what it is given.
    """
    return array if type(array) is np.ndarray else np.array(array, subok=False)


def _own_example(parts: tuple[str, np.ndarray, np.ndarray]) -> Example:
    return Example(parts[0], _own(parts[1]), _own(parts[2]))


def _prefetch(
    elements: grain.MapDataset[Any], workers: int, buffer: int
) -> grain.DatasetIterator[Any]:
    """Compute elements ahead of time, in order.

    Args:
        elements: whose elements are to be computed.
        workers: processes, each computing one element at a time; 0 uses as many threads as there
            are cores, at most `_MAX_THREADS`.
        buffer: elements that are kept ready, at least: in each worker, or in all.
    """
    if workers:
        # Arrays that ended workers had ready are freed by Python's tracker of shared memory, which
        # would warn of each.
        if _TRACKER_WARNING not in sys.warnoptions:
            sys.warnoptions.append(_TRACKER_WARNING)
        if not flags.FLAGS.is_parsed():
            # Grain reads its settings from absl's flags when it starts a worker, which fails in a
            # program that does not use them.
            flags.FLAGS.mark_as_parsed()
        read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
        return iter(
            elements.to_iter_dataset(read).mp_prefetch(options, worker_init_fn=_start_worker)
        )
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    return iter(
        elements.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads))
        )
    )


def _start_worker(index: int, count: int) -> None:
    # Ctrl-C reaches the whole process group. The parent stops its workers; their tracebacks would
    # only bury its message.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker is one core's worth; OpenCV's own threads would have the workers fight over the
    # cores.
    cv2.setNumThreads(1)


def _check_shard(shard: tuple[int, int]) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(f"shard = {shard}: want (index, count) with 0 <= index < count")


def _check_workers(workers: int) -> None:
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 0 <= workers <= most:
        raise ConfigError(
            f"workers = {workers}: want 0 (threads) to {most} on this machine of {os.cpu_count()} cores"
        )
