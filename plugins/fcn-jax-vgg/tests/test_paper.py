"""The paper's networks: the plugin contract, and the same networks in plain PyTorch."""

import itertools

import jax
import numpy as np
import pytest
from fcn_jax_vgg.paper import FCN32S_VGG16
from fcn_jax_vgg.vgg import VGG16_CAFFE, VGGOptions
from flax import nnx

from fcn_jax import nn, verify_model
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.load import load_torch
from fcn_jax.convert.tables import tables
from fcn_jax.errors import WeightsError
from fcn_jax.models.build import build
from fcn_jax.models.fcn_skip import crops
from fcn_jax.models.names import leaves
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.spec import registered_spec
from fcn_jax.testing import check_model

MODELS = ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16", "fcn8s_atonce_vgg16")

# Written down from torchfcn/models/fcn32s.py, fcn16s.py and fcn8s.py of wkentaro/pytorch-fcn, for
# 21 classes.
CONVOLUTIONS = {
    "conv1_1": (64, 3, 3, 3),
    "conv1_2": (64, 64, 3, 3),
    "conv2_1": (128, 64, 3, 3),
    "conv2_2": (128, 128, 3, 3),
    "conv3_1": (256, 128, 3, 3),
    "conv3_2": (256, 256, 3, 3),
    "conv3_3": (256, 256, 3, 3),
    "conv4_1": (512, 256, 3, 3),
    "conv4_2": (512, 512, 3, 3),
    "conv4_3": (512, 512, 3, 3),
    "conv5_1": (512, 512, 3, 3),
    "conv5_2": (512, 512, 3, 3),
    "conv5_3": (512, 512, 3, 3),
    "fc6": (4096, 512, 7, 7),
    "fc7": (4096, 4096, 1, 1),
    "score_fr": (21, 4096, 1, 1),
}
SCORES = {"score_pool3": (21, 256, 1, 1), "score_pool4": (21, 512, 1, 1)}
UPSCORES = {
    "upscore": (21, 21, 64, 64),
    "upscore2": (21, 21, 4, 4),
    "upscore16": (21, 21, 32, 32),
    "upscore_pool4": (21, 21, 4, 4),
    "upscore8": (21, 21, 16, 16),
}
OWN = {
    "fcn32s_vgg16": ["upscore"],
    "fcn16s_vgg16": ["score_pool4", "upscore2", "upscore16"],
    "fcn8s_vgg16": ["score_pool3", "score_pool4", "upscore2", "upscore8", "upscore_pool4"],
    "fcn8s_atonce_vgg16": ["score_pool3", "score_pool4", "upscore2", "upscore8", "upscore_pool4"],
}


def state_dict_shapes(model):
    layers = CONVOLUTIONS | {name: (SCORES | UPSCORES)[name] for name in OWN[model]}
    weights = {f"{name}.weight": shape for name, shape in layers.items()}
    return weights | {
        f"{name}.bias": shape[:1] for name, shape in layers.items() if name not in UPSCORES
    }


def blank(name):
    """The model with zeros as weights, which tests replace. Drawing weights takes long."""
    model = nnx.eval_shape(lambda: build(registered_spec(name), rngs=nnx.Rngs(0)))
    for leaf in leaves(model).values():
        leaf.set_value(np.zeros(leaf.shape, np.float32))
    model.eval()
    return model


def jitted(model):
    """A jitted function of images: a model in eval mode, without its random streams."""
    graphdef, state, rest = nnx.split(model, nnx.Any(nnx.Param, nnx.BatchStat), ...)
    rest = jax.tree.map(
        lambda leaf: (
            jax.random.key(0) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 0
        ),
        rest,
    )
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state, rest)(x))

    def call(x):
        with jax.default_matmul_precision("highest"):
            return np.asarray(run(state, x))

    return call


def images(height, width, seed=0):
    """Random images in the range of a photograph minus its mean: from -120 to 150."""
    return np.random.default_rng(seed).uniform(-120, 150, (1, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in MODELS[1:3] else ()) for name in MODELS],
)
def test_meets_the_contract(torch, name):
    check_model(f"narrow_{name}")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MODELS)
def test_meets_the_contract_at_full_width(torch, name):
    check_model(name)


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_match_pytorch_fcn(name):
    model = nnx.eval_shape(lambda: build(registered_spec(name), rngs=nnx.Rngs(0)))
    for leaf in leaves(model).values():
        leaf.set_value(np.broadcast_to(np.zeros((), np.float32), leaf.shape))
    tensors = {}
    table = tables(model.spec)["model", "pytorch-fcn"]
    for path, leaf in leaves(model).items():
        torch_name, rule = table.to_torch(path)
        tensors[torch_name] = rule.op.to_torch(leaf.get_value()).shape
    assert tensors == state_dict_shapes(name)


@pytest.mark.parametrize("name", MODELS)
def test_reference_has_the_same_names_and_shapes(torch, plugins, name):
    with torch.device("meta"):
        reference = plugins.model(name).reference_model(num_classes=21, aux=False)
    assert {
        key: tuple(value.shape) for key, value in reference.state_dict().items()
    } == state_dict_shapes(name)
    fixed = {key for key, value in reference.named_parameters() if not value.requires_grad}
    assert fixed == {f"{key}.weight" for key in OWN[name] if key in UPSCORES}


def test_crops_of_the_paper_follow_from_the_feature_specs():
    pool3, pool4, fc7 = (
        spec
        for spec in VGG16_CAFFE.features(VGGOptions(), 32)
        if spec.name in ("pool3", "pool4", "fc7")
    )
    assert crops(fc7, []) == ((), 19)
    assert crops(fc7, [pool4]) == (((0, 5),), 27)
    assert crops(fc7, [pool4, pool3]) == (((0, 5), (0, 9)), 31)


def test_feature_sizes_match_the_layers():
    specs = VGG16_CAFFE.features(VGGOptions(), 32)
    for size in (*range(1, 70), 224, 499, 500):
        length, sizes = size + 198, []
        for _ in range(5):
            length = -(-length // 2)
            sizes.append(length)
        assert [spec.size(size) for spec in specs] == [*sizes, length - 6]
        assert length - 6 >= 1


def test_preprocessing_matches_pytorch_fcn():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    theirs = image[:, :, ::-1].astype(np.float64) - np.array(
        [104.00698793, 116.66876762, 122.67891434]
    )
    np.testing.assert_allclose(
        normalize(jax.numpy.asarray(image), VGG16_CAFFE.preprocess), theirs, rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("name", MODELS)
def test_weights_convert_both_ways_bit_for_bit(name):
    """Upsampling kernels that are not bilinear are converted, too."""
    narrow = {4096: 16}
    rng = np.random.default_rng(0)
    tensors = {
        key: rng.standard_normal([narrow.get(n, n) for n in shape], np.float32)
        for key, shape in state_dict_shapes(name).items()
    }
    model = blank(f"narrow_{name}")
    record = load_torch(model, tensors)
    assert (record.key_format, record.scope, record.dropped) == ("pytorch-fcn", "model", {})
    back = to_torch(model, "pytorch-fcn")
    assert back.keys() == tensors.keys()
    assert all(back[key].tobytes() == tensors[key].tobytes() for key in tensors)
    kernels = {path: leaf for path, leaf in leaves(model).items() if isinstance(leaf, nn.Buffer)}
    assert len(kernels) == sum(key.startswith("upscore") for key in tensors)
    other = blank(f"narrow_{name}")
    load_torch(other, to_torch(model))  # by way of the names with prefixes
    again = to_torch(other, "pytorch-fcn")
    assert all(again[key].tobytes() == tensors[key].tobytes() for key in tensors)


@pytest.mark.parametrize("name", MODELS)
def test_initial_upsampling_matches_the_reference(torch, plugins, name):
    head = plugins.head(registered_spec(name).head)
    options = head.options(**registered_spec(name).head_options)
    features = VGG16_CAFFE.features(VGGOptions(width=4), 32)
    features = [spec for spec in features if spec.name in head.select(options, features)]
    module = head.build(options, features, num_classes=21, rngs=nnx.Rngs(0))
    theirs = plugins.model(name).reference_model(num_classes=21, aux=False, width=4).state_dict()
    table, checked = head.torch.tables_of(options)["pytorch-fcn"], 0
    for path, leaf in leaves(module).items():
        key, rule = table.to_torch(path)
        if key.startswith("upscore"):
            assert np.array_equal(rule.op.to_torch(np.asarray(leaf[...])), theirs[key].numpy())
            checked += 1
    assert checked == sum(key.startswith("upscore") for key in theirs)


def fill_from_reference(torch, plugins, name):
    """A narrow model and its PyTorch reference with the same random weights."""
    torch.manual_seed(0)
    reference = plugins.model(name).reference_model(num_classes=21, aux=False).eval()
    for key, value in reference.state_dict().items():
        if key.startswith("upscore"):
            value += 0.01 * torch.randn(value.shape)  # not quite bilinear: every element counts
    model = blank(name)
    load_torch(model, reference.state_dict())
    return model, reference


@pytest.mark.parametrize(
    ("name", "height_width"),
    [
        ("fcn8s_atonce_vgg16", (33, 47)),
        *(pytest.param(name, (33, 47), marks=pytest.mark.slow) for name in MODELS[:3]),
        pytest.param("fcn8s_vgg16", (1, 70), marks=pytest.mark.slow),
    ],
)
def test_logits_match_torch_at_odd_sizes(torch, plugins, name, height_width):
    model, reference = fill_from_reference(torch, plugins, f"narrow_{name}")
    x = images(*height_width)
    with torch.no_grad():
        wanted = (
            reference(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))["out"]
            .numpy()
            .transpose(0, 2, 3, 1)
        )
    found = jitted(model)(x)
    assert found.shape == wanted.shape == (1, *height_width, 21)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
def test_returns_logits_at_any_size():
    model = nnx.eval_shape(lambda: build(registered_spec("narrow_fcn8s_vgg16"), rngs=nnx.Rngs(0)))
    model.eval()
    graphdef, state = nnx.split(model)
    for height, width in itertools.pairwise((1, 2, 31, 32, 33, 64, 65, 333)):
        x = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
        logits = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
        assert logits.shape == (1, height, width, 21)


@pytest.mark.parametrize(
    ("name", "before", "fresh"),
    [
        ("fcn16s_vgg16", "fcn32s_vgg16", ["score_pool4", "upscore2", "upscore16"]),
        ("fcn8s_vgg16", "fcn16s_vgg16", ["score_pool3", "upscore_pool4", "upscore8"]),
    ],
)
def test_loads_weights_of_the_network_with_one_skip_less(name, before, fresh):
    tensors = to_torch(blank(f"narrow_{before}"), "pytorch-fcn")
    tensors = {key: np.ones_like(value) for key, value in tensors.items()}
    model = nnx.eval_shape(lambda: build(registered_spec(f"narrow_{name}"), rngs=nnx.Rngs(0)))
    with pytest.raises(WeightsError, match=r"missing .*score_pool"):
        load_torch(model, tensors)
    record = load_torch(model, tensors, reinit=fresh)
    assert list(record.dropped) == [
        f"{'upscore' if before == 'fcn32s_vgg16' else 'upscore16'}.weight"
    ]
    assert len(record.loaded) == len(tensors) - 1


def test_loads_vgg16_of_torchvision_into_the_backbone(torch):
    """pytorch-fcn starts from `vgg16_from_caffe.pth`, which has torchvision's names."""
    options = VGGOptions(width=16)
    theirs = VGG16_CAFFE.torch.reference(options=options, output_stride=32).state_dict()
    model = blank("narrow_fcn32s_vgg16")
    record = load_torch(model, theirs)
    assert (record.key_format, record.scope) == ("torchvision", "backbone")
    back = to_torch(model, "pytorch-fcn")
    assert np.array_equal(back["conv5_3.weight"], theirs["features.28.weight"].numpy())
    assert np.array_equal(
        back["fc6.weight"], theirs["classifier.0.weight"].numpy().reshape(16, 512, 7, 7)
    )
    assert np.array_equal(
        back["fc7.weight"], theirs["classifier.3.weight"].numpy().reshape(16, 16, 1, 1)
    )


def test_describes_the_models():
    assert (
        FCN32S_VGG16.summary
        == "The paper's FCN-32s on VGG-16, 21 classes; published mIoU 63.6 on VOC 2011"
    )
    assert not FCN32S_VGG16.weights  # the published files' SHA-256 are not known; local files load


@pytest.mark.parametrize(
    ("name", "train_steps"),
    [
        pytest.param("fcn8s_vgg16", 2, marks=pytest.mark.slow),
        *(
            pytest.param(n, 0, marks=pytest.mark.exhaustive)
            for n in ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_atonce_vgg16")
        ),
    ],
)
def test_verify_reports_equal(torch, name, train_steps):
    report = verify_model(
        f"narrow_{name}", sizes=[(65, 97)], batch=1, grad=True, train_steps=train_steps
    )
    assert report.equal, report
    assert report.coverage.key_format == "pytorch-fcn"


@pytest.mark.exhaustive
def test_verify_reports_fcn8s_equal_at_full_width(torch):
    report = verify_model("fcn8s_vgg16", sizes=[(65, 97)], batch=1)
    assert report.equal, report
