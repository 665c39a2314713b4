"""Multi-scale and flip, and the fixed resize: averages of resized and mirrored views."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.eval.protocols import Multiscale, Resize, resized
from fcn_jax.eval.views import Views
from fcn_jax.nn._resize import resize_bilinear

CLASSES = 3


def network(view):
    """Logits that depend on the place in the view: mirrored and padded ones differ."""
    rows, cols = np.indices(view.shape[:2])
    first = view[..., 0] / 40 + 0.05 * cols
    return np.stack([first, 3 - first + 0.03 * rows, 2 + 0 * first], -1).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def predicted(image, protocol, multiple=1):
    views = Views(image, protocol, CLASSES, multiple=multiple, confidence=True)
    for tile in views.tiles():
        logits = network(tile)[None]
        views.take(jnp.asarray(np.concatenate([0 * logits, logits])), 1)
    assert views.complete
    return views.result()


def definition(image, sizes, flips, multiple=1):
    """The mean of softmax over views, whose logits are resized to the image's size."""
    size, views = image.shape[:2], []
    for height, width in sizes:
        for flip in flips:
            view = resized(image, (height, width))
            view = view[:, ::-1] if flip else view
            edges = ((0, -height % multiple), (0, -width % multiple), (0, 0))
            logits = network(np.pad(view, edges, mode="edge"))[:height, :width]
            logits = np.asarray(resize_bilinear(jnp.asarray(logits[None]), size))[0]
            views.append(softmax(logits[:, ::-1] if flip else logits))
    return np.mean(views, 0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (20, 14, 3)).astype(np.uint8)


def check(found, expected):
    np.testing.assert_allclose(found.confidence, expected.max(-1), atol=1e-5)
    np.testing.assert_array_equal(found.mask, expected.argmax(-1))
    assert found.mask.dtype == np.uint8


@pytest.mark.parametrize("multiple", [1, 8])
def test_multiscale_averages_probabilities_at_the_images_size(image, multiple):
    sizes = [(10, 7), (20, 14), (30, 21)]
    expected = definition(image, sizes, (False, True), multiple)
    check(predicted(image, Multiscale((0.5, 1.0, 1.5)), multiple), expected)
    alone = definition(image, sizes[:1], (False,), multiple)
    check(predicted(image, Multiscale((0.5,), flip=False), multiple), alone)
    assert not np.array_equal(expected.argmax(-1), alone.argmax(-1))


def test_scales_of_tiny_images_keep_a_pixel():
    assert predicted(np.zeros((1, 2, 3), np.uint8), Multiscale((0.25,))).mask.shape == (1, 2)


def test_resize_returns_masks_of_the_images_size(image):
    check(predicted(image, Resize((9, 31))), definition(image, [(9, 31)], (False,)))
    # A size equal to that of the image changes nothing.
    check(predicted(image, Resize((20, 14))), softmax(network(image)))


def test_images_shrink_by_area_and_grow_bilinearly(image):
    assert resized(image, (20, 14)) is image
    small, large = resized(image, (10, 7)), resized(image, (40, 28))
    np.testing.assert_allclose(small, image.reshape(10, 2, 7, 2, 3).mean((1, 3)), atol=0.51)
    expected = cv2.resize(image, (28, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(large, expected)
