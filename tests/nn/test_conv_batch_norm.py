"""Batch normalization multiplied into the convolution before it: the same function, in every network that has both."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.models.segmenter import build_model
from fcn_jax.plugins import registry


def pair(channels, groups=1, *, use_bias=False, dtype="float32", seed=0, **settings):
    """A convolution to 6 channels and a normalization whose statistics are not the initial ones, in eval mode."""
    rng = np.random.default_rng(seed)
    layer = nn.Conv(
        channels,
        6,
        3,
        groups=groups,
        use_bias=use_bias,
        dtype=dtype,
        rngs=nnx.Rngs(seed),
        **settings,
    )
    norm = nn.BatchNorm(6, eps=1e-3, dtype=dtype)
    for leaf, low, high in (
        (norm.scale, 0.5, 2),
        (norm.bias, -1, 1),
        (norm.mean, -1, 1),
        (norm.var, 0.5, 2),
    ):
        leaf[...] = jnp.asarray(rng.uniform(low, high, 6), jnp.float32)
    layer.eval()
    norm.eval()
    return layer, norm


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("groups", "stride", "padding", "dilation", "size"),
    [(1, 1, 1, 1, (5, 7)), (3, 2, 0, 1, (9, 6)), (1, 2, 2, 2, (6, 9)), (3, 1, 2, 2, (5, 5))],
)
def test_folded_and_in_turn_are_the_same(groups, use_bias, stride, padding, dilation, size):
    layer, norm = pair(
        3, groups, use_bias=use_bias, stride=stride, padding=padding, dilation=dilation
    )
    if use_bias:
        layer.bias[...] = np.linspace(-1, 1, 6, dtype=np.float32)
    x = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
    graphdef, state = nnx.split((layer, norm))

    @jax.jit
    def run(state, x):
        layer, norm = nnx.merge(graphdef, state)
        with nn.folding(True):
            folded = nn.conv_batch_norm(layer, norm, x)
        return folded, norm(layer(x))

    folded, in_turn = run(state, x)
    np.testing.assert_allclose(folded, in_turn, atol=1e-5)


def test_in_bfloat16_it_adds_but_the_rounding_of_a_bias():
    x = np.random.default_rng(2).standard_normal((2, 9, 9, 16)).astype(np.float32)
    layer, norm = pair(16, dtype="bfloat16", padding=1)
    rounded = jnp.asarray(x, jnp.bfloat16)
    exact_layer, exact_norm = pair(16, padding=1)
    exact = np.asarray(exact_norm(exact_layer(rounded.astype(jnp.float32))), np.float64)
    with nn.folding(True):
        folded = nn.conv_batch_norm(layer, norm, rounded)
    assert folded.dtype == jnp.bfloat16

    def error(y):
        return np.linalg.norm(np.asarray(y, np.float64) - exact) / np.linalg.norm(exact)

    # cuDNN rounds once, after the sum; XLA on CPUs before it, too.
    assert error(folded) < 1.4 * error(norm(layer(rounded))) < 1e-2


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
def test_gpus_alone_fold_in_16_bits_unless_told_otherwise(monkeypatch, backend, dtype, folds):
    layer, norm = pair(3, dtype=dtype)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    called = []
    monkeypatch.setattr(nn.BatchNorm, "__call__", lambda self, x: called.append(x) or x)
    x = jnp.zeros((1, 5, 5, 3))
    nn.conv_batch_norm(layer, norm, x)
    assert bool(called) != folds
    with nn.folding(folds):
        nn.conv_batch_norm(layer, norm, x)
    with nn.folding(not folds):
        nn.conv_batch_norm(layer, norm, x)
    nn.conv_batch_norm(layer, norm, x)
    assert len(called) == (1 if folds else 3)


def test_a_stem_is_not_folded(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    called = []
    monkeypatch.setattr(nn.BatchNorm, "__call__", lambda self, x: called.append(x) or x)
    for channels, stride in ((3, 2), (3, 1), (16, 2)):
        nn.conv_batch_norm(
            *pair(channels, stride=stride, dtype="bfloat16"), jnp.zeros((1, 5, 5, channels))
        )
        assert len(called) == 1, "the first alone"


def test_in_train_mode_nothing_is_folded():
    layer, norm = pair(3)
    norm.train()
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 5, 5, 3)), jnp.float32)
    with nn.folding(True):
        y = nn.conv_batch_norm(layer, norm, x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), norm.bias[...], atol=1e-5)
    assert int(norm.num_batches_tracked[...]) == 1


class Doubled(nn.Conv):
    """Does more than a convolution when called."""

    def __call__(self, x):
        return 2 * super().__call__(x)


@pytest.mark.parametrize("kind", ["convolution", "normalization", "flax"])
def test_layers_of_other_classes_are_called(kind):
    layer, norm = pair(3)
    if kind == "convolution":
        layer = Doubled(3, 6, 3, rngs=nnx.Rngs(0))
    elif kind == "normalization":
        norm = type(
            "Shifted",
            (nn.BatchNorm,),
            {"__call__": lambda self, x: 1 + nn.BatchNorm.__call__(self, x)},
        )(6)
        norm.eval()
    else:
        norm = nnx.BatchNorm(6, use_running_average=True, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(8).standard_normal((1, 5, 5, 3)), jnp.float32)
    with nn.folding(True):
        np.testing.assert_array_equal(nn.conv_batch_norm(layer, norm, x), norm(layer(x)))


def test_gradients_reach_both_layers_through_the_fold():
    layer, norm = pair(3, use_bias=True)
    x = jnp.asarray(np.random.default_rng(4).standard_normal((2, 6, 6, 3)), jnp.float32)
    graphdef, state = nnx.split((layer, norm))

    def loss(state, folded):
        layer, norm = nnx.merge(graphdef, state)
        with nn.folding(folded):
            return jnp.sin(nn.conv_batch_norm(layer, norm, x)).sum()

    folded, plain = (
        jax.tree.leaves(jax.grad(loss, allow_int=True)(state, on)) for on in (True, False)
    )
    for found, wanted in zip(folded, plain, strict=True):
        if found.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


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
def test_whole_networks_fold_every_normalisation_and_give_the_same(backbone, head, dtype):
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
            with nn.folding(folded), pytest.MonkeyPatch.context() as patch:
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
def test_a_folded_convolution_is_followed_by_a_sum_in_its_own_dtype_alone():
    layer, norm = pair(16, dtype="bfloat16", padding=1)
    x = jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.bfloat16)

    def found(folded, what):
        def run(x):
            with nn.folding(folded):
                return nnx.relu(nn.conv_batch_norm(layer, norm, x))

        return len(
            re.findall(what, jax.jit(run).trace(x).lower(lowering_platforms=("cuda",)).as_text())
        )

    multiplied, widened = (
        r"stablehlo\.multiply .*tensor<2x8x8x6x",
        r"stablehlo\.convert .*tensor<2x8x8x6xf32>",
    )
    assert (found(True, multiplied), found(False, multiplied)) == (0, 1)
    assert found(True, widened) == 0 < found(False, widened)
