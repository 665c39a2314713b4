"""Time and memory of importing PyTorch weights: `python -m benchmarks.weight_import`.

Two actions are measured for each model and file format:

* `load`: for a backbone, `build_model` builds a network with the head `fcn32s`, and `load_torch`
  loads an ImageNet file. For a model, `fcn_jax.load` loads its file and draws no initial values.
* `convert`: `fcn-jax convert` draws no initial values and writes a checkpoint.

Each action runs in its own processes, which first import jax and torch and compile a program. This
brings 40 MB of the compiler into memory, as every use of a model does. `peak_mb` is the growth of
the peak memory of the process, including compiled code. It requires Linux. The medians of several
processes are printed and written to benchmarks/results/weight_import_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment, keep, prepare_backend

MODELS = ("resnet18", "resnet152", "fcn32s_resnet18", "fcn_resnet101")
ROUNDS = 5


def peak_mb() -> float:
    """Return the peak resident memory of this process; `ru_maxrss` would include the parent's."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def write_weights(model: str, path: Path) -> None:
    """Write random weights for a model. A backbone's file also has a classifier."""
    from flax import nnx

    from fcn_jax.convert.tables import tables
    from fcn_jax.models.build import build, build_backbone
    from fcn_jax.models.names import leaves
    from fcn_jax.models.spec import registered_spec
    from fcn_jax.pytorch import files

    spec = registered_spec(model)
    scope, prefix = ("backbone", "backbone.") if spec.head is None else ("model", "")
    module = nnx.eval_shape(
        lambda: (
            build(spec, rngs=nnx.Rngs(0)) if spec.head else build_backbone(spec, rngs=nnx.Rngs(0))
        )
    )
    rng = np.random.default_rng(0)
    table = tables(spec)[scope, "torchvision"]
    tensors = {}
    for leaf_path, leaf in leaves(module).items():
        name, rule = table.to_torch(f"{prefix}{leaf_path}")
        value = (
            rng.random(leaf.shape, np.float32)
            if leaf.dtype == np.float32
            else np.zeros(leaf.shape, leaf.dtype)
        )
        tensors[name] = np.array(rule.op.to_torch(value), order="C")
    if spec.head is None:
        channels = tensors[
            max(
                name
                for name in tensors
                if name.startswith("layer4") and name.endswith("bn2.weight")
            )
        ].size
        tensors["fc.weight"] = rng.random((1000, channels), np.float32)
    files.write(path, tensors)


def measure(action: str, model: str, path: Path) -> dict[str, float]:
    """Run one import in this process."""
    import jax
    import torch
    from flax import nnx

    import fcn_jax
    from fcn_jax.convert.command import convert_file
    from fcn_jax.models.spec import registered_spec

    torch.empty(1)
    jax.jit(lambda x: x + 1)(np.zeros(1)).block_until_ready()
    output = Path(f"{path}.converted")

    def load() -> None:
        if registered_spec(model).head is None:
            fcn_jax.load_torch(fcn_jax.build_model(model, "fcn32s", rngs=nnx.Rngs(0)), path)
        else:
            fcn_jax.load(model, path)

    def convert() -> None:
        convert_file(path, model, output)

    actions: dict[str, Callable[[], None]] = {"load": load, "convert": convert}
    before = peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    actions[action]()
    found = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": peak_mb() - before,
        "file_mb": path.stat().st_size / 2**20,
    }
    shutil.rmtree(output, ignore_errors=True)
    return found


def in_processes(action: str, model: str, path: Path) -> dict[str, float]:
    """Run `measure` in several processes; returns the medians."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.weight_import",
        model,
        "--measure",
        action,
        str(path),
    ]
    runs = [
        json.loads(
            subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()[-1]
        )
        for _ in range(ROUNDS)
    ]
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def main() -> None:
    """Measure, print and write the results."""
    parser = Parser("benchmarks.weight_import", __doc__)
    parser.add_argument("models", nargs="*", default=MODELS, help="registered backbones or models")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "weight_import_cpu.json",
        help="JSON file; other rows in it stay",
    )
    parser.add_argument("--measure", nargs=2, metavar=("ACTION", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        action, file = args.measure
        print(json.dumps(measure(action, args.models[0], Path(file))))
        return
    prepare_backend("cpu")
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            for suffix in (".pth", ".safetensors"):
                file = Path(folder) / f"{model}{suffix}"
                write_weights(model, file)
                for action in ("load", "convert"):
                    row = in_processes(action, model, file)
                    keep(
                        args.out,
                        {"model": model, "format": suffix, "action": action},
                        {**row, "environment": environment("cpu")},
                    )
                    print(
                        f"{model:<16} {suffix:<13} {action:<8} {row['seconds']:5.2f} s, "
                        f"peak {row['peak_mb']:4.0f} MB, "
                        f"{row['peak_mb'] / row['file_mb']:.2f} times the file size",
                        flush=True,
                    )
                file.unlink()


if __name__ == "__main__":
    main()
