"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

from fcn_jax import cli, recipes

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_chapters_walk_gives_the_shapes_it_says() -> None:
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


def test_every_command_shown_parses() -> None:
    commands = re.findall(r"^fcn-jax (.+)$", README, re.MULTILINE)
    assert len(commands) >= 6
    import shlex

    for command in commands:
        cli._parser().parse_args(shlex.split(command))


def test_every_recipe_named_exists() -> None:
    for name in re.findall(r"fcn-jax train (\w+)", README):
        assert name in recipes.names()
