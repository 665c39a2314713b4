import pytest

from fcn_jax.report import times
from fcn_jax.report.run import read_runs
from tests.report.conftest import END, RECORDS, START, train


def spent(folder):
    return times.spent(read_runs([folder])[0])


def test_time_is_split_by_work(make_run):
    assert spent(make_run()) == {
        times.COMPUTE: 8 * 0.375,
        times.WAIT: 8 * 0.125,
        times.COMPILE: 10.0,
        times.EVALUATION: 6.0,
        times.CHECKPOINTS: 1.0,
        times.START: 2.0,
        times.OTHER: pytest.approx(30.0 - 23.0),
    }


def test_resumed_runs_count_each_session(make_run):
    records = (
        START,
        train(4),
        {**END, "step": 5, "finished": False, "stopped_by": "SIGTERM", "seconds": 20.0},
        {**START, "step": 5},
        train(8, step_seconds=2.0, input_wait_seconds=0.0),
    )
    found = spent(make_run(records=records))
    assert found[times.COMPILE] == 20.0
    assert found[times.COMPUTE] == 4 * 0.375 + 3 * 2.0
    assert found[times.OTHER] == 0.0, "the second session has not ended, so the rest is unknown"


def test_records_of_older_versions_have_fewer_times(make_run):
    records = [{"step": 0, "event": "compile", "compile_seconds": 3.0}, train(2)]
    found = spent(make_run(records=records))
    assert found[times.COMPILE] == 3.0
    assert found[times.START] == found[times.CHECKPOINTS] == 0.0
    assert sum(spent(make_run("b", records=())).values()) == 0.0
    assert sum(spent(make_run("c", records=RECORDS)).values()) == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.012, "12 ms"),
        (3.14, "3.1 s"),
        (75, "1 min 15 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_in_words(seconds, text):
    assert times.duration(seconds) == text


def test_summary_has_shares_and_goodput(make_run):
    assert times.summary(read_runs([make_run()])[0]) == (
        "time: 30.0 s, of which compilation 33 %, other 23 %, evaluation 20 %, steps 10 %, "
        "starting (data, model, weights) 7 %, waiting for input 3 %, checkpoints 3 %; goodput 10 %"
    )


def test_run_without_records_has_no_summary(make_run):
    assert times.summary(read_runs([make_run("b", records=())])[0]) is None
