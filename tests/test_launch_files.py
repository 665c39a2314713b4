"""The files of docs/launch can be used as they are. tests/test_hosts.py trains with two of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fcn_jax.cli import _parser

FOLDER = Path(__file__).parents[1] / "docs" / "launch"


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "tpu_vm.sh"])
def test_scripts_are_valid_bash(name: str) -> None:
    checked = subprocess.run(["bash", "-n", FOLDER / name], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_jobset_starts_as_many_processes_as_pods() -> None:
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    words = container["command"][2].replace('"$JOB_COMPLETION_INDEX"', "1").split()
    assert words[:2] == ["exec", "fcn-jax"]
    args = _parser().parse_args(words[2:])
    # The host name that JobSet gives to the first pod: SET-GROUP-JOB-POD.SET.
    name = jobset["metadata"]["name"]
    host, port = args.coordinator.split(":")
    assert host == f"{name}-{group['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    assert args.num_processes == job["parallelism"] == job["completions"]
    assert job["completionMode"] == "Indexed"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert str(args.workdir).startswith(mounts["runs"])
    assert args.data.startswith(mounts["data"])


def test_tpu_script_runs_a_valid_command_on_all_hosts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> "{log}"\n')
    gcloud.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "TPU": "pod",
        "ZONE": "us-central2-b",
    }
    subprocess.run(["bash", FOLDER / "tpu_vm.sh"], env=environment, check=True)
    *_, last = log.read_text().splitlines()
    start = "compute tpus tpu-vm ssh pod --zone us-central2-b --worker=all --command fcn-jax "
    assert last.startswith(start)
    args = _parser().parse_args([word.strip("'") for word in last.removeprefix(start).split()])
    assert (args.recipe, args.coordinator) == ("camvid", None)
