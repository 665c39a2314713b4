"""Blur, JPEG and cutout against plain definitions."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.config.augment import CutoutConfig
from fcn_jax.data.augment.effects import blur, cutout, jpeg, random_cutout
from fcn_jax.pytorch.reference import import_torchvision


def noise(height, width, channels=3, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(dtype)


def gaussian(image, sigma):
    """The definition: a weighted mean along each axis, of an image mirrored at its edges."""
    reach = round(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    result = image.astype(float)
    for axis in (0, 1):
        pads = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(result, pads, mode="reflect" if image.shape[axis] > 1 else "edge")
        result = sum(
            w * np.take(padded, range(i, i + image.shape[axis]), axis)
            for i, w in enumerate(weights)
        )
    return result


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.1, 3.0))
def test_blur_matches_the_definition(height, width, sigma):
    image = noise(height, width)
    assert np.abs(blur(image, sigma) - gaussian(image, sigma)).max() <= 0.51


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_blur_keeps_shape_and_dtype(channels, dtype):
    image = noise(9, 12, channels, dtype)
    found = blur(image, 1.3)
    assert (found.shape, found.dtype) == (image.shape, image.dtype)
    assert np.abs(found - gaussian(image, 1.3)).max() <= (0.51 if dtype == np.uint8 else 1e-2)


@pytest.mark.needs_torch
def test_blur_matches_torchvision():
    torch = pytest.importorskip("torch")
    import_torchvision()
    from torchvision.transforms.v2 import functional

    image = noise(30, 40)
    theirs = functional.gaussian_blur(torch.from_numpy(image).permute(2, 0, 1), [7, 7], [1.0, 1.0])
    assert np.abs(blur(image, 1.0).astype(int) - theirs.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("quality", [5, 50, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_matches_pillow(quality, channels):
    rows, columns = np.mgrid[:33, :50]
    image = np.stack([rows * 5, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    image = image[..., :channels]
    file = io.BytesIO()
    Image.fromarray(image if channels == 3 else image[..., 0]).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)).reshape(image.shape)
    found = jpeg(image, quality)
    assert found.shape == image.shape
    # The encoders differ in details.
    assert np.abs(found.astype(int) - expected).mean() <= 2
    ours, theirs = (np.abs(decoded.astype(int) - image).mean() for decoded in (found, expected))
    assert ours == pytest.approx(theirs, rel=0.15, abs=0.1)
    errors = [np.abs(jpeg(image, q).astype(int) - image).mean() for q in (5, 50, 95)]
    assert errors[0] > errors[1] > errors[2]


def test_cutout_fills_the_rectangles_and_nothing_else():
    image, mask = noise(8, 10), np.full((8, 10), 3, np.uint8)
    before = image.copy()
    found, labels = cutout(image, mask, [(1, 2, 4, 5), (6, 0, 8, 1)], ignore=True, fill=(7, 8, 9))
    holes = np.zeros((8, 10), bool)
    holes[1:4, 2:5] = holes[6:, :1] = True
    assert np.array_equal(labels, np.where(holes, IGNORE_INDEX, 3))
    assert np.array_equal(found[~holes], image[~holes])
    assert (found[holes] == (7, 8, 9)).all()
    assert np.array_equal(image, before)
    assert (mask == 3).all()
    _, kept = cutout(image, mask, [(1, 2, 4, 5)], ignore=False)
    assert (kept == 3).all()


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 4), st.integers(0, 99))
def test_cutout_has_the_sizes_that_are_set(height, width, holes, seed):
    mask = np.zeros((height, width), np.uint8)
    settings = CutoutConfig(holes=holes, size=(0.2, 0.5))
    image = np.ones((height, width, 5), np.float32)
    found, labels = random_cutout(image, mask, settings, np.random.default_rng(seed))
    assert np.array_equal(labels == IGNORE_INDEX, found[..., 0] == 0)
    most = max(1, round(height * 0.5)) * max(1, round(width * 0.5))
    assert (labels == IGNORE_INDEX).sum() <= holes * most


def test_cutout_covers_every_pixel_in_the_end():
    mask, covered = np.zeros((12, 16), np.uint8), np.zeros((12, 16), bool)
    rng = np.random.default_rng(0)
    for _ in range(300):
        covered |= random_cutout(mask[..., None], mask, CutoutConfig(), rng)[1] == IGNORE_INDEX
    assert covered.all()
