"""Adam's bias correction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax.train.adam import scale_by_adam

RNG = np.random.default_rng(0)
GRADS = [RNG.standard_normal(50).astype(np.float32) for _ in range(3)]


def exact(b1, b2, eps):
    """The direction after the last gradient, in float64."""
    mean, square = np.zeros(50), np.zeros(50)
    for grad in np.asarray(GRADS, np.float64):
        mean, square = b1 * mean + (1 - b1) * grad, b2 * square + (1 - b2) * grad**2
    count = len(GRADS)
    return (mean / (1 - b1**count)) / (np.sqrt(square / (1 - b2**count)) + eps)


def directions(transform):
    state = transform.init(jnp.zeros(50))
    update = jax.jit(transform.update)
    for grad in GRADS:
        direction, state = update(jnp.asarray(grad), state)
    return np.asarray(direction, np.float64), state


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99999), (0.5, 0.0)])
def test_direction_is_exact_to_float32(betas):
    found, _ = directions(scale_by_adam(*betas, 1e-5))
    # Gradients of different signs cancel in the mean, so that small values have larger errors.
    np.testing.assert_allclose(found, exact(*betas, 1e-5), rtol=5e-7, atol=5e-7)


def test_state_is_that_of_optax():
    """Checkpoints of both are the same."""
    ours = directions(scale_by_adam(0.9, 0.999, 1e-8))
    theirs = directions(optax.scale_by_adam(0.9, 0.999, 1e-8))
    assert jax.tree.structure(ours[1]) == jax.tree.structure(theirs[1])
    jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
