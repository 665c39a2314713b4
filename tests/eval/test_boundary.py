import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.eval.boundary import BoundaryIoU, boundary


def reference_boundary(mask):
    """The published algorithm: a class's mask without its erosion by d steps of a 3x3 square."""
    height, width = mask.shape
    distance = max(1, round(0.02 * float(np.sqrt(height**2 + width**2))))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return mask - eroded[1:-1, 1:-1]


def drawn(rng, shape, labels):
    """Rectangles of labels, which have boundaries and interiors."""
    mask = np.full(shape, rng.choice(labels), np.uint8)
    for _ in range(6):
        (top, left), (down, across) = rng.integers(0, shape), rng.integers(1, np.array(shape) + 1)
        mask[top : top + down, left : left + across] = rng.choice(labels)
    return mask


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sides=st.tuples(st.integers(1, 130), st.integers(1, 130)),
)
def test_regions_are_those_of_the_published_algorithm(seed, sides):
    labels = drawn(np.random.default_rng(seed), sides, [0, 1, 2, 255])
    found = boundary(labels)
    for label in range(3):
        expected = reference_boundary((labels == label).astype(np.uint8))
        np.testing.assert_array_equal((labels == label) & found, expected.astype(bool))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 3))
def test_scores_equal_their_definition(seed, images):
    rng = np.random.default_rng(seed)
    meter, intersection, union = BoundaryIoU(4), np.zeros(4), np.zeros(4)
    for _ in range(images):
        shape = tuple(rng.integers(20, 120, 2))
        truth, prediction = drawn(rng, shape, [0, 1, 2, 255]), drawn(rng, shape, [0, 1, 2])
        meter.add(truth, prediction)
        for label in range(4):
            regions = [
                reference_boundary(((mask == label) & (truth != 255)).astype(np.uint8)) > 0
                for mask in (truth, prediction)
            ]
            intersection[label] += np.count_nonzero(regions[0] & regions[1])
            union[label] += np.count_nonzero(regions[0] | regions[1])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(meter.scores(), intersection / union)
    assert np.isnan(meter.scores()[3]), "class 3 occurs nowhere"


def test_only_pixels_near_the_boundary_count():
    truth = np.zeros((100, 100), np.uint8)
    truth[:, 50:] = 1
    wrong_inside, shifted = truth.copy(), np.roll(truth, 1, axis=1)
    wrong_inside[20:30, 20:30] = 1  # more wrong pixels than by the shift
    shifted[:, 0] = 0

    def score(prediction):
        meter = BoundaryIoU(2)
        meter.add(truth, prediction)
        return meter.scores()

    np.testing.assert_array_equal(score(truth), [1, 1])
    # d is 3: the regions are frames of 3 pixels, of which a column of 94 to 100 pixels moves.
    assert (score(shifted) < 0.9).all()
    assert score(wrong_inside)[0] < 1


def test_prediction_may_go_on_below_ignored_outlines():
    truth = np.zeros((100, 100), np.uint8)
    truth[30:70, 30:70] = 1
    outlined = truth.copy()
    outlined[26:74, 26:74] = 255
    outlined[30:70, 30:70] = 1
    meter = BoundaryIoU(2)
    prediction = np.zeros_like(truth)
    prediction[28:72, 28:72] = 1  # ends within the ignored outline
    meter.add(outlined, prediction)
    np.testing.assert_array_equal(meter.scores(), [1, 1])


def test_ignored_image_counts_nothing():
    meter = BoundaryIoU(2)
    meter.add(np.full((5, 5), 255, np.uint8), np.zeros((5, 5), np.uint8))
    assert np.isnan(meter.scores()).all()
