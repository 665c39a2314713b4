"""The fixture `verify_port`, in test suites of its own."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")

SUITE = """
import numpy as np
import pytest
import torch
from flax import nnx

from fcn_jax.pytorch.rules import LINEAR, Rule, Table

RULES = Table(Rule("weight", "kernel", LINEAR), Rule("bias", "bias"))
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


class Wrong(nnx.Linear):
    def __call__(self, x):
        return super().__call__(x) * 1.001


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_port(verify_port, kind):
    port = (nnx.Linear if kind == "right" else Wrong)(4, 5, rngs=nnx.Rngs(0))
    report = verify_port(torch.nn.Linear(4, 5), port, X, rules=RULES, grad=False, subject="mine")
    assert report.equal
    verify_port(torch.nn.Linear(4, 5), port, X, rules=RULES, grad=False)
"""


def test_fails_with_the_report_and_writes_all_reports(pytester):
    pytester.makepyfile(test_mine=SUITE)
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--verify-reports", "reports/x")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["NOT EQUAL: mine in float32: output: error 1.0e-03*"])
    done.stdout.no_fnmatch_line("*def verify*")  # no traceback of the fixture
    reports = sorted((pytester.path / "reports" / "x").iterdir())
    assert [path.name for path in reports] == [
        "test_mine.py_test_port_right_-2.json",
        "test_mine.py_test_port_right_.json",
        "test_mine.py_test_port_wrong_.json",
    ]
    tables = [json.loads(path.read_text()) for path in reports]
    assert [table["verdict"] for table in tables] == ["equal", "equal", "not equal"]
    assert tables[2]["sources"].keys() == {"fcn_jax/pytorch/rules.py", "test_mine.py"}


def test_writes_nothing_by_default(pytester):
    pytester.makepyfile(test_mine=SUITE)
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "right")
    done.assert_outcomes(passed=1, deselected=1)
    assert [path.name for path in pytester.path.iterdir() if path.suffix == ".json"] == []


def test_plugin_is_imported_without_jax():
    code = (
        "import sys, fcn_jax.plugins.testing.pytest_plugin;"
        "print(sorted({'jax', 'flax', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
