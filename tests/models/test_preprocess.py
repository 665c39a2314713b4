import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.api import Preprocess
from fcn_jax.models.preprocess import normalize

torch = pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3)).astype(np.uint8)


def test_normalize_matches_torchvision():
    mean, std = (
        torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    theirs = (torch.tensor(IMAGES.transpose(0, 3, 1, 2)).float() / 255 - mean) / std
    ours = normalize(jnp.asarray(IMAGES), Preprocess())
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_normalize_supports_the_range_and_channel_order_of_caffe():
    caffe = Preprocess(
        mean=(104.007, 116.669, 122.679), std=(1, 1, 1), scale=255.0, channel_order="bgr"
    )
    expected = IMAGES[..., ::-1].astype(np.float64) - (104.007, 116.669, 122.679)
    np.testing.assert_allclose(normalize(jnp.asarray(IMAGES), caffe), expected, atol=1e-4)
