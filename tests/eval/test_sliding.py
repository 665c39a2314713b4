"""Windows: where they start, how they are weighted, and what is blended from them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.eval.protocols import Sliding
from fcn_jax.eval.sliding import Canvas, importance, starts

CLASSES = 3


@pytest.mark.parametrize(
    ("length", "window", "overlap", "expected"),
    [
        (10, 4, 0.5, [0, 2, 4, 6]),
        (11, 4, 0.5, [0, 2, 4, 6, 7]),  # the last one is shifted inward
        (10, 4, 0.0, [0, 4, 6]),
        (8, 4, 0.0, [0, 4]),
        (4, 4, 0.5, [0]),
        (7, 5, 0.99, [0, 1, 2]),
    ],
)
def test_windows_start_every_stride_and_end_at_the_border(length, window, overlap, expected):
    assert starts(length, window, overlap) == expected


@given(st.integers(1, 200), st.integers(1, 64), st.floats(0, 0.99))
def test_windows_cover_every_pixel(length, window, overlap):
    length = max(length, window)
    found = starts(length, window, overlap)
    covered = np.zeros(length, bool)
    for start in found:
        assert 0 <= start <= length - window
        covered[start : start + window] = True
    assert covered.all()
    assert found == sorted(set(found))


@pytest.mark.parametrize("window", [(16, 16), (9, 24)])
def test_gaussian_weights_are_those_of_the_literature(window):
    weights = importance(Sliding(window))
    # MONAI: a Gaussian around the center with a deviation of 1/8 of the side, at least 0.001.
    rows, cols = np.indices(window) - (np.array(window).reshape(2, 1, 1) - 1) / 2
    expected = np.exp(-0.5 * ((rows / window[0] * 8) ** 2 + (cols / window[1] * 8) ** 2))
    np.testing.assert_allclose(weights, np.maximum(expected, 1e-3), rtol=1e-5)
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])
    assert (importance(Sliding(window, blend="uniform")) == 1).all()


def network(tiles):
    """Logits that depend on the place in the window, so that wrong places and weights show."""
    tiles = tiles.astype(np.float64)
    rows, cols = np.indices(tiles.shape[1:3])
    first = tiles[..., 0] / 40 + 0.02 * cols
    return np.stack([first, 3 - first + 0.03 * rows, 2 + 0 * first - 0.01 * cols], -1)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def definition(image, protocol):
    """The mean of all windows at each pixel, f64[H,W,K], in memory for the whole image."""
    height, width = image.shape[:2]
    rows, cols = protocol.window
    edges = ((0, max(0, rows - height)), (0, max(0, cols - width)), (0, 0))
    image = np.pad(image, edges, mode="edge")
    weights = importance(protocol).astype(np.float64)
    sums, total = np.zeros((*image.shape[:2], CLASSES)), np.zeros(image.shape[:2])
    for top in starts(image.shape[0], rows, protocol.overlap):
        for left in starts(image.shape[1], cols, protocol.overlap):
            place = slice(top, top + rows), slice(left, left + cols)
            scores = [network(image[place][None])[0]]
            if protocol.flip:
                scores.append(network(image[place][None, :, ::-1])[0, :, ::-1])
            for score in scores:
                score = softmax(score) if protocol.average == "probabilities" else score
                sums[place] += weights[..., None] * score
                total[place] += weights
    mean = (sums / total[..., None])[:height, :width]
    return mean if protocol.average == "probabilities" else softmax(mean)


def blended(image, protocol, confidence=True):
    canvas = Canvas(image, protocol, CLASSES, confidence=confidence)
    for tile in canvas.tiles():
        assert tile.shape == (*protocol.window, 3)
        assert not canvas.complete
        scores = network(tile[None])
        scores = softmax(scores) if protocol.average == "probabilities" else scores
        canvas.take(jnp.asarray(np.concatenate([0 * scores, scores]), jnp.float32), 1)
    assert canvas.complete
    return canvas.result()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([(23, 17), (17, 23), (5, 23), (6, 4), (3, 3), (8, 8)]),
    overlap=st.sampled_from([0.0, 0.5, 0.7]),
    blend=st.sampled_from(["gaussian", "uniform"]),
    average=st.sampled_from(["probabilities", "logits"]),
    flip=st.booleans(),
)
def test_blend_equals_its_definition(seed, size, overlap, blend, average, flip):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    protocol = Sliding((8, 6), overlap, blend, average, flip)
    expected = definition(image, protocol)
    found = blended(image, protocol)
    assert found.mask.dtype == np.uint8
    np.testing.assert_allclose(found.confidence, expected.max(-1), atol=1e-5)
    two = np.sort(expected, -1)[..., -2:]
    clear = two[..., 1] - two[..., 0] > 1e-5
    np.testing.assert_array_equal(found.mask[clear], expected.argmax(-1)[clear])
    assert clear.mean() > 0.9


def test_confidence_is_left_out_unless_asked_for():
    image = np.zeros((9, 9, 3), np.uint8)
    assert blended(image, Sliding((8, 8)), confidence=False).confidence is None


@pytest.mark.parametrize("size", [(400, 10), (10, 400)])
def test_memory_does_not_grow_with_the_longer_side(size):
    canvas = Canvas(np.zeros((*size, 3), np.uint8), Sliding((8, 8)), CLASSES, confidence=False)
    sums, total = canvas._sums
    assert sums.shape == (8, 16, CLASSES)
    assert total.shape == (8, 16)
    row = 2  # windows side by side
    for number, tile in enumerate(canvas.tiles()):
        canvas.take(jnp.zeros((1, 8, 8, CLASSES)) + tile[0, 0, 0], 0)
        assert len(canvas._ready) <= 1
        assert sum(map(len, (part.mask for part in canvas._done))) <= 4 * (number // row + 1)
