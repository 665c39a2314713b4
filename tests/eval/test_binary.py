"""Masks of binary models: one logit, two labels."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.api import ModelSpec
from fcn_jax.errors import ConfigError
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.build import build
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.spec import resolve

SPEC = ModelSpec("tiny", "fcn32s", 1, task="binary", backbone_options={"width": 4})
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 18, 3)).astype(np.uint8)


@pytest.fixture
def model(tiny_plugin):
    model = build(SPEC, rngs=nnx.Rngs(0))
    kernel = model.head.transpose_conv.kernel
    kernel[...] = jnp.asarray(
        np.random.default_rng(1).standard_normal(kernel[...].shape, np.float32)
    )
    return model


@pytest.mark.parametrize("blocks", [False, True])
def test_label_is_1_where_the_logit_is_positive(model, blocks):
    predictor = Predictor(model, blocks=blocks)
    mask = predictor(IMAGE)
    logits = model(normalize(jnp.asarray(IMAGE[None]), resolve(SPEC).preprocess))
    np.testing.assert_array_equal(mask, np.asarray(logits)[0, ..., 0] > 0)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert predictor.num_classes == len(predictor.classes) == 2


def test_rejects_tasks_and_sizes_that_do_not_fit(tiny_plugin):
    with pytest.raises(ConfigError, match="a binary model has one logit: num_classes=1"):
        build(ModelSpec("tiny", "fcn32s", 2, task="binary"), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="task is 'sigmoid'; it must be one of multiclass, bin"):
        resolve(ModelSpec("tiny", "fcn32s", 2, task="sigmoid"))
    several = build(ModelSpec("tiny", "fcn32s", 2, task="multilabel"), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="'multilabel', and the protocol multiscale needs one"):
        Predictor(several, protocol="multiscale")
