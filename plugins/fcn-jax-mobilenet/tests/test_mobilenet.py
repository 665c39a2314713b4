"""MobileNets against the plugin contract and against torchvision's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fcn_jax_mobilenet.mobilenet import MOBILENET_V2, MOBILENET_V3_LARGE, MOBILENET_V3_SMALL
from flax import nnx

from fcn_jax.api import ModelSpec
from fcn_jax.convert.export import export_weights, to_torch
from fcn_jax.convert.load import import_weights, load_torch
from fcn_jax.convert.tables import tables
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build_backbone, build_model
from fcn_jax.models.names import leaves
from fcn_jax.plugins.options import validate
from fcn_jax.testing import check_backbone

BACKBONES = {
    backbone.name: backbone for backbone in (MOBILENET_V2, MOBILENET_V3_SMALL, MOBILENET_V3_LARGE)
}
NARROW = {"width_mult": 0.25}
OPTIONS = [
    (name, options)
    for name in BACKBONES
    for options in ({}, NARROW, {"width_mult": 1.4}, {"width_mult": 0.75, "reduced_tail": True})
    if name != "mobilenet_v2" or "reduced_tail" not in options
]


def abstract(name, options=None, output_stride=32):
    """A backbone with shapes instead of arrays."""
    spec = ModelSpec(name, None, backbone_options=options or {}, output_stride=output_stride)
    return nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0)))


def random_like(shapes, seed=0):
    rng = np.random.default_rng(seed)
    drawn = {
        name: rng.integers(0, 1000, shape)
        if name.endswith("tracked")
        else rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }
    return drawn | {
        name: np.abs(value) for name, value in drawn.items() if name.endswith("running_var")
    }


def torch_shapes(torchvision, name, options=None):
    """Shapes of torchvision's own state dict, including the classifier."""
    import torch

    with torch.device("meta"):
        network = getattr(torchvision.models, name)(weights=None, **(options or {}))
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=pytest.mark.slow if n == "mobilenet_v3_large" else pytest.mark.exhaustive
        )
        for n in BACKBONES
    ],
)
def test_meets_the_contract(name):
    check_backbone(name, NARROW)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("mobilenet_v2", (32, 24, 32, 64, 160, 1280)),
        ("mobilenet_v3_small", (16, 16, 24, 40, 96, 576)),
        ("mobilenet_v3_large", (16, 24, 40, 80, 160, 960)),
    ],
)
def test_features_have_the_promised_channels_and_sizes(name, channels):
    backbone = BACKBONES[name]
    assert backbone.output_strides == (32, 16, 8)
    for output_stride in backbone.output_strides:
        specs = backbone.features(backbone.options(), output_stride)
        assert tuple(spec.channels for spec in specs) == channels
        strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32, 32)]
        assert [(spec.name, spec.stride, spec.size(65)) for spec in specs] == [
            (f"c{i}", stride, math.ceil(65 / stride)) for i, stride in enumerate(strides)
        ]


def test_specs_of_two_equal_networks_are_equal():
    backbone = MOBILENET_V3_LARGE
    assert backbone.features(backbone.options(), 16) == backbone.features(backbone.options(), 16)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_names_and_shapes_match_torchvision(torchvision, name, options):
    table = tables(ModelSpec(name, None, backbone_options=options))["backbone", "torchvision"]
    ours = {}
    for path, leaf in leaves(abstract(name, options)).items():
        key, rule = table.to_torch(f"backbone.{path}")
        ours[key] = rule.op.to_torch(np.empty(leaf.shape, np.float32)).shape
    theirs = torch_shapes(torchvision, name, options)
    assert ours == {
        key: shape for key, shape in theirs.items() if not key.startswith("classifier.")
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_batch_normalization_matches_torchvision(torchvision, name):
    backbone = BACKBONES[name]
    reference = backbone.torch.reference(options=backbone.options(**NARROW), output_stride=32)
    table = backbone.torch.tables_of(backbone.options())["torchvision"]
    module = abstract(name, NARROW)
    checked = 0
    for path, layer in nnx.iter_modules(module):
        if hasattr(layer, "momentum"):
            key, _ = table.to_torch(".".join(map(str, path)) + ".scale")
            theirs = reference.get_submodule(key.removesuffix(".weight"))
            assert (layer.eps, layer.momentum) == (theirs.eps, theirs.momentum)
            checked += 1
    assert checked == sum("running_mean" in key for key in reference.state_dict())


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", BACKBONES)
def test_convolutions_match_the_settings_of_the_reference(torchvision, name, output_stride):
    backbone = BACKBONES[name]
    reference = backbone.torch.reference(
        options=backbone.options(**NARROW), output_stride=output_stride
    )
    table = backbone.torch.tables_of(backbone.options())["torchvision"]
    ours = {}
    for path, layer in nnx.iter_modules(abstract(name, NARROW, output_stride)):
        if hasattr(layer, "dilation"):
            key, _ = table.to_torch(".".join(map(str, path)) + ".kernel")
            ours[key.removesuffix(".weight")] = (
                *((n, n) for n in (layer.stride, layer.padding, layer.dilation)),
                layer.groups,
            )
    assert ours == {
        layer: (*settings, reference.get_submodule(layer).groups)
        for layer, *settings in convolutions(reference)
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "mobilenet_v3_small" else pytest.mark.slow)
        for name in BACKBONES
    ],
)
def test_initial_values_match_torchvision(torchvision, name):
    import torch

    torch.manual_seed(0)
    backbone = BACKBONES[name]
    theirs = backbone.torch.reference(options=backbone.options(), output_stride=32).state_dict()
    ours = export_weights(
        build_backbone(ModelSpec(name, None), rngs=nnx.Rngs(0)),
        ModelSpec(name, None),
        "segmentation",
    )
    assert ours.keys() == theirs.keys()
    compared = 0
    for key, value in theirs.items():
        found, wanted = ours[key].astype(np.float64), value.numpy().astype(np.float64)
        if found.size > 400 and wanted.std() > 0:
            assert abs(found.mean()) < 5 * wanted.std() / math.sqrt(found.size), key
            assert found.std() == pytest.approx(wanted.std(), rel=6 / math.sqrt(found.size)), key
            compared += 1
        elif wanted.std() == 0:
            np.testing.assert_array_equal(found, wanted, err_msg=key)
    assert compared > 20


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"width_mult": 0.0}, "'width_mult' is 0.0; input should be greater than 0"),
        ({"width_mult": math.nan}, "width_mult"),
        ({"reduced_tails": True}, "Did you mean 'reduced_tail'"),
    ],
)
def test_rejects_options_out_of_range(table, complaint):
    with pytest.raises(ConfigError, match=complaint):
        validate(MOBILENET_V3_LARGE, table)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("ReLU6", jax.nn.relu6),
        ("Hardsigmoid", jax.nn.hard_sigmoid),
        ("Hardswish", jax.nn.hard_swish),
    ],
)
def test_activations_and_gradients_match_torch_at_the_kinks(torchvision, name, ours):
    """JAX splits a gradient between equal arguments of a maximum; activations must not."""
    import torch

    x = np.array([-7, -3, -2.9, -1, -1e-9, 0, 1e-9, 1, 2.9, 3, 5.9, 6, 6.1, 9], np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    wanted = getattr(torch.nn, name)()(theirs)
    wanted.sum().backward()
    np.testing.assert_allclose(ours(jnp.asarray(x)), wanted.detach().numpy(), rtol=2e-7, atol=1e-12)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(ours))(jnp.asarray(x)), theirs.grad.numpy(), rtol=1e-6, atol=1e-9
    )


def convolutions(network):
    import torch

    return [
        (name, layer.stride, layer.padding, layer.dilation)
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_output_stride_16_matches_the_dilated_network_of_torchvision(torchvision, name):
    backbone = BACKBONES[name]
    reference = backbone.torch.reference(options=backbone.options(), output_stride=16)
    assert convolutions(reference) == convolutions(
        getattr(torchvision.models, name)(weights=None, dilated=True).features
    )
    # Each row is a depthwise convolution of C3 or C4: 3x3 or 5x5.
    wide = backbone.torch.reference(options=backbone.options(), output_stride=8)
    dilations = [layer[3][0] for layer in convolutions(wide) if layer[3] != (1, 1)]
    assert (
        dilations
        == {"mobilenet_v3_small": [2] * 5 + [4] * 3, "mobilenet_v3_large": [2] * 6 + [4] * 3}[name]
    )


@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilated_mobilenet_v2_contains_the_features_of_the_strided_one(torchvision, output_stride):
    import torch

    from fcn_jax.verify.randomize import randomize

    options = MOBILENET_V2.options(**NARROW)
    torch.manual_seed(0)
    strided = MOBILENET_V2.torch.reference(options=options, output_stride=32).double()
    randomize(strided, seed=0)
    dilated = MOBILENET_V2.torch.reference(options=options, output_stride=output_stride).double()
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 97, 130, dtype=torch.float64)
    with torch.no_grad():
        sparse, dense = strided.eval()(images), dilated.eval()(images)
    step = 32 // output_stride
    torch.testing.assert_close(dense["c5"][..., ::step, ::step], sparse["c5"])
    assert dense["c5"].shape[-1] == math.ceil(130 / output_stride)


@pytest.mark.parametrize("name", BACKBONES)
def test_imagenet_weights_fill_only_the_backbone_and_convert_back(torchvision, name):
    tensors = random_like(torch_shapes(torchvision, name))
    module, spec = abstract(name), ModelSpec(name, None)
    record = import_weights(module, spec, tensors)
    assert (record.key_format, record.scope) == ("torchvision", "backbone")
    assert all(key.startswith("classifier.") for key in record.dropped)
    back = export_weights(module, spec, "torchvision")
    assert {*back, *record.dropped} == {*tensors}
    for key, value in back.items():
        assert value.tobytes() == tensors[key].astype(value.dtype).tobytes(), key


@pytest.mark.slow
def test_recognizes_the_three_key_formats_of_torchvision(torchvision):
    """In the ImageNet file, in a segmentation model, and in the backbone of that model alone."""
    model = nnx.eval_shape(lambda: build_model("mobilenet_v3_small", "fcn", 3, rngs=nnx.Rngs(0)))
    own = random_like(torch_shapes(torchvision, "mobilenet_v3_small"))
    backbone = {
        key.removeprefix("features."): value
        for key, value in own.items()
        if key.startswith("features.")
    }
    head = random_like(
        {"0.weight": (144, 576, 3, 3), "4.weight": (3, 144, 1, 1), "4.bias": (3,)}, seed=1
    )
    head |= random_like(
        {f"1.{key}": (144,) for key in ("weight", "bias", "running_mean", "running_var")}, seed=2
    )
    head |= random_like({"1.num_batches_tracked": ()}, seed=3)
    whole = {f"backbone.{key}": value for key, value in backbone.items()} | {
        f"classifier.{key}": v for key, v in head.items()
    }
    assert load_torch(model, whole).scope == "model"
    back = to_torch(model)
    assert back.keys() == whole.keys()
    assert all(
        back[key].tobytes() == value.astype(back[key].dtype).tobytes()
        for key, value in whole.items()
    )
    for tensors, names in ((own, "torchvision"), (backbone, "segmentation")):
        other = nnx.eval_shape(
            lambda: build_model("mobilenet_v3_small", "fcn", 3, rngs=nnx.Rngs(0))
        )
        record = load_torch(other, tensors)
        assert (record.scope, record.key_format) == ("backbone", names)
        filled = leaves(other)
        for path, leaf in leaves(model).items():
            if path.startswith("backbone."):
                assert np.array_equal(filled[path][...], leaf[...]), path


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_match_torchvision(torchvision, name):
    ours = BACKBONES[name].torch.weights
    theirs = torchvision.models.get_model_weights(name)
    assert ours.keys() == theirs.__members__.keys() - {"DEFAULT"}
    for key, published in ours.items():
        assert published.url == theirs[key].url
        assert published.url.endswith(f"-{published.sha256}.pth")
        accuracy = theirs[key].meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert published.summary == f"ImageNet-1k, top-1 accuracy {accuracy}"
        preset = theirs[key].transforms()
        assert (list(BACKBONES[name].preprocess.mean), list(BACKBONES[name].preprocess.std)) == (
            preset.mean,
            preset.std,
        )
