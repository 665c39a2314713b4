"""Operators are tested under strict type promotion: every conversion must be explicit."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_types() -> Iterator[None]:
    """Mixed types are errors. Ranks still broadcast: a bias [C] is added to channels-last maps."""
    with jax.numpy_dtype_promotion("strict"):
        yield
