"""Convolutions by XLA's own code and by YNNPACK on CPUs: `python -m benchmarks.conv_library`.

`fcn_jax.compiler_options` keeps convolutions out of YNNPACK, which XLA uses for them by default.
Both programs are compiled in one process and called in turn. The factor is the ratio of the least
times: above 1, XLA's own code is faster. Rows are written to
benchmarks/results/conv_library_cpu.json.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment
from fcn_jax import compiler_options
from fcn_jax.nn import conv
from fcn_jax.runtime.atomic import write_json

OPTION = "xla_cpu_experimental_ynn_fusion_type"
SHAPES = (
    ("7x7, 3 to 64, stride 2", (320, 480), 3, 64, 7, 2),
    ("3x3, 3 to 64", (320, 480), 3, 64, 3, 1),
    ("3x3, 32 to 32", (160, 240), 32, 32, 3, 1),
    ("3x3, 64 to 128, stride 2", (80, 120), 64, 128, 3, 2),
    ("5x5, 64 to 64", (80, 120), 64, 64, 5, 1),
)
"""Name, image size, channels in and out, kernel size, stride."""


def main() -> None:
    """Measure, print and write."""
    parser = Parser("benchmarks.conv_library", __doc__)
    parser.add_argument("--rounds", type=int, default=40, help="timed calls of each program")
    rounds = parser.parse_args().rounds
    options = compiler_options()
    others = {name: value for name, value in options.items() if name != OPTION}
    rows = []
    for name, size, in_channels, out_channels, kernel_size, stride in SHAPES:
        x = jnp.ones((1, *size, in_channels))
        kernel = jnp.full((kernel_size, kernel_size, in_channels, out_channels), 0.01)

        def call(program: jax.stages.Compiled, x: jax.Array, kernel: jax.Array) -> object:
            return jax.block_until_ready(program(x, kernel))

        calls = {}
        for library, chosen in (("XLA", options), ("YNNPACK", others)):
            function = functools.partial(conv, stride=stride, padding=kernel_size // 2)
            program = jax.jit(function, compiler_options=chosen).lower(x, kernel).compile()
            calls[library] = functools.partial(call, program, x, kernel)
        timings = timing.interleaved(calls, rounds, warm_up=2)
        seconds = {library: min(timings[library].seconds) for library in calls}
        rows.append({"convolution": name, "size": size, "seconds": seconds})
        xla, ynnpack = seconds["XLA"], seconds["YNNPACK"]
        print(
            f"{name:26} XLA {1000 * xla:6.2f} ms  YNNPACK {1000 * ynnpack:6.2f} ms  "
            f"factor {ynnpack / xla:.2f}",
            flush=True,
        )
    out = RESULTS / "conv_library_cpu.json"
    write_json(out, {"rows": rows, "environment": environment("cpu")})
    print(out)


if __name__ == "__main__":
    main()
