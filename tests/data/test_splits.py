"""Opening the splits of a dataset."""

import pytest

from fcn_jax.api import Dataset
from fcn_jax.data.splits import open_splits
from fcn_jax.errors import PluginError


def test_rejects_a_dataset_that_opens_something_else_than_a_source() -> None:
    dataset = Dataset(name="odd", summary="", open=lambda root, split: {})  # type: ignore[arg-type, return-value]
    with pytest.raises(PluginError, match="'odd' opens split 'train' as a dict; it must be"):
        open_splits(dataset, None, ["train"])
