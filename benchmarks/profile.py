"""Where the time of a training step goes, operator by operator, beside PyTorch: `python -m benchmarks.profile`.

Every convolution of the trunk at its own shape, batch normalization with ReLU, the max pool, and
the head with the loss, each alone, forward and backward, in turn with eager PyTorch in
channels_last; times the number of times that the network has it. The sum is not the whole step:
what a compiler fuses across operators, and the optimizer, are missing. Written to
benchmarks/results/profile_cpu.json, a row for each model and batch; others stay.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.networks import in_torch
from benchmarks.record import RESULTS, environment, keep, prepare_backend
from benchmarks.setting import Setting
from benchmarks.timing import interleaved, peaks
from fcn_jax import compiler_options, nn
from fcn_jax.runtime import process
from fcn_jax.train.losses import cross_entropy

OUT = RESULTS / "profile_cpu.json"
Calls = dict[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One operator.

    Attributes:
        name: what it is, and on what.
        count: how often the network has it.
        flops: of one forward pass of a convolution, 2 for each multiply-add; its backward pass has
            twice as many. 0 for others.
        calls: "fcn_jax forward", "fcn_jax backward", "torch forward", "torch both".
    """

    name: str
    count: int
    flops: float
    calls: Calls


def _jitted(function: Callable[..., Any], *arguments: Any) -> tuple[Calls, Any]:
    """Calls of our forward and backward pass, and the output."""
    forward = jax.jit(function, compiler_options=compiler_options())
    out = forward(*arguments)
    # Only what the backward pass needs of the forward one is computed again.
    backward = jax.jit(
        lambda grad, *xs: jax.vjp(function, *xs)[1](grad), compiler_options=compiler_options()
    )
    grad = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), out)
    calls = {
        "fcn_jax forward": lambda: jax.block_until_ready(forward(*arguments)),
        "fcn_jax backward": lambda: jax.block_until_ready(backward(grad, *arguments)),
    }
    return calls, out


def _in_torch(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Calls:
    def both() -> None:
        for tensor in tensors:
            tensor.grad = None
        y = function(*tensors)
        y.backward(torch.ones_like(y))

    def forward() -> None:
        with torch.no_grad():
            function(*tensors)

    return {"torch forward": forward, "torch both": both}


def _tensor(x: np.ndarray) -> torch.Tensor:
    """NHWC numpy -> NCHW in channels_last that wants a gradient."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()


def convolutions(setting: Setting) -> list[Row]:
    """The trunk's, each shape once."""
    network = in_torch(setting.build())
    seen: collections.Counter[tuple[Any, ...]] = collections.Counter()

    def note(layer: Any, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        seen[
            (
                *given[0].shape[1:],
                layer.out_channels,
                layer.kernel_size[0],
                layer.stride[0],
                layer.padding[0],
                layer.dilation[0],
                layer.groups,
            )
        ] += 1

    for layer in network[:-2].modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        network[:-2](torch.zeros(1, 3, *setting.size))
    rng = np.random.default_rng(0)
    rows = []
    for (
        channels,
        height,
        width,
        out,
        size,
        stride,
        padding,
        dilation,
        groups,
    ), count in seen.items():
        x = rng.standard_normal((setting.batch, height, width, channels), np.float32)
        kernel = rng.standard_normal((size, size, channels // groups, out), np.float32)
        settings = (stride, padding, dilation, groups)
        calls, y = _jitted(lambda x, k, settings=settings: nn.conv(x, k, *settings), x, kernel)
        weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))).to(
            memory_format=torch.channels_last
        )
        calls |= _in_torch(
            lambda x, w, s=settings: torch.nn.functional.conv2d(x, w, None, *s),
            _tensor(x),
            weight.requires_grad_(),
        )
        name = (
            f"conv {size}x{size}"
            + (f"/{stride}" if stride > 1 else "")
            + f", {channels} to {out}, {height}x{width}"
        )
        rows.append(Row(name, count, 2.0 * kernel[..., 0].size * y.size, calls))
    return rows


def normalizations(setting: Setting) -> list[Row]:
    """Batch normalization and ReLU in train mode, of ResNet's feature sizes."""
    network = in_torch(setting.build())
    seen: collections.Counter[tuple[int, ...]] = collections.Counter()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(
                lambda layer, given, out: seen.update([tuple(out.shape[1:])])
            )
    with torch.no_grad():
        network(torch.zeros(2, 3, *setting.size))
    rng = np.random.default_rng(1)
    rows = []
    for (channels, height, width), count in seen.items():
        x = rng.standard_normal((setting.batch, height, width, channels), np.float32)
        scale, bias = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        calls, _ = _jitted(
            lambda x, s, b: nnx.relu(nn.batch_norm_train(x, s, b)[0]), x, scale, bias
        )
        calls |= _in_torch(
            lambda x, s, b: torch.nn.functional.batch_norm(
                x, None, None, s, b, training=True
            ).relu(),
            _tensor(x),
            torch.ones(channels, requires_grad=True),
            torch.zeros(channels, requires_grad=True),
        )
        rows.append(Row(f"batch norm and ReLU, {channels}, {height}x{width}", count, 0, calls))
    return rows


def others(setting: Setting) -> list[Row]:
    """The max pool, and the head with the loss."""
    rng = np.random.default_rng(2)
    height, width = setting.size
    x = rng.standard_normal((setting.batch, height // 2, width // 2, 64), np.float32)
    pool, _ = _jitted(lambda x: nn.max_pool(x, 3, 2, 1), x)
    pool |= _in_torch(lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1), _tensor(x))

    model, labels = setting.build(), setting.labels()
    deepest = model.features[-1]
    features = setting.features(deepest.channels, deepest.stride)
    graphdef, state = nnx.split(model.head)

    def loss(features: jax.Array, state: Any) -> jax.Array:
        return cross_entropy(
            nnx.merge(graphdef, state)({deepest.name: features}, out_hw=setting.size), labels
        )

    head, _ = _jitted(loss, features, state)
    torch_head = in_torch(setting.build())[-2:]
    target = torch.from_numpy(labels).long()
    head |= _in_torch(
        lambda x, *_: torch.nn.functional.cross_entropy(torch_head(x), target, ignore_index=255),
        _tensor(features),
        *torch_head.parameters(),
    )
    return [
        Row(f"max pool 3x3/2, {height // 2}x{width // 2}", 1, 0, pool),
        Row("head and loss", 1, 0, head),
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--model", default="resnet18", help="a registered ResNet, under the fcn32s head"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    args = parser.parse_args()
    process.configure_process(trains=True)
    prepare_backend("cpu")
    setting = Setting(args.model, args.batch, tuple(args.size))
    if not setting.is_chapters:
        parser.error(f"{args.model} is no ResNet under the fcn32s head")
    peak = peaks(setting.dtype)
    print(
        f"{'milliseconds, all of its kind':<44}{'count':>6}{'forward':>10}{'torch':>8}{'backward':>10}{'torch':>8}{'GFLOP/s':>9}"
    )
    found = []
    for row in convolutions(setting) + normalizations(setting) + others(setting):
        times = {
            name: timing.median * row.count
            for name, timing in interleaved(row.calls, args.rounds).items()
        }
        ours = times["fcn_jax forward"], times["fcn_jax backward"]
        theirs = times["torch forward"], times["torch both"] - times["torch forward"]
        rate = 3 * row.flops * row.count / sum(ours)
        found.append(
            {
                "operator": row.name,
                "count": row.count,
                "flops": row.flops,
                "fcn_jax_seconds": ours,
                "torch_seconds": theirs,
            }
        )
        print(
            f"{row.name:<44}{row.count:>6}{ours[0] * 1e3:>10.1f}{theirs[0] * 1e3:>8.1f}{ours[1] * 1e3:>10.1f}{theirs[1] * 1e3:>8.1f}"
            + (f"{rate / 1e9:>9.0f}" if rate else ""),
            flush=True,
        )
    sums = [
        sum(row[side][i] for row in found)
        for i in (0, 1)
        for side in ("fcn_jax_seconds", "torch_seconds")
    ]  # type: ignore[index]
    print(
        f"{'all':<50}"
        + "".join(f"{s * 1e3:>{width}.1f}" for s, width in zip(sums, (10, 8, 10, 8), strict=True))
    )
    key = {"setting": dataclasses.asdict(setting)}
    keep(args.out, key, {"environment": environment("cpu"), "peaks": peak, "operators": found})


if __name__ == "__main__":
    main()
