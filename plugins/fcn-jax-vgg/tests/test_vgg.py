"""The backbones against the plugin contract and against torchvision's."""

import math

import jax
import numpy as np
import pytest
from fcn_jax_vgg.vgg import VGG16, VGGOptions
from flax import nnx

from fcn_jax import verify_model
from fcn_jax.convert.export import export_leaves, to_torch
from fcn_jax.convert.load import import_by_table, load_torch
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build_model
from fcn_jax.models.fcn import FCN32S
from fcn_jax.models.names import leaves
from fcn_jax.plugins.options import validate
from fcn_jax.testing import check_backbone

NARROW = {"width": 32}

# torchvision's names, its counts of parameters (with a classifier of 1,000 classes), and the top-1
# accuracy of its weights.
TORCHVISION = {
    "vgg11": (132_863_336, 69.02),
    "vgg11_bn": (132_868_840, 70.37),
    "vgg13": (133_047_848, 69.928),
    "vgg13_bn": (133_053_736, 71.586),
    "vgg16": (138_357_544, 71.592),
    "vgg16_bn": (138_365_992, 73.36),
    "vgg19": (143_667_240, 72.376),
    "vgg19_bn": (143_678_248, 74.218),
}
BACKBONES = sorted([*TORCHVISION, "vgg16_caffe"])


def reference(torch, options, seed=0):
    """torchvision's VGG-16 with weights that keep activations near 1, in eval mode."""
    torch.manual_seed(seed)
    made = VGG16.torch.reference(options=options, output_stride=32).eval()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                fan_in = layer.weight[0].numel()
                layer.weight.uniform_(-math.sqrt(6 / fan_in), math.sqrt(6 / fan_in))
                layer.bias.uniform_(-0.1, 0.1)
    return made


def images(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def without_draws(rest):
    """The random state of a network in eval mode; it is not used, so any key is valid."""
    return jax.tree.map(
        lambda leaf: (
            jax.random.key(0) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 0
        ),
        rest,
    )


def compare_whole_model(torch, width, height_width):
    """The largest difference of FCN-32s logits with the same weights, relative to the largest."""
    options = VGGOptions(width=width)
    backbone = reference(torch, options)
    specs = VGG16.features(options, 32)
    head = FCN32S.torch.reference(
        options=FCN32S.options(), features=specs[-1:], num_classes=21
    ).eval()
    tensors = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    tensors |= {f"classifier.{name}": value for name, value in head.state_dict().items()}

    model = nnx.eval_shape(
        lambda: build_model("vgg16", "fcn32s", backbone_options={"width": width}, rngs=nnx.Rngs(0))
    )
    for leaf in leaves(model).values():
        leaf.set_value(
            np.zeros(leaf.shape, np.float32)
        )  # the weights come from PyTorch; drawing others would take long
    record = load_torch(model, tensors)
    assert record.scope == "model"
    assert all(name.startswith("backbone.classifier.6.") for name in record.dropped)
    model.eval()

    rows, cols = height_width
    x = images((1, rows, cols, 3))
    bottom, right = -rows % 32, -cols % 32
    with torch.no_grad():
        padded = torch.nn.functional.pad(
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), (0, right, 0, bottom)
        )
        wanted = head(backbone(padded)["fc7"])[:, :, :rows, :cols].numpy().transpose(0, 2, 3, 1)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rest = without_draws(rest)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda params, x: nnx.merge(graphdef, params, rest)(x))(params, x)
    assert found.shape == wanted.shape == (1, rows, cols, 21)
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def test_registers_all_backbones(plugins):
    assert [
        entry.name for entry in plugins.entries("backbones") if entry.distribution == "fcn-jax-vgg"
    ] == BACKBONES
    assert [plugins.backbone(name).name for name in BACKBONES] == BACKBONES


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow
            if name in ("vgg11_bn", "vgg16_caffe")
            else pytest.mark.exhaustive,
        )
        for name in BACKBONES
    ],
)
def test_meets_the_contract(torch, name):
    check_backbone(name, NARROW)


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_and_layers_match_torchvision(torch, torchvision, plugins, name):
    backbone, options = plugins.backbone(name), VGGOptions(width=8)
    ours = backbone.torch.reference(options=options, output_stride=32)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
    assert str(ours.features) == str(theirs.features)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    module = nnx.eval_shape(lambda: backbone.build(options, output_stride=32, rngs=nnx.Rngs(0)))
    record = import_by_table(
        module, ours.state_dict(), backbone.torch.tables_of(options)["torchvision"]
    )
    assert sorted(record.dropped) == ["classifier.6.bias", "classifier.6.weight"]
    assert len(record.loaded) == len(leaves(module)) == len(ours.state_dict()) - 2


@pytest.mark.parametrize("name", TORCHVISION)
def test_full_width_matches_the_parameters_of_torchvision_without_the_classifier(plugins, name):
    backbone = plugins.backbone(name)
    module = nnx.eval_shape(
        lambda: backbone.build(VGGOptions(), output_stride=32, rngs=nnx.Rngs(0))
    )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert count == TORCHVISION[name][0] - (4096 * 1000 + 1000)
    assert f"{count / 1e6:.1f} M parameters" in backbone.summary


@pytest.mark.parametrize("name", TORCHVISION)
def test_named_weights_match_torchvision(torchvision, plugins, name):
    (published,) = plugins.backbone(name).torch.weights.values()
    theirs = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    assert published.url == theirs.url
    assert published.url.endswith(f"-{published.sha256}.pth")
    assert theirs.meta["_metrics"]["ImageNet-1K"]["acc@1"] == TORCHVISION[name][1]
    assert published.summary == f"ImageNet-1k, top-1 accuracy {TORCHVISION[name][1]}"


def test_head_takes_fc7():
    specs = VGG16.features(VGGOptions(), 32)
    assert FCN32S.select(FCN32S.options(), specs) == ("fc7",)


def test_features_at_full_width():
    specs = VGG16.features(VGGOptions(), 32)
    assert [(spec.name, spec.channels, spec.stride, spec.size(321)) for spec in specs] == [
        ("pool1", 64, 2, 160),
        ("pool2", 128, 4, 80),
        ("pool3", 256, 8, 40),
        ("pool4", 512, 16, 20),
        ("pool5", 512, 32, 10),
        ("fc7", 4096, 32, 10),
    ]


def test_specs_of_two_equal_networks_are_equal():
    assert VGG16.features(VGGOptions(), 32) == VGG16.features(VGGOptions(), 32)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"width": 0}, "'width' is 0; input should be greater than 0"),
        ({"dropout": 1.0}, "'dropout' is 1.0; .* 0 and less than 1"),
        ({"widht": 8}, "Did you mean 'width'"),
    ],
)
def test_rejects_options_out_of_range(table, complaint):
    with pytest.raises(ConfigError, match=complaint):
        validate(VGG16, table)


@pytest.mark.slow
def test_center_of_fc7_matches_the_classifier_of_torchvision(torch):
    options = VGGOptions(width=64)
    theirs = reference(torch, options)
    module = nnx.eval_shape(lambda: VGG16.build(options, output_stride=32, rngs=nnx.Rngs(0)))
    module.eval()
    table = VGG16.torch.tables_of(options)["torchvision"]
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    for path, leaf in leaves(module).items():
        name, rule = table.to_torch(path)
        leaf.set_value(rule.op.to_jax(tensors[name]))
    x = images((1, 224, 224, 3))
    with torch.no_grad():
        pooled = theirs.avgpool(theirs.features(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())))
        fc6 = theirs.classifier[:2](pooled.flatten(1))
        fc7 = theirs.classifier[2:5](fc6)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    rest = without_draws(rest)

    @jax.jit
    def run(params, x):
        network = nnx.merge(graphdef, params, rest)
        features = network(x)
        return nnx.relu(network.fc6(features["pool5"])), features["fc7"]

    with jax.default_matmul_precision("highest"):
        ours = run(params, x)
    for found, wanted in zip(ours, (fc6, fc7), strict=True):
        assert found.shape == (1, 7, 7, 64)
        np.testing.assert_allclose(
            found[:, 3, 3], wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max())
        )


@pytest.mark.slow
def test_weights_convert_to_torch_and_back_bit_for_bit(torch):
    options = VGGOptions(width=16)
    model = build_model("vgg16", "fcn32s", backbone_options={"width": 16}, rngs=nnx.Rngs(0))
    tensors = to_torch(model)
    theirs = VGG16.torch.reference(options=options, output_stride=32)
    own = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    left = theirs.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in own.items()}, strict=False
    )
    assert left.missing_keys == ["classifier.6.weight", "classifier.6.bias"]
    assert left.unexpected_keys == []
    other = build_model("vgg16", "fcn32s", backbone_options={"width": 16}, rngs=nnx.Rngs(1))
    load_torch(other, tensors)
    again = to_torch(other)
    assert tensors.keys() == again.keys()
    assert all(np.array_equal(tensors[name], again[name]) for name in tensors)


@pytest.mark.slow
def test_loads_a_file_of_torchvision(torch, tmp_path):
    options = VGGOptions(width=16)
    theirs = reference(torch, options)
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    model = build_model("vgg16", "fcn32s", backbone_options={"width": 16}, rngs=nnx.Rngs(0))
    record = load_torch(model, tmp_path / "vgg16.pth")
    assert record.scope == "backbone"
    assert sorted(record.dropped) == ["classifier.6.bias", "classifier.6.weight"]
    table = VGG16.torch.tables_of(options)["torchvision"]
    for name, value in export_leaves(leaves(model.backbone), table).items():
        assert np.array_equal(value, theirs.state_dict()[name].numpy()), name


@pytest.mark.slow
def test_dropout_depends_on_the_key_and_is_off_in_eval_mode():
    module = VGG16.build(VGGOptions(width=16), output_stride=32, rngs=nnx.Rngs(0))
    x = images((1, 64, 64, 3))
    module.train()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(params, rest, step):
        keys = jax.tree.map(
            lambda leaf: (
                jax.random.fold_in(leaf, step)
                if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                else leaf
            ),
            rest,
        )
        return nnx.merge(graphdef, params, keys, copy=True)(x)["fc7"]

    first, again, second = run(params, rest, 0), run(params, rest, 0), run(params, rest, 1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert np.mean(np.asarray(first) == 0) > 0.4


@pytest.mark.parametrize(
    "height_width",
    [(97, 130), *(pytest.param(size, marks=pytest.mark.slow) for size in ((224, 224), (321, 487)))],
)
def test_fcn32s_matches_torch(torch, height_width):
    assert compare_whole_model(torch, 128, height_width) < 1e-5


@pytest.mark.exhaustive
@pytest.mark.parametrize("height_width", [(224, 224), (321, 487)])
def test_fcn32s_matches_torch_at_full_width(torch, height_width):
    assert compare_whole_model(torch, 4096, height_width) < 1e-5


def test_pads_images_smaller_than_the_stride():
    model = nnx.eval_shape(
        lambda: build_model("vgg16", "fcn32s", 5, backbone_options=NARROW, rngs=nnx.Rngs(0))
    )
    model.eval()
    graphdef, state = nnx.split(model)
    for height, width in ((1, 1), (31, 33), (64, 65)):
        x = jax.ShapeDtypeStruct((2, height, width, 3), np.float32)
        logits = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
        assert logits.shape == (2, height, width, 5)


@pytest.mark.slow
def test_verify_accepts_backbone_options(torch):
    report = verify_model(
        "vgg11", backbone_options=NARROW, sizes=[(33, 40)], batch=1, num_classes=3
    )
    assert report.equal
    assert str(report).startswith("EQUAL: vgg11 + fcn32s, width=32 in float32")
