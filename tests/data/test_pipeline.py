"""The pipeline: batches depend only on seed and index, and errors arrive as they were raised."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import ClassVar

import cv2
import grain
import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from fcn_jax.api import Example, Record, Source
from fcn_jax.config import parse
from fcn_jax.data.datasets.camvid import CAMVID
from fcn_jax.data.geometry import resize
from fcn_jax.data.pipeline import eval_examples, steps_per_epoch, train_batches
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import ConfigError, DataError, TrainingError

COUNT = 23
PLAIN = Augment((16, 16), flip=False)
TABLES = ("rotate", "crop", "vertical_flip", "photometric", "blur", "jpeg", "cutout")
FULL = Augment(
    (16, 24),
    (0.5, 2.0),
    True,
    0.3,
    0.3,
    0.3,
    0.1,
    tables=parse({"augment": {name: {} for name in TABLES}}).augment,
)
Batch = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CamVid's layout: image k is gray k, so that a pixel of a batch says which image it is."""
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    for k in range(COUNT):
        size = 17 + k, 18 + k
        cv2.imwrite(str(tmp_path / "train" / f"{k:02}.png"), np.full((*size, 3), k, np.uint8))
        cv2.imwrite(str(tmp_path / "trainannot" / f"{k:02}.png"), np.full(size, k % 11, np.uint8))
    return tmp_path


@pytest.fixture
def source(folder: Path) -> Source:
    return CAMVID.open(folder, "train")


def identities(batches: list[Batch]) -> list[list[int]]:
    return [batch["image"][:, 0, 0, 0].tolist() for batch in batches]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a
    )


def take(iterator: grain.DatasetIterator[Batch], count: int) -> list[Batch]:
    return [next(iterator) for _ in range(count)]


def test_epochs_have_exact_lengths_distinct_images_and_own_orders(source: Source) -> None:
    steps = steps_per_epoch(source, 5)
    assert steps == COUNT // 5
    batches = list(train_batches(source, augment=PLAIN, batch_size=5, seed=1, epochs=3))
    assert len(batches) == 3 * steps
    assert all(
        b["image"].shape == (5, 16, 16, 3) and b["mask"].shape == (5, 16, 16) for b in batches
    )
    epochs = [
        np.concatenate(identities(batches[e * steps : (e + 1) * steps])).tolist() for e in range(3)
    ]
    assert all(len(set(epoch)) == steps * 5 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert set().union(*epochs) == set(range(COUNT))  # what an epoch drops, another has


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3, 4]], [[0, 3], [1], [2, 4]]])
def test_rows_of_several_processes_make_up_the_batches(source: Source, parts) -> None:
    whole = list(train_batches(source, augment=FULL, batch_size=5, seed=1, epochs=2))
    read = [
        list(train_batches(source, augment=FULL, batch_size=5, seed=1, epochs=2, rows=rows))
        for rows in parts
    ]
    order = np.argsort(np.concatenate(parts))
    joined = [
        {k: np.concatenate([batch[k] for batch in batches])[order] for k in batches[0]}
        for batches in zip(*read, strict=True)
    ]
    assert same(joined, whole)
    running = train_batches(source, augment=FULL, batch_size=5, seed=1, rows=parts[0])
    running.set_state({"next_batch": 6})
    assert same([next(running)], read[0][6:7])
    running.close()


def test_evaluation_reads_a_share_of_the_images(source: Source) -> None:
    names = [example.id for example in eval_examples(source)]
    shares = [slice(0, 7), slice(7, 7), slice(7, COUNT)]
    assert [e.id for share in shares for e in eval_examples(source, images=share)] == names


def test_seed_determines_the_batches(source: Source) -> None:
    runs = [
        take(train_batches(source, augment=FULL, batch_size=4, seed=seed), 8) for seed in (7, 7, 8)
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_augments_an_image_differently_in_every_epoch(source: Source) -> None:
    batches = list(train_batches(source, augment=FULL, batch_size=COUNT, seed=7, epochs=2))
    order = [
        np.argsort(batch["mask"].reshape(COUNT, -1).min(axis=1), kind="stable") for batch in batches
    ]
    assert not np.array_equal(batches[0]["image"][order[0]], batches[1]["image"][order[1]])


@pytest.mark.slow
def test_batches_and_resumption_are_independent_of_workers(source: Source) -> None:
    def start(workers: int) -> grain.DatasetIterator[Batch]:
        return train_batches(source, augment=FULL, batch_size=4, seed=7, num_workers=workers)

    whole = take(start(0), 14)  # an epoch has 5
    running = start(2)
    assert same(take(running, 7), whole[:7])
    state = running.get_state()
    assert same(take(running, 2), whole[7:9])
    running.set_state(state)  # back, with the workers running
    assert same(take(running, 7), whole[7:])
    running.close()
    resumed = start(0)  # another run, with another number of workers
    resumed.set_state(state)
    assert same(take(resumed, 7), whole[7:])


def test_state_before_the_first_batch_and_at_the_end_can_be_restored(source: Source) -> None:
    iterator = train_batches(source, augment=PLAIN, batch_size=10, seed=0, epochs=2)
    begin = iterator.get_state()
    whole = list(iterator)
    end = iterator.get_state()
    iterator.set_state(begin)
    assert same(list(iterator), whole)
    iterator.set_state(end)
    assert list(iterator) == []
    with pytest.raises(ConfigError, match="not a saved position"):
        iterator.set_state({"next": 3})


def test_uses_decode_resized_of_a_source(source: Source) -> None:
    class Plain(Source):
        """The same images, decoded whole: the methods that a plugin's dataset must have."""

        classes = source.classes

        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, index: int) -> Record:
            return source[index]

        def decode(self, record: Record) -> Example:
            return source.decode(record)

    class Asked(Plain):
        factors: ClassVar[list[float]] = []

        def decode_resized(self, record: Record, factor: float) -> Example:
            self.factors.append(factor)
            return resize(self.decode(record), factor)

    augment = Augment((16, 24), (0.1, 0.4))
    whole, plain, asked = (
        list(train_batches(s, augment=augment, batch_size=4, seed=3, epochs=1))
        for s in (source, Plain(), Asked())
    )
    assert same(plain, asked)
    assert same(plain, whole)  # PNGs: nothing is gained, and nothing differs
    assert len(Asked.factors) == 20
    assert all(0.1 <= factor <= 0.4 for factor in Asked.factors)


def test_eval_yields_every_image_whole_and_in_order(source: Source) -> None:
    examples = list(eval_examples(source))
    assert [e.id for e in examples] == [f"{k:02}" for k in range(COUNT)]
    assert [e.mask.shape for e in examples] == [(17 + k, 18 + k) for k in range(COUNT)]
    with_workers = list(eval_examples(source, num_workers=1))
    for a, b in zip(examples, with_workers, strict=True):
        assert a.id == b.id
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.mask, b.mask)


@pytest.mark.slow
def test_shared_memory_is_closed_by_one_thread(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    closers: dict[str, set[str]] = {}
    close = SharedMemory.close

    def recorded(memory: SharedMemory) -> None:
        closers.setdefault(memory.name, set()).add(threading.current_thread().name)
        close(memory)

    monkeypatch.setattr(SharedMemory, "close", recorded)
    original = vars(SharedMemoryArray)["enable_async_del"]
    examples = eval_examples(source, num_workers=2)
    next(examples)
    assert vars(SharedMemoryArray)["enable_async_del"] is not original
    list(examples)
    assert vars(SharedMemoryArray)["enable_async_del"] is original  # Grain is itself again
    gc.collect()  # Grain leaves the last example of each worker in a cycle
    time.sleep(0.5)  # for a thread that closes in the background
    assert len(closers) >= 2 * COUNT  # and what earlier tests left
    assert {name: threads for name, threads in closers.items() if len(threads) > 1} == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_reraises_errors_of_workers_unchanged(folder: Path, source: Source, workers: int) -> None:
    (folder / "train" / "11.png").write_bytes(b"broken")
    for consume in (
        lambda: list(
            train_batches(
                source, augment=PLAIN, batch_size=4, seed=0, epochs=2, num_workers=workers
            )
        ),
        lambda: list(eval_examples(source, num_workers=workers)),
    ):
        with pytest.raises(DataError) as caught:
            consume()
        assert str(caught.value).startswith(f"{folder / 'train' / '11.png'}: not a readable image")
        assert not getattr(caught.value, "__notes__", [])
        assert caught.value.__suppress_context__


class _Deadly(Source):
    """A source whose decoding kills the worker at one image, as often as the marker file says."""

    def __init__(self, source: Source, image: str, marker: Path) -> None:
        self._source, self._image, self._marker = source, image, marker
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._source[index]

    def decode(self, record: Record) -> Example:
        example = self._source.decode(record)
        if example.id == self._image and (left := int(self._marker.read_text())):
            self._marker.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return example


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_replaces_killed_workers_without_changing_batches(
    source: Source, tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "deaths"
    deadly = _Deadly(source, "11", marker)
    marker.write_text("2")
    batches = train_batches(deadly, augment=FULL, batch_size=4, seed=7, num_workers=workers)
    assert same(
        take(batches, 6), take(train_batches(source, augment=FULL, batch_size=4, seed=7), 6)
    )
    batches.close()
    assert marker.read_text() == "0"
    # Two workers that read ahead may both have died before the first death is noticed.
    assert caplog.text.count("an input worker was killed by SIGKILL") in (
        (2,) if workers == 1 else (1, 2)
    )
    marker.write_text("1")
    assert [example.id for example in eval_examples(deadly, num_workers=workers)] == [
        f"{k:02}" for k in range(COUNT)
    ]


@pytest.mark.slow
def test_raises_with_advice_if_workers_die_again_and_again(source: Source, tmp_path: Path) -> None:
    marker = tmp_path / "deaths"
    marker.write_text("99")
    batches = train_batches(
        _Deadly(source, "11", marker), augment=PLAIN, batch_size=COUNT, seed=7, num_workers=1
    )
    with pytest.raises(
        TrainingError,
        match=r"killed by SIGKILL 3 times at batch 0, .* lower data\.num_workers \(now 1",
    ):
        next(batches)
    assert marker.read_text() == "96"
    batches.close()


def test_rejects_values_out_of_range(source: Source) -> None:
    for match, values in (
        ("more than the split's 23 images", {"batch_size": 24}),
        ("batch_size = 0", {"batch_size": 0}),
        ("seed = -1", {"seed": -1}),
        ("num_workers = -1", {"num_workers": -1}),
        ("num_workers = 1000000", {"num_workers": 10**6}),
        ("epochs = 0", {"epochs": 0}),
    ):
        with pytest.raises(ConfigError, match=match):
            train_batches(source, **{"augment": PLAIN, "batch_size": 2, "seed": 0, **values})  # type: ignore[arg-type]


def test_rejects_reading_a_closed_iterator(source: Source) -> None:
    iterator = train_batches(source, augment=PLAIN, batch_size=2, seed=0)
    next(iterator)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
@pytest.mark.slow
def test_ctrl_c_reaches_only_the_parent_which_exits_quietly(folder: Path) -> None:
    code = f"""
import os, signal, sys, time
from pathlib import Path
from fcn_jax.data.datasets.camvid import CAMVID
from fcn_jax.data.pipeline import train_batches
from fcn_jax.data.transforms import Augment
if __name__ == "__main__":
    # A background job starts with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    source = CAMVID.open(Path({str(folder)!r}), "train")
    batches = train_batches(source, augment=Augment((16, 16)), batch_size=2, seed=0, num_workers=2)
    for _ in range(6):
        next(batches)
    try:
        os.killpg(0, signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        next(batches)  # the workers still work
        sys.exit(130)
"""
    script = folder / "run.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, str(script)],
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert signal.Signals.SIGINT.name not in ended.stderr
