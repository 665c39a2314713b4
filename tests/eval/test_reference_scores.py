"""Scores equal those of scikit-learn and torchmetrics (`tests/helpers/reference_scores.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.eval.meter import Meter

CASES = json.loads((Path(__file__).parent / "reference_scores.json").read_text())["cases"]


@pytest.fixture(params=CASES, ids=[case["name"] for case in CASES])
def case(request):
    """A case, and the scores of its images."""
    truth = np.asarray(request.param["truth"], np.uint8)
    probabilities = np.asarray(request.param["probabilities"], np.float32)
    meter = Meter(probabilities.shape[-1], ["ece"])
    for labels, scores in zip(truth, probabilities, strict=True):
        meter.add(labels, scores.argmax(-1).astype(np.uint8), scores.max(-1))
    return request.param, meter.scores()


def test_equal_scikit_learn(case):
    table, scores = case
    expected = table["sklearn"]
    np.testing.assert_array_equal(scores.counts, expected.pop("counts"))
    for name, value in expected.items():
        np.testing.assert_allclose(
            np.asarray(getattr(scores, name), float),
            np.asarray(value, float),
            rtol=0,
            atol=1e-12,
            err_msg=name,
        )


def test_equal_torchmetrics(case):
    table, scores = case
    for name, value in table["torchmetrics"].items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-6), name


def test_one_case_has_absent_classes():
    (table,) = (case for case in CASES if case["name"] == "absent classes")
    assert table["sklearn"]["iou"][4] is None
    assert table["sklearn"]["precision"][1] is None
    assert table["sklearn"]["recall"][4] is None
