"""yourname meets the plugin contract and works with backbones of fcn-jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fcn_jax import build_model
from fcn_jax.api import FeatureSpec, floor_size
from fcn_jax.errors import ConfigError
from fcn_jax.plugins.registry import default
from fcn_jax.testing import check_head


def test_yourname_meets_the_contract() -> None:
    check_head("yourname", {"channels": 8})


@pytest.mark.parametrize("output_stride", [32, 8])
def test_works_on_a_resnet(output_stride: int) -> None:
    model = nnx.eval_shape(
        lambda: build_model(
            "resnet18", "yourname", 5, output_stride=output_stride, rngs=nnx.Rngs(0)
        )
    )
    logits = nnx.eval_shape(
        lambda model, x: model(x), model, jax.ShapeDtypeStruct((2, 65, 97, 3), jnp.float32)
    )
    assert logits.shape == (2, 65, 97, 5)


def test_rejects_a_backbone_with_one_feature() -> None:
    head = default().head("yourname")
    with pytest.raises(ConfigError, match="needs two features"):
        head.select(head.options(), [FeatureSpec("only", 8, 8, floor_size(8))])
