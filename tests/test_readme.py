"""The README's examples and commands work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fcn_jax import cli, recipes

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.slow
def test_example_has_the_shapes_of_its_comments() -> None:
    block = next(
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "build_model" in block
    )
    scope: dict[str, object] = {}
    shown = 0
    for line in block.splitlines():
        code, _, comment = line.partition("#")
        if code.rstrip().endswith(".shape"):
            assert str(eval(code, scope)) == comment.strip()
            shown += 1
        else:
            exec(code, scope)
    assert shown == 2


def test_every_command_parses() -> None:
    commands = re.findall(r"^fcn-jax (.+)$", README, re.MULTILINE)
    assert len(commands) >= 6
    import shlex

    for command in commands:
        cli._parser().parse_args(shlex.split(command))


def test_every_recipe_exists() -> None:
    for name in re.findall(r"fcn-jax train (\w+)", README):
        assert name in recipes.names()
