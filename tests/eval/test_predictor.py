"""`Predictor`: masks of one image, of batches, and of images of many sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax import checkpoint
from fcn_jax.api import Classes, ModelSpec, Preprocess
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.eval import padding
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.build import build
from fcn_jax.models.preprocess import normalize

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


def argmax_of(model, image):
    """The mask of a model that is called on one image alone, without the predictor."""
    model.eval()
    graphdef, state = nnx.split(model)
    x = normalize(jnp.asarray(image[None]), Preprocess())
    logits = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    return np.asarray(logits)[0].argmax(-1)


@pytest.mark.parametrize("size", [(9, 18), (1, 1)])
def test_returns_argmax_of_logits_at_image_size(model, size):
    image = IMAGE[: size[0], : size[1]]
    mask = Predictor(model)(image)
    assert (mask.dtype, mask.shape) == (np.uint8, size)
    np.testing.assert_array_equal(mask, argmax_of(model, image))
    if size == (9, 18):
        assert len(np.unique(mask)) > 1, "a mask of one class would prove nothing"


def test_reads_image_files(model, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(IMAGE).save(path)
    predictor = Predictor(model)
    np.testing.assert_array_equal(predictor(str(path)), predictor(IMAGE))
    with pytest.raises(DataError, match=r"absent\.png: the file does not exist"):
        predictor(tmp_path / "absent.png")


def test_update_replaces_values(model, compiled):
    predictor = Predictor(model)
    other = build(SPEC, rngs=nnx.Rngs(1))
    other.head.transpose_conv.kernel[...] = -model.head.transpose_conv.kernel[...]
    other.eval()
    expected = Predictor(other)(IMAGE)
    before = predictor(IMAGE)
    assert not np.array_equal(before, expected)
    _, params, batch_stats, _ = nnx.split(other, nnx.Param, nnx.BatchStat, ...)
    predictor.update(params)
    predictor.update(batch_stats)
    np.testing.assert_array_equal(predictor(IMAGE), expected)
    predictor.update(*nnx.split(model, nnx.Param, nnx.BatchStat, ...)[1:3])
    np.testing.assert_array_equal(predictor(IMAGE), before)
    assert len(compiled) == 2, "one program for each predictor"


def test_loads_checkpoint_with_its_classes(model, tmp_path):
    checkpoint.save_model(
        tmp_path / "model", checkpoint.make_spec(SPEC, CLASSES), checkpoint.arrays(model)
    )
    loaded = Predictor.from_checkpoint(tmp_path / "model")
    assert loaded.classes == CLASSES
    assert loaded.num_classes == 3
    np.testing.assert_array_equal(loaded(IMAGE), Predictor(model)(IMAGE))


def test_numbers_classes_without_names(model):
    assert Predictor(model).classes.names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    "image",
    [IMAGE.astype(np.float32), IMAGE[..., 0], IMAGE[None], np.zeros((4, 4, 4), np.uint8)],
    ids=["float", "gray", "batch", "alpha"],
)
def test_rejects_images_that_are_not_u8_rgb(model, image):
    with pytest.raises(
        ValueError, match=r"expected an image u8\[H,W,3\], RGB; got (float32|uint8)\["
    ):
        Predictor(model)(image)


def test_rejects_more_classes_than_a_mask_can_store():
    def made(num_classes):
        return nnx.eval_shape(
            lambda: build(ModelSpec("resnet18", "fcn", num_classes), rngs=nnx.Rngs(0))
        )

    assert Predictor(made(255)).num_classes == 255
    with pytest.raises(
        ConfigError, match="num_classes is 256; a mask of bytes holds at most 255 classes"
    ):
        Predictor(made(256))


def test_rejects_multiple_below_1(model):
    with pytest.raises(ConfigError, match="pad_to_multiple is 0; it must be at least 1"):
        Predictor(model, pad_to_multiple=0)


# --------------------------------------------------------------------------------- many image sizes


def test_default_is_exact_with_one_program_per_size(model, compiled):
    predictor = Predictor(model)
    for width in (10, 12, 14, 12):
        image = IMAGE[:, :width]
        np.testing.assert_array_equal(predictor(image), argmax_of(model, image))
    assert compiled == [(1, 9, 10, 3), (1, 9, 12, 3), (1, 9, 14, 3)]


def test_padded_masks_are_those_of_the_padded_image(model, compiled):
    predictor = Predictor(model, pad_to_multiple=8)
    mask = predictor(IMAGE)
    padded = np.pad(IMAGE, ((0, 7), (0, 6), (0, 0)), mode="edge")
    assert mask.shape == (9, 18)
    np.testing.assert_array_equal(mask, argmax_of(model, padded)[:9, :18])
    predictor(IMAGE[:1, :17])  # 8 x 24
    predictor(IMAGE[:, 1:])  # 16 x 24, as the first one
    assert compiled == [(1, 16, 24, 3), (1, 8, 24, 3)]


def test_multiple_of_the_image_size_changes_nothing(model):
    image = IMAGE[:8, :16]
    padded = Predictor(model, pad_to_multiple=8)
    np.testing.assert_array_equal(padded(image), Predictor(model)(image))


@pytest.mark.parametrize("multiple", [1, 8])
def test_batch_returns_masks_of_single_images(model, multiple):
    predictor = Predictor(model, pad_to_multiple=multiple)
    images = np.stack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1]])
    np.testing.assert_array_equal(predictor.batch(images), [predictor(image) for image in images])


def test_padding_changes_only_pixels_near_the_bottom_and_right_border(model):
    # A logit of this model depends on image pixels at most 20 rows and columns away: 12 by the
    # transposed convolution (16 wide, stride 8), 6 by the cell of the feature, 2 by rounding.
    reach = 20
    images = np.random.default_rng(0).integers(0, 256, (8, 50, 90, 3)).astype(np.uint8)
    exact = Predictor(model).batch(images)
    padded = Predictor(model, pad_to_multiple=padding.MULTIPLES[0]).batch(images)
    np.testing.assert_array_equal(padded[:, :-reach, :-reach], exact[:, :-reach, :-reach])
    assert len(np.unique(exact)) == 3
    changed = (padded != exact).mean()
    assert 0 < changed < 0.05, "measured: 0.011"
