"""Sizes of images by their headers."""

import pytest
from PIL import Image

from fcn_jax.data.images.size import image_size


@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 10)), (3, (40, 10)), (6, (10, 40))])
def test_image_size_returns_the_size_of_the_upright_image(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.new("RGB", (10, 40)).save(path, exif=exif)
    assert image_size(path) == image_size(path.read_bytes()) == size


def test_unreadable_images_have_no_size(tmp_path):
    assert image_size(tmp_path / "missing.jpg") is None
    assert image_size(b"not an image") is None
