from collections.abc import Iterator

import jax
import pytest

from fcn_jax import nn
from tests.helpers.annotations import check_annotations


@pytest.fixture(autouse=True, scope="module")
def annotations():
    """Check the shapes in the annotations of `fcn_jax.nn` in all tests of this folder."""
    with pytest.MonkeyPatch.context() as patch:
        check_annotations(patch, nn)
        yield


@pytest.fixture(autouse=True)
def strict_types() -> Iterator[None]:
    """Mixed types are errors. Ranks still broadcast: a bias [C] is added to channels-last maps."""
    with jax.numpy_dtype_promotion("strict"):
        yield
