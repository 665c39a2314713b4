"""Settings of all tests, including those of the plugins."""

import gc
import hashlib
import importlib.util
import os
import platform
import time
from collections.abc import Generator
from importlib import metadata
from pathlib import Path

import hypothesis
import pytest


def _compiled_programs() -> Path:
    """Return the folder of compiled programs for these releases and this processor.

    JAX's own keys name the program, its options and the releases. They do not name the processor,
    and a checkout may be used on several.
    """
    processor = Path("/proc/cpuinfo")
    text = processor.read_text() if processor.exists() else platform.processor()
    flags = next(
        (line for line in text.splitlines() if line.startswith(("flags", "Features"))), text
    )
    kind = hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
    releases = "-".join(f"{name}{metadata.version(name)}" for name in ("jax", "jaxlib"))
    return Path(__file__).parent / ".pytest_cache" / "xla" / f"{releases}-{kind}"


# These are set before jax is imported. Processes that tests start inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled programs are kept for the next run. The user's cache is neither read nor written.
# `FCN_JAX_TEST_CACHE` selects another folder; if it is empty, no programs are kept.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "FCN_JAX_TEST_CACHE", str(_compiled_programs())
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

pytest_plugins = ["pytester"]

LOWERING = """\
The form of a compiled program or its text has changed. The results may still be right. If a new
release of JAX writes the same form in another way, change the test. If the program has lost the
form, measure its speed."""

hypothesis.settings.register_profile(
    "default", max_examples=12, deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """Record error messages if `FCN_JAX_MESSAGES` names a file for them."""
    path = os.environ.get("FCN_JAX_MESSAGES")
    if path:
        from tests.helpers import messages

        config.pluginmanager.register(messages.Recorder(Path(path)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `needs_torch` where PyTorch is not installed.

    Without PyTorch, any other test that imports torch fails.
    """
    absent = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    if not absent:
        return
    skip = pytest.mark.skip(reason=f"needs {' and '.join(absent)}")
    for item in items:
        if item.get_closest_marker("needs_torch"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection, which takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip slow tests after `FCN_JAX_SLOW_UNTIL`, in seconds since 1970."""
    if item.get_closest_marker("slow") and time.time() > float(
        os.environ.get("FCN_JAX_SLOW_UNTIL", "inf")
    ):
        pytest.skip("slow, and no time is left for it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Explain the failure of a test marked `lowering`."""
    report = yield
    if report.failed and item.get_closest_marker("lowering"):
        report.sections.append(("how to read this", LOWERING))
    return report
