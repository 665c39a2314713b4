"""The blocks of docs/verify.md run."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

GUIDE = (Path(__file__).parents[2] / "docs" / "verify.md").read_text()


@pytest.mark.slow
def test_blocks_of_the_guide_run():
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    namespace = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, "docs/verify.md", "exec"), namespace)
