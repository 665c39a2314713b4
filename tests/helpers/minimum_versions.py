"""Print a constraint file with the lowest releases that pyproject.toml allows.

`make test-minimum` installs these. It runs this file directly, which requires no installed package.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def minimum_versions(requirements: list[str]) -> Iterator[str]:
    """Yield `name==release` for each requirement `name>=release`; skip other requirements."""
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if match:
            yield f"{match[1]}=={match[2]}"


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    print("\n".join(minimum_versions([*project["dependencies"], *extras["test"]])))
