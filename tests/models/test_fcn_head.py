import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from fcn_jax import build_model
from fcn_jax.api import FeatureSpec, ceil_size
from fcn_jax.errors import ConfigError
from fcn_jax.models.fcn_head import FCN
from fcn_jax.models.spec import select_features
from fcn_jax.testing import check_head


@pytest.mark.slow
def test_meets_the_contract():
    check_head("fcn")


@pytest.mark.slow
def test_resizes_logits_to_the_image():
    model = build_model("resnet18", "fcn", 3, rngs=nnx.Rngs(0))
    model.eval()
    x = np.random.default_rng(0).standard_normal((1, 33, 65, 3)).astype(np.float32)
    head = model.head

    @jax.jit
    def large_and_small(x):
        return model(x), head.conv2(head.conv1(model.backbone(x)["layer4"]))

    logits, small = map(np.asarray, large_and_small(x))
    assert logits.shape == (1, 33, 65, 3)
    # The image's corners are the corners of the last pixels.
    np.testing.assert_allclose(logits[0, -1, -1], small[0, -1, -1], atol=1e-5)
    np.testing.assert_allclose(logits[0, 0, 0], small[0, 0, 0], atol=1e-5)


def test_dropout_option_has_bounds():
    model = build_model("resnet18", "fcn", 3, head_options={"dropout": 0.0}, rngs=nnx.Rngs(0))
    assert model.head.dropout.rate == 0
    with pytest.raises(
        ConfigError,
        match=r"head 'fcn' .* 'dropout' is 1\.5; input should be greater than or equal to 0 and "
        "less than 1",
    ):
        build_model("resnet18", "fcn", 3, head_options={"dropout": 1.5}, rngs=nnx.Rngs(0))


def test_rejects_features_that_begin_before_the_image():
    padded = FeatureSpec("deep", 8, 32, ceil_size(32), offset=3)
    with pytest.raises(
        ConfigError,
        match=r"head 'fcn' does not crop .*; 'deep' begins 3 pixels before it\. Use .* fcn32s",
    ):
        select_features(
            FCN, FCN.options(), (dataclasses.replace(padded, name="shallow", offset=0), padded)
        )
