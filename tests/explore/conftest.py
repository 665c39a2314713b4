"""Fixtures of the tests of `fcn_jax.explore`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.folders import CLASSES, Folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Folder]:
    return lambda classes=CLASSES, name="mydata": Folder(tmp_path / name, classes)
