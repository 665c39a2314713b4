"""Loss and argmax in the head's block layout, against the same on whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import ModelSpec, Preprocess
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.build import build
from fcn_jax.train import step as train_step
from fcn_jax.train.losses import cross_entropy


def layer(kernel, stride, padding, use_bias=True):
    return nn.ConvTranspose(
        3,
        5,
        kernel,
        stride=stride,
        padding=padding,
        use_bias=use_bias,
        kernel_init=nn.normal(0.5),
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "use_bias"),
    [(8, 4, 2, True), (5, 2, 1, True), (4, 4, 0, False)],
)
def test_subpixel_logits_match_the_layer(kernel, stride, padding, use_bias):
    upsample = layer(kernel, stride, padding, use_bias)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 3)), jnp.float32)
    whole, blocks = upsample(x), upsample.blocks(x)
    assert (blocks.height, blocks.width) == whole.shape[1:3]
    np.testing.assert_allclose(blocks.images, whole, atol=1e-6)
    part = blocks.crop(7, 5, top=1, left=2)
    np.testing.assert_allclose(part.images, whole[:, 1:8, 2:7], atol=1e-6)


def test_gather_inverts_scatter():
    blocks = layer(8, 4, 2).blocks(jnp.zeros((2, 3, 4, 3))).crop(9, 11)
    images = np.random.default_rng(0).integers(0, 5, (2, 9, 11)).astype(np.uint8)
    scattered = blocks.scatter(images, 255)
    assert (scattered == 255).sum() == scattered.size - images.size
    np.testing.assert_array_equal(blocks.gather(scattered), images)


@pytest.mark.slow
def test_loss_and_gradients_do_not_depend_on_the_layout():
    upsample = layer(8, 4, 2)
    graphdef, params = nnx.split(upsample, nnx.Param)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 3)), jnp.float32)
    labels = np.where(rng.random((2, 12, 16)) < 0.2, 255, rng.integers(0, 5, (2, 12, 16))).astype(
        np.uint8
    )

    def loss(params, x, form):
        return cross_entropy(form(nnx.merge(graphdef, params), x), labels)

    whole = jax.value_and_grad(lambda *a: loss(*a, lambda layer, x: layer(x)), (0, 1))(params, x)
    blocks = jax.value_and_grad(lambda *a: loss(*a, lambda layer, x: layer.blocks(x)), (0, 1))(
        params, x
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), blocks, whole)


def model(**settings):
    return build(
        ModelSpec("tiny", "fcn32s", 3, {"width": 6, "dropout": 0.0}, **settings), rngs=nnx.Rngs(0)
    )


@pytest.mark.slow
def test_training_step_does_not_depend_on_the_layout(tiny_plugin):
    size = (29, 35)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, *size, 3), np.uint8),
        "mask": rng.integers(0, 3, (2, *size), np.uint8),
    }
    network = model(aux_head="fcn", aux_feature="deep", aux_head_options={"dropout": 0.0})
    found = []
    for blocks in (False, True):
        state, step = train_step.make(network, optax.sgd(0.1), Preprocess(), blocks=blocks)
        stepped, metrics = jax.jit(step)(state, batch)
        found.append((stepped.params, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


@pytest.mark.parametrize("upsampling", ["learned", "fixed", "depthwise"])
def test_predicted_masks_do_not_depend_on_the_layout(tiny_plugin, upsampling):
    image = np.random.default_rng(0).integers(0, 256, (29, 35, 3), np.uint8)
    whole, blocks = (
        Predictor(model(head_options={"upsampling": upsampling}), blocks=blocks)
        for blocks in (False, True)
    )
    np.testing.assert_array_equal(whole.batch(image[None]), blocks.batch(image[None]))
    assert len(np.unique(whole(image))) > 1


@pytest.mark.slow
def test_a_masked_image_in_blocks_gives_the_same_mask(make_model):
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    whole, blocks = (Predictor(make_model(3), blocks=blocks) for blocks in (False, True))
    np.testing.assert_array_equal(whole(image), blocks(image))
