"""yourname meets the plugin contract and has the right values."""

from __future__ import annotations

import numpy as np
import pytest

from fcn_jax.api import LossContext, MeanLoss
from fcn_jax.plugins.registry import default
from fcn_jax.testing import check_loss


@pytest.mark.parametrize("q", [0.3, 1.0])
def test_yourname_meets_the_contract(q: float) -> None:
    check_loss("yourname", {"q": q})


def test_is_the_mean_over_labeled_pixels() -> None:
    loss = default().loss("yourname")
    mean = loss.build(loss.options(q=1.0), LossContext(num_classes=2))
    assert isinstance(mean, MeanLoss)
    logits = np.log(np.array([[[[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]]], np.float32))
    labels = np.array([[[1, 0, 255]]])
    assert mean.total(logits, labels) == pytest.approx(0.25 + 0.5)
    assert mean.divisor(labels) == 2
