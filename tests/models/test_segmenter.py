import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.api import FeatureSpec, ModelSpec
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import ConfigError, PluginError
from fcn_jax.models.build import build, build_model
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import registered_spec


def run(model, x):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)


def logits_of_both(d2l_network, make_model, size, batch, num_classes=21):
    """Logits of the d2l network in torch, cropped to the image, and ours, with the same weights."""
    import torch

    reference = d2l_network(num_classes)
    model = make_model(num_classes)
    load_torch(model, reference.state_dict())
    model.eval()
    x = np.random.default_rng(0).standard_normal((batch, *size, 3), np.float32)
    with torch.no_grad():
        theirs = reference(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    return np.asarray(run(model, jnp.asarray(x))), theirs[:, : size[0], : size[1]]


def check_equal(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_model_of_d2l_has_its_shape_parameters_and_keys(d2l_network):
    model = nnx.eval_shape(lambda: build_model("resnet18", "fcn32s", 21, rngs=nnx.Rngs(0)))
    model.eval()
    assert nnx.eval_shape(lambda m, x: m(x), model, jnp.zeros((1, 320, 480, 3))).shape == (
        1,
        320,
        480,
        21,
    )
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert sum(math.prod(leaf.get_value().shape) for _, leaf in parameters) == 12_993_642
    assert len(leaves(model)) == len(d2l_network(21).state_dict()) == 124


@pytest.mark.slow
def test_logits_match_torch(d2l_network, make_model):
    check_equal(*logits_of_both(d2l_network, make_model, (64, 96), 3))


@pytest.mark.slow
def test_logits_at_an_odd_size_match_torch_cropped(d2l_network, make_model):
    check_equal(*logits_of_both(d2l_network, make_model, (65, 97), 1))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(320, 480), (224, 224), (321, 487)])
def test_logits_match_torch_at_full_size(d2l_network, make_model, size, batch):
    check_equal(*logits_of_both(d2l_network, make_model, size, batch))


@pytest.mark.parametrize("size", [(1, 1), (2, 37)])
def test_logits_have_the_size_of_small_images(d2l_network, make_model, size):
    ours, theirs = logits_of_both(d2l_network, make_model, size, 1, num_classes=3)
    assert ours.shape == (1, *size, 3)
    check_equal(ours, theirs)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_in_float32(make_model):
    wide, half = make_model(3), make_model(3, dtype="bfloat16")
    wide.eval()
    half.eval()
    assert {str(leaf[...].dtype) for leaf in leaves(half).values()} == {"float32", "int32"}
    x = np.random.default_rng(0).standard_normal((1, 33, 40, 3), np.float32)
    expected, ours = np.asarray(run(wide, x)), run(half, x)
    assert ours.dtype == jnp.bfloat16
    # bf16 keeps 8 bits, through 20 layers.
    assert np.linalg.norm(np.asarray(ours, np.float32) - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.slow
def test_initial_backbone_has_the_variances_of_torchvision_and_different_kernels():
    model = build_model("resnet18", "fcn32s", 2, rngs=nnx.Rngs(0))
    kernels = {
        path: leaf[...] for path, leaf in leaves(model.backbone).items() if path.endswith("kernel")
    }
    assert len(kernels) == 20
    for path, kernel in kernels.items():
        height, width, _, out = kernel.shape
        assert float(kernel.std()) == pytest.approx(
            math.sqrt(2 / (height * width * out)), rel=0.03
        ), path
    assert len({float(kernel.ravel()[0]) for kernel in kernels.values()}) == 20


class RoundsDown(nnx.Module):
    """A backbone of stride 4 that drops incomplete cells at the bottom and right."""

    def __call__(self, x):
        rows, cols = x.shape[1] // 4 * 4, x.shape[2] // 4 * 4
        return {"deep": x[:, :rows:4, :cols:4]}


class Enlarge(nnx.Module):
    """A head that repeats each cell."""

    def __call__(self, features, *, out_hw):
        return features["deep"].repeat(4, 1).repeat(4, 2)[:, : out_hw[0], : out_hw[1]]


@pytest.mark.parametrize("size", [(8, 4), (9, 7), (1, 1)])
def test_pads_the_input_only_for_backbones_that_round_down(size):
    model = Segmenter(
        RoundsDown(), Enlarge(), ModelSpec(), (FeatureSpec("deep", 3, 4, lambda n: n // 4),)
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, *size, 3), np.float32))
    y = model(x)
    assert y.shape == x.shape
    np.testing.assert_array_equal(y[:, ::4, ::4], x[:, ::4, ::4])


def test_ignores_an_attribute_named_blocks_of_a_head():
    class Stacked(Enlarge):
        def __init__(self):
            self.blocks = nnx.List([nnx.Dropout(0.0, deterministic=True)])

    model = Segmenter(
        RoundsDown(), Stacked(), ModelSpec(), (FeatureSpec("deep", 3, 4, lambda n: n // 4),)
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 4, 3), np.float32))
    np.testing.assert_array_equal(model.subpixel_outputs(x)["out"], model(x))
    np.testing.assert_array_equal(model.subpixel_outputs(x)["out"], model(x))


@pytest.mark.parametrize(
    ("promise", "complaint"),
    [
        (
            FeatureSpec("deep", 4, 4, lambda n: n // 4),
            r"'deep' is \(2, 1, 3\); promised is \(2, 1, 4\)",
        ),
        (FeatureSpec("deeper", 3, 4, lambda n: n // 4), "'deeper' is missing"),
    ],
)
def test_error_names_the_distribution_of_a_backbone_with_wrong_features(promise, complaint):
    model = Segmenter(RoundsDown(), Enlarge(), ModelSpec(), (promise,))
    with pytest.raises(
        PluginError,
        match=r"backbone 'resnet18' of fcn-jax .* breaks its promise: for an image of 8x4, .*"
        + complaint,
    ):
        model(jnp.zeros((1, 8, 4, 3)))


def test_error_names_an_unregistered_backbone_as_in_the_spec():
    promise = FeatureSpec("deep", 4, 4, lambda n: n // 4)
    model = Segmenter(RoundsDown(), Enlarge(), ModelSpec("by hand"), (promise,))
    with pytest.raises(
        PluginError,
        match=r"^backbone 'by hand' breaks its promise: for an image of 8x4, its feature 'deep' is",
    ):
        model(jnp.zeros((1, 8, 4, 3)))


def test_error_names_a_backbone_whose_features_never_cover_the_image():
    unpadded = FeatureSpec("deep", 3, 4, lambda n: (n - 3) // 4)
    model = Segmenter(RoundsDown(), Enlarge(), ModelSpec(), (unpadded,))
    complaint = r"backbone 'resnet18' .* 'deep' covers no image of 8 to 15 pixels; .* 3 cells of 4"
    with pytest.raises(PluginError, match=complaint):
        model(jnp.zeros((1, 8, 4, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet81"}, "resnet18"),
        ({"head": "fcn32"}, "fcn32s"),
        ({"dtype": "float16"}, "float16.*float32, bfloat16"),
        ({"output_stride": 7}, "no output stride 7; it offers 32"),
        ({"head": "fcn8s", "output_stride": 6}, "no output stride 6; it offers 32"),
        ({"output_stride": 0}, "no output stride 0; it offers 32"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"backbone_options": {"depth": 3}}, "depth"),
        ({"head": None}, "needs a head"),
    ],
)
def test_rejects_invalid_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        nnx.eval_shape(lambda: build(ModelSpec(**options), rngs=nnx.Rngs(0)))


def test_spec_is_hashed_by_value():
    assert hash(ModelSpec(backbone_options={"a": [1]})) == hash(
        ModelSpec(backbone_options={"a": [1]})
    )
    assert hash(ModelSpec(num_classes=2)) != hash(ModelSpec(num_classes=3))


def test_finds_specs_of_models_and_backbones_by_name():
    assert registered_spec("fcn32s_resnet18") == ModelSpec("resnet18", "fcn32s", 21)
    assert registered_spec("resnet18") == ModelSpec("resnet18", None)
    with pytest.raises(ConfigError, match="neither a registered model nor a backbone"):
        registered_spec("fcn16s")


@pytest.fixture(scope="module")
def with_aux_head():
    model = nnx.eval_shape(
        lambda: build_model("resnet18", "fcn32s", 3, aux_head="fcn", rngs=nnx.Rngs(0))
    )
    model.eval()
    return model


def test_auxiliary_head_takes_any_feature_except_the_deepest(with_aux_head):
    assert with_aux_head.aux_head.conv1.conv.kernel.shape == (3, 3, 256, 64)
    model = nnx.eval_shape(
        lambda: build_model(
            "resnet18", "fcn32s", 3, aux_head="fcn8s", aux_feature="layer4", rngs=nnx.Rngs(0)
        )
    )
    assert model.aux_head.final_conv.kernel.shape == (1, 1, 512, 3)


def test_outputs_names_the_logits_and_the_call_skips_the_auxiliary_head(with_aux_head):
    x = jax.ShapeDtypeStruct((1, 65, 97, 3), jnp.float32)
    outputs = nnx.eval_shape(lambda m, x: m.outputs(x), with_aux_head, x)
    assert {name: value.shape for name, value in outputs.items()} == {
        "out": (1, 65, 97, 3),
        "aux": (1, 65, 97, 3),
    }
    graphdef, state = nnx.split(with_aux_head)
    logits = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    both = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state).outputs(x))(state, x)
    assert len(logits.eqns) < len(both.eqns)
    plain = nnx.eval_shape(lambda: build_model("resnet18", "fcn32s", 3, rngs=nnx.Rngs(0)))
    assert set(nnx.eval_shape(lambda m, x: m.outputs(x), plain, x)) == {"out"}


def test_rejects_an_unknown_auxiliary_feature():
    with pytest.raises(
        ConfigError,
        match=r"aux_feature is 'layer5'; use one of.*stem, layer1, layer2, layer3, layer4",
    ):
        build_model("resnet18", "fcn32s", 3, aux_head="fcn", aux_feature="layer5", rngs=nnx.Rngs(0))
