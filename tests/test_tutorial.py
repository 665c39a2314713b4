"""Runs docs/tutorial.md: its commands in order, and compares the lines that they print."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from fcn_jax import cli

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE
)
QUICK = ("model.backbone=tiny", "train.epochs=1", "data.crop_size=[32,32]")


def run_page(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *settings: str
) -> None:
    """Run the page in the current folder; `settings` are further ones of `fcn-jax train`."""
    more = [word for setting in settings for word in ("--set", setting)]
    printed, lines = "", 0
    for kind, text in BLOCKS:
        if kind == "text":
            for line in text.splitlines():
                if not more or not line.startswith(("data.crop_size", "train.")):
                    assert line in printed, line
                    lines += 1
        elif kind == "python":
            exec(text, {})
        else:
            for command in text.splitlines():
                program, *words = shlex.split(command)
                if program == "python":
                    monkeypatch.setattr(sys, "argv", words)
                    runpy.run_path(str(ROOT / words[0]), run_name="__main__")
                else:
                    assert program == "fcn-jax"
                    assert cli.main([*words, *(more if words[0] == "train" else ())]) == 0, command
            captured = capfd.readouterr()
            printed = captured.out + captured.err
    assert lines >= 4
    for stem in range(60, 64):
        with Image.open(Path("masks") / f"photo_{stem}.png") as mask:
            assert mask.size == (160, 120)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))


def test_commands_of_the_page_parse() -> None:
    commands = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    assert len(commands) == 5
    for command in commands:
        if command.startswith("fcn-jax"):
            cli._parser().parse_args(shlex.split(command)[1:])


def test_page_runs_with_a_small_network(tiny_plugin, monkeypatch, capfd) -> None:
    run_page(monkeypatch, capfd, *QUICK)


@pytest.mark.slow
def test_page_runs_as_it_is(monkeypatch, capfd) -> None:
    run_page(monkeypatch, capfd)
