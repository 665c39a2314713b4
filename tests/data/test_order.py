"""The order of training records is that of the committed list.

If Grain draws another order, `record_order.json` does not match any more: runs that were started
with the older Grain cannot be continued exactly. Say so in the changelog, then write the list again
with `python -m tests.data.test_order`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.api import Example
from fcn_jax.data import order, pipeline
from fcn_jax.train.settings import other_order

GOLDEN = Path(__file__).with_name("record_order.json")
CASES = [(5, 2, 0), (16, 4, 0), (16, 4, 1), (367, 8, 0), (1464, 16, 7), (10582, 16, 2**32 - 1)]
"""Records, batch size, seed: tiny ones, then CamVid, VOC and SBD."""

FIRST = 24


def drawn(records: int, batch_size: int, seed: int) -> dict[str, list[list[int]]]:
    """Return the first records and random numbers of two epochs."""
    batches = order.indices(records, batch_size, seed, epochs=2)
    steps = len(batches) // 2
    epochs = []
    for epoch in range(2):
        first = range(epoch * steps, epoch * steps + min(steps, -(-FIRST // batch_size)))
        some = [batches[step] for step in first]
        epochs.append({name: np.concatenate([b[name] for b in some])[:FIRST] for name in some[0]})
    return {name: [epoch[name].tolist() for epoch in epochs] for name in ("record", "draw")}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_records_come_in_the_committed_order(case):
    assert drawn(*case) == json.loads(GOLDEN.read_text())[str(case)]


def test_each_epoch_is_a_pass_in_another_order():
    batches = order.indices(16, 4, 0, epochs=2)
    both = np.concatenate([batches[i]["record"] for i in range(len(batches))])
    assert len(both) == 32
    assert sorted(both[:16]) == sorted(both[16:]) == list(range(16))
    assert both[:16].tolist() != both[16:].tolist()


class _Numbered(list):
    """A source whose records are their numbers, and its transform, which shows random numbers."""

    def decode_resized(self, record: int, factor: float) -> Example:
        return Example(str(record), np.zeros((1, 1, 3), np.uint8), np.full((1, 1), record))

    def from_resized(self, resized, rng):
        example = resized(1.0)
        image = np.full((1, 1, 3), rng.integers(2**32, dtype=np.uint32))
        return Example(example.id, image, example.mask)


def test_training_batches_come_in_the_order_of_the_list():
    source = _Numbered(range(11))
    batches = pipeline.train_batches(source, augment=source, batch_size=3, seed=5)
    expected = order.indices(11, 3, 5, epochs=2)
    for step in range(6):
        batch = next(batches)
        assert batch["mask"][:, 0, 0].tolist() == expected[step]["record"].tolist()
        assert batch["image"][:, 0, 0, 0].tolist() == expected[step]["draw"].tolist()
    batches.close()


@pytest.mark.parametrize("other", [(17, 4, 0), (16, 2, 0), (16, 4, 1)])
def test_the_fingerprint_tells_orders_apart(other):
    one = order.fingerprint(16, 4, 0)
    assert one == order.fingerprint(16, 4, 0)
    assert one["digest"] != order.fingerprint(*other)["digest"]


def test_a_changed_order_is_a_warning():
    now = order.fingerprint(16, 4, 0)
    assert other_order(None, now) is None
    assert other_order({**now, "grain": "0.1"}, now) is None
    warning = other_order({"grain": "0.1", "digest": "x"}, now)
    assert warning.startswith("warning: the training images come in another order than before")
    assert warning.endswith("pip install grain==0.1")


if __name__ == "__main__":
    table = {str(case): drawn(*case) for case in CASES}
    text = json.dumps(table, separators=(",", ":"))
    GOLDEN.write_text(text.replace("},", "},\n") + "\n")
