"""Images that fill a part of their array: every operator gives there what it gives on the image alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fcn_jax import build_model, nn
from fcn_jax.models.fcn_skip import FCN8S
from fcn_jax.models.resnet import RESNET18, Architecture, ResNet
from fcn_jax.models.segmenter import ModelSpec, Segmenter
from fcn_jax.nn import _valid

SIDES = st.tuples(st.integers(4, 19), st.integers(4, 19))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(function, inner, more, atol=1e-5, seed=0):
    """Run `function` on an image alone, and in an array with something else at its right and bottom."""
    outer = (inner[0] + more[0], inner[1] + more[1])
    alone, among_others = jax.jit(function), within(function, outer)
    compare(alone, among_others, inner, outer, atol, seed)


def within(function, outer):
    """Compile `function` for images that fill a part of their array, once for all of them.

    The result is the output, and the height and width of the part that is known to be filled.
    """

    @jax.jit
    def run(x, *hw):
        with _valid.sizes({outer: hw}):
            y = function(x)
            return y, _valid.of(y.shape[1:3])

    return run


def compare(alone, among_others, inner, outer, atol, seed=0):
    x = noise(2, *inner, 3, seed=seed)
    beside = 50 + noise(2, *outer, 3, seed=seed + 1)
    beside[:, : inner[0], : inner[1]] = x
    wanted = np.asarray(alone(x))
    y, known = among_others(beside, *map(jnp.int32, inner))
    assert tuple(map(int, known)) == wanted.shape[1:3]
    np.testing.assert_allclose(y[:, : wanted.shape[1], : wanted.shape[2]], wanted, atol=atol)


def convolution(size, stride, padding, dilation):
    kernel = jnp.asarray(noise(size, size, 3, 4, seed=2))
    return lambda x: nn.conv(x, kernel, stride, padding, dilation)


def transposed(size, stride, padding):
    kernel = jnp.asarray(noise(size, size, 3, 2, seed=2))
    return lambda x: nn.conv_transpose(x, kernel, stride, padding)


def pool(size, stride, padding, ceil_mode):
    return lambda x: nn.max_pool(x, size, stride, padding, ceil_mode=ceil_mode)


# Each runs in an array of 15x17, on images of odd and even sides. One of them fills the height.
OPERATORS = {
    "a 1x1 convolution": convolution(1, 1, 0, 1),
    "a 3x3 convolution": convolution(3, 1, 1, 1),
    "an unpadded, dilated 3x3 convolution": convolution(3, 1, 0, 2),
    "a dilated 3x3 convolution of stride 2": convolution(3, 2, 2, 2),
    "a padded 1x1 convolution": convolution(1, 1, 2, 1),
    "a ResNet's stem": convolution(7, 2, 3, 1),
    "a ResNet's pool": pool(3, 2, 1, False),
    "a pool that rounds up": pool(2, 2, 0, True),
    "a pool that rounds down": pool(2, 2, 0, False),
    "a pool of stride 1": pool(3, 1, 1, False),
    "an unpadded pool that rounds up": pool(3, 2, 0, True),
    "a global average pool": nn.global_average_pool,
    "a transposed convolution that doubles": transposed(4, 2, 1),
    "a transposed convolution with a border": transposed(4, 2, 0),
    "an odd transposed convolution": transposed(3, 2, 1),
    "a transposed convolution of stride 4": transposed(8, 4, 2),
}
OUTER, INNER = (15, 17), [(9, 12), (15, 7), (6, 5)]


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_gives_in_a_part_of_an_array_what_it_gives_alone(name):
    alone, among_others = jax.jit(OPERATORS[name]), within(OPERATORS[name], OUTER)
    for seed, inner in enumerate(INNER):
        compare(alone, among_others, inner, OUTER, 1e-4, seed)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(SIDES, st.tuples(st.integers(0, 19), st.integers(0, 19)), st.data())
def test_any_operator_gives_it_at_any_size(inner, more, data):
    draw = data.draw
    kind = draw(st.sampled_from(["convolution", "pool", "global average", "transposed"]))
    if kind == "convolution":
        (size, stride), padding, dilation = (
            draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (7, 2)])),
            draw(st.integers(0, 3)),
            draw(st.integers(1, 2)),
        )
        assume(min(inner) + 2 * padding >= dilation * (size - 1) + 1)
        function = convolution(size, stride, padding, dilation)
    elif kind == "pool":
        function = pool(
            *draw(st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 2, 0)])),
            draw(st.booleans()),
        )
    elif kind == "transposed":
        function = transposed(*draw(st.sampled_from([(4, 2, 1), (4, 2, 0), (3, 2, 1), (8, 4, 2)])))
    else:
        function = nn.global_average_pool
    check(function, inner, more, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 3), (3, 1), (2, 4)])
def test_kernels_that_are_not_square(size):
    kernel = jnp.asarray(noise(*size, 3, 4, seed=2))
    check(lambda x: nn.conv(x, kernel, padding=1), (7, 9), (4, 5), atol=1e-4)
    check(lambda x: nn.conv_transpose(x, kernel, 2), (7, 9), (4, 5), atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("inner", "new"), [((5, 7), (33, 47)), ((9, 6), (4, 11)), ((1, 1), (8, 8))]
)
def test_bilinear_resize(inner, new, align_corners):
    x, outer, new_outer = noise(2, *inner, 3), (12, 13), (64, 65)
    beside = 50 + noise(2, *outer, 3, seed=1)
    beside[:, : inner[0], : inner[1]] = x
    alone = jax.jit(lambda x: nn.resize_bilinear(x, new, align_corners=align_corners))(x)

    @jax.jit
    def among_others(x):
        with _valid.sizes({outer: inner, new_outer: new}):
            return nn.resize_bilinear(x, new_outer, align_corners=align_corners)

    y = among_others(beside)
    np.testing.assert_allclose(y[:, : new[0], : new[1]], alone, atol=1e-4)


def test_a_network_that_slices_by_itself_is_refused():
    with (
        _valid.sizes({(8, 8): (5, 5)}),
        pytest.raises(ValueError, match="feature of 7x8 pixels is not known"),
    ):
        nn.max_pool(jnp.ones((1, 8, 8, 1))[:, 1:], 2, 2)


def halved_twice(x):
    """Two maps of half the size, whatever it is, and the sum's pool."""
    kernels = (jnp.asarray(noise(size, size, 3, 3, seed=size)) for size in (1, 3))
    return nn.max_pool(
        sum(nn.conv(x, kernel, 2, kernel.shape[0] // 2) for kernel in kernels), 3, 2, 1
    )


def one_shape_two_sizes(x):
    """A pool that halves, and in arrays of 8 pixels a convolution that takes off as much."""
    nn.conv(x, jnp.ones((5, 5, 3, 3)), 1)
    return nn.max_pool(nn.max_pool(x, 2, 2), 2, 2)


def test_two_maps_of_one_size_need_not_be_told_apart():
    check(halved_twice, (7, 12), (4, 5), atol=1e-4)


@pytest.mark.parametrize("traced", [False, True])
def test_two_maps_of_one_shape_that_hold_different_sizes_are_refused(traced):
    def run(hw):
        with _valid.sizes({(8, 8): hw}):
            return one_shape_two_sizes(jnp.ones((1, 8, 8, 3)))

    complaint = "feature of 4x4 pixels is not known: this network has two such features.*or its descriptor must not say `maskable`"
    with pytest.raises(ValueError, match=complaint):
        jax.eval_shape(run, (jnp.int32(6), jnp.int32(7))) if traced else run((6, 7))
    if not traced:
        run((8, 8))  # the whole array: both are 4x4


def test_a_size_that_is_not_known_for_sure_is_no_error_where_nobody_asks():
    with _valid.sizes({(8, 8): (6, 7)}):
        nn.max_pool(jnp.ones((1, 8, 8, 3)), 2, 2)
        nn.conv(jnp.ones((1, 8, 8, 3)), jnp.ones((5, 5, 3, 3)), 1)


def shallow(head):
    """A ResNet of one block a stage under a head, in eval mode.

    It has every kind of layer that ResNet-18 has, and compiles in half the time.
    """
    features, chosen = RESNET18.features(RESNET18.options(), 32), head.options()
    selected = [spec for spec in features if spec.name in head.select(chosen, features)]
    trunk = ResNet(
        Architecture((1, 1, 1, 1), bottleneck=False),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    model = Segmenter(
        trunk, head.build(chosen, selected, num_classes=3, rngs=nnx.Rngs(1)), ModelSpec(), features
    )
    model.eval()
    return model


def test_a_skip_heads_maps_that_cannot_be_told_apart_in_a_small_array_are_refused():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: shallow(FCN8S)))
    hw = (jax.ShapeDtypeStruct((), jnp.int32),) * 2

    def shape(side):
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return jax.eval_shape(
            lambda state, x, hw: nnx.merge(graphdef, state)(x, hw), state, image, hw
        ).shape

    with pytest.raises(
        ValueError, match="feature of 4x4 pixels is not known: this network has two such features"
    ):
        shape(32)
    for side in (64, 65, 96, 97, 128):
        assert shape(side) == (1, side, side, 3)


def check_network(model, hw):
    x = noise(1, *hw, 3)
    padded = 50 + noise(1, 80, 90, 3, seed=1)
    padded[:, : hw[0], : hw[1]] = x
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, x, hw: nnx.merge(graphdef, state)(x, hw))
    alone = np.asarray(run(state, x, None))
    logits = np.asarray(run(state, padded, tuple(jnp.int32(side) for side in hw)))[
        :, : hw[0], : hw[1]
    ]
    assert np.abs(logits - alone).max() < 1e-5 * np.abs(alone).max()


def test_a_whole_network():
    check_network(shallow(FCN8S), (33, 71))


@pytest.mark.slow
@pytest.mark.parametrize("hw", [(40, 64), (33, 71)])
@pytest.mark.parametrize("head", ["fcn32s", "fcn16s", "fcn8s", "fcn"])
def test_resnet18_with_any_head(head, hw):
    model = build_model("resnet18", head, 3, rngs=nnx.Rngs(0))
    model.eval()
    check_network(model, hw)
