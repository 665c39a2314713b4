"""Settings of all tests, the plugins' too: numerics on the CPU at full precision, and until when slow ones begin."""

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
    """The folder of compiled programs in pytest's cache: of these releases of JAX and this kind of processor.

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


# Before jax is imported anywhere, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what the tests do: programs are kept for the next run. Nothing comes from the
# user's own cache, and nothing goes there. `FCN_JAX_TEST_CACHE` names another folder; if it is
# empty, nothing is kept.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "FCN_JAX_TEST_CACHE", str(_compiled_programs())
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

LOWERING = (
    "The form of a compiled program has changed, or the text that describes it. The results may still be right.\n"
    "Does a new release of JAX write the same form in another way? Then change the test. Is the form lost? Then measure the speed."
)

hypothesis.settings.register_profile(
    "default", max_examples=12, deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `needs_torch` where PyTorch is not installed.

    So it is in the second environment of `.ci/run`. Any other test fails there if it imports torch.
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
    if item.get_closest_marker("slow") and time.time() > float(
        os.environ.get("FCN_JAX_SLOW_UNTIL", "inf")
    ):
        pytest.skip("slow, and no time is left for it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say of a failed test marked `lowering` how to read the failure."""
    report = yield
    if report.failed and item.get_closest_marker("lowering"):
        report.sections.append(("how to read this", LOWERING))
    return report
