import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.train.losses import softmax as losses
from tests.helpers.annotations import check_annotations

torch = pytest.importorskip("torch")
F = torch.nn.functional

VALUE_AND_GRAD = jax.jit(
    jax.value_and_grad(lambda logits, labels: losses.cross_entropy(logits, labels))
)


@pytest.fixture(autouse=True, scope="module")
def checked_annotations():
    with pytest.MonkeyPatch.context() as patch:
        check_annotations(patch, losses)
        yield


def torchs(logits, labels):
    leaf = torch.tensor(np.asarray(logits, np.float64), requires_grad=True)
    loss = F.cross_entropy(
        leaf.reshape(-1, leaf.shape[-1]),
        torch.tensor(labels.astype(np.int64)).reshape(-1),
        ignore_index=255,
    )
    loss.backward()
    return loss.item(), leaf.grad.numpy()


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1.0, 30.0, 1e4]),
    ignored=st.sampled_from([0.0, 0.3, 0.95]),
)
def test_loss_and_gradient_match_torch_in_float64(seed, scale, ignored):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((2, 3, 4, 5)) * scale).astype(np.float32)
    labels = np.where(rng.random((2, 3, 4)) < ignored, 255, rng.integers(0, 5, (2, 3, 4))).astype(
        np.uint8
    )
    labels[0, 0, 0] = 4
    loss, grad = VALUE_AND_GRAD(logits, labels)
    expected, expected_grad = torchs(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-6)
    assert loss.dtype == jnp.float32


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1.0, 30.0, 1e4, 1e30]),
    axis=st.integers(-3, 2),
    masked=st.booleans(),
)
def test_one_pass_matches_three_passes(seed, scale, axis, masked):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((4, 6, 5)) * scale).astype(np.float32)
    if masked:  # classes that are ruled out, the first one among them
        logits[:2, :2, :2] = -np.inf
    labels = jnp.asarray(rng.integers(2, 5, np.delete(logits.shape, axis)))
    for one, three in zip(
        losses._in_one_pass(axis, jnp.asarray(logits), labels),
        losses._in_three_passes(axis, jnp.asarray(logits), labels),
        strict=True,
    ):
        np.testing.assert_allclose(one, three, rtol=1e-6)


def test_gpus_read_the_logits_once_and_others_three_times():
    logits, labels = (
        jax.ShapeDtypeStruct((2, 3, 4, 5), jnp.bfloat16),
        jax.ShapeDtypeStruct((2, 3, 4), jnp.uint8),
    )
    traced = jax.jit(losses.cross_entropy).trace(logits, labels)
    found = {
        platform: len(
            re.findall(
                r"stablehlo\.reduce\(.*tensor<2x3x4x5x",
                traced.lower(lowering_platforms=(platform,)).as_text(),
            )
        )
        for platform in ("cpu", "cuda", "tpu")
    }
    assert found == {"cpu": 3, "cuda": 1, "tpu": 3}


def test_widens_bfloat16_logits_before_summation():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((4, 32, 32, 21)) * 4, jnp.bfloat16)
    labels = rng.integers(0, 21, (4, 32, 32)).astype(np.uint8)
    loss, grad = VALUE_AND_GRAD(logits, labels)
    expected, _ = torchs(logits, labels)
    assert loss.dtype == jnp.float32
    assert grad.dtype == jnp.bfloat16
    # bf16 itself has three digits.
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_loss_and_gradient_are_zero_if_all_pixels_are_ignored():
    loss, grad = VALUE_AND_GRAD(
        np.ones((2, 3, 4, 5), np.float32), np.full((2, 3, 4), 255, np.uint8)
    )
    assert float(loss) == 0
    assert not np.asarray(grad).any()


def test_logits_of_ignored_pixels_have_no_effect():
    logits = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[1] = 255
    other = logits.copy()
    other[1] = 1e30
    assert float(VALUE_AND_GRAD(logits, labels)[0]) == float(VALUE_AND_GRAD(other, labels)[0])
    assert not np.asarray(VALUE_AND_GRAD(other, labels)[1])[1].any()


@pytest.mark.parametrize("ignore_index", [0, -100])
def test_other_ignore_indices_match_torch(ignore_index):
    logits = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    labels = np.asarray([ignore_index, 1, 2, 1, 2, ignore_index], np.int32)
    expected = F.cross_entropy(
        torch.tensor(logits), torch.tensor(labels).long(), ignore_index=ignore_index
    ).item()
    assert float(
        losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), ignore_index)
    ) == pytest.approx(expected, rel=1e-6)


def test_annotations_reject_labels_of_another_shape():
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.cross_entropy(jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 3, 5), jnp.int32))
