"""Depthwise convolutions on one CPU core: `taskset -c 0 python -m benchmarks.depthwise`.

Three forms of the convolution and of its gradients, two images each: this library's, a plain sum
over the taps with JAX's gradients, and PyTorch's in channels_last. Also stems, whose plain form is
XLA's convolution. Figures are the least CPU time of several calls, in seconds, which does not count
the time in which other work has the core. Rows are written to
benchmarks/results/depthwise_cpu.json; other rows in it stay.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import workarounds
from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment, keep
from fcn_jax import compiler_options
from fcn_jax.nn import _depthwise_cpu
from fcn_jax.nn._conv_xla import Settings, xla_conv

# Rows, columns, input channels, output channels, groups, kernel size, stride.
SHAPES = (
    (112, 160, 32, 32, 32, 3, 1),
    (112, 160, 96, 96, 96, 3, 2),
    (56, 80, 144, 144, 144, 3, 1),
    (40, 60, 240, 240, 240, 5, 1),
    (40, 60, 240, 240, 240, 5, 2),
    (20, 30, 672, 672, 672, 5, 1),
    (80, 120, 96, 96, 96, 7, 1),
    (320, 480, 3, 16, 1, 3, 2),
    (320, 480, 3, 32, 1, 3, 2),
)


def forms(settings: Settings) -> dict[str, dict[str, Callable[..., Any]]]:
    """Work -> form -> function of an image, a kernel and the gradient of the output."""
    ours, plain = _depthwise_cpu, workarounds
    if settings.groups == 1:
        return {
            "forward": {
                "fcn_jax": lambda x, k, g: ours.stem(settings, x, k),
                "plain": lambda x, k, g: xla_conv(settings, x, k),
            }
        }
    return {
        "forward": {
            "fcn_jax": lambda x, k, g: ours.depthwise(settings, x, k),
            "plain": lambda x, k, g: plain.plain_depthwise(settings, x, k),
        },
        "input gradient": {
            "fcn_jax": lambda x, k, g: ours.input_grad(settings, k, g, x.shape),
            "plain": lambda x, k, g: plain.plain_depthwise_input_grad(settings, k, g, x.shape),
        },
        "kernel gradient": {
            "fcn_jax": lambda x, k, g: ours.kernel_grad(settings, x, g, k.shape),
            "plain": lambda x, k, g: plain.plain_depthwise_kernel_grad(settings, x, g, k.shape),
        },
    }


def torch_form(work: str, settings: Settings, arrays: list[np.ndarray]) -> Callable[[], Any]:
    """PyTorch's function for `work`."""
    # As views, images in NHWC are channels_last.
    x, grad = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (arrays[0], arrays[2]))
    kernel = torch.from_numpy(arrays[1].transpose(3, 2, 0, 1).copy())
    stride, padding, groups = settings.stride, settings.padding, settings.groups
    if work == "forward":
        function = torch.nn.functional.conv2d
        return lambda: function(x, kernel, stride=stride, padding=padding, groups=groups)
    backward = torch.ops.aten.convolution_backward
    mask = [work == "input gradient", work == "kernel gradient", False]
    sides = [stride] * 2, [padding] * 2, [1, 1]
    return lambda: backward(grad, x, kernel, None, *sides, False, [0, 0], groups, mask)


def measure(shape: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A row for each kind of work on a shape of `SHAPES`."""
    rows, cols, channels, out, groups, size, stride = shape
    settings = Settings(stride, size // 2, 1, groups)
    rng = np.random.default_rng(0)
    found = []
    x = rng.standard_normal((2, rows, cols, channels), np.float32)
    kernel = rng.standard_normal((size, size, channels // groups, out), np.float32)
    grad = rng.standard_normal((2, -(-rows // stride), -(-cols // stride), out), np.float32)
    arrays = [x, kernel, grad]
    on_device = [jax.device_put(a) for a in arrays]
    for work, functions in forms(settings).items():
        calls: dict[str, Callable[[], Any]] = {}
        for name, function in functions.items():
            run = jax.jit(function, compiler_options=compiler_options())
            calls[name] = functools.partial(lambda run: jax.block_until_ready(run(*on_device)), run)
        np.testing.assert_allclose(*(call() for call in calls.values()), rtol=1e-3, atol=1e-2)
        calls["torch"] = torch_form(work, settings, arrays)
        seconds = dict.fromkeys(calls, float("inf"))
        for number in range(rounds + 1):
            for name, call in calls.items():
                began = time.process_time()
                call()
                if number:
                    seconds[name] = min(seconds[name], time.process_time() - began)
        print(shape, work, {name: f"{1000 * x:.2f} ms" for name, x in seconds.items()}, flush=True)
        found.append({"shape": list(shape), "work": work, "seconds": seconds})
    return found


def main() -> None:
    """Measure all shapes; each row is written at once."""
    parser = Parser("benchmarks.depthwise", __doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each form")
    parser.add_argument("--out", type=Path, default=RESULTS / "depthwise_cpu.json", help="JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for shape in SHAPES:
        for row in measure(shape, args.rounds):
            key = {name: row.pop(name) for name in ("shape", "work")}
            keep(args.out, key, row | {"environment": environment("cpu")})
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
