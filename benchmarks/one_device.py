"""What the code for many devices costs on one device: `python -m benchmarks.one_device`.

    python -m benchmarks.one_device --batch 2 --size 96 128 --rounds 20

Three forms of one training step take the same batches in turn, each from its own state:

* alone: the step as it is without a placement, compiled by `jax.jit`, and batches that are moved to
  the default device;
* library: what `fcn-jax train` does with one device: the placement of the section `mesh`, its
  batches, and the request to stop, which processes agree on;
* mesh: the step that is compiled for a mesh of one device, as larger meshes are.

The times of a round are paired, so that other load on the machine affects all three. The result is
the median of the ratios to "alone", with their quartiles, and the largest difference of the losses.
A row for each setting is written to benchmarks/results/one_device_cpu.json, or one_device_gpu.json
on a GPU; other rows in it stay.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.arguments import Parser
from benchmarks.jax_tasks import compiled_step
from benchmarks.record import RESULTS, environment, keep
from benchmarks.setting import Setting, training_step
from benchmarks.timing import interleaved
from fcn_jax.config import MeshConfig
from fcn_jax.runtime import process
from fcn_jax.runtime.compiler import compiler_options
from fcn_jax.train.processes import AgreedStop, place_batch, place_state
from fcn_jax.train.sharding import make_placement
from fcn_jax.train.signals import StopRequest


class Contender:
    """One form of the step, with its state.

    Attributes:
        losses: of all steps.
    """

    def __init__(self, form: str, setting: Setting) -> None:
        """Compile the step in a form: "alone", "library" or "mesh"."""
        self.losses: list[float] = []
        self._batch = {"image": setting.images(), "mask": setting.labels()}
        self._rows = setting.batch
        self._placement = make_placement(MeshConfig(), setting.batch)
        self._put: Callable[[], Any] = {
            "alone": self._alone,
            "library": self._library,
            "mesh": self._mesh,
        }[form]
        self._stop = AgreedStop(StopRequest()) if form == "library" else None
        placement = None if form == "alone" else self._placement
        state, step = training_step(setting, setting.build(), placement=placement)
        if form == "library":
            state = place_state(state, self._placement)
        if form == "mesh":
            state = jax.device_put(state, NamedSharding(self._placement.mesh, PartitionSpec()))
        self._state = state
        self._step = compiled_step(step, state, self._put(), compiler_options())

    def __call__(self) -> None:
        """Take a step from a batch in the memory of the host."""
        if self._stop is not None and self._stop.is_reached():
            raise KeyboardInterrupt
        self._state, metrics = self._step(self._state, self._put())
        jax.block_until_ready(self._state)
        self.losses.append(float(metrics["loss"]))

    def _alone(self) -> Any:
        return jax.device_put(self._batch)

    def _library(self) -> Any:
        return place_batch(self._batch, self._placement, None, self._rows)

    def _mesh(self) -> Any:
        split = NamedSharding(self._placement.mesh, PartitionSpec(("data", "fsdp"), "spatial"))
        return jax.device_put(self._batch, split)


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Time the three forms in turn.

    Returns:
        The figures, ready for JSON.
    """
    contenders = {form: Contender(form, setting) for form in ("alone", "library", "mesh")}
    timings = interleaved(contenders, rounds)
    alone = timings["alone"].seconds
    ratios = {
        form: [own / other for own, other in zip(timings[form].seconds, alone, strict=True)]
        for form in ("library", "mesh")
    }
    losses = np.array([contender.losses for contender in contenders.values()])
    return {
        "seconds": {form: timing.median for form, timing in timings.items()},
        "ratio": {form: statistics.median(found) for form, found in ratios.items()},
        "quartiles": {
            form: statistics.quantiles(found, n=4, method="inclusive")[::2]
            for form, found in ratios.items()
        },
        "largest_difference_of_losses": float(np.abs(losses - losses[0]).max()),
        "rounds": rounds,
    }


def main() -> None:
    """Measure, print and write a row.

    Raises:
        SystemExit: there are several devices.
    """
    parser = Parser("benchmarks.one_device", __doc__)
    parser.add_argument("--model", default="resnet18", help="registered backbone")
    parser.add_setting(batch=2)
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each form")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    process.configure_process(trains=True)
    if jax.device_count() > 1:
        raise SystemExit(f"one device is needed, and JAX has {jax.device_count()}")
    setting = Setting(args.model, args.batch, tuple(args.size), args.dtype)
    row = measure(setting, args.rounds)
    name = "cpu" if jax.default_backend() == "cpu" else "gpu"
    out = args.out or RESULTS / f"one_device_{name}.json"
    key = {"model": args.model, "batch": args.batch, "size": args.size, "dtype": args.dtype}
    keep(out, key, row | {"environment": environment({"gpu": "cuda"}.get(name, name))})
    for form in row["ratio"]:
        low, high = row["quartiles"][form]
        print(f"{form}: {row['ratio'][form]:.3f} of alone (quartiles {low:.3f} to {high:.3f})")
    print(f"alone: {row['seconds']['alone']:.4f} s for a step\nwritten: {out}")


if __name__ == "__main__":
    main()
