"""SIGKILL of a real process inside a save, or while it deletes: earlier checkpoints stay usable."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_jax import checkpoint
from tests.checkpoint import saves_and_restores as both
from tests.checkpoint.test_topology import here
from tests.helpers import scenes

SAVES = """
import sys, time
from pathlib import Path
import jax
import fcn_jax.checkpoint.files, fcn_jax.checkpoint.place, fcn_jax.runtime.atomic
from fcn_jax import checkpoint
from tests.checkpoint import saves_and_restores as both

on, run, step = both.mesh(jax.local_devices(), 1), Path(sys.argv[1]), both.STEP
both.save(run, on)
checkpoints = checkpoint.Checkpoints(run, checkpoint.Retention(latest=1, best=0))

def killed_here(*_, **__):
    print("now", flush=True)
    time.sleep(100)

{hook}
spec = checkpoint.read_spec(checkpoint.find(run))
checkpoints.save(step + 1, **both.trees(on, filled=True), data={{"next_batch": 7}}, spec=spec)
checkpoints.score(step + 1, 0.5)
checkpoints.finish()
"""

HOOKS = {
    "the arrays are being written": (
        "import orbax.checkpoint as ocp\n"
        "ocp.JsonCheckpointHandler.finalize = ocp.StandardCheckpointHandler.finalize = killed_here",
        False,
    ),
    "the list of files is missing": ("fcn_jax.checkpoint.files.list_files = killed_here", False),
    "the score is half written": ("fcn_jax.runtime.atomic.os.replace = replace", True),
    "the older one is being deleted": ("fcn_jax.checkpoint.place.shutil.rmtree = rmtree", True),
}
REPLACE = """
import os
whole = os.replace
def replace(source, target):
    return killed_here() if str(target).endswith("score.json") else whole(source, target)

def rmtree(path, **_):
    return killed_here() if path.exists() else None
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", HOOKS)
def test_a_kill_leaves_a_usable_checkpoint_and_no_leftovers(moment: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hook, is_complete = HOOKS[moment]
    process = subprocess.Popen(
        [sys.executable, "-c", SAVES.format(hook=REPLACE + hook), str(run)],
        cwd=Path(__file__).parents[2],
        env=scenes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert said == "now\n", err
    steps = run / "checkpoints"
    left = sorted(path.name for path in steps.rglob("*"))

    if not is_complete:  # the newest checkpoint of the next process is the one before
        assert any("tmp" in name for name in left)
        both.check(run, here())
        assert [path.name for path in steps.iterdir()] == [str(both.STEP)]
        return
    checkpoints = checkpoint.Checkpoints(run, checkpoint.Retention(latest=1, best=0))
    found = checkpoints.restore(**both.trees(here(), filled=False))
    checkpoints.close()
    assert found is not None
    assert (found.step, found.data, found.skipped) == (both.STEP + 1, {"next_batch": 7}, ())
    assert [path.name for path in steps.iterdir()] == [str(both.STEP + 1)]
    assert not list(steps.rglob(".score.*"))
