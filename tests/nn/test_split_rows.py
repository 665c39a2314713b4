"""Operators compute the same for images whose rows are split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import nn
from fcn_jax.nn._conv_transpose import conv_transpose_blocks
from fcn_jax.nn._conv_xla import Settings, space_to_depth
from fcn_jax.nn._matmul import _flat_product, _sum_of_products
from fcn_jax.nn._split_rows import block_rows, rows_are_split, split_rows


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def stem(x):
    return space_to_depth(Settings(2, 3, 1, 1), x, normal(7, 7, 3, 4, seed=1), columns=2)


def transposed(x):
    return nn.conv_transpose(x, normal(8, 8, 3, 2, seed=1), 4, 2)


def pooled_gradient(x):
    return jax.grad(lambda x: (nn.max_pool(x, 3, 2, 1) * normal(2, 6, 4, 3, seed=1)).sum())(x)


@pytest.mark.parametrize("operator", [stem, transposed, pooled_gradient])
def test_more_blocks_of_rows_do_not_change_the_result(operator):
    x = normal(2, 11, 8, 3)
    expected = operator(x)
    with split_rows(5):
        np.testing.assert_allclose(operator(x), expected, atol=1e-5)


def test_subpixel_logits_have_a_multiple_of_blocks():
    x, kernel = normal(2, 4, 3, 3), normal(8, 8, 3, 2, seed=1)
    expected = conv_transpose_blocks(x, kernel, 4, 2)
    with split_rows(4):
        found = conv_transpose_blocks(x, kernel, 4, 2)
    assert (expected.values.shape[1], found.values.shape[1]) == (5, 8)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-5)
    masks = jnp.arange(2 * 16 * 12).reshape(2, 16, 12)
    np.testing.assert_array_equal(found.gather(found.scatter(masks, 255)), masks)


def test_sum_over_split_rows_is_that_over_merged_ones():
    x, grad = normal(2, 3, 4, 5), normal(2, 3, 4, 6, seed=1)
    np.testing.assert_allclose(_sum_of_products(x, grad), _flat_product(x, grad), rtol=1e-5)


def test_rows_are_whole_unless_they_are_split():
    assert (block_rows(5), rows_are_split()) == (5, False)
    with split_rows(4):
        assert [block_rows(rows) for rows in (1, 4, 5)] == [4, 4, 8]
        assert rows_are_split()
    assert not rows_are_split()
