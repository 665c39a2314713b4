import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fcn_jax import nn
from fcn_jax.nn import _conv_cpu
from fcn_jax.nn._conv_xla import Settings

torch = pytest.importorskip("torch")
F = torch.nn.functional


@functools.cache
def ours(*settings):
    """`nn.conv` with its gradients, compiled once for each shape.

    The function takes images, a kernel and the gradient of the output.
    """

    @jax.jit
    def run(x, kernel, weights):
        y, vjp = jax.vjp(lambda x, k: nn.conv(x, k, *settings), x, kernel)
        return (y, *vjp(weights))

    return run


@pytest.fixture
def compiled_afresh():
    """Have `ours` compile again in a test that changes the function, and after it."""
    ours.cache_clear()
    yield
    ours.cache_clear()


def both(x, kernel, weights, stride, padding, dilation, groups, dtype=np.float32):
    """Output and gradients by input and kernel: `nn.conv` in `dtype`, torch in float64; NHWC."""
    tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=torch.float64, requires_grad=True)
    tk = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), dtype=torch.float64, requires_grad=True)
    ty = F.conv2d(tx, tk, stride=stride, padding=padding, dilation=dilation, groups=groups)
    ty.backward(torch.tensor(weights.transpose(0, 3, 1, 2).copy(), dtype=torch.float64))
    theirs = (
        ty.detach().numpy().transpose(0, 2, 3, 1),
        tx.grad.numpy().transpose(0, 2, 3, 1),
        tk.grad.numpy().transpose(2, 3, 1, 0),
    )
    found = ours(stride, padding, dilation, groups)(
        *(a.astype(dtype) for a in (x, kernel, weights))
    )
    return [np.asarray(a, np.float64) for a in found], theirs


def check(
    batch,
    size,
    channels,
    kernel_size,
    stride,
    padding,
    dilation,
    groups,
    dtype=np.float32,
    rtol=2e-6,
    seed=0,
):
    rng = np.random.default_rng(seed)
    out = tuple((n + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for n in size)
    arrays = (
        rng.standard_normal((batch, *size, channels[0])),
        rng.standard_normal((kernel_size, kernel_size, channels[0] // groups, channels[1])),
        rng.standard_normal((batch, *out, channels[1])),
    )
    # Both sides start from the same numbers, those that `dtype` can hold.
    arrays = [a.astype(dtype).astype(np.float64) for a in arrays]
    for name, found, theirs in zip(
        ("output", "input gradient", "kernel gradient"),
        *both(*arrays, stride, padding, dilation, groups, dtype),
        strict=True,
    ):
        assert found.shape == theirs.shape, name
        # Relative to the largest value: sums of signed products cancel, so single elements have no
        # relative accuracy.
        error = np.abs(found - theirs).max() / max(np.abs(theirs).max(), 1e-30)
        assert error < rtol, f"{name}: {error:.2g}"


def check_form(size, kernel_size, stride, padding, dilation, groups, channels, batch, seed):
    """`channels` are those of one group."""
    check(
        batch,
        size,
        tuple(n * groups for n in channels),
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        seed=seed,
    )


FORMS = {
    "a ResNet's stem": ((7, 9), 7, 2, 3, 1, 1, (3, 4), 2),
    "a MobileNet's stem": ((8, 9), 3, 2, 1, 1, 1, (3, 6), 2),
    "a shortcut, of which the last row is not seen": ((8, 5), 1, 2, 0, 1, 1, (2, 4), 3),
    "depthwise": ((9, 8), 3, 2, 1, 1, 5, (1, 1), 2),
    "depthwise, wider than the strips of its kernel gradient": ((5, 19), 5, 1, 2, 1, 4, (1, 1), 2),
    "depthwise, with pixels that no tap sees": ((6, 7), 1, 2, 0, 1, 3, (1, 1), 2),
    "depthwise, dilated and strided, with more padding than it reaches": (
        (7, 10),
        2,
        3,
        4,
        2,
        3,
        (1, 1),
        1,
    ),
    "depthwise, larger than the image": ((4, 3), 7, 1, 3, 1, 2, (1, 1), 1),
    "depthwise with two outputs a channel": ((6, 9), 3, 1, 1, 1, 3, (1, 2), 2),
    "a ResNeXt's": ((8, 7), 3, 2, 1, 1, 32, (4, 4), 2),
    "a dilated ResNeXt's": ((8, 7), 3, 1, 2, 2, 32, (4, 4), 2),
    "an even kernel in groups, strided and dilated, with more padding than it reaches": (
        (5, 11),
        2,
        3,
        4,
        3,
        2,
        (2, 3),
        1,
    ),
    "an even kernel that exceeds the image": ((2, 3), 4, 1, 1, 1, 1, (5, 2), 1),
    "a padded 1x1": ((4, 6), 1, 1, 1, 1, 1, (3, 2), 2),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_conv_and_its_gradients_match_torch(form, seed):
    check_form(*FORMS[form], seed)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    kernel_size=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 1, 2, 6]),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    batch=st.integers(1, 3),
)
def test_conv_and_its_gradients_match_torch_for_any_settings(
    size, kernel_size, stride, padding, dilation, groups, channels, batch
):
    assume(min(size) + 2 * padding >= dilation * (kernel_size - 1) + 1)
    check_form(size, kernel_size, stride, padding, dilation, groups, channels, batch, seed=0)


@pytest.mark.parametrize(
    ("groups", "channels", "parts"),
    [
        (32, 4, 8),  # four groups to a part
        (6, 4, 2),  # as many as divide them
        (7, 4, 7),  # a prime number: each by itself
        (2, 17, 2),  # a group that is above the limit by itself
        (3, 5, 1),  # all in one
    ],
)
def test_grouped_convolution_does_not_depend_on_the_number_of_parts(groups, channels, parts):
    assert (
        _conv_cpu._parts(Settings(1, 1, 1, groups), np.empty((3, 3, channels, 2 * groups))) == parts
    )
    check(2, (6, 5), (groups * channels, 2 * groups), 3, 1, 1, 1, groups)


@pytest.mark.lowering
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form for CPUs")
@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "channels"),
    [(1, 1, 1, 8), (2, 1, 1, 8), (1, 2, 1, 8), (1, 4, 1, 8), (1, 2, 4, 8), (2, 1, 8, 8)],
)
def test_kernel_gradients_on_cpus_are_not_convolutions(stride, dilation, groups, channels):
    """XLA's own, a convolution whose kernel is the whole image, would be many times slower."""
    form = (stride, dilation, dilation, groups)
    x, kernel = jnp.ones((2, 9, 9, channels)), jnp.ones((3, 3, channels // groups, channels))
    weights = jnp.ones(nn.conv(x, kernel, *form).shape)

    def gradient(argument):
        function = jax.jit(
            lambda x, k, weights: jax.vjp(lambda x, k: nn.conv(x, k, *form), x, k)[1](weights)[
                argument
            ]
        )
        return function.lower(x, kernel, weights).compile().as_text()

    assert "convolution(" not in gradient(1)
    assert groups == channels or "convolution(" in gradient(0), (
        "the word that the compiled text would have"
    )


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "channels"),
    [
        (3, 1, 1, 1, (64, 66)),
        (3, 1, 1, 1, (128, 128)),
        (3, 1, 4, 4, (128, 130)),
        (3, 1, 0, 1, (128, 128)),
    ],
)
def test_wide_3x3_convolutions_on_cpus_are_products_and_match_torch(
    kernel_size, stride, padding, dilation, channels
):
    check(2, (9, 10), channels, kernel_size, stride, padding, dilation, 1)
    if jax.default_backend() != "cpu":
        return
    x = jax.ShapeDtypeStruct((1, 9, 10, channels[0]), jnp.float32)
    kernel = jax.ShapeDtypeStruct((kernel_size, kernel_size, *channels), jnp.float32)

    def run(x, kernel):
        y, vjp = jax.vjp(lambda x, kernel: nn.conv(x, kernel, stride, padding, dilation), x, kernel)
        return y, vjp(y)

    assert "stablehlo.convolution" not in jax.jit(run).lower(x, kernel).as_text()
    wide = [jax.ShapeDtypeStruct(array.shape, jnp.bfloat16) for array in (x, kernel)]
    assert "stablehlo.convolution" in jax.jit(run).lower(*wide).as_text(), (
        "bfloat16 has no 3x3 product"
    )


@pytest.mark.parametrize(
    ("size", "padding", "dilation", "products"),
    [
        ((9, 13), 36, 36, 1),  # the center alone
        ((9, 13), 12, 12, 3),  # one to the left and one to the right
        ((9, 13), 7, 7, 9),
        ((13, 9), 5, 4, 9),  # more border than the taps reach
        ((13, 9), 1, 4, 9),  # less: the image shrinks
        ((3, 4), 20, 8, 9),  # so much border that most outputs see nothing
    ],
)
def test_widely_dilated_3x3_convolution_computes_only_taps_inside_the_image(
    size, padding, dilation, products
):
    check(2, size, (128, 130), 3, 1, padding, dilation, 1)
    if jax.default_backend() != "cpu":
        return
    x, kernel = jnp.ones((1, *size, 128)), jnp.ones((3, 3, 128, 130))
    lowered = (
        jax.jit(lambda x, kernel: nn.conv(x, kernel, 1, padding, dilation))
        .lower(x, kernel)
        .as_text()
    )
    assert lowered.count("dot_general") == products, "Winograd's form has 16"


@pytest.mark.parametrize(
    "columns",
    [1, 9 * 3 * 7 * 4, 9 * 3 * 7 * 5 + 1, 10**6],
    ids=["a row", "4 rows", "5 rows", "all"],
)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.usefixtures("compiled_afresh")
def test_kernel_gradient_does_not_depend_on_the_height_of_the_strips(
    monkeypatch, columns, stride, dilation
):
    monkeypatch.setattr(_conv_cpu, "_COLUMNS", columns)
    # 13 rows of the result, a prime number, so that the last strip is not full; 7 columns of it.
    size = tuple((n - 1) * stride + 2 * dilation + 1 - 2 for n in (13, 7))
    check(2, size, (3, 5), 3, stride, 1, dilation, 1, rtol=5e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_an_empty_batch_is_zero(stride):
    def gradient(kernel):
        y, vjp = jax.vjp(lambda k: nn.conv(jnp.ones((0, 5, 5, 2)), k, stride, 1), kernel)
        return vjp(y)[0]

    for form in (gradient, jax.jit(gradient)):  # under jit the forms of all devices are traced
        np.testing.assert_array_equal(form(jnp.ones((3, 3, 2, 4))), np.zeros((3, 3, 2, 4)))


def test_rounds_a_float32_kernel_to_bfloat16_but_not_its_gradient():
    """Summed over 4096 pixels, of which bfloat16 would lose the last bits."""
    x = jnp.ones((1, 64, 64, 2), jnp.bfloat16)
    kernel = jnp.full((3, 3, 2, 4), 1 + 2**-12, jnp.float32)
    y, vjp = jax.vjp(lambda k: nn.conv(x, k, padding=1), kernel)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 5, 5, 0]) == 18
    (grad,) = vjp(jnp.ones_like(y))
    assert grad.dtype == jnp.float32
    assert float(grad[0, 0, 0, 0]) == 63 * 63


def test_bfloat16_result_of_a_small_stem_has_only_its_own_rounding_error():
    check(2, (9, 8), (3, 6), 3, 2, 1, 1, 1, dtype=jnp.bfloat16, rtol=5e-3)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_bfloat16_result_has_only_its_own_rounding_error(groups):
    # Half a unit in the last place of bf16 is 2^-9 = 2e-3; the kernel gradient is summed in
    # float32.
    check(2, (9, 8), (6, 6), 3, 2, 1, 1, groups, dtype=jnp.bfloat16, rtol=5e-3)
    x, kernel, weights = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for shape in ((1, 5, 5, 6), (3, 3, 6 // groups, 6), (1, 5, 5, 6))
    )
    assert {a.dtype for a in jax.eval_shape(ours(1, 1, 1, groups), x, kernel, weights)} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_layer_matches_torch_and_keeps_float32_parameters_in_bfloat16():
    layer = nn.Conv(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, rngs=nnx.Rngs(0))
    reference = torch.nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)
    reference.weight.data = torch.tensor(np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1).copy())
    reference.bias.data = torch.tensor(np.asarray(layer.bias[...]))
    x = np.random.default_rng(1).standard_normal((2, 9, 7, 4), np.float32)
    theirs = reference(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(layer(jnp.asarray(x)), theirs, atol=1e-6)

    half = nn.Conv(4, 6, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(jnp.asarray(x)).dtype == jnp.bfloat16
    assert half.kernel[...].dtype == half.bias[...].dtype == jnp.float32


def test_layer_without_bias_has_no_parameter_for_it():
    layer = nn.Conv(1, 1, 1, use_bias=False, rngs=nnx.Rngs(0))
    assert layer.bias is None
    assert len(jax.tree.leaves(nnx.state(layer, nnx.Param))) == 1
