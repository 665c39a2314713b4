"""Time and memory of importing PyTorch weights: `python -m benchmarks.weight_import`. Prints JSON.

For each backbone and file format, in a process of its own that has imported jax and torch already:

* `load`: `build_model` and `load_torch`, an ImageNet file into a segmentation network with the fcn32s head;
* `convert`: what `fcn-jax convert` does, which draws no initial values, and also writes a checkpoint.

`peak_mb` is what the peak of the process's memory grew by, compiled code included; Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def peak_mb() -> float:
    """Largest resident memory of this process so far. `ru_maxrss` would count what the parent had before the program was started."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def write_weights(backbone: str, path: Path) -> None:
    """Write a file of a backbone's names and shapes, with a classifier like ImageNet's, random values."""
    from flax import nnx

    from fcn_jax.convert import engine, files
    from fcn_jax.models.segmenter import build_backbone, by_name

    spec = by_name(backbone)
    module = nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0))[0])
    rng = np.random.default_rng(0)
    table = engine.tables(spec)["backbone", "torchvision"]
    tensors = {}
    for leaf_path, leaf in engine.leaves(module).items():
        name, rule = table.to_torch(f"backbone.{leaf_path}")
        value = rng.random(leaf.shape, np.float32) if leaf.dtype == np.float32 else np.zeros(leaf.shape, leaf.dtype)
        tensors[name] = np.array(rule.op.to_torch(value), order="C")
    channels = tensors[max(name for name in tensors if name.startswith("layer4") and name.endswith("bn2.weight"))].size
    tensors["fc.weight"] = rng.random((1000, channels), np.float32)
    files.write(path, tensors)


def measure(action: str, backbone: str, path: Path) -> dict[str, float]:
    """Run one import in this process."""
    import jax
    import torch
    from flax import nnx

    import fcn_jax
    from fcn_jax.convert.command import convert_file

    torch.empty(1)
    jax.device_put(np.zeros(1)).block_until_ready()

    def load() -> None:
        fcn_jax.load_torch(fcn_jax.build_model(backbone, "fcn32s", rngs=nnx.Rngs(0)), path)

    def convert() -> None:
        convert_file(path, backbone, Path(f"{path}.converted"))

    actions: dict[str, Callable[[], None]] = {"load": load, "convert": convert}
    before = peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    actions[action]()
    return {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": round(peak_mb() - before, 1),
        "file_mb": round(path.stat().st_size / 2**20, 1),
    }


def main() -> None:
    """Print one JSON object with a row per backbone, format and action."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=["resnet18", "resnet152"])
    parser.add_argument("--measure", nargs=2, metavar=("ACTION", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        action, file = args.measure
        print(json.dumps(measure(action, args.backbones[0], Path(file))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for backbone in args.backbones:
            for suffix in (".pth", ".safetensors"):
                file = Path(folder) / f"{backbone}{suffix}"
                write_weights(backbone, file)
                for action in ("load", "convert"):
                    command = [sys.executable, "-m", "benchmarks.weight_import", backbone, "--measure", action, str(file)]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    rows.append({"backbone": backbone, "format": suffix, "action": action, **json.loads(done.stdout)})
    print(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
