"""The two-way tables: templates invert, operations come back bit for bit."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.pytorch.rules import (
    CONV,
    CONV_TRANSPOSE,
    COUNT,
    IDENTITY,
    LINEAR,
    Rule,
    Table,
    batch_norm,
    conv,
    conv_transpose,
    drop,
    linear_as_conv,
)

words = st.text(string.ascii_lowercase, min_size=1, max_size=6)
numbers = st.integers(0, 10_000)
seeds = st.integers(0, 2**32 - 1)


def kernels(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@st.composite
def templates(draw):
    """Two templates over the same fields, each a list of dotted parts with the fields in an order of its own."""
    fields = draw(st.lists(words, min_size=0, max_size=4, unique=True))

    def one():
        parts = [f"{draw(words)}{{{field}}}" for field in draw(st.permutations(fields))]
        return ".".join([draw(words), *parts, draw(words)])

    return one(), one(), fields


@given(templates(), st.data())
def test_a_template_is_invertible(pair, data):
    torch, jax, fields = pair
    values = {field: data.draw(numbers) for field in fields}
    rule = Rule(torch, jax)
    table = Table(rule)
    path = jax.format(**values)
    assert table.to_torch(path) == (torch.format(**values), rule)
    assert table.to_jax(torch.format(**values)) == (path, rule)


@given(st.tuples(*[st.integers(1, 5)] * 4), seeds)
@pytest.mark.parametrize("op", [CONV, CONV_TRANSPOSE])
def test_a_kernels_layout_comes_back_bit_for_bit(op, shape, seed):
    kernel = kernels(shape, seed)
    assert np.array_equal(op.to_torch(op.to_jax(kernel)), kernel)
    assert np.array_equal(op.to_jax(op.to_torch(kernel)), kernel)


@given(st.integers(1, 6), st.integers(1, 6), seeds)
def test_a_linear_layers_layout_comes_back_bit_for_bit(rows, cols, seed):
    kernel = kernels((rows, cols), seed)
    assert np.array_equal(LINEAR.to_torch(LINEAR.to_jax(kernel)), kernel)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
def test_a_linear_layer_over_pixels_becomes_a_convolution_and_comes_back(
    out, channels, height, width, seed
):
    weight = kernels((out, channels * height * width), seed)
    (rule, _) = linear_as_conv("fc", "fc", size=(height, width))
    kernel = rule.op.to_jax(weight)
    assert kernel.shape == (height, width, channels, out)
    assert np.array_equal(rule.op.to_torch(kernel), weight)
    image = kernels((channels, height, width), seed + 1)
    np.testing.assert_allclose(
        np.einsum("hwio,ihw->o", kernel, image, dtype=np.float64),
        weight.astype(np.float64) @ image.ravel(),
        atol=1e-5,
    )


@given(st.integers(0, 2**31 - 1))
def test_a_batch_count_comes_back(count):
    value = np.asarray(count, np.int64)
    assert COUNT.to_jax(value).dtype == np.int32
    back = COUNT.to_torch(COUNT.to_jax(value))
    assert back == value
    assert back.dtype == np.int64


def test_layouts_are_pytorchs():
    assert CONV.to_jax(np.zeros((8, 3, 5, 7))).shape == (5, 7, 3, 8)
    assert CONV_TRANSPOSE.to_jax(np.zeros((3, 8, 5, 7))).shape == (5, 7, 3, 8)
    assert LINEAR.to_jax(np.zeros((8, 3))).shape == (3, 8)


@pytest.mark.parametrize(
    ("op", "shape"), [(CONV, (2, 3)), (CONV_TRANSPOSE, (2,)), (LINEAR, (1, 2, 3, 4))]
)
def test_a_wrong_number_of_axes_is_named(op, shape):
    with pytest.raises(ValueError, match="axes, got shape"):
        op.to_jax(np.zeros(shape))


def test_a_linear_weight_that_is_no_multiple_of_the_pixels_is_refused():
    (rule, _) = linear_as_conv("fc", "fc", size=(7, 7))
    with pytest.raises(ValueError, match="7x7 pixels"):
        rule.op.to_jax(np.zeros((4, 50)))


def test_templates_need_the_same_fields():
    with pytest.raises(ValueError, match="must have the same fields"):
        Rule("layer{s}.{b}", "layer{s}")


def test_a_field_stands_for_a_number_and_dots_for_themselves():
    table = Table(Rule("layer{s}.weight", "layer{s}.kernel"))
    assert table.to_jax("layer12.weight") is not None
    assert table.to_jax("layerx.weight") is None
    assert table.to_jax("layer1xweight") is None
    assert table.to_jax("layer1.weight.more") is None


def test_a_field_used_twice_must_have_one_value():
    table = Table(Rule("a{i}.b{i}", "c{i}"))
    assert table.to_jax("a1.b1") is not None
    assert table.to_jax("a1.b2") is None


def test_the_first_rule_that_matches_decides():
    first, second = Rule("a0", "special"), Rule("a{i}", "plain{i}")
    table = Table(first, second)
    assert table.to_jax("a0") == ("special", first)
    assert table.to_jax("a1") == ("plain1", second)
    assert Table(second) + Table(first) is not table
    assert (Table(second) + Table(first)).to_jax("a0") == ("plain0", second)


def test_groups_of_rules_name_what_a_layer_holds():
    table = Table(conv("c", bias=True), conv_transpose("t"), batch_norm("b", "bn"))
    found = {rule.torch: (rule.jax, rule.op) for rule in table.rules}
    assert found["c.weight"] == ("c.kernel", CONV)
    assert found["c.bias"] == ("c.bias", IDENTITY)
    assert found["t.weight"] == ("t.kernel", CONV_TRANSPOSE)
    assert "t.bias" not in found
    assert found["b.running_var"] == ("bn.var", IDENTITY)
    assert [rule.torch for rule in table.rules if rule.optional] == ["b.num_batches_tracked"]


def test_a_drop_gives_its_reason():
    table = Table(drop("fc.*", "the classifier"))
    assert table.dropped("fc.weight") == "the classifier"
    assert table.dropped("fcx") is None


@given(st.lists(words, min_size=1, max_size=2), st.lists(words, min_size=1, max_size=2), numbers)
def test_a_table_moves_under_prefixes(torch, jax, number):
    torch_prefix, jax_prefix = (".".join(parts) + "." for parts in (torch, jax))
    table = Table(conv("layer{s}"), drop("fc.*", "reason")).under(torch_prefix, jax_prefix)
    found = table.to_torch(f"{jax_prefix}layer{number}.kernel")
    assert found is not None
    assert found[0] == f"{torch_prefix}layer{number}.weight"
    assert table.dropped(f"{torch_prefix}fc.bias") == "reason"
    assert table.dropped("fc.bias") is None
