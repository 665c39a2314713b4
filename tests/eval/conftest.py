"""Fixtures of the evaluation's tests."""

import pytest

from fcn_jax.eval import predictor


@pytest.fixture
def compiled(monkeypatch):
    """List of the input shapes that predictors compile programs for, in order."""
    shapes = []
    normalize = predictor.normalize

    def traced(images, preprocess):
        shapes.append(images.shape)
        return normalize(images, preprocess)

    monkeypatch.setattr(predictor, "normalize", traced)
    return shapes
