"""yourname meets the plugin contract and works with heads of fcn-jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fcn_jax import build_model
from fcn_jax.testing import check_backbone


def test_yourname_meets_the_contract() -> None:
    check_backbone("yourname", {"width": 4})


@pytest.mark.parametrize("head", ["fcn32s", "fcn8s", "fcn"])
def test_works_with_heads(head: str) -> None:
    model = nnx.eval_shape(
        lambda: build_model("yourname", head, 5, backbone_options={"width": 4}, rngs=nnx.Rngs(0))
    )
    logits = nnx.eval_shape(
        lambda model, x: model(x), model, jax.ShapeDtypeStruct((2, 65, 97, 3), jnp.float32)
    )
    assert logits.shape == (2, 65, 97, 5)
