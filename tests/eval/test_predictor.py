"""`Predictor`: masks of one image, of batches, and of images of many sizes."""

import dataclasses

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
from fcn_jax.eval.protocols import D2L, Multiscale, Native, Resize, Sliding
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


# ---------------------------------------------------------------------------------------- protocols


def logits_of(model, image):
    """The logits f32[H,W,K] of a model that is called on one image alone."""
    model.eval()
    return np.asarray(model(normalize(jnp.asarray(image[None]), Preprocess())))[0]


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_protocol_may_be_a_name(model):
    assert Predictor(model, protocol="multiscale").protocol == Multiscale()
    with pytest.raises(
        ConfigError, match=r"no evaluation protocol 'natve'\. Did you mean 'native'"
    ):
        Predictor(model, protocol="natve")


@pytest.mark.parametrize(
    "protocol",
    [D2L(), Resize(IMAGE.shape[:2]), Sliding(IMAGE.shape[:2]), Multiscale((1.0,), flip=False)],
    ids=lambda protocol: protocol.name,
)
def test_protocols_with_one_whole_view_predict_as_native(model, protocol):
    predictor = Predictor(model, protocol=protocol)
    np.testing.assert_array_equal(predictor(IMAGE), Predictor(model)(IMAGE))


def test_flip_averages_the_mirrored_image(model):
    both = softmax(logits_of(model, IMAGE)) + softmax(logits_of(model, IMAGE[:, ::-1]))[:, ::-1]
    for protocol in (Multiscale((1.0,)), Sliding(IMAGE.shape[:2], blend="uniform", flip=True)):
        np.testing.assert_array_equal(
            Predictor(model, protocol=protocol)(IMAGE), both.argmax(-1), err_msg=protocol.name
        )
    assert not np.array_equal(both.argmax(-1), Predictor(model)(IMAGE))


@pytest.mark.parametrize("protocol", [Native(), Sliding(IMAGE.shape[:2])], ids=str)
def test_stream_returns_the_confidence_of_each_pixel(model, protocol):
    ((key, found),) = Predictor(model, protocol=protocol).stream([("a", IMAGE)], confidence=True)
    assert key == "a"
    expected = softmax(logits_of(model, IMAGE))
    np.testing.assert_allclose(found.confidence, expected.max(-1), atol=1e-5)
    np.testing.assert_array_equal(found.mask, expected.argmax(-1))


def test_windows_of_images_of_many_sizes_share_one_program(model, compiled):
    predictor = Predictor(model, protocol=Sliding((8, 8)), batch_size=4)
    images = [IMAGE, IMAGE[:5, :5], IMAGE[:, :9], IMAGE[:8]]
    found = [prediction.mask for _, prediction in predictor.stream(enumerate(images))]
    assert [mask.shape for mask in found] == [image.shape[:2] for image in images]
    assert compiled == [(4, 8, 8, 3)]


PROTOCOLS = (
    Native(),
    Resize((16, 8)),
    Multiscale((0.5, 1.0)),
    Sliding((8, 8), overlap=0.25, flip=True),
)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_predictions_do_not_depend_on_batch_size_or_order(model, protocol):
    images = [IMAGE, IMAGE[:, ::-1], IMAGE[:7], IMAGE[::-1], IMAGE[::-1, ::-1]]

    def masks(batch_size, order):
        predictor = Predictor(model, protocol=protocol, batch_size=batch_size)
        found = predictor.stream([(number, images[number]) for number in order])
        keys, predictions = zip(*found, strict=True)
        assert keys == tuple(order), "in the order of the images"
        return {key: prediction.mask for key, prediction in zip(keys, predictions, strict=True)}

    one, three = masks(1, range(5)), masks(3, [4, 2, 0, 3, 1])
    for number, mask in one.items():
        np.testing.assert_array_equal(three[number], mask)


def test_next_image_is_read_while_one_is_computed(model):
    read = []

    def images():
        for number in range(3):
            read.append(number)
            yield number, IMAGE

    found = Predictor(model).stream(images())
    assert next(found)[0] == 0
    assert read == [0, 1]


def test_binary_models_predict_by_every_protocol(tiny_plugin):
    model = build(dataclasses.replace(SPEC, num_classes=1, task="binary"), rngs=nnx.Rngs(0))
    model.head.transpose_conv.bias[...] = jnp.asarray([0.01])
    kernel = model.head.transpose_conv.kernel
    kernel[...] = jnp.asarray(
        np.random.default_rng(1).standard_normal(kernel[...].shape, np.float32)
    )
    logits = logits_of(model, IMAGE)[..., 0]
    assert len(np.unique(logits > 0)) == 2
    for protocol in (Native(), Sliding(IMAGE.shape[:2])):
        found = Predictor(model, protocol=protocol).stream([(0, IMAGE)], confidence=True)
        ((_, prediction),) = found
        np.testing.assert_array_equal(prediction.mask, logits > 0)
        np.testing.assert_allclose(
            prediction.confidence, 1 / (1 + np.exp(-np.abs(logits))), atol=1e-5
        )


def test_rejects_batch_size_below_1(model):
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        Predictor(model, batch_size=0)
