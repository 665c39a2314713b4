"""Tagged values are collected through every transformation that inlines its function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.verify.tags import collect, tag


def twice(x):
    return tag(tag(x + 1, "a") * 2, "b")


def through_custom_jvp(x):
    function = jax.custom_jvp(twice)
    function.defjvp(lambda primals, tangents: (twice(*primals), tangents[0]))
    return function(x)


def through_custom_vjp(x):
    function = jax.custom_vjp(twice)
    function.defvjp(lambda x: (twice(x), None), lambda _, grad: (grad,))
    return function(x)


@pytest.mark.parametrize(
    "function",
    [
        twice,
        jax.jit(twice),
        jax.vmap(jax.vmap(twice)),
        jax.checkpoint(twice),
        through_custom_jvp,
        through_custom_vjp,
        jax.jit(jax.vmap(jax.checkpoint(jax.jit(twice)))),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_collects_values(function, jitted):
    run = collect(function)
    x = jnp.arange(6.0).reshape(2, 3)
    result, seen = (jax.jit(run) if jitted else run)(x)
    np.testing.assert_array_equal(result, (x + 1) * 2)
    np.testing.assert_array_equal(seen["a"][0], x + 1)
    np.testing.assert_array_equal(seen["b"][0], (x + 1) * 2)


def test_collects_every_use_of_a_name_in_order():
    _, seen = collect(lambda x: tag(x, "a") + tag(2 * x, "a"))(jnp.ones(2))
    assert [float(value[0]) for value in seen["a"]] == [1.0, 2.0]


def test_leaves_loops_alone():
    def loop(x):
        return jax.lax.scan(lambda carry, _: (tag(carry + 1, "a"), None), x, length=3)[0]

    result, seen = collect(loop)(jnp.zeros(()))
    assert float(result) == 3.0
    assert seen == {}


def test_keeps_structure_constants_and_gradients():
    table = jnp.arange(3.0)

    def function(x, *, factor):
        return {"y": (tag(x * table * factor, "a"), None), "z": 1.0}

    run = collect(functools.partial(function, factor=2.0))
    result, _ = run(jnp.ones(3))
    np.testing.assert_array_equal(result["y"][0], 2 * table)
    assert result["y"][1] is None
    grad = jax.grad(lambda x: run(x)[0]["y"][0].sum())(jnp.ones(3))
    np.testing.assert_array_equal(grad, 2 * table)
