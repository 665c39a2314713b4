"""A process that restores a checkpoint onto its devices and saves another one, for the tests.

Arguments: a JSON object with "restore" and "save" (run directories, or null), "fsdp" (devices over
which arrays are split), and for several processes "coordinator", "processes", "process".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fcn_jax import checkpoint
from fcn_jax.api import Classes, ModelSpec

STEP = 6
SPEC, CLASSES = ModelSpec("resnet18", "fcn32s", 2), Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)))
SHAPES = {"backbone.kernel": (3, 3, 8, 16), "backbone.scale": (16,), "head.bias": ()}


def values(name: str) -> np.ndarray:
    """Return the values of an array, of which none are equal."""
    shape = SHAPES[name]
    rng = np.random.default_rng(list(SHAPES).index(name))
    return rng.standard_normal(shape).astype(np.float32)


def mesh(devices: Any, fsdp: int) -> Mesh:
    """Return a mesh with the axes `data` and `fsdp`."""
    axes = (AxisType.Auto, AxisType.Auto)
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=axes, devices=devices)


def trees(on: Mesh, *, filled: bool) -> dict[str, Any]:
    """Return model, training state and averages on a mesh: their values, or zeros.

    The last axis of arrays with four axes is split over `fsdp`; the others are on every device.
    """

    def placed(name: str, factor: float = 1.0) -> jax.Array:
        value = values(name) * np.float32(factor if filled else 0.0)
        parts = PartitionSpec(*([None] * 3), "fsdp") if value.ndim == 4 else PartitionSpec()
        sharding = NamedSharding(on, parts)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    step = jax.make_array_from_callback(
        (), NamedSharding(on, PartitionSpec()), lambda _: np.int32(STEP if filled else 0)
    )
    return {
        "model": {name: placed(name) for name in SHAPES},
        "train": {"step": step, "opt_state": ({"trace": {n: placed(n, 2) for n in SHAPES}}, step)},
        "ema": {name: placed(name, 0.5) for name in SHAPES},
    }


def save(run: Path, on: Mesh) -> None:
    """Save the values."""
    spec = checkpoint.make_spec(SPEC, CLASSES)
    run.mkdir(parents=True, exist_ok=True)
    checkpoints = checkpoint.Checkpoints(run)
    checkpoints.save(STEP, **trees(on, filled=True), data={"next_batch": STEP}, spec=spec)
    checkpoints.close()


def check(run: Path, on: Mesh) -> None:
    """Restore onto a mesh. Values are equal bit for bit, and placed as on this mesh."""
    start = trees(on, filled=False)
    checkpoints = checkpoint.Checkpoints(run)
    found = checkpoints.restore(**start)
    checkpoints.close()
    assert found is not None
    assert (found.step, found.data, found.skipped) == (STEP, {"next_batch": STEP}, ())
    restored = {"model": found.model, "train": found.train, "ema": found.ema}
    expected = trees(on, filled=True)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(expected), strict=True
    ):
        where = jax.tree_util.keystr(path)
        assert one.dtype == other.dtype, where
        assert one.sharding == other.sharding, where
        for mine, right in zip(one.addressable_shards, other.addressable_shards, strict=True):
            np.testing.assert_array_equal(mine.data, right.data, err_msg=where)


def main() -> None:
    """Do what the argument says."""
    asked = json.loads(sys.argv[1])
    if "coordinator" in asked:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(asked["coordinator"], asked["processes"], asked["process"])
    on = mesh(jax.devices(), asked["fsdp"])
    if asked.get("restore"):
        check(Path(asked["restore"]), on)
    if asked.get("save"):
        save(Path(asked["save"]), on)
    print(f"done on {len(jax.devices())} devices")


if __name__ == "__main__":
    main()
