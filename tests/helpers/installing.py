"""Distributions that a test creates or installs, and processes that can import them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from fcn_jax.plugins.registry import Entry, Registry, read_metadata

GOOD = """
    from fcn_jax.api import Backbone

    NET = Backbone(
        name="net",
        summary="a net",
        features=lambda options, output_stride: (),
        build=lambda *args, **kwargs: None,
    )
"""
"""Code of a module with a backbone `NET` that does nothing."""


class Site:
    """A folder on the import path, with modules and installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, name: str, code: str) -> None:
        (self.folder / f"{name}.py").write_text(textwrap.dedent(code))

    def distribution(self, name: str, version: str, **groups: dict[str, str]) -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for kind, entries in groups.items():
            lines += [f"[fcn_jax.{kind}]", *(f"{key} = {value}" for key, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    def entries(self) -> list[Entry]:
        return read_metadata(metadata.distributions(path=[str(self.folder)]))[0]

    def registry(self, disable: str = "") -> Registry:
        return Registry(self.entries(), disable=disable)


def install(site: Path, *projects: Path, scratch: Path) -> None:
    """Install copies of projects into `site` by pip, so that the projects are not changed."""
    copies = [scratch / project.name for project in projects]
    for project, copy in zip(projects, copies, strict=True):
        shutil.copytree(
            project, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
        )
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
    ]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", str(site), *map(str, copies)],
        check=True,
    )


def run(
    command: Sequence[str], site: Path, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in `folder` and wait; the distributions in `site` are installed."""
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
