"""Compile for TPUs on a machine without a TPU: `python -m benchmarks.tpu_aot`.

    python -m benchmarks.tpu_aot       # three kinds of chip, about an hour on two cores
    python -m benchmarks.tpu_aot --topology v5e:2x2 --chips one
    # Slices of 4, 64 and 256 chips with the splits of docs/devices.md, at the least effort of the
    # compiler: ten minutes each on a third of a core.
    JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1 JAX_MEMORY_FITTING_EFFORT=-1 \
    python -m benchmarks.tpu_aot --topology v5e:2x2 --topology v5e:8x8 --topology v5e:16x16 \
        --program training --chips slice --mesh data --mesh fsdp --mesh spatial \
        --batch 16 --size 256 64 --out benchmarks/results/tpu_slices.json

The package libtpu can compile for a topology that is not present (`make bench-tpu-aot` installs
it). The programs are the library's training step, with donated state, and its Predictor, both for
ResNet-18 FCN-32s in bfloat16. Each is compiled for one chip and for all chips of the topology,
data-parallel or as `--mesh` says. The results have the compiler's FLOPs, bytes, memory, collectives
and estimated cycles. The estimates can compare forms of one computation. They do not predict
seconds, and some instructions have none.

A second part compares the forms of stem, pooling, head and loss that the library can choose. Each
row is written to benchmarks/results/tpu_aot.json at once, so that a run can be stopped.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# These are set before jax is imported. Otherwise libtpu queries the cloud's metadata server.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.arguments import Parser
from benchmarks.forms import cases
from benchmarks.hlo import Program
from benchmarks.setting import Setting, training_step
from fcn_jax import nn
from fcn_jax.eval.predictor import Predictor
from fcn_jax.runtime.atomic import write_json
from fcn_jax.runtime.versions import package_versions
from fcn_jax.train.sharding import AXES, Placement

RESULTS = Path(__file__).parent / "results" / "tpu_aot.json"
TOPOLOGIES = {"v5e:2x2": 16, "v6e:2x4": 32, "v5p:2x2x1": 95}
"""Topology -> memory of one chip in GB."""

SLICES = {"v5e:8x8": 16, "v5e:16x16": 16}
"""Larger slices, which are compiled only if they are named."""

MESHES: dict[str, Callable[[int], tuple[int, int, int]]] = {
    "data": lambda chips: (chips, 1, 1),
    "fsdp": lambda chips: (chips // min(chips, 8), min(chips, 8), 1),
    "spatial": lambda chips: (chips // 2, 1, 2) if chips > 1 else (1, 1, 1),
}
"""Name -> sizes of the mesh's axes data, fsdp and spatial for a number of chips."""

PROGRAMS = ("training", "mask")
PACKAGES = ("fcn-jax", "jax", "jaxlib", "libtpu", "flax", "optax")


def model_flops(setting: Setting, training: bool) -> float:
    """Return the floating-point operations of a ResNet of basic blocks with the product head.

    A multiply-add is two operations. Each of a convolution's two gradients has as many operations
    as the convolution. The first convolution has no gradient by the images.
    """
    model = setting.build()
    sizes = {
        spec.name: (spec.size(setting.size[0]), spec.size(setting.size[1]))
        for spec in model.features
    }
    stem = setting.size[0] // 2, setting.size[1] // 2
    rows, cols = sizes[model.features[-1].name]
    total = 0.0
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nn.ConvTranspose):
            # A block of output pixels lies between any four features and at the borders.
            pixels = (rows + 1) * (cols + 1)
        elif isinstance(module, nn.Conv):
            height, width = (rows, cols) if path[0] == "head" else sizes.get(str(path[1]), stem)
            pixels = height * width
        else:
            continue
        passes = 1 if not training else 2 if path[-1] == "conv1" and len(path) == 2 else 3
        total += 2.0 * module.kernel[...].size * pixels * passes
    return total * setting.batch


def lowered(name: str, setting: Setting, placement: Placement) -> Any:
    """Lower one of `PROGRAMS` with `setting.batch` images for each device of the mesh."""
    mesh, images = placement.mesh, setting.batch * placement.mesh.size
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "spatial"))
    batch = {
        "image": jax.ShapeDtypeStruct((images, *setting.size, 3), np.uint8, sharding=split),
        "mask": jax.ShapeDtypeStruct((images, *setting.size), np.uint8, sharding=split),
    }
    everywhere, model = NamedSharding(mesh, PartitionSpec()), setting.build()
    if name == "mask":
        predictor = Predictor(model, blocks=True)
        return predictor._segment.lower(_shapes(predictor._state, everywhere), batch["image"])
    state, step = training_step(setting, model, blocks=True, placement=placement)
    # Not `placement.of`: it leaves one device to JAX, which would choose the CPU.
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, placement.spec(leaf)), state)
    shapes = jax.tree.map(_shapes, state, shardings)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere)).lower(
        shapes, batch
    )


def state_bytes(setting: Setting, placement: Placement) -> tuple[list[int], list[int]]:
    """Return the bytes of all parameters and statistics, and of those split over `fsdp`."""
    state = nnx.eval_shape(lambda: nnx.state(setting.build(), (nnx.Param, nnx.BatchStat)))
    leaves = jax.tree.leaves(state)
    split = [leaf for leaf in leaves if placement.spec(leaf) != PartitionSpec()]
    held, divided = ([x.size * x.dtype.itemsize for x in part] for part in (leaves, split))
    return held, divided


def exchange_checks(
    collectives: dict[str, dict[str, int]], setting: Setting, placement: Placement
) -> dict[str, bool]:
    """Check what the devices exchange in a training step.

    The sum over `data` and `fsdp` may have two stages: within `fsdp` of whole gradients, then of
    the parts. XLA sums the gradients of convolutions over `spatial` in a stage of its own.

    Args:
        collectives: of the compiled program; see `benchmarks.hlo.Program.collectives`.
        setting: the model.
        placement: the mesh.
    """
    none = {"count": 0, "bytes": 0}
    held, split = state_bytes(setting, placement)
    gathered, permuted = (
        collectives.get(kind, none) for kind in ("all-gather", "collective-permute")
    )
    summed = sum(collectives.get(kind, none)["bytes"] for kind in ("all-reduce", "reduce-scatter"))
    stages = 1 + (placement.mesh.shape["spatial"] > 1)
    image = setting.batch * setting.size[0] * setting.size[1] * 3
    return {
        "split parameters gathered once, nothing else": gathered["count"] <= len(split)
        and gathered["bytes"] <= sum(split),
        "gradients summed once, with spatial in two stages": summed < 1.15 * stages * sum(held),
        "only rows of neighbors exchanged": permuted["bytes"] <= image * permuted["count"] / 8,
        "nothing moved from all to all": "all-to-all" not in collectives,
    }


def _shapes(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )


def compiled(program: Any) -> tuple[dict[str, Any], Program]:
    """Compile a program.

    Returns:
        The compiler's figures for one device, and the text of the compiled program, parsed.
    """
    began = time.perf_counter()
    executable = program.compile()
    seconds = time.perf_counter() - began
    cost, memory = executable.cost_analysis(), executable.memory_analysis()
    found = Program(executable.as_text())
    row = {
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "estimated_cycles": found.estimated_cycles(),
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "donated": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "peak": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes,
        },
        "compile_seconds": seconds,
    }
    return row, found


def measure(
    topology: str, chips: int, split: str, devices: Any, name: str, setting: Setting
) -> dict[str, Any]:
    """Compile one program and check it.

    Args:
        topology: a key of `TOPOLOGIES` or `SLICES`.
        chips: number of chips that the program uses.
        split: a key of `MESHES`.
        devices: devices of the topology.
        name: one of `PROGRAMS`.
        setting: the model, and the number of images for each chip.

    Returns:
        The figures and checks, ready for JSON.
    """
    sizes = MESHES[split](chips)
    axis_types = (AxisType.Auto,) * len(AXES)
    placement = Placement(Mesh(np.array(devices[:chips]).reshape(sizes), AXES, axis_types))
    row, found = compiled(lowered(name, setting, placement))
    logits = setting.batch * setting.size[0] * setting.size[1] * setting.num_classes
    own = model_flops(setting, name == "training")
    row |= {
        "program": name,
        "topology": topology,
        "device": devices[0].device_kind,
        "chips": chips,
        "mesh": split,
        "mesh_sizes": sizes,
        "batch_per_chip": setting.batch,
        "model_flops": own,
        "flops_ratio": row["flops"] / own,
        "collectives": found.collectives(),
        "convolution_dtypes": sorted(found.convolution_dtypes()),
        "float32_logits": found.widest("f32", logits),
        "logits_moved": found.moved(logits),
        "fits": row["memory"]["peak"] < (TOPOLOGIES | SLICES)[topology] * 1e9,
    }
    row["checks"] = {
        "bfloat16 on the matrix unit": row["convolution_dtypes"] == ["bf16"],
        "FLOPs within 1.2 of the model's": row["flops_ratio"] < 1.2,
        "no float32 logits": not row["float32_logits"],
        "no layout copies of the logits": not row["logits_moved"],
        "fits": row["fits"],
    }
    if name == "training":
        row["checks"] |= exchange_checks(row["collectives"], setting, placement)
    else:
        row["checks"]["nothing exchanged"] = not row["collectives"]
    return row


def show(row: dict[str, Any]) -> None:
    """Print the figures of a program and its failed checks."""
    gathered = ", ".join(
        f"{kind} x{at['count']}, {at['bytes'] / 1e6:.0f} MB"
        for kind, at in row["collectives"].items()
    )
    failed = [check for check, passed in row["checks"].items() if not passed]
    cells = (
        f"{row['program']:<9} {row['topology']:<10} {row['chips']} chip(s) {row['mesh']}",
        f"{row['flops'] / 1e12:6.2f} TFLOP ({row['flops_ratio']:.2f} of the model's)",
        f"{row['bytes_accessed'] / 1e9:6.1f} GB",
        f"peak {row['memory']['peak'] / 1e9:5.2f} GB",
        f"{row['estimated_cycles'] / 1e6:6.1f} Mcycles",
        gathered or "no collectives",
        f"FAILS: {', '.join(failed)}" if failed else "ok",
    )
    print("  ".join(cells), flush=True)


def show_form(row: dict[str, Any]) -> None:
    """Print the figures of a form."""
    print(
        f"{row['operator']:<14} {row['form']:<24} {row['flops'] / 1e9:7.0f} GFLOP  "
        f"{row['bytes_accessed'] / 1e9:6.2f} GB  "
        f"temporaries {row['memory']['temporaries'] / 1e9:5.2f} GB  "
        f"{row['estimated_cycles'] / 1e6:6.1f} Mcycles",
        flush=True,
    )


def main() -> None:
    """Compile the selected programs; print and write each row at once."""
    parser = Parser("benchmarks.tpu_aot", __doc__)
    parser.add_argument(
        "--topology",
        choices=(*TOPOLOGIES, *SLICES),
        action="append",
        help="topology; may be repeated (default: all but the larger slices)",
    )
    parser.add_argument(
        "--program",
        choices=(*PROGRAMS, "forms"),
        action="append",
        help="program; may be repeated; forms are compiled for the first topology only "
        "(default: all)",
    )
    parser.add_argument(
        "--chips",
        choices=("one", "slice"),
        action="append",
        help="one chip, or all chips of the topology (default: both)",
    )
    parser.add_argument(
        "--mesh",
        choices=MESHES,
        action="append",
        help="split over the chips of a topology; may be repeated (default: data)",
    )
    parser.add_argument("--batch", type=int, default=128, help="images on each chip")
    parser.add_size()
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="JSON file; other rows in it stay"
    )
    args = parser.parse_args()
    setting = Setting(batch=args.batch, size=tuple(args.size), dtype="bfloat16")
    chosen = args.program or (*PROGRAMS, "forms")
    result = (
        json.loads(args.out.read_text()) if args.out.exists() else {"programs": [], "forms": []}
    )
    for row in result["programs"]:
        row.setdefault("mesh", "data")  # older rows
    environment = {"python": platform.python_version(), **package_versions(PACKAGES)}

    effort = jax.config.jax_exec_time_optimization_effort

    def keep(
        part: str,
        keys: tuple[str, ...],
        row: dict[str, Any],
        print_it: Callable[[dict[str, Any]], None],
    ) -> None:
        print_it(row)
        row |= {"size": args.size, "versions": environment, "effort": effort}
        others = [other for other in result[part] if any(other[key] != row[key] for key in keys)]
        result[part] = sorted([*others, row], key=lambda row: [str(row[key]) for key in keys])
        write_json(args.out, result)

    topology_names = args.topology or list(TOPOLOGIES)
    for topology in topology_names:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        for chips in args.chips or ("one", "slice"):
            count = 1 if chips == "one" else len(devices)
            for split in (args.mesh or ("data",)) if chips == "slice" else ("data",):
                for name in (name for name in PROGRAMS if name in chosen):
                    row = measure(topology, count, split, devices, name, setting)
                    keep("programs", ("topology", "chips", "mesh", "program"), row, show)
        if "forms" in chosen and topology == topology_names[0]:
            mesh = Mesh(np.array(devices[:1]), ("data",), axis_types=(AxisType.Auto,))
            one_chip = NamedSharding(mesh, PartitionSpec())
            for operator, forms in cases(setting).items():
                for form, (function, shapes) in forms.items():
                    row, _ = compiled(jax.jit(function).lower(*_shapes(shapes, one_chip)))
                    row |= {
                        "operator": operator,
                        "form": form,
                        "topology": topology,
                        "batch": setting.batch,
                    }
                    keep("forms", ("operator", "form", "topology"), row, show_form)


if __name__ == "__main__":
    main()
