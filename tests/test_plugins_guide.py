"""Runs docs/plugins.md: writes its files, runs its commands in order, compares the output."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_jax import cli

GUIDE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_commands_of_the_guide_parse() -> None:
    commands = [
        line
        for kind, text in BLOCKS
        if kind == "sh"
        for line in text.splitlines()
        if "fcn-jax " in line
    ]
    found = [shlex.split(line, comments=True) for line in commands]
    mine = [words[words.index("fcn-jax") + 1 :] for words in found if "fcn-jax" in words]
    assert len(mine) >= 12
    for words in mine:
        cli._parser().parse_args(words)


def write_tools(folder: Path, site: Path) -> None:
    """Write `fcn-jax`, `python` and `pip`; pip installs into `site`, without a network."""
    folder.mkdir()
    python = shlex.quote(sys.executable)
    pip = (
        f"{python} -m pip install -q --disable-pip-version-check --no-index --no-deps "
        "--no-build-isolation"
    )
    scripts = {
        "fcn-jax": f'exec {python} -m fcn_jax "$@"',
        "python": f'exec {python} "$@"',
        "pip": f'exec {pip} --target {shlex.quote(str(site))} "./${{@: -1}}"',
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (folder / name).chmod(0o755)


@pytest.mark.slow
@pytest.mark.needs_torch
def test_guide_runs(tmp_path: Path) -> None:
    work, site, tools = tmp_path / "work", tmp_path / "site", tmp_path / "bin"
    work.mkdir()
    write_tools(tools, site)
    # A project that `pip install -e` installs is imported from its own folder.
    path = os.pathsep.join(
        filter(None, [str(work / "fcn-jax-pebble"), str(site), os.environ.get("PYTHONPATH", "")])
    )
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": path,
        "FCN_JAX_CACHE": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    shown = ""
    for kind, text in BLOCKS:
        place = re.match(r"# (file|add to): (\S+)\n", text)
        if place:
            target = work / place[2]
            target.parent.mkdir(exist_ok=True)
            before = target.read_text() if place[1] == "add to" else ""
            target.write_text(before + text)
        elif kind == "text":
            assert text in shown
        else:
            command = ["bash", "-e", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
            done = subprocess.run(
                command,
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            shown = done.stdout
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
