"""Two-way tables: templates and operations are inverted exactly."""

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
    layer_norm,
    linear,
    linear_as_conv,
)

words = st.text(string.ascii_lowercase, min_size=1, max_size=6)
numbers = st.integers(0, 10_000)
seeds = st.integers(0, 2**32 - 1)


def kernels(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@st.composite
def templates(draw):
    """Two templates with the same fields in different orders."""
    fields = draw(st.lists(words, min_size=0, max_size=4, unique=True))

    def one():
        parts = [f"{draw(words)}{{{field}}}" for field in draw(st.permutations(fields))]
        return ".".join([draw(words), *parts, draw(words)])

    return one(), one(), fields


@given(templates(), st.data())
def test_templates_invert(pair, data):
    torch, jax, fields = pair
    values = {field: data.draw(numbers) for field in fields}
    rule = Rule(torch, jax)
    table = Table(rule)
    path = jax.format(**values)
    assert table.to_torch(path) == (torch.format(**values), rule)
    assert table.to_jax(torch.format(**values)) == (path, rule)


@given(st.tuples(*[st.integers(1, 5)] * 4), seeds)
@pytest.mark.parametrize("op", [CONV, CONV_TRANSPOSE])
def test_kernel_layouts_invert_bit_for_bit(op, shape, seed):
    kernel = kernels(shape, seed)
    assert np.array_equal(op.to_torch(op.to_jax(kernel)), kernel)
    assert np.array_equal(op.to_jax(op.to_torch(kernel)), kernel)


@given(st.integers(1, 6), st.integers(1, 6), seeds)
def test_linear_layout_inverts_bit_for_bit(rows, cols, seed):
    kernel = kernels((rows, cols), seed)
    assert np.array_equal(LINEAR.to_torch(LINEAR.to_jax(kernel)), kernel)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
def test_linear_as_conv_computes_the_same_and_inverts(out, channels, height, width, seed):
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
def test_batch_count_inverts(count):
    value = np.asarray(count, np.int64)
    assert COUNT.to_jax(value).dtype == np.int32
    back = COUNT.to_torch(COUNT.to_jax(value))
    assert back == value
    assert back.dtype == np.int64


def test_layouts_match_pytorch():
    assert CONV.to_jax(np.zeros((8, 3, 5, 7))).shape == (5, 7, 3, 8)
    assert CONV_TRANSPOSE.to_jax(np.zeros((3, 8, 5, 7))).shape == (5, 7, 3, 8)
    assert LINEAR.to_jax(np.zeros((8, 3))).shape == (3, 8)


@pytest.mark.parametrize(
    ("op", "shape"), [(CONV, (2, 3)), (CONV_TRANSPOSE, (2,)), (LINEAR, (1, 2, 3, 4))]
)
def test_rejects_a_wrong_number_of_axes(op, shape):
    with pytest.raises(ValueError, match="axes, got shape"):
        op.to_jax(np.zeros(shape))


def test_linear_as_conv_rejects_sizes_that_do_not_divide():
    (rule, _) = linear_as_conv("fc", "fc", size=(7, 7))
    with pytest.raises(ValueError, match="7x7 pixels"):
        rule.op.to_jax(np.zeros((4, 50)))


def test_rejects_templates_with_different_fields():
    with pytest.raises(ValueError, match="must have the same fields"):
        Rule("layer{s}.{b}", "layer{s}")


def test_fields_match_numbers_and_dots_match_dots():
    table = Table(Rule("layer{s}.weight", "layer{s}.kernel"))
    assert table.to_jax("layer12.weight") is not None
    assert table.to_jax("layerx.weight") is None
    assert table.to_jax("layer1xweight") is None
    assert table.to_jax("layer1.weight.more") is None


def test_repeated_field_must_have_one_value():
    table = Table(Rule("a{i}.b{i}", "c{i}"))
    assert table.to_jax("a1.b1") is not None
    assert table.to_jax("a1.b2") is None


def test_first_matching_rule_decides():
    first, second = Rule("a0", "special"), Rule("a{i}", "plain{i}")
    table = Table(first, second)
    assert table.to_jax("a0") == ("special", first)
    assert table.to_jax("a1") == ("plain1", second)
    assert Table(second) + Table(first) is not table
    assert (Table(second) + Table(first)).to_jax("a0") == ("plain0", second)


def test_rule_groups_cover_a_layers_tensors():
    norms = (batch_norm("b", "bn"), layer_norm("n", "norm"))
    table = Table(conv("c", bias=True), conv_transpose("t"), linear("l"), *norms)
    found = {rule.torch: (rule.jax, rule.op) for rule in table.rules}
    assert found["c.weight"] == ("c.kernel", CONV)
    assert found["c.bias"] == ("c.bias", IDENTITY)
    assert found["t.weight"] == ("t.kernel", CONV_TRANSPOSE)
    assert "t.bias" not in found
    assert found["b.running_var"] == ("bn.var", IDENTITY)
    assert found["l.weight"] == ("l.kernel", LINEAR)
    assert found["l.bias"] == ("l.bias", IDENTITY)
    assert found["n.weight"] == ("norm.scale", IDENTITY)
    assert found["n.bias"] == ("norm.bias", IDENTITY)
    assert [rule.torch for rule in table.rules if rule.optional] == ["b.num_batches_tracked"]


def test_dropped_returns_the_reason():
    table = Table(drop("fc.*", "the classifier"))
    assert table.dropped("fc.weight") == "the classifier"
    assert table.dropped("fcx") is None


@given(st.lists(words, min_size=1, max_size=2), st.lists(words, min_size=1, max_size=2), numbers)
def test_under_adds_prefixes(torch, jax, number):
    torch_prefix, jax_prefix = (".".join(parts) + "." for parts in (torch, jax))
    table = Table(conv("layer{s}"), drop("fc.*", "reason")).under(torch_prefix, jax_prefix)
    found = table.to_torch(f"{jax_prefix}layer{number}.kernel")
    assert found is not None
    assert found[0] == f"{torch_prefix}layer{number}.weight"
    assert table.dropped(f"{torch_prefix}fc.bias") == "reason"
    assert table.dropped("fc.bias") is None
