import jax
import pytest


@pytest.fixture(autouse=True)
def default_precision():
    """JAX's default precision, as users have it; other tests use the highest."""
    with jax.default_matmul_precision("default"):
        yield
