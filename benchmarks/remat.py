"""Memory and time of `remat`, `accumulate_steps` and `freeze`: `python -m benchmarks.remat`.

    python -m benchmarks.remat             # ResNet-18 FCN-32s, batch 4, 320x480, float32
    python -m benchmarks.remat --model resnet101 --batch 1 --option remat
    python -m benchmarks.remat --model resnet50 --head linear --option "frozen backbone"

The library's training step runs with each option in turn on the default device. Measured are the
time and the temporaries of a step, as the compiler reports them. A row for each setting and option
is written to benchmarks/results/remat_DEVICE.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from benchmarks.arguments import Parser
from benchmarks.jax_tasks import compiled_step
from benchmarks.record import RESULTS, environment, keep
from benchmarks.setting import Setting, training_step
from benchmarks.timing import interleaved
from fcn_jax import compiler_options
from fcn_jax.runtime import process
from fcn_jax.train.groups import matches, parameter_names

OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "remat": {"remat": True},
    "remat=blocks": {"remat": "blocks"},
    "accumulate_steps=2": {"accumulate_steps": 2},
    "accumulate_steps=4": {"accumulate_steps": 4},
    "frozen backbone": {"frozen": "backbone"},
    "remat, accumulate_steps=2": {"remat": True, "accumulate_steps": 2},
    "remat=blocks, accumulate_steps=2": {"remat": "blocks", "accumulate_steps": 2},
}
"""Name of an option -> arguments of `fcn_jax.train.step.make`; `frozen` is a glob."""


def prepared(setting: Setting, options: dict[str, Any]) -> tuple[Callable[[], object], int, float]:
    """Compile a training step.

    Returns:
        A function that takes one step, the bytes of its temporaries, and the seconds to compile it.
    """
    model = setting.build()
    if "frozen" in options:
        names = parameter_names(nnx.state(model, nnx.Param))
        frozen = frozenset(name for name in names if matches(name, options["frozen"]))
        options = {**options, "frozen": frozen}
    state, step = training_step(setting, model, **options)
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
    """Compile the step with each option, time all in turn, print and write the results."""
    parser = Parser("benchmarks.remat", __doc__)
    parser.add_argument("--model", default="resnet18", help="registered backbone or model")
    parser.add_argument("--head", default="fcn32s", help="registered head of a backbone")
    parser.add_setting(batch=4)
    parser.add_argument(
        "--option",
        choices=OPTIONS,
        action="append",
        help="option to measure; may be repeated (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed steps with each option")
    args = parser.parse_args()
    process.configure_process(trains=True)
    setting = Setting(args.model, args.batch, tuple(args.size), args.dtype, head=args.head)
    device = jax.default_backend()
    found = {name: prepared(setting, OPTIONS[name]) for name in args.option or OPTIONS}
    timings = interleaved({name: call for name, (call, *_) in found.items()}, args.rounds)
    out = RESULTS / f"remat_{device}.json"
    for name, (_, temporaries, compiling) in found.items():
        taken = timings[name]
        print(
            f"{name:<26} temporaries {temporaries / 1e6:8.0f} MB  step {taken.median:7.3f} s  "
            f"compiled in {compiling:.1f} s"
        )
        key = {
            "model": args.model,
            "batch": args.batch,
            "size": args.size,
            "dtype": args.dtype,
            "option": name,
            "head": None if args.head == "fcn32s" else args.head,  # older rows have no head
        }
        row = {
            "temporary_bytes": temporaries,
            "seconds": taken.median,
            "quartiles": taken.spread,
            "compile_seconds": compiling,
        }
        keep(out, key, row | {"environment": environment("cuda" if device == "gpu" else device)})
    print(f"written: {out}")


if __name__ == "__main__":
    main()
