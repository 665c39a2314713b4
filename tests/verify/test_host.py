"""Primitives computed by numpy have JAX's results, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fcn_jax.verify import host

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
HALF = X.astype(jnp.bfloat16)
EXACT = {
    "arithmetic": lambda x, y: [x + y, x - y, x * y, x / y, -x, abs(x), x**2, jnp.square(x)],
    "order": lambda x, y: [jnp.maximum(x, y), jnp.minimum(x, y), x < y, x <= y, x > y, x >= y],
    "equality": lambda x, y: [x == y, x != y, lax.clamp(x.dtype.type(-1), x, y)],
    "choice": lambda x, y: [jnp.where(x > 0, x, y), jnp.where(x > 0, 0, y), jnp.sqrt(abs(x))],
    "shapes": lambda x, y: [
        x.reshape(4, 6),
        x.transpose(2, 0, 1),
        x[:1, ::2, 1:],
        x[:1].squeeze(0),
    ],
    "joins": lambda x, y: [jnp.concatenate([x, y], 1), jnp.broadcast_to(x[:, :1], x.shape)],
    "borders": lambda x, y: [jnp.pad(x, ((0, 1), (2, 0), (0, 0)), constant_values=3)],
    "dtypes": lambda x, y: [x.astype(jnp.float16), (x > 0).astype(x.dtype)],
}


def evaluated(function, *values):
    """Evaluate equation by equation, and count those that numpy computes."""
    closed = jax.make_jaxpr(function)(*values)
    count = 0

    def by_host(primitive, params, arrays):
        nonlocal count
        found = host.computed(primitive.name, params, arrays)
        count += found is not None
        return primitive.bind(*arrays, **params) if found is None else found

    return run(closed.jaxpr, closed.consts, values, by_host), count


def run(jaxpr, consts, values, evaluate):
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))

    def read(atom):
        if hasattr(atom, "val"):
            return np.asarray(atom.val, atom.aval.dtype)
        return env[atom]

    for eqn in jaxpr.eqns:
        arrays = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in ("jit", "pjit"):
            inner = eqn.params["jaxpr"]
            found = run(inner.jaxpr, inner.consts, arrays, evaluate)
        else:
            found = [evaluate(eqn.primitive, eqn.params, arrays)]
        env.update(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EXACT)
def test_matches_jax_to_the_last_bit(name, dtype):
    x = jnp.asarray(X, dtype)
    y = jnp.flip(x, 0)
    found, count = evaluated(EXACT[name], x, y)
    assert count >= len(found)
    for ours, expected in zip(found, EXACT[name](x, y), strict=True):
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


@given(st.lists(st.floats(2.0**-60, 2.0**60, width=32), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_reciprocal_root_is_within_a_unit_of_the_last_place(numbers):
    x = np.float32(numbers)
    found = host.computed("rsqrt", {}, [x])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 1 / np.sqrt(x.astype(np.float64)), rtol=2.0**-23)


def test_reciprocal_root_of_bfloat16_is_rounded_once():
    x = abs(HALF) + HALF.dtype.type(1)
    expected = (1 / np.sqrt(x.astype(np.float64))).astype(jnp.bfloat16)
    np.testing.assert_array_equal(host.computed("rsqrt", {}, [x]), expected)


@pytest.mark.parametrize(
    ("name", "params", "values"),
    [
        ("add", {}, [X, X[:1]]),  # numpy would broadcast
        ("add", {}, [X, X.astype(np.float64)]),
        ("div", {}, [np.arange(3), np.arange(3)]),  # integers are divided without remainder
        ("select_n", {}, [X > 0, X, X[:1]]),
        ("reshape", {"new_sizes": (5, 5), "dimensions": None}, [X]),
        ("slice", {"start_indices": (0,) * 3, "limit_indices": (9,) * 3, "strides": None}, [X]),
        ("broadcast_in_dim", {"shape": (2, 3, 5), "broadcast_dimensions": (0, 1, 2)}, [X]),
        ("concatenate", {"dimension": 1}, [X, X[:1]]),
        ("squeeze", {"dimensions": (0,)}, [X]),
        ("pad", {"padding_config": ((-1, 0, 0),) * 3}, [X, np.float32(0)[None][0]]),
        ("integer_pow", {"y": 3}, [X]),
        ("exp", {}, [X]),
    ],
)
def test_leaves_the_rest_to_jax(name, params, values):
    assert host.computed(name, params, list(map(np.asarray, values))) is None


def test_leaves_traced_values_to_jax():
    found = []
    jax.eval_shape(lambda x: found.append(host.computed("abs", {}, [x])) or x, X)
    assert found == [None]
    assert host.computed("abs", {}, [X]) is not None
