"""docs/verify.md: its blocks run, and it describes every flag of the command."""

import argparse
import re
from pathlib import Path

import pytest

from fcn_jax import cli

pytest.importorskip("torch")

GUIDE = (Path(__file__).parents[2] / "docs" / "verify.md").read_text()


@pytest.mark.slow
def test_blocks_of_the_guide_run():
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    namespace = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, "docs/verify.md", "exec"), namespace)


def test_describes_the_flags_of_the_command():
    commands = next(
        action
        for action in cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    actions = commands.choices["verify"]._actions
    flags = {flag for action in actions for flag in action.option_strings} - {"-h", "--help"}
    section = GUIDE.partition("## The command")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `--")]
    described = {flag for row in rows for flag in re.findall(r"--[a-z-]+", row.split(" | ")[0])}
    assert described == flags
    for action in actions:
        row = next((row for row in rows if action.option_strings[-1] in row), "")
        for choice in action.choices or ():
            assert choice in row, "each choice of a flag is named"
