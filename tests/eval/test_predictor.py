import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import checkpoint, nn
from fcn_jax.api import Backbone, Classes, FeatureSpec, Preprocess, ceil_size
from fcn_jax.errors import ConfigError
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import ModelSpec, build
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.plugins import registry

SPEC = ModelSpec("tiny", "fcn32s", 3, backbone_options={"width": 4})
CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (1, 0, 0), (2, 0, 0)))
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 18, 3)).astype(np.uint8)


@pytest.fixture
def model(tiny_plugin):
    model = build(SPEC, rngs=nnx.Rngs(0))
    # Statistics that are not those of the image, so that train mode would show.
    model.backbone.conv1.bn.mean[...] = jnp.asarray([0.3, -0.2, 0.1, 0.0])
    # Logits that differ from pixel to pixel.
    kernel = model.head.transpose_conv.kernel
    kernel[...] = jnp.asarray(
        np.random.default_rng(1).standard_normal(kernel[...].shape, np.float32)
    )
    return model


@pytest.mark.parametrize("size", [(9, 18), (1, 1)])
def test_a_mask_is_the_argmax_of_the_logits_at_the_images_own_size(model, size):
    image = IMAGE[: size[0], : size[1]]
    mask = Predictor(model)(image)
    assert (mask.dtype, mask.shape) == (np.uint8, size)
    model.eval()
    logits = np.asarray(model(normalize(jnp.asarray(image[None]), Preprocess())))
    np.testing.assert_array_equal(mask, logits[0].argmax(-1))
    if size == (9, 18):
        assert len(np.unique(mask)) > 1, "a mask of one class would show nothing"


def test_a_predictor_takes_another_models_values(model):
    predictor = Predictor(model)
    predictor(IMAGE)
    other = build(SPEC, rngs=nnx.Rngs(1))
    other.head.transpose_conv.kernel[...] = -model.head.transpose_conv.kernel[...]
    expected = Predictor(other)(IMAGE)
    assert not np.array_equal(predictor(IMAGE), expected)
    predictor.update(other)
    np.testing.assert_array_equal(predictor(IMAGE), expected)


def test_it_is_loaded_from_a_checkpoint_with_its_classes(model, tmp_path):
    checkpoint.save_model(
        tmp_path / "model", checkpoint.describe(SPEC, CLASSES), checkpoint.arrays(model)
    )
    loaded = Predictor.from_checkpoint(tmp_path / "model")
    assert loaded.classes == CLASSES
    assert loaded.num_classes == 3
    np.testing.assert_array_equal(loaded(IMAGE), Predictor(model)(IMAGE))


def test_classes_are_numbered_where_none_are_known(model):
    assert Predictor(model).classes.names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    "image",
    [IMAGE.astype(np.float32), IMAGE[..., 0], IMAGE[None], np.zeros((4, 4, 4), np.uint8)],
    ids=["float", "gray", "batch", "alpha"],
)
def test_anything_but_a_u8_rgb_image_is_an_error_that_says_what_it_is(model, image):
    with pytest.raises(ValueError, match=r"u8\[H,W,3\], RGB; got (float32|uint8)\["):
        Predictor(model)(image)


@pytest.mark.slow
def test_images_of_fifty_sizes_share_six_programs_and_give_what_each_would_alone():
    model = build(ModelSpec("resnet18", "fcn32s", 3), rngs=nnx.Rngs(0))
    kernel = model.head.transpose_conv.kernel
    kernel[...] += 0.1 * np.random.default_rng(1).standard_normal(kernel[...].shape, np.float32)
    predictor = Predictor(model)
    rng = np.random.default_rng(0)
    sizes = {(int(h), int(w)) for h, w in rng.integers(40, 140, (50, 2))}
    assert len(sizes) == 50
    for number, size in enumerate(sorted(sizes)):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        mask = predictor(image)
        assert mask.shape == size
        if number % 25 == 0:
            alone = Predictor(model).batch(image[None])[0]
            assert (mask != alone).mean() < 1e-3, "they differ in ties of rounding at most"
            assert len(np.unique(alone)) > 1
    assert predictor._run._cache_size() <= 6


def test_a_small_image_after_a_larger_one_gives_the_mask_that_it_has_alone():
    # In an array of 32x32 two maps of this head have one shape, and other sizes of the image in
    # them.
    model = build(ModelSpec("resnet18", "fcn8s", 3), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for conv in (model.head.final_conv, *model.head.skip_convs):
        conv.kernel[...] = jnp.asarray(rng.standard_normal(conv.kernel[...].shape, np.float32))
    predictor = Predictor(model)
    large, small = (rng.integers(0, 256, (*size, 3), np.uint8) for size in ((32, 32), (24, 27)))
    predictor(large)
    mask = predictor(small)
    assert predictor._run._cache_size() == 1, "both in one array"
    assert len(np.unique(mask)) > 1
    np.testing.assert_array_equal(mask, predictor.batch(small[None])[0])


class Pools(nnx.Module):
    """Six pools, each of which halves the image."""

    def __call__(self, x):
        features = {}
        for stride in (2, 4, 8, 16, 32, 64):
            x = features[f"pool{stride}"] = nn.max_pool(x, 3, 2, 1)
        return features


POOLS = Backbone(
    name="pools",
    summary="of stride 64",
    features=lambda options, output_stride: tuple(
        FeatureSpec(f"pool{n}", 3, n, ceil_size(n)) for n in (16, 32, 64)
    ),
    build=lambda options, **settings: Pools(),
    output_strides=(64,),
    maskable=True,
)


def test_a_small_image_is_put_into_an_array_that_is_large_enough_for_the_networks_stride(
    monkeypatch,
):
    entry = registry.Entry("backbones", "pools", "tests", "1", f"{__name__}:POOLS")
    plugins = registry.Registry([entry, *registry.default().entries("heads")])
    monkeypatch.setattr(registry, "default", lambda: plugins)
    model = build(ModelSpec("pools", "fcn8s", 3), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for conv in model.head.skip_convs:
        conv.kernel[...] = jnp.asarray(rng.standard_normal(conv.kernel[...].shape, np.float32))
    predictor = Predictor(model)
    image = np.zeros((40, 50, 3), np.uint8) + np.arange(0, 250, 5, np.uint8)[:, None]
    mask = predictor(image)
    assert len(np.unique(mask)) > 1
    np.testing.assert_array_equal(mask, predictor.batch(image[None])[0])


@pytest.mark.slow
def test_a_folded_normalisation_minds_the_borders_of_an_image_in_a_larger_array(make_model):
    model = make_model(3)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nn.BatchNorm):  # outside the image it would leave something
            module.bias[...] = jnp.full(module.bias.shape, 0.3)
            module.scale[...] = jnp.full(module.scale.shape, 0.7)
    image = np.random.default_rng(3).integers(0, 256, (41, 75, 3)).astype(np.uint8)
    with folding(True):
        predictor = Predictor(model)
        folded, alone = predictor(image), predictor.batch(image[None])[0]
    assert len(np.unique(folded)) > 1
    np.testing.assert_array_equal(folded, alone)
    np.testing.assert_array_equal(folded, Predictor(model)(image))


def test_more_classes_than_a_mask_holds_are_refused():
    def made(num_classes):
        return nnx.eval_shape(
            lambda: build(ModelSpec("resnet18", "fcn", num_classes), rngs=nnx.Rngs(0))
        )

    assert Predictor(made(255)).num_classes == 255
    with pytest.raises(
        ConfigError, match="num_classes is 256; a mask of bytes holds 255 classes at most"
    ):
        Predictor(made(256))


def test_parts_that_are_not_maskable_get_a_program_for_each_size(model):
    predictor = Predictor(model)
    for width in (10, 12, 14):
        predictor(IMAGE[:, :width])
    assert predictor._run._cache_size() == 3
