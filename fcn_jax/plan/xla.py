"""XLA's own figures for the training step of a plan, from compiling it.

For TPUs, the package libtpu compiles for chips that need not be present. Otherwise the step is
compiled for the device at hand, with the images of one device of the plan.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, SingleDeviceSharding

from fcn_jax.config import Config
from fcn_jax.errors import ConfigError
from fcn_jax.plan import training
from fcn_jax.plan.plan import Plan, one_device
from fcn_jax.runtime.compiler import compiler_options
from fcn_jax.train import auto
from fcn_jax.train.sharding import AXES, Placement

_SLICES = {
    2: ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
}
"""TPU slices of 4 to 256 chips, by the number of axes of the pod's torus."""
_AXES = {"TPUv4": 3, "TPUv5p": 3, "TPUv5e": 2, "TPUv6e": 2}


def uses_libtpu(platform: str) -> bool:
    """Return whether `figures` compiles for absent TPUs instead of the device at hand."""
    return platform == "tpu" and importlib.util.find_spec("libtpu") is not None


def figures(config: Config, plan: Plan, classes: int | None = None) -> dict[str, Any]:
    """Compile the step and return XLA's figures for one device, ready for JSON.

    Args:
        config: the recipe.
        plan: the plan of the recipe.
        classes: as in `fcn_jax.plan.plan.plan`.

    Returns:
        "device", "devices", "compile_seconds", "flops", "bytes", "memory" in bytes, and "planned":
        flops, bytes and memory by the plan's method for the platform that was compiled for.

    Raises:
        ConfigError: there is no slice of so many chips.
    """
    if classes is None:
        classes = training.number_of_classes(config)
    config = auto.provisional(config)
    # On one device, as many images and rows as the plan has there, in the platform's own forms.
    small = one_device(config, plan.mesh)
    options: dict[str, str] = {}
    if uses_libtpu(plan.kind.platform):
        platform, devices = "tpu", _slice(plan)
    else:
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        devices, options = jax.devices()[:1], compiler_options()
    if len(devices) > 1:
        shape = np.array(devices).reshape(tuple(plan.mesh.values()))
        mesh = Mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        placement = Placement(mesh, config.mesh.fsdp_min_mib)
        made = training.make(config, classes, plan.here.images, platform, placement)
        arguments = _placed(made.state, placement.of(made.state)), made.batch
    else:
        made = training.make(small, classes, plan.images, platform)
        shapes = made.state, made.batch
        where = SingleDeviceSharding(devices[0])
        arguments = _placed(shapes, jax.tree.map(lambda _: where, shapes))
    began = time.perf_counter()
    program = jax.jit(made.step, donate_argnums=0, compiler_options=options)
    compiled = program.lower(*arguments).compile()
    seconds = time.perf_counter() - began
    # Not every platform has them, but CPUs, GPUs and TPUs do.
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    own = training.trace(small, classes, plan.images, platform)
    alone = Placement(
        AbstractMesh(tuple(plan.mesh.values()), AXES, (AxisType.Auto,) * 3),
        config.mesh.fsdp_min_mib,
    )
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "compile_seconds": seconds,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "memory": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "all_reduces": len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text() or "")),
        "planned": {
            "flops": sum(own.work.flops.values()),
            "bytes": own.work.bytes,
            "memory": sum(own.parts(alone).values()),
        },
    }


def _placed(tree: Any, places: Any) -> Any:
    """Shapes with their places, a tree of the same structure."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


def text(figures: dict[str, Any]) -> str:
    """Return the figures as lines for people."""
    own = figures["planned"]
    lines = [
        f"compiled for {figures['devices']} x {figures['device']} in "
        f"{figures['compile_seconds']:.0f} s: XLA's figures, and the plan's for the same device"
    ]
    for name, unit, factor in (
        ("flops", "TFLOP", 1e12),
        ("bytes", "GB read and written", 1e9),
        ("memory", "GB of memory", 1e9),
    ):
        lines.append(f"  {figures[name] / factor:9.3g}  {own[name] / factor:9.3g}  {unit}")
    if figures["devices"] > 1:
        lines.append(f"  {figures['all_reduces']:9}             all-reduces")
    return "\n".join(lines)


def _slice(plan: Plan) -> Sequence[Any]:
    """The chips of the smallest slice, of which a plan for a single one takes one."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no query of the cloud's metadata server
    names = _SLICES[_AXES[plan.kind.name]]
    by_count = {math.prod(map(int, name.split("x"))): name for name in names}
    count = max(plan.devices, min(by_count))
    if count not in by_count or (plan.devices != count and plan.devices != 1):
        raise ConfigError(
            f"--compile: no slice of {plan.devices} {plan.kind.name}; compile for 1, "
            f"{', '.join(map(str, by_count))} of them"
        )
    name = f"{plan.kind.name.removeprefix('TPU')}:{by_count[count]}"
    found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return found[: plan.devices]
