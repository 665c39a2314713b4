"""Distributions installed for one test: into a folder of their own, without a network, and processes that see it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def install(site: Path, *projects: Path, scratch: Path) -> None:
    """Install projects into `site` by pip. They are built from copies, so that nothing is left in the originals."""
    copies = [scratch / project.name for project in projects]
    for project, copy in zip(projects, copies, strict=True):
        shutil.copytree(project, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(site), *map(str, copies)], check=True)


def run(command: Sequence[str], site: Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` where what `site` holds is installed, in `folder`; to its end."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
