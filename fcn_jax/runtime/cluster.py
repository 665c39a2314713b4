"""Which processes belong together: the command line's answer, and that of SLURM and its like."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from fcn_jax.errors import ConfigError, listing

_MARKS = {
    "SLURM_STEP_NUM_TASKS": "SLURM",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPI",
    "WORLD_SIZE": "torchrun",
}
"""Variables with which launchers tell a process how many there are."""

_INSTEAD = "pass --coordinator HOST:PORT --process-id I --num-processes N"


def checked(given: Mapping[str, Any]) -> tuple[str, int, int]:
    """Return coordinator, number of this process and number of processes.

    Args:
        given: the three by the names of their options; None for those that are not given.

    Raises:
        ConfigError: one is missing or out of range.
    """
    missing = [name for name, value in given.items() if value is None]
    if missing:
        have = [name for name, value in given.items() if value is not None]
        raise ConfigError(
            f"{listing(have)} without {listing(missing)}; give all three, or none, so that SLURM, "
            "Open MPI, Kubernetes and Cloud TPUs are detected"
        )
    address, number, size = given.values()
    host, _, port = address.rpartition(":")
    problems = []
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        problems.append(f"--coordinator {address}: expected HOST:PORT, such as 10.0.0.1:1234")
    if size < 1:
        problems.append(f"--num-processes {size}: expected 1 or more")
    elif not 0 <= number < size:
        problems.append(
            f"--process-id {number}: expected 0 to {size - 1}, as --num-processes is {size}"
        )
    if problems:
        raise ConfigError("; ".join(problems))
    return address, number, size


def detected(seconds: float) -> tuple[str, int, int, Any] | None:
    """Ask JAX whether a launcher has started this process together with others.

    Returns:
        Coordinator, number of processes, number of this process, and the numbers of its devices or
        None for all; or None if this process is alone.

    Raises:
        ConfigError: a launcher's settings cannot be read, or JAX does not know the launcher.
    """
    from jax._src import clusters

    in_job = "JOB_COMPLETION_INDEX" in os.environ
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")  # Kubernetes without the package `kubernetes`
            if not in_job:  # such as a notebook's pod
                stack.enter_context(_without("KUBERNETES_SERVICE_HOST"))
            address, size, number, local = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, max(int(seconds), 1)
            )
    except Exception as error:  # JAX and the clients of clusters raise many types
        raise ConfigError(
            f"JAX cannot read the cluster's settings ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}); {_INSTEAD}, or --num-processes 1 to run "
            "this process alone"
        ) from error
    if address is not None and size is not None and number is not None:
        return address, size, number, local
    for name, launcher in _MARKS.items():
        if os.environ.get(name, "1") not in ("", "1"):
            raise ConfigError(
                f"{launcher} started {os.environ[name]} processes ({name}), which JAX does not "
                f"detect; {_INSTEAD}, or --num-processes 1 to run this process alone"
            )
    if in_job and "KUBERNETES_SERVICE_HOST" in os.environ:
        raise ConfigError(
            "this pod is one of an indexed Kubernetes job, and the package that asks for the "
            f"others is not installed: pip install 'jax[k8s]', or {_INSTEAD[5:]}, or "
            "--num-processes 1 if it is the only one"
        )
    return None


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Hide an environment variable."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value
