"""Networks for images of other than three channels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.api import ModelSpec, Preprocess
from fcn_jax.errors import ConfigError, PluginError
from fcn_jax.models import channels
from fcn_jax.models.build import build_backbone, build_model
from fcn_jax.models.names import leaves
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.spec import resolve
from fcn_jax.nn import conv
from fcn_jax.plugins import registry

CAFFE = Preprocess(
    mean=(104.0, 117.0, 123.0), std=(1.0, 2.0, 3.0), scale=255.0, channel_order="bgr"
)


@given(st.integers(1, 13), st.integers(0, 9))
def test_adapted_kernel_matches_timm(count: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((4, 3, 5, 2), np.float32)  # OIHW
    # timm/models/_manipulate.py, adapt_input_conv.
    if count == 1:
        expected = weight.sum(1, keepdims=True)
    elif count == 3:
        expected = weight
    else:
        repeated = np.tile(weight, (1, -(-count // 3), 1, 1))[:, :count]
        expected = repeated * np.float32(3 / count)
    found = channels.adapted_kernel(weight.transpose(2, 3, 1, 0), count)
    np.testing.assert_allclose(found.transpose(3, 2, 0, 1), expected, rtol=1e-6)


def test_gray_gives_what_it_gave_as_rgb() -> None:
    rng = np.random.default_rng(0)
    gray = jnp.asarray(rng.standard_normal((2, 9, 8, 1), np.float32))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4), np.float32))
    np.testing.assert_allclose(
        conv(gray, channels.adapted_kernel(kernel, 1)),
        conv(jnp.repeat(gray, 3, axis=-1), kernel),
        atol=1e-5,
    )


def test_copies_of_rgb_give_what_rgb_gives() -> None:
    rng = np.random.default_rng(0)
    rgb = jnp.asarray(rng.standard_normal((2, 9, 8, 3), np.float32))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4), np.float32))
    six = conv(jnp.concatenate([rgb, rgb], -1), channels.adapted_kernel(kernel, 6))
    np.testing.assert_allclose(six, conv(rgb, kernel), atol=1e-5)


QUICK = ("resnet18", "vgg11", "vgg16_caffe", "mobilenet_v3_small", "tf_efficientnet_lite0")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in registry.default().names("backbones")
    ],
)
def test_every_backbone_takes_other_channels(name: str) -> None:
    count = 4
    spec = ModelSpec(name, None, in_channels=count)
    rgb = dataclasses.replace(spec, in_channels=3)
    one, other = (
        nnx.eval_shape(lambda spec=spec: build_backbone(spec, rngs=nnx.Rngs(0)))
        for spec in (spec, rgb)
    )
    shapes, before = ({p: leaf.shape for p, leaf in leaves(m).items()} for m in (one, other))
    changed = {path: shape for path, shape in shapes.items() if shape != before[path]}
    assert len(changed) == 1
    ((path, shape),) = changed.items()
    old = before[path]
    assert shape == (*old[:2], count, old[3])
    assert old[2] == 3
    one.eval()
    found = nnx.eval_shape(
        lambda model, x: model(x), one, jax.ShapeDtypeStruct((1, 64, 96, count), jnp.float32)
    )
    for feature in resolve(spec).features:
        assert found[feature.name].shape == (
            1, feature.size(64), feature.size(96), feature.channels,
        )  # fmt: skip


class Stem(nnx.Module):
    def __init__(self, convolutions: int = 1) -> None:
        rngs = nnx.Rngs(0)
        sizes = [3] * convolutions
        self.layers = nnx.List([nnx.Conv(size, 64, (7, 7), rngs=rngs) for size in sizes])


@pytest.mark.parametrize("count", [1, 12])
def test_random_kernels_keep_the_variance_of_activations(count: int) -> None:
    module = Stem()
    before = module.layers[0].kernel[...]
    channels.set_channels(module, "stem", count, nnx.Rngs(1))
    after = module.layers[0].kernel[...]
    assert after.shape == (7, 7, count, 64)
    assert float(after.var()) * count == pytest.approx(float(before.var()) * 3, rel=0.1)
    assert abs(float(after.mean())) < 0.01
    if count == 12:
        assert not np.allclose(after[:, :, :3], after[:, :, 3:6])


def test_a_model_of_four_channels_runs() -> None:
    model = nnx.eval_shape(
        lambda: build_model("resnet18", "fcn32s", 5, in_channels=4, rngs=nnx.Rngs(0))
    )
    model.eval()
    image = jax.ShapeDtypeStruct((2, 33, 47, 4), jnp.float32)
    assert nnx.eval_shape(lambda m, x: m(x), model, image).shape == (2, 33, 47, 5)


def test_refuses_a_backbone_whose_first_convolution_is_not_clear() -> None:
    with pytest.raises(PluginError, match=r"'two' has 2 convolutions of 3 input channels \(layers"):
        channels.set_channels(Stem(2), "two", 4, nnx.Rngs(0))
    channels.set_channels(Stem(2), "two", 3, nnx.Rngs(0))


def test_stored_values_are_normalized_in_their_units() -> None:
    spec = ModelSpec(in_channels=4, mean=[100.0, 200.0, 300.0, -1.0], std=[10.0, 20.0, 30.0, 0.5])
    assert spec.mean == (100.0, 200.0, 300.0, -1.0)
    assert hash(spec) == hash(ModelSpec(in_channels=4, mean=spec.mean, std=spec.std))
    image = np.random.default_rng(0).uniform(-5, 500, (2, 3, 3, 4)).astype(np.float32)
    expected = (image - np.array(spec.mean)) / np.array(spec.std)
    found = normalize(jnp.asarray(image), resolve(spec).preprocess)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    swapped = normalize(jnp.asarray(image), channels.preprocess_of(CAFFE, spec))
    np.testing.assert_allclose(swapped, expected[..., [2, 1, 0, 3]], atol=1e-4)


def test_without_a_mean_channels_are_normalized_as_rgb() -> None:
    plain = Preprocess()
    assert channels.preprocess_of(plain, ModelSpec()) is plain
    five = channels.preprocess_of(plain, ModelSpec(in_channels=5))
    assert five.mean == (0.485, 0.456, 0.406, 0.485, 0.456)
    assert five.std == (0.229, 0.224, 0.225, 0.229, 0.224)
    one = channels.preprocess_of(CAFFE, ModelSpec(in_channels=1))
    assert one.mean == pytest.approx((344 / 3,))
    assert one.std == (2.0,)
    gray = np.full((1, 1, 1, 1), 200, np.uint8)
    assert float(normalize(jnp.asarray(gray), one)[0, 0, 0, 0]) == pytest.approx(
        (200 - 344 / 3) / 2
    )


def test_names_all_wrong_channel_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(ModelSpec(in_channels=0, mean=(1.0, float("nan"))))
    for part in (
        "in_channels is 0; it must be 1 to 512",
        "mean is given without std",
        "mean has 2 values, and in_channels is 0",
    ):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"std is 1\.0, 0\.0; its values must be above 0"):
        resolve(ModelSpec(in_channels=2, mean=(1.0, 2.0), std=(1.0, 0.0)))
    with pytest.raises(ConfigError, match="its values must be finite"):
        resolve(ModelSpec(in_channels=1, mean=(float("inf"),), std=(1.0,)))
