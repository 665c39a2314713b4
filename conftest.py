"""Settings of all tests, the plugins' too: numerics on the CPU at full precision, and until when slow ones begin."""

import os
import time

# Before jax is imported anywhere, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # nothing of the user's cache comes in, and nothing goes there
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

import hypothesis
import pytest

hypothesis.settings.register_profile("default", max_examples=12, deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("default")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a slow test for which the others have left `.ci/run` no time."""
    if item.get_closest_marker("slow") and time.time() > float(os.environ.get("FCN_JAX_SLOW_UNTIL", "inf")):
        pytest.skip("slow, and no time is left for it")
