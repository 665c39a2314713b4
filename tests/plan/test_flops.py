"""FLOPs of traced convolutions and products, against their formulas and against XLA."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fcn_jax import nn
from fcn_jax.plan import equations, flops, traffic

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def counted(function, *arguments, platform="cuda"):
    """FLOPs by dtype and precision of a function."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return traffic.work(equations.flatten(jaxpr, platform)).flops


def total(function, *arguments, platform="cuda"):
    return sum(counted(function, *arguments, platform=platform).values())


def gradients(stride=1, padding=0, dilation=1, groups=1):
    def loss(x, kernel):
        return (nn.conv(x, kernel, stride, padding, dilation, groups) ** 2).sum()

    return jax.grad(loss, (0, 1))


def test_convolution_has_two_flops_for_each_product():
    x, kernel = shape(2, 12, 16, 8), shape(3, 3, 8, 5)
    forward = 2 * 2 * (10 * 14) * (3 * 3) * 8 * 5
    assert total(lambda x, k: nn.conv(x, k), x, kernel) == forward


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 2)]
)
def test_backward_pass_has_twice_the_flops(stride, padding, dilation, groups, platform):
    x, kernel = shape(2, 12, 16, 8), shape(3, 3, 8 // groups, 6)
    settings = stride, padding, dilation, groups
    forward = total(lambda x, k: nn.conv(x, k, *settings), x, kernel, platform=platform)
    assert total(gradients(*settings), x, kernel, platform=platform) == 3 * forward


def test_products_with_padding_are_not_counted():
    x, kernel = shape(1, 4, 4, 1), shape(3, 3, 1, 1)
    rows = 2 + 3 + 3 + 2
    assert total(lambda x, k: nn.conv(x, k, 1, 1), x, kernel) == 2 * rows * rows


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(3, 9),
    taps=st.integers(1, 3),
    stride=st.integers(1, 3),
    low=st.integers(0, 2),
    dilation=st.integers(1, 2),
    kernel_dilation=st.integers(1, 2),
)
def test_pairs_are_those_that_meet_a_value(size, taps, stride, low, dilation, kernel_dilation):
    out = 4
    values = [place * dilation for place in range(size)]
    expected = sum(
        o * stride + t * kernel_dilation - low in values for o in range(out) for t in range(taps)
    )
    found = flops._pairs(size, taps, out, stride, low, dilation, kernel_dilation)
    assert found == expected


def test_matrix_products_and_their_precision():
    a, b = shape(3, 4, 5), shape(3, 5, 6)

    def both(a, b):
        high = lax.dot_general(a, b, (([2], [1]), ([0], [0])), precision=lax.Precision.HIGHEST)
        return high + (a.astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)).astype(jnp.float32)

    one = 2 * 3 * 4 * 5 * 6
    assert counted(both, a, b) == {
        ("float32", "highest"): one,
        ("bfloat16", "default"): one,
    }


def test_loops_count_each_turn():
    def looped(x):
        return lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    assert total(looped, shape(4, 4)) == 7 * 2 * 4**3


def test_unused_results_are_not_counted():
    def wasteful(x):
        _ = x @ x
        return x + 1

    assert total(wasteful, shape(4, 4)) == 0


def test_xla_counts_the_same():
    def both(x, kernel):
        y = lax.conv_general_dilated(
            x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=DIMENSIONS
        )
        return y, lax.conv_general_dilated(
            x, kernel, (1, 1), [(2, 0), (1, 3)], rhs_dilation=(2, 2), dimension_numbers=DIMENSIONS
        )

    arguments = shape(2, 9, 8, 4), shape(3, 3, 4, 8)
    xla = jax.jit(both).lower(*arguments).compile().cost_analysis()["flops"]
    assert total(both, *arguments) == xla
