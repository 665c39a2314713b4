"""Detection and arguments of several processes. tests/test_hosts.py runs real ones."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fcn_jax.errors import ConfigError
from fcn_jax.runtime import cluster, distributed

LAUNCHERS = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "OMPI_MCA_orte_hnp_uri",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "WORLD_SIZE",
    "KUBERNETES_SERVICE_HOST",
    "JOB_COMPLETION_INDEX",
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without launchers, in which joining would be an error."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "meet", lambda *_: pytest.fail("joined"))


def test_a_plain_process_stays_alone() -> None:
    distributed.join()
    distributed.join(num_processes=1)
    assert (distributed.index(), distributed.count(), distributed.is_first()) == (0, 1, True)
    distributed.leave(0, failed=False)


def test_a_single_process_shares_values_with_itself() -> None:
    assert distributed.exchange([1, "x"]) == [[1, "x"]]
    assert distributed.gather(b"a") == [b"a"]
    assert distributed.first_decides(lambda: {"a": 1}) == {"a": 1}
    counts = np.arange(6).reshape(2, 3)
    distributed.add_up([counts, np.ones((), np.int64)])
    np.testing.assert_array_equal(counts, [[0, 1, 2], [3, 4, 5]])
    distributed.require_same({"a": 1})
    distributed.wait_for_all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.1:1", None, None), "--coordinator without --process-id, --num-processes; give"),
        ((None, 0, 2), "--process-id, --num-processes without --coordinator; give all three"),
        (("10.0.0.1:1", 2, 2), "--process-id 2: expected 0 to 1, as --num-processes is 2"),
        (("10.0.0.1:1", -1, 2), "--process-id -1: expected 0 to 1"),
        (("10.0.0.1:1", 0, 0), "--num-processes 0: expected 1 or more"),
        (
            ("10.0.0.1", 3, 2),
            r"--coordinator 10\.0\.0\.1: expected HOST:PORT, such as .*; --process-id 3: expected",
        ),
        (("host:99999", 0, 2), "--coordinator host:99999: expected HOST:PORT"),
    ],
)
def test_rejects_arguments(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        distributed.join(*arguments)


def test_detects_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_JOB_ID": "4097",
        "SLURM_STEP_NODELIST": "node[3-4]",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert cluster.detected(10) == ("node3:61441", 8, 5, [1])


def test_detects_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "8192.0;tcp://10.96.0.1,10.148.0.1:34911")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    assert cluster.detected(10) == ("10.96.0.1:61442", 4, 3, [1])


def test_a_pod_outside_an_indexed_job_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert cluster.detected(10) is None


def test_says_what_a_pod_of_an_indexed_job_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setitem(sys.modules, "kubernetes", None)  # not installed
    with pytest.raises(ConfigError, match=r"pip install 'jax\[k8s\]', or --coordinator HOST:PORT"):
        cluster.detected(10)


@pytest.mark.parametrize(
    ("name", "launcher"),
    [("OMPI_COMM_WORLD_SIZE", "Open MPI"), ("WORLD_SIZE", "torchrun"), ("PMI_SIZE", "MPI")],
)
def test_rejects_launchers_that_jax_does_not_detect(monkeypatch, name, launcher) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match=f"{launcher} started 2 processes .* pass --coordinator"):
        distributed.join()
    distributed.join(num_processes=1)
    monkeypatch.setenv(name, "1")
    distributed.join()
