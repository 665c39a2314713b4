import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.api import FeatureSpec
from fcn_jax.errors import ConfigError
from fcn_jax.models.fcn_skip import FCN8S, FCN16S, crops
from fcn_jax.models.names import leaves, named
from fcn_jax.testing import check_head


def up(stride):
    return lambda n: -(-n // stride)


SPECS = tuple(FeatureSpec(f"f{s}", c, s, up(s)) for c, s in ((3, 4), (4, 8), (5, 16), (6, 32)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("fcn8s", {"at_once": True, "upsampling": "fixed"}, marks=pytest.mark.slow),
        pytest.param("fcn8s", {"upsampling": "fixed_last"}, marks=pytest.mark.slow),
        pytest.param("fcn8s", {}, marks=pytest.mark.slow),
        pytest.param("fcn16s", {}, marks=pytest.mark.slow),
        pytest.param("fcn16s", {"upsampling": "fixed"}, marks=pytest.mark.slow),
    ],
)
def test_meets_the_contract(name, options):
    check_head(name, options)


@pytest.mark.parametrize(
    ("upsampling", "frozen", "biases"),
    [
        ("learned", [], 4),
        ("fixed_last", ["transpose_conv.kernel"], 3),
        ("fixed", ["transpose_conv.kernel", "up_convs.0.kernel", "up_convs.1.kernel"], 3),
    ],
)
def test_fixed_upsampling_has_no_gradient_and_no_bias(upsampling, frozen, biases):
    options = FCN8S.options(upsampling=upsampling)
    head = nnx.eval_shape(lambda: FCN8S.build(options, SPECS[1:], num_classes=2, rngs=nnx.Rngs(0)))
    assert [path for path, leaf in leaves(head).items() if isinstance(leaf, nn.Buffer)] == frozen
    trained = named(nnx.state(head, nnx.Param))
    assert trained.keys() == leaves(head).keys() - set(frozen)
    assert sum(path.endswith("bias") for path in trained) == biases


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (FCN16S, ["score_fr", "score_pool4", "upscore2", "upscore16"]),
        (
            FCN8S,
            ["score_fr", "score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8"],
        ),
    ],
)
def test_names_match_pytorch_fcn(head, names):
    options = head.options(upsampling="fixed")
    features = [spec for spec in SPECS if spec.name in head.select(options, SPECS)]
    module = nnx.eval_shape(lambda: head.build(options, features, num_classes=2, rngs=nnx.Rngs(0)))
    table = head.torch.tables_of(options)["pytorch-fcn"]
    found = [table.to_torch(path)[0] for path in leaves(module)]
    scores = [
        f"{name}.{part}"
        for name in names
        if name.startswith("score")
        for part in ("weight", "bias")
    ]
    assert sorted(found) == sorted(
        scores + [f"{name}.weight" for name in names if name.startswith("up")]
    )


def test_takes_skips_of_half_and_a_quarter_of_the_deepest_stride():
    assert FCN16S.select(FCN16S.options(), SPECS) == ("f16", "f32")
    assert FCN8S.select(FCN8S.options(), SPECS) == ("f8", "f16", "f32")


def test_takes_the_deepest_of_features_with_the_same_stride():
    dilated = (*SPECS[:3], FeatureSpec("f16b", 5, 16, up(16)))
    assert FCN16S.select(FCN16S.options(), dilated) == ("f8", "f16b")
    twice = (SPECS[0], SPECS[1], FeatureSpec("f8b", 4, 8, up(8)), SPECS[2])
    assert FCN16S.select(FCN16S.options(), twice) == ("f8b", "f16")


def test_rejects_a_backbone_without_the_features():
    with pytest.raises(
        ConfigError,
        match=r"'fcn8s' needs features of stride 2 and 4 .* offers f4 \(4\), f8 \(8\)",
    ):
        FCN8S.select(
            FCN8S.options(), (FeatureSpec("f4", 1, 4, up(4)), FeatureSpec("f8", 1, 8, up(8)))
        )


def test_staged_form_starts_as_the_previous_stage():
    """Skips add nothing at first: the logits are the deepest scores, upsampled twice."""
    features = {
        spec.name: np.random.default_rng(0).standard_normal(
            (1, *(spec.size(64),) * 2, spec.channels)
        )
        for spec in SPECS
    }
    head = FCN8S.build(FCN8S.options(), SPECS[1:], num_classes=2, rngs=nnx.Rngs(0))
    before = head({k: jnp.asarray(v) for k, v in features.items()}, out_hw=(64, 64))
    features["f8"] = features["f8"] + 1
    np.testing.assert_array_equal(
        head({k: jnp.asarray(v) for k, v in features.items()}, out_hw=(64, 64)), before
    )
    assert np.ptp(np.asarray(before)) > 0


@pytest.mark.parametrize("at_once", [False, True])
def test_skip_aligns_with_the_image(at_once):
    """One bright pixel of the shallow feature changes only the logits around its place."""
    head = FCN8S.build(FCN8S.options(at_once=at_once), SPECS[1:], num_classes=1, rngs=nnx.Rngs(0))
    head.skip_convs[1].kernel[...] += 1e4 if at_once else 1.0
    features = {
        spec.name: np.zeros((1, *(spec.size(96),) * 2, spec.channels), np.float32) for spec in SPECS
    }
    dark = head({k: jnp.asarray(v) for k, v in features.items()}, out_hw=(96, 96))
    features["f8"][0, 5, 3, 0] = 1
    lit = np.asarray(
        head({k: jnp.asarray(v) for k, v in features.items()}, out_hw=(96, 96)) - dark
    )[0, ..., 0]
    rows, cols = np.nonzero(lit > 1e-3)
    assert (rows.mean(), cols.mean()) == (5 * 8 + 3.5, 3 * 8 + 3.5)
    assert np.ptp(rows) < 16
    assert lit.max() == pytest.approx((15 / 16) ** 2, rel=1e-3)


def test_crops_match_the_paper():
    """The first layer pads by 100 instead of 1, and fc6 does not pad: 19; 5, 27; 5, 9, 31."""
    pool3, pool4, fc7 = (
        FeatureSpec(n, 1, s, up(s), offset=o)
        for n, s, o in (("pool3", 8, 99), ("pool4", 16, 99), ("fc7", 32, 3))
    )
    assert crops(fc7, []) == ((), 19)
    assert crops(fc7, [pool4]) == (((0, 5),), 27)
    assert crops(fc7, [pool4, pool3]) == (((0, 5), (0, 9)), 31)


def test_rejects_features_that_do_not_align():
    with pytest.raises(
        ConfigError, match=r"'f16' begins 5 pixels before the image .* a multiple of 16 pixels"
    ):
        crops(SPECS[3], [FeatureSpec("f16", 1, 16, up(16), offset=5)])
    with pytest.raises(ConfigError, match="a multiple of 16 pixels"):
        FCN16S.select(
            FCN16S.options(),
            (FeatureSpec("f16", 1, 16, up(16), offset=5), FeatureSpec("f32", 1, 32, up(32))),
        )


@pytest.mark.slow
def test_covers_every_pixel_at_any_size():
    head = FCN8S.build(FCN8S.options(), SPECS[1:], num_classes=2, rngs=nnx.Rngs(0))
    for size in itertools.chain(range(1, 70, 7), (64, 96)):
        features = {
            spec.name: jnp.ones((1, spec.size(size), spec.size(size), spec.channels))
            for spec in SPECS
        }
        assert head(features, out_hw=(size, size)).shape == (1, size, size, 2)
