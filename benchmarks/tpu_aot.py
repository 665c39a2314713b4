"""Programs of the TPU compiler, on a machine without a TPU: `python -m benchmarks.tpu_aot`.

    python -m benchmarks.tpu_aot       # three kinds of chip, about an hour on two cores
    python -m benchmarks.tpu_aot --topology v5e:2x2 --chips 1

The package libtpu compiles for a topology that is only described (`make bench-tpu-aot` installs
it). The programs are the library's own, ResNet-18 FCN-32s in bfloat16: the training step with its
state donated, and the Predictor's, each on one chip and data-parallel on all chips of the topology.
Recorded are the compiler's FLOPs, bytes, memory and collectives, and its own estimates of cycles,
which compare forms of one computation but say little of seconds, and are missing for some
instructions. A second part compares the forms of stem, pool, head and loss among which the library
chooses. Results go to benchmarks/results/tpu_aot.json as they come, so that a run can be stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before jax is imported: libtpu would ask the cloud's metadata server which TPU this is.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from benchmarks.forms import cases
from benchmarks.hlo import Program
from benchmarks.setting import RECIPE, Setting
from fcn_jax import nn
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.spec import resolve
from fcn_jax.runtime.atomic import write_json
from fcn_jax.train import optim, sharding
from fcn_jax.train import step as train_step

RESULTS = Path(__file__).parent / "results" / "tpu_aot.json"
TOPOLOGIES = {"v5e:2x2": 16, "v6e:2x4": 32, "v5p:2x2x1": 95}
"""Topology -> GB of memory of one chip."""

PROGRAMS = ("training", "mask")
PACKAGES = ("fcn-jax", "jax", "jaxlib", "libtpu", "flax", "optax")


def model_flops(setting: Setting, training: bool) -> float:
    """Operations of a ResNet of basic blocks, 2 for each multiply-add; the head is a product.

    A convolution's two gradients cost as much as itself each; the images need none.
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
            # A block lies between every four features, and around them.
            pixels = (rows + 1) * (cols + 1)
        elif isinstance(module, nn.Conv):
            height, width = (rows, cols) if path[0] == "head" else sizes.get(str(path[1]), stem)
            pixels = height * width
        else:
            continue
        passes = 1 if not training else 2 if path[-1] == "conv1" and len(path) == 2 else 3
        total += 2.0 * module.kernel[...].size * pixels * passes
    return total * setting.batch


def lowered(name: str, setting: Setting, mesh: Mesh) -> Any:
    """One of `PROGRAMS`, `setting.batch` images on each device of the mesh."""
    everywhere, split = sharding.on_every_device(mesh), sharding.over_batch(mesh)
    images = setting.batch * mesh.size
    batch = {
        "image": jax.ShapeDtypeStruct((images, *setting.size, 3), np.uint8, sharding=split),
        "mask": jax.ShapeDtypeStruct((images, *setting.size), np.uint8, sharding=split),
    }
    model = setting.build()
    if name == "mask":
        predictor = Predictor(model, blocks=True)
        return predictor._segment.lower(_shapes(predictor._state, everywhere), batch["image"])
    preprocess = resolve(model.spec).preprocess
    state, step = train_step.make(
        model, optim.make(RECIPE, 1000, nnx.state(model, nnx.Param)), preprocess, blocks=True
    )
    return jax.jit(step, donate_argnums=0).lower(_shapes(state, everywhere), batch)


def _shapes(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )


def compiled(program: Any) -> tuple[dict[str, Any], Program]:
    """Compile, and read what the compiler says of one device's share."""
    began = time.perf_counter()
    executable = program.compile()
    seconds = time.perf_counter() - began
    cost, memory, found = (
        executable.cost_analysis(),
        executable.memory_analysis(),
        Program(executable.as_text()),
    )
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


def measure(topology: str, chips: int, devices: Any, name: str, setting: Setting) -> dict[str, Any]:
    """Compile one program and check it."""
    mesh = Mesh(np.array(devices[:chips]), ("data",), axis_types=(AxisType.Auto,))
    row, found = compiled(lowered(name, setting, mesh))
    logits = setting.batch * setting.size[0] * setting.size[1] * setting.num_classes
    own = model_flops(setting, name == "training")
    row |= {
        "program": name,
        "topology": topology,
        "device": devices[0].device_kind,
        "chips": chips,
        "batch_per_chip": setting.batch,
        "model_flops": own,
        "flops_ratio": row["flops"] / own,
        "collectives": found.collectives(),
        "convolution_dtypes": sorted(found.convolution_dtypes()),
        "float32_logits": found.widest("f32", logits),
        "logits_moved": found.moved(logits),
        "fits": row["memory"]["peak"] < TOPOLOGIES[topology] * 1e9,
    }
    row["checks"] = {
        "bfloat16 on the matrix unit": row["convolution_dtypes"] == ["bf16"],
        "FLOPs within 1.2 of the model's": row["flops_ratio"] < 1.2,
        "no float32 logits": not row["float32_logits"],
        "no layout copies of the logits": not row["logits_moved"],
        "fits": row["fits"],
    }
    return row


def show(row: dict[str, Any]) -> None:
    """Print a program's line, and what it fails."""
    gathered = ", ".join(
        f"{kind} x{at['count']}, {at['bytes'] / 1e6:.0f} MB"
        for kind, at in row["collectives"].items()
    )
    failed = [check for check, passed in row["checks"].items() if not passed]
    cells = (
        f"{row['program']:<9} {row['topology']:<10} {row['chips']} chip(s)",
        f"{row['flops'] / 1e12:6.2f} TFLOP ({row['flops_ratio']:.2f} of the model's)",
        f"{row['bytes_accessed'] / 1e9:6.1f} GB",
        f"peak {row['memory']['peak'] / 1e9:5.2f} GB",
        f"{row['estimated_cycles'] / 1e6:6.1f} Mcycles",
        gathered or "no collectives",
        f"FAILS: {', '.join(failed)}" if failed else "ok",
    )
    print("  ".join(cells), flush=True)


def show_form(row: dict[str, Any]) -> None:
    """Print a form's line."""
    print(
        f"{row['operator']:<14} {row['form']:<24} {row['flops'] / 1e9:7.0f} GFLOP  "
        f"{row['bytes_accessed'] / 1e9:6.2f} GB  "
        f"temporaries {row['memory']['temporaries'] / 1e9:5.2f} GB  "
        f"{row['estimated_cycles'] / 1e6:6.1f} Mcycles",
        flush=True,
    )


def main() -> None:
    """Compile what is not left out, print a line for each, write as it goes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_aot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--topology", choices=TOPOLOGIES, action="append", help="default: all")
    parser.add_argument(
        "--program",
        choices=(*PROGRAMS, "forms"),
        action="append",
        help="default: all; forms on the first topology",
    )
    parser.add_argument("--chips", choices=("one", "slice"), action="append", help="default: both")
    parser.add_argument("--batch", type=int, default=128, help="images on each chip")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="JSON file; rows that are not compiled again stay"
    )
    args = parser.parse_args()
    setting = Setting(batch=args.batch, size=tuple(args.size), dtype="bfloat16")
    wanted = args.program or (*PROGRAMS, "forms")
    result = (
        json.loads(args.out.read_text()) if args.out.exists() else {"programs": [], "forms": []}
    )
    environment = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }

    def keep(
        part: str,
        keys: tuple[str, ...],
        row: dict[str, Any],
        print_it: Callable[[dict[str, Any]], None],
    ) -> None:
        print_it(row)
        row |= {"size": args.size, "versions": environment}
        others = [other for other in result[part] if any(other[key] != row[key] for key in keys)]
        result[part] = sorted([*others, row], key=lambda row: [str(row[key]) for key in keys])
        write_json(args.out, result)

    topology_names = args.topology or list(TOPOLOGIES)
    for topology in topology_names:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        for chips in args.chips or ("one", "slice"):
            for name in PROGRAMS:
                if name in wanted:
                    row = measure(
                        topology, 1 if chips == "one" else len(devices), devices, name, setting
                    )
                    keep("programs", ("topology", "chips", "program"), row, show)
        if "forms" in wanted and topology == topology_names[0]:
            mesh = Mesh(np.array(devices[:1]), ("data",), axis_types=(AxisType.Auto,))
            for operator, forms in cases(setting).items():
                for form, (function, shapes) in forms.items():
                    row, _ = compiled(
                        jax.jit(function).lower(*_shapes(shapes, sharding.on_every_device(mesh)))
                    )
                    row |= {
                        "operator": operator,
                        "form": form,
                        "topology": topology,
                        "batch": setting.batch,
                    }
                    keep("forms", ("operator", "form", "topology"), row, show_form)


if __name__ == "__main__":
    main()
