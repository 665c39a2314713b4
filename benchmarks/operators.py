"""Time the operators of `fcn_jax.nn` next to XLA's: `python -m benchmarks.operators`.

The shapes are those of batch 4, 320x480 and 21 classes in float32. Each operator runs forward and
backward, as in training. First the results are compared; then both forms are timed in turn.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.arguments import Parser
from fcn_jax import nn
from fcn_jax.nn._conv_xla import Settings, xla_conv

Function = Callable[..., Any]


def xla_conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Compute a transposed convolution as a dilated convolution."""
    edge = kernel.shape[0] - 1 - padding
    flipped = kernel[::-1, ::-1]
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x,
        flipped,
        (1, 1),
        [(edge, edge)] * 2,
        lhs_dilation=(stride, stride),
        dimension_numbers=dimensions,
    )


def xla_max_pool(x: jax.Array) -> jax.Array:
    """Compute the stem's max pooling, with XLA's own gradient."""
    return lax.reduce_window(
        x,
        np.float32(-np.inf),
        lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def gathered_resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize bilinearly by a gather of the two neighbors along each axis."""
    for axis, new in ((2, size[1]), (1, size[0])):
        old = x.shape[axis]
        position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        left = position.astype(np.int64)
        weight = np.expand_dims(
            (position - left).astype(np.float32), tuple(a for a in range(4) if a != axis)
        )
        x = (
            jnp.take(x, left, axis) * (1 - weight)
            + jnp.take(x, np.minimum(left + 1, old - 1), axis) * weight
        )
    return x


def cases(batch: int) -> dict[str, tuple[Function, Function, tuple[tuple[int, ...], ...]]]:
    """Return name -> (library's operator, XLA's or a plain form, shapes of the arguments)."""

    def pair(
        stride: int, padding: int, dilation: int = 1, groups: int = 1
    ) -> tuple[Function, Function]:
        settings = (stride, padding, dilation, groups)
        return lambda x, k: nn.conv(x, k, *settings), lambda x, k: xla_conv(
            Settings(*settings), x, k
        )

    found: dict[str, tuple[Function, Function, tuple[tuple[int, ...], ...]]] = {
        "conv 7x7/2, 3 -> 64": (*pair(2, 3), ((batch, 320, 480, 3), (7, 7, 3, 64))),
        "max pool 3x3/2": (
            lambda x: nn.max_pool(x, 3, 2, 1),
            xla_max_pool,
            ((batch, 160, 240, 64),),
        ),
    }
    for rows, cols, width in ((80, 120, 64), (40, 60, 128), (20, 30, 256), (10, 15, 512)):
        found[f"conv 3x3, {width} -> {width}"] = (
            *pair(1, 1),
            ((batch, rows, cols, width), (3, 3, width, width)),
        )
    for dilation, width in ((2, 256), (4, 512)):
        found[f"conv 3x3, {width} -> {width}, dilation {dilation}"] = (
            *pair(1, dilation, dilation),
            ((batch, 40, 60, width), (3, 3, width, width)),
        )
    for rows, cols, width in ((80, 120, 128), (20, 30, 512)):
        found[f"conv 3x3, {width} -> {width}, 32 groups"] = (
            *pair(1, 1, 1, 32),
            ((batch, rows, cols, width), (3, 3, width // 32, width)),
        )
    found["conv 3x3/2, 96 channels, depthwise"] = (
        *pair(2, 1, 1, 96),
        ((batch, 80, 120, 96), (3, 3, 1, 96)),
    )
    found["transposed conv 64x64/32, 21 -> 21"] = (
        lambda x, k: nn.conv_transpose(x, k, 32, 16),
        lambda x, k: xla_conv_transpose(x, k, 32, 16),
        ((batch, 10, 15, 21), (64, 64, 21, 21)),
    )
    found[
        "bilinear resize, 40x60 -> 320x480"
    ] = (  # compared with a gather, because XLA cannot resize
        lambda x: nn.resize_bilinear(x, (320, 480)),
        lambda x: gathered_resize(x, (320, 480)),
        ((batch, 40, 60, 21),),
    )
    return found


def main() -> None:
    """Time each operator and print a row for each, or JSON."""
    parser = Parser("benchmarks.operators", __doc__)
    parser.add_argument("--batch", type=int, default=4, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each form")
    parser.add_argument("--only", default="", help="run only operators whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    rows = []
    for name, (ours, xla, shapes) in cases(args.batch).items():
        if args.only not in name:
            continue
        arrays = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
        grad = jnp.ones(jax.eval_shape(ours, *arrays).shape)
        contenders = [jax.jit(lambda grad, *a, f=f: jax.vjp(f, *a)[1](grad)) for f in (ours, xla)]
        results = [jax.block_until_ready(f(grad, *arrays)) for f in contenders]
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(
                one, other, rtol=1e-3, atol=1e-3 * float(jnp.abs(other).max())
            )
        seconds: list[list[float]] = [[], []]
        for _ in range(args.rounds):
            for f, spent in zip(contenders, seconds, strict=True):
                began = time.perf_counter()
                jax.block_until_ready(f(grad, *arrays))
                spent.append(time.perf_counter() - began)
        medians = [statistics.median(spent) for spent in seconds]
        rows.append(
            {
                "operator": name,
                "ours_seconds": medians[0],
                "xla_seconds": medians[1],
                "speedup": medians[1] / medians[0],
            }
        )
    if args.json:
        print(
            json.dumps(
                {
                    "device": jax.devices()[0].device_kind,
                    "jax": jax.__version__,
                    "batch": args.batch,
                    "rows": rows,
                }
            )
        )
        return
    for row in rows:
        print(
            f"{row['operator']:<40} {row['ours_seconds']:8.3f} s   XLA {row['xla_seconds']:8.3f} "
            f"s   speedup {row['speedup']:6.2f}"
        )


if __name__ == "__main__":
    main()
