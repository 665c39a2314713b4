"""The Grain input pipeline of every dataset.

For training: shuffle, decode, augment, batch. For evaluation: every image in order. The contents of
a batch depend only on the seed and the batch's index: not on the number of workers, on timing, or
on where a run was interrupted. Normalization happens on the device.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any, ClassVar

import cv2
import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from fcn_jax.data import order
from fcn_jax.data.damage import SkippingSource, gist
from fcn_jax.data.source import Source
from fcn_jax.data.threads import thread_count
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import ConfigError, DamagedError, FcnJaxError, TrainingError
from fcn_jax.plugins.api import Example, Record

Batch = dict[str, np.ndarray]

_log = logging.getLogger(__name__)

_TRACKER_WARNING = "ignore:resource_tracker:UserWarning"
_MAX_DEATHS = 3
"""Deaths of workers in a row, without a batch or an image between them, that are an error."""

# Grain's own error, which has no class.
_WORKER_ENDED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """The number of batches of an epoch: `len(source) // batch_size`.

    Raises:
        ConfigError: a value is out of range, or there are fewer images than one batch takes.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: expected 1 or more")
    steps = len(source) // batch_size
    if steps == 0:
        raise ConfigError(
            f"batch_size = {batch_size} takes more than the split's {len(source)} images; lower it"
        )
    return steps


def train_batches(
    source: Source,
    *,
    augment: Augment,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    epochs: int | None = None,
    rows: Sequence[int] | None = None,
) -> TrainIterator:
    """Shuffled, augmented batches.

    Each epoch is one pass in its own order and has exactly `steps_per_epoch` batches. The remaining
    images, which are others in every epoch, are dropped, and no batch spans two epochs.

    Args:
        source: the images.
        augment: the transform, which makes all examples the same size.
        batch_size: number of images in a batch.
        seed: 0 to 2**32 - 1.
        num_workers: number of processes that decode and augment; 0 uses threads of this process.
        epochs: number of epochs; None never stops.
        rows: images of each batch that this process reads, by their position in the batch; all if
            None. Batch and position decide which image it is, and how it is augmented, so the
            batches of all processes together are those of one process.

    Returns:
        Iterator of {"image": u8[B,h,w,C], "mask": u8[B,h,w]}; images of stored values may be f32.

    Raises:
        ConfigError: a value is out of range, or there are fewer images than one batch takes.
    """
    steps_per_epoch(source, batch_size)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed = {seed}: expected 0 to {2**32 - 1}")
    if epochs is not None and epochs < 1:
        raise ConfigError(f"epochs = {epochs}: expected 1 or more, or none for no end")
    _check_workers(num_workers)
    batches = order.batches(
        grain.MapDataset.source(source),
        functools.partial(_augmented, source, augment),
        batch_size=batch_size,
        seed=seed,
        epochs=epochs,
        rows=rows,
    )
    return TrainIterator(batches, num_workers)


def eval_examples(
    source: Source, *, num_workers: int = 0, images: slice | None = None
) -> Generator[Example, None, None]:
    """Every image of a source, whole and at its own size, in order.

    Nothing is dropped or cropped, except that a `SkippingSource` leaves out images that are found
    damaged now, with a warning. Workers that are killed are replaced. Closing the generator stops
    the workers.

    Args:
        source: the images.
        num_workers: number of processes that decode; 0 uses threads of this process.
        images: only these.

    Raises:
        ConfigError: a value is out of range.
        TrainingError: raised by the generator if workers are killed again and again.
    """
    _check_workers(num_workers)
    records = grain.MapDataset.source(source).slice(images or slice(None))
    skips = isinstance(source, SkippingSource)
    return _examples(records.map(source.decode), num_workers, skips=skips)


class TrainIterator(grain.DatasetIterator[Batch]):
    """Iterator over training batches that can be set to any batch.

    Its state is the index of the next batch, for any number of workers: a run can continue with
    another number.
    """

    def __init__(self, batches: grain.MapDataset[Batch], workers: int) -> None:
        """Read `batches` with `workers` processes, from the first one."""
        super().__init__()
        self._batches = batches
        self._next_batch = 0
        self._elements = _Elements(workers, buffer=2)
        # Also at exit: Grain's iterators and workers that outlive the interpreter's modules print
        # errors.
        weakref.finalize(self, self._elements.stop)

    def __next__(self) -> Batch:
        """The next batch.

        Workers that are killed are replaced, and the batches stay the same.

        Raises:
            DataError: an image of the batch cannot be decoded.
            TrainingError: workers were killed again and again.
        """
        if self._closed:
            raise ValueError("the iterator is closed")
        # An endless dataset has length sys.maxsize and is indexed by whole numbers, so that
        # skipping reads nothing.
        start = self._next_batch
        batch = self._elements.next(
            lambda: self._batches.slice(slice(start, sys.maxsize)), f"batch {start}"
        )
        self._next_batch += 1
        return {name: _own(array) for name, array in batch.items()}

    def get_state(self) -> dict[str, Any]:
        """The position, for a checkpoint: {"next_batch": int}."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position of `get_state`, forwards or back.

        The batches from there are bit for bit the same.

        Raises:
            ConfigError: `state` is not such a position.
        """
        position = state.get("next_batch")
        if not isinstance(position, (int, np.integer)) or position < 0:
            raise ConfigError(
                f"input pipeline: {state!r} is not a saved position; expected "
                "{'next_batch': 0 or more}"
            )
        self._elements.stop()
        self._next_batch = int(position)

    def close(self) -> None:
        """Stop the workers. Can be called again; the iterator cannot be used any more."""
        self._elements.stop()
        self._closed = True


def _augmented(source: Source, augment: Augment, record: Record, rng: np.random.Generator) -> Batch:
    """One element of a batch."""
    example = augment.from_resized(functools.partial(source.decode_resized, record), rng)
    return {"image": example.image, "mask": example.mask}


def _examples(
    decoded: grain.MapDataset[Example], workers: int, *, skips: bool
) -> Generator[Example, None, None]:
    elements = _Elements(workers, buffer=8)
    atexit.register(elements.stop)  # for a generator that is not exhausted, as in `TrainIterator`
    try:
        for index in range(len(decoded)):
            rest = functools.partial(decoded.slice, slice(index, None))
            try:
                name, image, mask = elements.next(rest, f"image {index}")
            except DamagedError as error:
                if not skips:
                    raise
                _log.warning("%s; the image is left out (data.damaged=skip)", gist(error))
                continue
            yield Example(name, _own(image), _own(mask))
    finally:
        elements.stop()
        atexit.unregister(elements.stop)


class _Elements:
    """Elements of a Grain dataset, computed ahead of time; workers that are killed are replaced."""

    def __init__(self, workers: int, buffer: int) -> None:
        """Prepare to read.

        Args:
            workers: number of processes, each computing one element at a time; 0 uses as many
                threads as there are cores, at most 8.
            buffer: the least number of elements that are kept ready: in each worker, or in all.
        """
        self._workers, self._buffer = workers, buffer
        self._deaths_in_a_row = 0
        self._open: contextlib.ExitStack | None = None
        self._iterator: grain.DatasetIterator[Any] | None = None

    def next(self, rest: Any, at: str) -> Any:
        """The next element.

        Args:
            rest: () -> the dataset from that element on, for workers that start or start again.
            at: the element's name in messages.

        Raises:
            FcnJaxError: the error of the element, as it was raised in the worker.
            TrainingError: workers were killed again and again.
        """
        while True:
            try:
                if self._iterator is None:
                    self._start(rest())
                element = next(self._iterator)  # type: ignore[arg-type]
            except FcnJaxError as error:
                self.stop()
                # Grain adds the worker's stack and notes; the user's error is this one line.
                raise type(error)(*error.args) from None
            except RuntimeError as error:
                self.stop()
                self._count_death(error, at)
            else:
                self._deaths_in_a_row = 0
                return element

    def stop(self) -> None:
        """Stop the workers, until the next element is read."""
        stack, self._open, self._iterator = self._open, None, None
        if stack is not None:
            stack.close()

    def _start(self, elements: grain.MapDataset[Any]) -> None:
        self._open = contextlib.ExitStack()
        if self._workers:
            self._open.enter_context(_synchronous_memory())
            self._iterator = _worker_iterator(elements, self._workers, self._buffer)
        else:
            threads = thread_count()
            options = grain.ReadOptions(
                num_threads=threads, prefetch_buffer_size=max(self._buffer, threads)
            )
            self._iterator = iter(elements.to_iter_dataset(options))
        self._open.callback(self._iterator.close)

    def _count_death(self, error: RuntimeError, at: str) -> None:
        """Log the death of a worker. Raise `TrainingError` for too many, and other errors."""
        found = _WORKER_ENDED.search(str(error)) if self._workers else None
        if found is None:
            raise error
        self._deaths_in_a_row += 1
        code = int(found[1])
        signals = {-number: number.name for number in signal.Signals}
        killed = f"killed by {signals.get(code, f'signal {-code}')}"
        how = killed if code < 0 else f"ended with status {code}"
        if self._deaths_in_a_row >= _MAX_DEATHS:
            raise TrainingError(
                f"input workers were {how} {self._deaths_in_a_row} times at {at}, most likely "
                "because memory (main or /dev/shm) ran out: lower data.num_workers (now "
                f"{self._workers}; 0 uses threads) or data.batch_size"
            ) from None
        _log.warning(
            "an input worker was %s at %s; another one replaces it, and no batch changes", how, at
        )


def _own(array: np.ndarray) -> np.ndarray:
    """The array, copied if it lies in the memory that a worker shares.

    Grain's array object frees that memory, and prints errors if it lives until the interpreter
    exits; JAX may also alias the arrays that it gets.
    """
    return array if type(array) is np.ndarray else np.array(array, subok=False)


class _Patch:
    """The number of users of `_synchronous_memory`, and the method that it replaces."""

    lock: ClassVar = threading.Lock()
    users: ClassVar = 0
    original: ClassVar[Any] = None


@contextlib.contextmanager
def _synchronous_memory() -> Iterator[None]:
    """Within it, Grain starts no thread that closes the memory of arrays that workers shared.

    If the garbage collector finds such an array, as it finds the last one of every worker that
    ended, Python closes the memory too, at the same time. The second close of the descriptor then
    hits another file that has just got the same number, such as a checkpoint's. Without the thread,
    the memory is closed once, when the array dies. Grain 0.2 has no option for this: its worker
    iterators call `SharedMemoryArray.enable_async_del` when they start, so that method is replaced
    as long as an iterator of this module has workers.
    """
    with _Patch.lock:
        if not _Patch.users:
            _Patch.original = vars(SharedMemoryArray)["enable_async_del"]
            SharedMemoryArray.enable_async_del = lambda *_, **__: None
        _Patch.users += 1
    try:
        yield
    finally:
        with _Patch.lock:
            _Patch.users -= 1
            if not _Patch.users:
                SharedMemoryArray.enable_async_del = _Patch.original


def _worker_iterator(
    elements: grain.MapDataset[Any], workers: int, buffer: int
) -> grain.DatasetIterator[Any]:
    # Python's tracker of shared memory frees the arrays that ended workers had ready, and would
    # warn of each.
    if _TRACKER_WARNING not in sys.warnoptions:
        sys.warnoptions.append(_TRACKER_WARNING)
    if not flags.FLAGS.is_parsed():
        # Grain reads its settings from absl's flags when it starts a worker, which fails in a
        # program that does not use them.
        flags.FLAGS.mark_as_parsed()
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
    return iter(elements.to_iter_dataset(read).mp_prefetch(options, worker_init_fn=_start_worker))


def _start_worker(index: int, count: int) -> None:
    # Ctrl-C and the SIGTERM of a scheduler reach the whole process group. The parent decides when
    # its workers stop: it may need them for a last batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    # Warnings are printed as by the command line.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fcn-jax: warning: %(message)s"))
    logging.getLogger("fcn_jax").addHandler(handler)
    # Each worker is to use one core; OpenCV's own threads would compete for the cores.
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    """End this worker when its parent was killed. Grain's workers would wait for it forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _check_workers(workers: int) -> None:
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 0 <= workers <= most:
        raise ConfigError(
            f"num_workers = {workers}: expected 0 (threads) to {most} on this machine of "
            f"{os.cpu_count()} cores"
        )
