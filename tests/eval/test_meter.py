import numpy as np
import pytest

from fcn_jax.errors import ConfigError
from fcn_jax.eval.meter import METRICS, Meter
from fcn_jax.eval.metrics import Scores

TRUTH, PREDICTION = np.uint8([[0, 1], [1, 255]]), np.uint8([[0, 1], [0, 0]])


def test_metrics_are_names_of_scores():
    assert set(METRICS) <= set(Scores.__dataclass_fields__)


def test_extra_metrics_only_if_asked_for():
    meter = Meter(2, ["miou"])
    meter.add(TRUTH, PREDICTION)
    assert (meter.scores().boundary_iou, meter.scores().ece) == (None, None)
    meter = Meter(2, METRICS)
    meter.add(TRUTH, PREDICTION, np.full((2, 2), 0.5, np.float32))
    scores = meter.scores()
    assert scores.miou == 0.5
    np.testing.assert_array_equal(scores.boundary_iou, [0.5, 0.5])
    assert scores.ece == pytest.approx(2 / 3 - 0.5)


def test_rejects_unknown_metrics_with_the_nearest_name():
    with pytest.raises(ConfigError) as error:
        Meter(2, ["boundry_iou", "miou", "f1"])
    assert "no metric 'boundry_iou'. Did you mean 'boundary_iou'?" in str(error.value)
    assert "no metric 'f1'. Available: boundary_iou, class_accuracy" in str(error.value)


def test_ece_needs_confidence():
    with pytest.raises(ValueError, match="'ece' needs the confidence"):
        Meter(2, ["ece"]).add(TRUTH, PREDICTION)
