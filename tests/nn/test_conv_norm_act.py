"""`ConvNormAct`: the same function with and without folding, in every network that has it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.models.build import build_model
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.plugins import registry


def layer_of(channels, *, activation=None, dtype="float32", seed=0, **settings):
    """A layer with 6 output channels in eval mode, whose statistics are not the initial ones."""
    layer = nn.ConvNormAct(
        channels,
        6,
        3,
        activation=activation,
        eps=1e-3,
        dtype=dtype,
        rngs=nnx.Rngs(seed),
        **settings,
    )
    rng = np.random.default_rng(seed)
    for leaf, low, high in (
        (layer.bn.scale, 0.5, 2),
        (layer.bn.bias, -1, 1),
        (layer.bn.mean, -1, 1),
        (layer.bn.var, 0.5, 2),
    ):
        leaf[...] = jnp.asarray(rng.uniform(low, high, 6), jnp.float32)
    layer.eval()
    return layer


def images(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def error(y, exact):
    y, exact = np.asarray(y, np.float64), np.asarray(exact, np.float64)
    return np.linalg.norm(y - exact) / np.linalg.norm(exact)


@pytest.fixture
def normalized(monkeypatch):
    """The inputs of all calls of a batch normalization, which becomes the identity."""
    called = []
    monkeypatch.setattr(nn.BatchNorm, "__call__", lambda self, x: called.append(x) or x)
    return called


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("kernel_size", "settings", "kept"),
    [
        (3, {"stride": 2, "groups": 2}, {"padding": 1}),
        (5, {"dilation": 2}, {"padding": 4}),
        (4, {"padding": 1, "use_bias": True, "momentum": 0.3}, {}),
    ],
)
def test_matches_torch(torchvision, kernel_size, settings, kept, train):
    import torch

    layer = nn.ConvNormAct(4, 6, kernel_size, eps=1e-2, rngs=nnx.Rngs(0), **settings)
    layer.set_attributes(use_running_average=not train)
    settings = {**settings, **kept}
    momentum = settings.pop("momentum", 0.1)
    reference = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, kernel_size, bias=settings.pop("use_bias", False), **settings),
        torch.nn.BatchNorm2d(6, eps=1e-2, momentum=momentum),
        torch.nn.ReLU(),
    ).train(train)
    with torch.no_grad():
        reference[0].weight[:] = torch.tensor(np.asarray(layer.conv.kernel)).permute(3, 2, 0, 1)
        if layer.conv.bias is not None:
            reference[0].bias[:] = torch.tensor(np.asarray(layer.conv.bias))
    x = images(2, 9, 7, 4)
    expected = reference(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(layer(x), expected.detach(), atol=1e-5)
    np.testing.assert_allclose(layer.bn.var[...], reference[1].running_var, rtol=1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("groups", "stride", "padding", "dilation", "size"),
    [(1, 1, 1, 1, (5, 7)), (3, 2, 0, 1, (9, 6)), (1, 2, 2, 2, (6, 9)), (3, 1, 2, 2, (5, 5))],
)
def test_folding_changes_no_value(groups, use_bias, stride, padding, dilation, size):
    layer = layer_of(
        3, groups=groups, use_bias=use_bias, stride=stride, padding=padding, dilation=dilation
    )
    if use_bias:
        layer.conv.bias[...] = np.linspace(-1, 1, 6, dtype=np.float32)
    graphdef, state = nnx.split(layer)

    @jax.jit
    def run(state, x):
        layer = nnx.merge(graphdef, state)
        with folding(True):
            folded = layer(x)
        return folded, layer.bn(layer.conv(x))

    folded, plain = run(state, images(2, *size, 3))
    np.testing.assert_allclose(folded, plain, atol=1e-5)


def test_folding_in_bfloat16_only_adds_the_rounding_of_a_bias():
    layer, exact_layer = (layer_of(16, dtype=dtype) for dtype in ("bfloat16", "float32"))
    x = images(2, 9, 9, 16).astype(jnp.bfloat16)
    exact = exact_layer(x.astype(jnp.float32))
    with folding(True):
        folded = layer(x)
    assert folded.dtype == jnp.bfloat16
    # cuDNN rounds once, after the sum; XLA on CPUs rounds before it, too.
    assert error(folded, exact) < 1.4 * error(layer(x), exact) < 1e-2


@pytest.mark.parametrize(
    ("backend", "dtype", "folds"),
    [
        ("cpu", "bfloat16", False),
        ("gpu", "bfloat16", True),
        ("gpu", "float16", True),
        ("gpu", "float32", False),
        ("tpu", "bfloat16", False),
    ],
)
def test_folds_only_on_gpus_in_16_bits_by_default(monkeypatch, normalized, backend, dtype, folds):
    layer, x = layer_of(3, dtype=dtype), jnp.zeros((1, 5, 5, 3))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    layer(x)
    assert bool(normalized) != folds
    with folding(folds):
        layer(x)
    with folding(not folds):
        layer(x)
    layer(x)
    assert len(normalized) == (1 if folds else 3)


def test_does_not_fold_a_stem(monkeypatch, normalized):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for channels, stride in ((3, 2), (3, 1), (16, 2)):
        layer_of(channels, stride=stride, dtype="bfloat16")(jnp.zeros((1, 5, 5, channels)))
        assert len(normalized) == 1, "only the first"


def test_does_not_fold_in_train_mode():
    layer = layer_of(3)
    layer.train()
    with folding(True):
        y = layer(images(2, 5, 5, 3))
    np.testing.assert_allclose(y.mean((0, 1, 2)), layer.bn.bias[...], atol=1e-5)
    assert int(layer.bn.num_batches_tracked[...]) == 1


class Doubled(nn.Conv):
    """Does more than a convolution when called."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Shifted(nn.BatchNorm):
    """Does more than a normalization when called."""

    def __call__(self, x):
        return 1 + super().__call__(x)


@pytest.mark.parametrize("kind", ["convolution", "normalization", "flax"])
def test_calls_layers_of_other_classes_put_in_their_places(kind):
    layer = layer_of(3)
    if kind == "convolution":
        layer.conv = Doubled(3, 6, 3, rngs=nnx.Rngs(0))
    elif kind == "normalization":
        layer.bn = Shifted(6)
        layer.eval()
    else:
        layer.bn = nnx.BatchNorm(6, use_running_average=True, rngs=nnx.Rngs(0))
    x = images(1, 5, 5, 3)
    with folding(True):
        np.testing.assert_array_equal(layer(x), layer.bn(layer.conv(x)))


def test_gradients_pass_through_the_folded_kernel():
    layer, x = layer_of(3, use_bias=True), images(2, 6, 6, 3)
    graphdef, state = nnx.split(layer)

    def loss(state, folded):
        with folding(folded):
            return jnp.sin(nnx.merge(graphdef, state)(x)).sum()

    folded, plain = (
        jax.tree.leaves(jax.grad(loss, allow_int=True)(state, on)) for on in (True, False)
    )
    for found, expected in zip(folded, plain, strict=True):
        if found.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "head", "dtype"),
    [
        ("resnet18", "fcn32s", "bfloat16"),
        *(
            pytest.param(backbone, head, "float32", marks=pytest.mark.slow)
            for backbone, head in (
                ("resnet18", "fcn32s"),
                ("resnet18", "deeplabv3"),
                ("resnet50", "fcn"),
                ("vgg11_bn", "fcn32s"),
                ("mobilenet_v3_large", "lraspp"),
            )
        ),
    ],
)
def test_networks_fold_every_normalization_without_changing_the_logits(backbone, head, dtype):
    for kind, name in (("backbones", backbone), ("heads", head)):
        if name not in registry.default().names(kind):
            pytest.skip(f"the plugin of {name} is not installed")
    options = {"width": 16} if backbone.startswith("vgg") else {}
    model = build_model(backbone, head, 5, backbone_options=options, dtype=dtype, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(5)
    layers = [module for _, module in nnx.iter_modules(model) if isinstance(module, nn.BatchNorm)]
    for norm in layers:
        norm.scale[...] = jnp.asarray(rng.uniform(0.7, 1.3, norm.scale.shape), jnp.float32)
        norm.bias[...] = jnp.asarray(rng.uniform(-0.2, 0.2, norm.bias.shape), jnp.float32)
        norm.mean[...] = jnp.asarray(rng.uniform(-0.2, 0.2, norm.mean.shape), jnp.float32)
        norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, norm.var.shape), jnp.float32)
    model.eval()
    graphdef, state = nnx.split(model)
    x = jnp.asarray(rng.standard_normal((1, 64, 96, 3)), jnp.float32)
    called = []

    def run(folded):
        def logits(state, x):
            with folding(folded), pytest.MonkeyPatch.context() as patch:
                own = nn.BatchNorm.__call__
                patch.setattr(
                    nn.BatchNorm, "__call__", lambda self, x: called.append(folded) or own(self, x)
                )
                return nnx.merge(graphdef, state)(x)

        return np.asarray(jax.jit(logits)(state, x).astype(jnp.float32))

    folded, plain = run(True), run(False)
    assert called == [False] * len(layers)
    assert np.linalg.norm(folded - plain) < (1e-4 if dtype == "float32" else 3e-2) * np.linalg.norm(
        plain
    )


@pytest.mark.lowering
def test_folding_leaves_one_sum_in_the_dtype_of_the_convolution():
    layer = layer_of(16, dtype="bfloat16", activation=nnx.relu)
    x = jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.bfloat16)

    def count(folded, pattern):
        with folding(folded):
            lowered = jax.jit(lambda x: layer(x)).trace(x).lower(lowering_platforms=("cuda",))
        return len(re.findall(pattern, lowered.as_text()))

    multiplied = r"stablehlo\.multiply .*tensor<2x8x8x6x"
    widened = r"stablehlo\.convert .*tensor<2x8x8x6xf32>"
    assert (count(True, multiplied), count(False, multiplied)) == (0, 1)
    assert count(True, widened) == 0 < count(False, widened)
