"""Settings of all tests, the plugins' too: numerics on the CPU at full precision, and until when slow ones begin."""

import importlib.util
import os
import time

# Before jax is imported anywhere, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("FCN_JAX_TEST_CACHE","")  # nothing of the user's cache comes in, and nothing goes there
if os.environ["JAX_COMPILATION_CACHE_DIR"]:
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

import hypothesis
import pytest

hypothesis.settings.register_profile("default", max_examples=12, deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `needs_torch` where PyTorch is not installed, as in the second environment of `.ci/run`.

    Only these: any other test fails if what it runs imports torch there.
    """
    absent = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    if not absent:
        return
    skip = pytest.mark.skip(reason=f"needs {' and '.join(absent)}")
    for item in items:
        if item.get_closest_marker("needs_torch"):
            item.add_marker(skip)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a slow test for which the others have left `.ci/run` no time."""
    if item.get_closest_marker("slow") and time.time() > float(os.environ.get("FCN_JAX_SLOW_UNTIL", "inf")):
        pytest.skip("slow, and no time is left for it")
