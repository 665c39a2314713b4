import pytest

from fcn_jax.errors import CheckpointError, ConfigError
from fcn_jax.report.run import read_runs
from tests.report.conftest import END, RECORDS, START, evaluated, train, val


def read(*folders):
    return read_runs(folders)


@pytest.mark.parametrize(
    ("records", "status"),
    [
        (RECORDS, "finished after step 8, epoch 2 of 2"),
        (RECORDS[:-1], "finished after step 8, epoch 2 of 2"),  # of an older version
        (RECORDS[:3], "not finished: step 4, epoch 1 of 2"),
        ((START,), "not finished: step 0, epoch 0 of 2"),
        ((), "no step is recorded yet"),
        (
            (train(3), {**END, "step": 3, "finished": False, "stopped_by": "SIGTERM"}),
            "stopped by SIGTERM after step 3, epoch 0.75 of 2; the same command continues it",
        ),
        (
            (train(4), val(4, 0.5), {**END, "step": 4, "early": True}),
            "ended early after step 4, epoch 1 of 2",
        ),
        (
            (train(4), {**END, "step": 4, "finished": False}, {**START, "step": 4}, train(6)),
            "not finished: step 6, epoch 1.5 of 2",
        ),
    ],
)
def test_status_says_how_far_a_run_is(make_run, records, status):
    assert read(make_run(records=records))[0].status == status


def test_names_are_the_shortest_that_differ(make_run):
    folders = [make_run(name) for name in ("a/camvid", "b/camvid", "b/pets")]
    assert [run.name for run in read(*folders)] == ["a/camvid", "b/camvid", "b/pets"]
    assert [run.name for run in read(*folders[1:])] == ["camvid", "pets"]


def test_newest_evaluation_by_eval_comes_before_that_of_training(make_run):
    folder = make_run()
    (run,) = read(folder)
    assert run.shown.title == "camvid val, step 8, during training"
    assert run.shown.miou == 0.75
    assert run.shown.confusion is None
    counts = evaluated(folder, "training")
    (run,) = read(folder)
    assert run.shown.title == "camvid val, protocol native, 3 images, step 8, during training"
    assert run.shown.confusion == counts.tolist()
    evaluated(folder, images=2)
    evaluated(folder, "training")
    assert read(folder)[0].shown.title == "camvid val, protocol native, 2 images, step 8"


def test_run_without_an_evaluation_shows_none(make_run):
    assert read(make_run(records=RECORDS[:3]))[0].shown is None
    assert read(make_run("b", records=(val(4, None),)))[0].shown is None


def test_damaged_files_are_problems_of_the_run(make_run):
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "ev')
    (folder / "config.json").write_text("{")
    (folder / "versions.json").unlink()
    (run,) = read(folder)
    assert len(run.records) == len(RECORDS)
    config, versions, metrics = run.problems
    assert config.startswith("config.json cannot be read (")
    assert versions == "versions.json cannot be read (No such file or directory)"
    assert metrics == "metrics.jsonl: 1 of 9 lines are damaged, left out"


def test_all_directories_that_are_no_runs_are_named(make_run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError) as caught:
        read(make_run(), *(tmp_path / name for name in ("none", "file", "empty")))
    for complaint in (
        "none: does not exist; expected a run directory (fcn-jax train --workdir); ",
        "file: is a file; expected a run directory",
        "empty: no run (it has neither config.json nor metrics.jsonl)",
    ):
        assert complaint in str(caught.value)


def test_rejects_a_run_that_is_named_twice(make_run):
    folder = make_run()
    with pytest.raises(ConfigError, match="named twice"):
        read(folder, folder / ".." / "run")
