"""Bytes that move and that are held, in programs small enough to count by hand."""

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.plan import equations, kinds, traffic

N = 64
MATRIX = 4 * N * N


def work(function, *arguments, platform="cuda"):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return traffic.work(equations.flatten(jaxpr, platform))


X = jax.ShapeDtypeStruct((N, N), jnp.float32)


def test_elementwise_operations_are_fused():
    found = work(lambda x: jnp.exp(x) * 2 + jnp.tanh(x), X)
    assert found.bytes == 2 * MATRIX
    assert len(found.kernels) == 1


def test_product_reads_operands_and_stores_what_it_reads():
    assert work(lambda x, y: x @ y, X, X).bytes == 3 * MATRIX
    # exp(x) is stored by one kernel (2), and read and multiplied by the next (3).
    assert work(lambda x, y: jnp.exp(x) @ y, X, X).bytes == 5 * MATRIX


def test_views_and_casts_to_the_same_dtype_cost_nothing():
    def moved(x, y):
        return x.reshape(N * N).reshape(N, N).T.astype(jnp.float32) @ jnp.squeeze(y[None])

    assert work(moved, X, X).bytes == 3 * MATRIX


def test_reductions_of_one_array_read_it_once():
    found = work(lambda x: (x.sum(0), (x**2).sum(0)), X)
    assert found.bytes == MATRIX + 2 * 4 * N


def test_reduction_of_what_depends_on_another_reads_again():
    found = work(lambda x: ((x - x.mean(0)) ** 2).sum(0), X)
    assert found.bytes > 2 * MATRIX


def test_slices_read_their_part():
    assert work(lambda x: x[: N // 4] * 2, X).bytes == 2 * MATRIX // 4


def test_platforms_have_their_own_branches():
    def dependent(x):
        return lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    one = 2 * N**3
    assert work(dependent, X, platform="cpu").flops == {("float32", "default"): 2 * one}
    assert work(dependent, X, platform="cuda").flops == {("float32", "default"): one}


def layers(count):
    def loss(weights, x):
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x.sum()

    return lambda weights, x: jax.tree.map(jnp.subtract, weights, jax.grad(loss)(weights, x))


def held(count, function=layers):
    found = work(function(count), [X] * count, X)
    return found.activations, found.workspace


def test_each_layer_adds_its_output_to_the_activations():
    found = [held(count)[0] for count in (4, 6, 8)]
    assert found[1] - found[0] == found[2] - found[1] == 2 * 2 * MATRIX, "product, and its tanh"


def test_gradients_are_not_part_of_the_workspace():
    # With two rows, the gradient of each matrix is larger than all else together.
    found = work(layers(8), [X] * 8, jax.ShapeDtypeStruct((2, N), jnp.float32))
    assert 0 < found.activations + found.workspace < MATRIX


def test_remat_holds_less():
    def rematted(count):
        def loss(weights, x):
            for weight in weights:
                x = jax.checkpoint(lambda x, weight: jnp.tanh(x @ weight))(x, weight)
            return x.sum()

        return lambda weights, x: jax.tree.map(jnp.subtract, weights, jax.grad(loss)(weights, x))

    assert sum(held(16, rematted)) < 0.6 * sum(held(16))


def test_loops_hold_what_their_body_holds():
    def accumulated(weights, x):
        step = layers(8)
        return lax.scan(lambda w, part: (step(w, part), None), weights, x)[0]

    whole = work(layers(8), [X] * 8, X)
    parts = work(accumulated, [X] * 8, jax.ShapeDtypeStruct((4, N, N), jnp.float32))
    assert (parts.activations, parts.workspace) == (whole.activations, whole.workspace)
    assert parts.flops == {key: 4 * count for key, count in whole.flops.items()}


def test_time_is_that_of_the_slower_resource():
    kind = kinds.find("H100")
    product, copy = work(lambda x: x @ x, X), work(jnp.exp, X)
    assert copy.seconds(kind) == copy.bytes / kind.bandwidth
    assert product.compute_seconds(kind) == 2 * N**3 / kind.tf32
    assert product.seconds(kind) >= max(product.compute_seconds(kind), product.bytes / 3.35e12)
