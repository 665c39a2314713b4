"""yourname meets the plugin contract, on a folder that the test writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.errors import DataError
from fcn_jax.plugins.registry import default
from fcn_jax.testing import check_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images of 48x40 pixels with a bright square, the object; one row is ignored."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(5):
        image = rng.integers(0, 100, (40, 48, 3), np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        square = np.s_[4 * number : 4 * number + 16, 8:24]
        image[square], mask[square] = 250, 1
        mask[-1] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "train.txt").write_text("0\n1\n2\n")
    (tmp_path / "val.txt").write_text("3\n4\n")
    return tmp_path


def test_yourname_meets_the_contract(root: Path) -> None:
    check_dataset("yourname", root)


def test_labels_the_square_as_object(root: Path) -> None:
    source = default().dataset("yourname").open(root, "val")
    example = source.decode(source[0])
    assert set(np.unique(example.mask)) == {0, 1, 255}
    assert (example.image[example.mask == 1] == 250).all()


def test_rejects_a_missing_mask(root: Path) -> None:
    (root / "masks" / "3.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 masks are missing: 3"):
        default().dataset("yourname").open(root, "val")
