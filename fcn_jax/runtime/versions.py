"""Versions of the software that computed a result."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

PACKAGES = (
    "fcn-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "opencv-python-headless",
    "pillow",
)


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each package, None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def own() -> str | None:
    """Return the version of fcn-jax, or None if it is not installed."""
    return package_versions(("fcn-jax",))["fcn-jax"]


def environment() -> dict[str, Any]:
    """Return Python, platform, packages and devices of this process, ready for JSON."""
    import jax

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
    }
