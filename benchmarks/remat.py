"""Memory and time of `optim.remat` and `accumulate_steps`: `python -m benchmarks.remat`.

    python -m benchmarks.remat             # ResNet-18 FCN-32s, batch 4, 320x480, float32
    python -m benchmarks.remat --model resnet101 --batch 1 --option "as it comes" --option "no
    loops"

The library's training step with each of them, on the default device, in turn: seconds, and the
memory that the compiler plans for what lives during a step. Written to
benchmarks/results/remat_DEVICE.json, a row for each setting and option.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from benchmarks.jax_tasks import compiled_step
from benchmarks.record import RESULTS, environment, keep
from benchmarks.setting import RECIPE, Setting
from benchmarks.timing import interleaved
from fcn_jax import compiler_options
from fcn_jax.models.spec import resolve
from fcn_jax.runtime import process
from fcn_jax.train import optim
from fcn_jax.train import step as train_step

OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "remat": {"remat": True},
    "accumulate_steps=2": {"accumulate_steps": 2},
    "accumulate_steps=4": {"accumulate_steps": 4},
    "remat, accumulate_steps=2": {"remat": True, "accumulate_steps": 2},
}
"""Arguments of `train_step.make`."""


def prepared(setting: Setting, options: dict[str, Any]) -> tuple[Callable[[], object], int, float]:
    """A call that trains one step, its bytes of temporaries, its seconds of compiling."""
    model = setting.build()
    preprocess = resolve(model.spec).preprocess
    state, step = train_step.make(
        model, optim.make(RECIPE, 1000, nnx.state(model, nnx.Param)), preprocess, **options
    )
    batch = jax.device_put({"image": setting.images(), "mask": setting.labels()})
    began = time.perf_counter()
    compiled = compiled_step(step, state, batch, compiler_options())
    took = time.perf_counter() - began

    def call() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return call, compiled.memory_analysis().temp_size_in_bytes, took


def main() -> None:
    """Compile all, time them in turn, print and keep."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.remat", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--option", choices=OPTIONS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    process.configure_process(trains=True)
    setting, device = (
        Setting(args.model, args.batch, tuple(args.size), args.dtype),
        jax.default_backend(),
    )
    found = {name: prepared(setting, OPTIONS[name]) for name in args.option or OPTIONS}
    timings = interleaved({name: call for name, (call, *_) in found.items()}, args.rounds)
    out = RESULTS / f"remat_{device}.json"
    for name, (_, temporaries, compiling) in found.items():
        taken = timings[name]
        print(
            f"{name:<22} {temporaries / 1e6:8.0f} MB of temporaries  {taken.median:7.3f} s a "
            f"step, compiled in {compiling:.1f} s"
        )
        key = {
            "model": args.model,
            "batch": args.batch,
            "size": args.size,
            "dtype": args.dtype,
            "option": name,
        }
        row = {
            "temporary_bytes": temporaries,
            "seconds": taken.median,
            "quartiles": taken.spread,
            "compile_seconds": compiling,
        }
        keep(out, key, row | {"environment": environment("cuda" if device == "gpu" else device)})
    print(out)


if __name__ == "__main__":
    main()
