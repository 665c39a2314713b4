import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.eval.calibration import Calibration


def naive(truth, prediction, confidence):
    """The definition, in float64: a mean over bins (b/15, (b+1)/15]."""
    bins = [[] for _ in range(15)]
    for true, label, value in zip(truth, prediction, confidence, strict=True):
        if true != 255:
            number = next(b for b in range(15) if float(value) * 15 <= b + 1)
            bins[number].append((true == label, float(value)))
    total = sum(map(len, bins))
    gaps = (
        len(pairs) * abs(np.mean([r for r, _ in pairs]) - np.mean([v for _, v in pairs]))
        for pairs in bins
        if pairs
    )
    return sum(gaps) / total if total else math.nan


@given(
    seed=st.integers(0, 2**32 - 1),
    pixels=st.integers(1, 60),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_score_equals_its_definition(seed, pixels, ignored):
    rng = np.random.default_rng(seed)
    truth, prediction = (rng.integers(0, 3, pixels).astype(np.uint8) for _ in range(2))
    truth[rng.random(pixels) < ignored] = 255
    confidence = (1 - rng.random(pixels) ** 3).astype(np.float32)
    confidence[rng.random(pixels) < 0.2] = 1  # as saturated softmax
    meter = Calibration()
    meter.add(truth, prediction, confidence)
    assert meter.score() == pytest.approx(naive(truth, prediction, confidence), nan_ok=True)


def test_score_does_not_depend_on_batches_or_order():
    rng = np.random.default_rng(0)
    truth, prediction = (rng.integers(0, 3, (50, 40)).astype(np.uint8) for _ in range(2))
    confidence = rng.random((50, 40), np.float32)
    whole, parts = Calibration(), Calibration()
    whole.add(truth, prediction, confidence)
    for row in rng.permutation(50):
        parts.add(truth[row], prediction[row], confidence[row])
    assert parts.score() == whole.score(), "bit for bit"


def test_confidence_1_is_in_the_last_bin():
    meter = Calibration()
    meter.add(np.uint8([0, 0]), np.uint8([0, 1]), np.float32([1, 1]))
    assert meter.score() == 0.5


def test_calibrated_model_has_no_error():
    meter = Calibration()
    meter.add(np.uint8([0, 0, 0, 0]), np.uint8([0, 0, 0, 1]), np.float32([0.75] * 4))
    assert meter.score() == 0
