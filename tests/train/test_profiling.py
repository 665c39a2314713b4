"""Traces of training steps."""

import gzip
import json

import pytest

from fcn_jax.cli import main
from fcn_jax.errors import ConfigError
from fcn_jax.train.profiling import Profile, Steps
from tests.helpers import scenes


@pytest.mark.parametrize(
    ("steps", "start", "expected"),
    [
        (Steps(6, 10), 0, range(10, 16)),
        (Steps(5), 0, range(3, 8)),
        (Steps(5), 7, range(10, 15)),
        (Steps(20), 0, range(1, 21)),
        (Steps(1, 20), 19, range(20, 21)),
    ],
)
def test_steps_lie_in_the_run(steps, start, expected):
    assert steps.after(start, total=20) == expected


@pytest.mark.parametrize(
    ("steps", "start", "message"),
    [
        (Steps(6, 16), 0, r"--profile 16:21: the run takes the steps 1 to 20; choose among those"),
        (Steps(2, 5), 5, r"--profile 5:6: the run takes the steps 6 to 20; choose"),
        (Steps(21), 0, r"--profile 21: the run takes the steps 1 to 20; choose"),
        (Steps(1), 20, r"--profile 1: the run has none left"),
    ],
)
def test_steps_outside_the_run_are_refused(steps, start, message):
    with pytest.raises(ConfigError, match=message):
        steps.after(start, total=20)


@pytest.mark.parametrize("text", ["0", "5:3", "a:b", ":", "1:2:3", "-1", ""])
def test_wrong_steps_are_one_line(text, capsys):
    with pytest.raises(SystemExit):
        main(["train", "shapes", f"--profile={text}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"invalid steps '{text}', expected FIRST:LAST, such as 10:15" in error


def trace_of(run):
    (path,) = run.rglob("perfetto_trace.json.gz")
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def test_trace_has_the_steps(tmp_path):
    lines = []
    profile = Profile(tmp_path, range(2, 4), lines.append)
    for number in range(1, 6):
        profile.before_step(number)
        profile.after_step(number, None)
    profile.close()
    marked = [event for event in trace_of(tmp_path) if event.get("name") == "train"]
    assert {event["args"]["step_num"] for event in marked} == {"2", "3"}
    (line,) = lines
    assert "profile of 2 steps from 2 on: open " in line
    assert "https://ui.perfetto.dev" in line
    assert list(tmp_path.rglob("*.xplane.pb")), "for XProf"


def test_trace_is_written_if_the_run_ends_early(tmp_path):
    lines = []
    profile = Profile(tmp_path, range(1, 9), lines.append)
    profile.before_step(1)
    profile.close()
    assert trace_of(tmp_path)
    assert len(lines) == 1


def test_failure_is_a_warning(tmp_path):
    (tmp_path / "profile").write_text("a file, not a folder")
    lines = []
    profile = Profile(tmp_path, range(1, 2), lines.append)
    profile.before_step(1)
    profile.after_step(1, None)
    assert [line for line in lines if line.startswith("warning: the profile cannot be written")]


@pytest.mark.usefixtures("tiny_plugin")
def test_training_writes_a_trace_and_says_where_the_time_went(tmp_path, capsys):
    data = scenes.write_scenes(tmp_path / "data", train=8, val=1)
    recipe = scenes.write_recipe(tmp_path)
    run = tmp_path / "run"
    more = ("--profile", "2:3", "--set", "data.batch_size=2", "--set", "train.epochs=1")
    assert main(scenes.arguments(recipe, data, run, *more)) == 0
    captured = capsys.readouterr()
    marked = [event for event in trace_of(run) if event.get("name") == "train"]
    assert {event["args"]["step_num"] for event in marked} == {"2", "3"}
    assert "profile of 2 steps from 2 on" in captured.err + captured.out
    (line,) = [line for line in captured.out.splitlines() if line.startswith("time: ")]
    assert "compilation " in line
    assert "; goodput " in line
