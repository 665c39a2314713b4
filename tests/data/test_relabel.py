"""Sources with other classes."""

import pickle

import numpy as np
import pytest

from fcn_jax.api import Classes, Example, Record, Source
from fcn_jax.data.labels.remap import Remap
from fcn_jax.data.relabel import relabeled
from fcn_jax.errors import ConfigError

MASK = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


class Own(Source):
    """A source that reads masks in its own way."""

    classes = Classes(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    notes = ("own",)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        return Record("one", b"", b"")

    def decode(self, record: Record) -> Example:
        return Example(record.id, np.zeros((2, 3, 3), np.uint8), MASK)


def test_changes_the_labels_of_any_source() -> None:
    source = relabeled(Own(), Remap(merge_classes={"ab": ["a", "b"]}))
    source = pickle.loads(pickle.dumps(source))
    assert source.classes.names == ("ab", "c")
    assert source.labels is None
    assert (len(source), source[0].id, source.notes[0]) == (1, "one", "own")
    assert source.decode(source[0]).mask.tolist() == [[0, 0, 1], [1, 255, 0]]
    assert source.decode_resized(source[0], 2.0).mask[:, :2].tolist() == [[0, 0]] * 2 + [[1, 1]] * 2
    assert relabeled(Own(), Remap()).classes is Own.classes


def test_refuses_stored_values_that_such_a_source_does_not_give() -> None:
    for remap in (Remap({"7": "a"}), Remap(reduce_zero_label=True)):
        with pytest.raises(ConfigError, match=r"reads its masks by a rule of its own.*\(a, b, c\)"):
            relabeled(Own(), remap)
