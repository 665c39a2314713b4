"""What each work-around for the compiler gains on this device: `python -m benchmarks.workarounds`.

    python -m benchmarks.workarounds                          # all; half an hour and more
    python -m benchmarks.workarounds --only winograd --only "sparse 3x3"

A row is a training step, or a prediction from images to masks, of a network to which the
work-around matters: with the library as it is, and with this work-around replaced by the plain
form. All programs of a network are compiled in one process and timed in turn. Settings of a process
are measured in processes that run in turn.

The factor is the ratio of the smallest times: above 1, the work-around pays. Bytes are temporaries
as the compiler counts them. Rows are written to benchmarks/results/workarounds_DEVICE.json; a later
run replaces only the rows that it measures.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from benchmarks import timing
from benchmarks.record import RESULTS, environment, keep
from benchmarks.setting import RECIPE, Setting
from fcn_jax import compiler_options
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.spec import resolve
from fcn_jax.nn import (
    _conv_cpu,
    _depthwise_conv_transpose,
    _pooling,
)
from fcn_jax.nn._conv_xla import xla_conv
from fcn_jax.runtime import memory, process
from fcn_jax.runtime.memory import trim_malloc
from fcn_jax.train import groups, optim
from fcn_jax.train import step as train_step

TRAINING, INFERENCE = "training", "inference"


# The plain forms.


def _no(*args: Any, **kwargs: Any) -> bool:
    return False


def _xla_grads(
    settings: Any, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    grad_x, grad_kernel = jax.vjp(functools.partial(xla_conv, settings), x, kernel)[1](grad)
    return grad_x, grad_kernel.astype(jnp.float32)


def _xla_kernel_grad(
    settings: Any, x: jax.Array, grad: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    kernel = jnp.zeros(shape, x.dtype)
    return jax.vjp(lambda kernel: xla_conv(settings, x, kernel), kernel)[1](grad)[0].astype(
        jnp.float32
    )


def _dense_or(
    whole: Callable[..., Any], xla: Callable[..., Any], plain: Callable[[Any, Any], bool]
) -> Callable[..., Any]:
    """`whole`, except where `plain(settings, kernel)`: XLA's own form there."""
    return lambda settings, x, kernel, *rest: (xla if plain(settings, kernel) else whole)(
        settings, x, kernel, *rest
    )


def _plain_where(plain: Callable[[Any, Any], bool]) -> dict[str, Any]:
    return {
        "fcn_jax.nn._conv.cpu_conv": _dense_or(_conv_cpu.cpu_conv, xla_conv, plain),
        "fcn_jax.nn._conv.cpu_grads": _dense_or(_conv_cpu.cpu_grads, _xla_grads, plain),
    }


def _is_depthwise(settings: Any, kernel: Any) -> bool:
    return settings.groups > 1 and kernel.shape[2] == 1 and kernel.shape[3] == settings.groups


def plain_depthwise(settings: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A depthwise convolution as a sum over the taps, of which nothing is stored."""
    stride, height, width = settings.stride, *kernel.shape[:2]
    padded = jnp.pad(x, ((0, 0), (settings.padding,) * 2, (settings.padding,) * 2, (0, 0)))
    rows, cols = (
        size - settings.dilation * (taps - 1)
        for size, taps in zip(padded.shape[1:3], (height, width), strict=True)
    )
    taps = [
        padded[:, top : top + rows : stride, left : left + cols : stride] * kernel[i, j, 0]
        for i, top in enumerate(range(0, height * settings.dilation, settings.dilation))
        for j, left in enumerate(range(0, width * settings.dilation, settings.dilation))
    ]
    return functools.reduce(jnp.add, taps)


def plain_depthwise_input_grad(
    settings: Any, kernel: jax.Array, grad: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """JAX's gradient of the input."""
    x = jnp.zeros(shape, grad.dtype)
    return jax.vjp(lambda x: plain_depthwise(settings, x, kernel), x)[1](grad)[0]


def plain_depthwise_kernel_grad(
    settings: Any, x: jax.Array, grad: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """JAX's gradient of the kernel."""
    kernel = jnp.zeros(shape, jnp.float32)
    return jax.vjp(lambda kernel: plain_depthwise(settings, x, kernel), kernel)[1](grad)[0]


def _is_grouped(settings: Any, kernel: Any) -> bool:
    return settings.groups > 1 and not _is_depthwise(settings, kernel)


def _winograd_unless_sparse() -> dict[str, Any]:
    suits, sparse = _conv_cpu._suits_winograd, _conv_cpu._is_sparse
    return {
        "fcn_jax.nn._conv_cpu._suits_winograd": lambda settings, x, kernel, channels: (
            suits(settings, x, kernel, channels) and not sparse(settings, x)
        )
    }


def _xla_pool(x: jax.Array, window: Any) -> jax.Array:
    return _pooling._reduce_window(window, x)


def _tapped_pool(x: jax.Array, window: Any) -> jax.Array:
    return functools.reduce(jnp.maximum, _pooling._taps(window, x))


def _xla_conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
    groups: int = 1,
) -> jax.Array:
    """The transposed convolution as XLA's dilated convolution."""
    edges = [(taps - 1 - padding, taps - 1 - padding + output_padding) for taps in kernel.shape[:2]]
    flipped = kernel[::-1, ::-1].astype(x.dtype)
    if groups > 1:
        flipped = flipped.swapaxes(2, 3)  # a channel has one input and one output
    return lax.conv_general_dilated(
        x,
        flipped,
        (1, 1),
        edges,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _plain_spread(pixels: tuple[jax.Array, ...], kernels: jax.Array) -> jax.Array:
    rounded = kernels.astype(pixels[0].dtype).astype(jnp.float32)
    return _depthwise_conv_transpose.summed(pixels, rounded)


@dataclasses.dataclass(frozen=True)
class Workaround:
    """One work-around, and what is there without it.

    Attributes:
        where: module that holds it.
        plain: what replaces it.
        settings: networks in which it is measured, each with `TRAINING` or `INFERENCE`.
        patches: dotted name of an attribute -> its plain form, while the network is traced.
        options: changes of the compiler options; None removes one.
    """

    where: str
    plain: str
    settings: tuple[tuple[str, Setting], ...]
    patches: Callable[[], dict[str, Any]] = dict
    options: tuple[tuple[str, str | None], ...] = ()


_SIZE = (320, 480)


def _both(*args: Any, **kwargs: Any) -> tuple[tuple[str, Setting], ...]:
    return tuple((task, Setting(*args, **kwargs)) for task in (TRAINING, INFERENCE))


def _step(*args: Any, **kwargs: Any) -> tuple[tuple[str, Setting], ...]:
    return ((TRAINING, Setting(*args, **kwargs)),)


RESNET18 = _both("resnet18", 2, _SIZE)
RESNET50 = _both("resnet50", 1, _SIZE)
DEEPLAB = ((INFERENCE, Setting("deeplabv3_resnet50", 1, _SIZE)),)  # its pool needs two to train
THOUSAND = _both("resnet18", 1, (160, 240), num_classes=1000, upsampling="depthwise")
OPTIONS = ("xla_cpu_experimental_ynn_fusion_type", "xla_cpu_scheduler_type")

WORKAROUNDS: dict[str, Workaround] = {
    "winograd": Workaround(
        "nn/_winograd.py",
        "XLA's 3x3 convolutions",
        (*RESNET18, *RESNET50),
        lambda: {"fcn_jax.nn._conv_cpu._suits_winograd": _no},
    ),
    "kernel gradient": Workaround(
        "nn/_conv_cpu.py",
        "XLA's own",
        RESNET18[:1],
        lambda: {"fcn_jax.nn._conv_cpu._kernel_grad": _xla_kernel_grad},
    ),
    "all of conv_cpu": Workaround(
        "nn/_conv_cpu.py, nn/_winograd.py",
        "XLA's convolutions and gradients",
        RESNET18,
        lambda: _plain_where(lambda *_: True),
    ),
    "remat barrier": Workaround(
        "nn/_barriers.py",
        "transformed arrays are stored",
        RESNET18[:1],
        lambda: {"fcn_jax.nn._conv_cpu.remat_barrier": lambda x, _: x},
    ),
    "pool": Workaround(
        "nn/_pooling.py",
        "XLA's windows and gradient",
        RESNET18,
        lambda: {"fcn_jax.nn._pooling._pool": _xla_pool},
    ),
    "pool gradient": Workaround(
        "nn/_pooling.py",
        "maximum over the taps, JAX's gradient",
        RESNET18[:1],
        lambda: {"fcn_jax.nn._pooling._pool": _tapped_pool},
    ),
    **{
        f"option {name}": Workaround(
            "runtime/compiler.py", "XLA's default", RESNET18, options=((name, None),)
        )
        for name in OPTIONS
    },
    "transposed convolution": Workaround(
        "nn/_conv_transpose.py",
        "XLA's dilated convolution",
        RESNET18,
        lambda: {"fcn_jax.nn._conv_transpose.conv_transpose": _xla_conv_transpose},
    ),
    "fusion barrier": Workaround(
        "nn/_barriers.py",
        "nothing",
        (*RESNET50, *_both("resnet101", 1, _SIZE)),
        lambda: {"fcn_jax.nn._barriers.fusion_barrier": lambda x: x},
    ),
    "sparse 3x3": Workaround(
        "nn/_conv_cpu.py",
        "Winograd's form",
        DEEPLAB,
        lambda: {"fcn_jax.nn._conv_cpu._is_sparse": _no},
    ),
    "sparse 3x3, against XLA": Workaround(
        "nn/_conv_cpu.py", "XLA's form", DEEPLAB, _winograd_unless_sparse
    ),
    "grouped": Workaround(
        "nn/_conv_cpu.py",
        "XLA's own",
        _both("resnext50_32x4d", 1, (160, 240)),
        lambda: _plain_where(_is_grouped),
    ),
    "depthwise": Workaround(
        "nn/_depthwise_cpu.py",
        "XLA's own",
        _both("lraspp_mobilenet_v3_large", 1, (160, 240)),
        lambda: _plain_where(_is_depthwise),
    ),
    "depthwise, against a plain sum": Workaround(
        "nn/_depthwise_cpu.py",
        "a sum over the taps, JAX's gradients",
        _both("efficientnet_lite0", 2, (160, 240), head="fcn"),
        lambda: {
            "fcn_jax.nn._conv_cpu.depthwise": plain_depthwise,
            "fcn_jax.nn._conv_cpu.input_grad": plain_depthwise_input_grad,
            "fcn_jax.nn._conv_cpu.kernel_grad": plain_depthwise_kernel_grad,
        },
    ),
    "small stem": Workaround(
        "nn/_depthwise_cpu.py",
        "XLA's own",
        _both("lraspp_mobilenet_v3_large", 1, _SIZE)[1:],
        lambda: {"fcn_jax.nn._conv_cpu._is_small_stem": _no},
    ),
    "spread": Workaround(
        "nn/_depthwise_conv_transpose.py",
        "JAX's gradients",
        THOUSAND[:1],
        lambda: {"fcn_jax.nn._conv_transpose.spread": _plain_spread},
    ),
    "spread, against XLA": Workaround(
        "nn/_depthwise_conv_transpose.py",
        "XLA's dilated convolution",
        THOUSAND,
        lambda: {"fcn_jax.nn._conv_transpose.conv_transpose": _xla_conv_transpose},
    ),
}


@dataclasses.dataclass
class Program:
    """A compiled program that can be called.

    Attributes:
        call: runs it and waits.
        temporaries: bytes, as the compiler counts them.
        compiling: seconds of tracing and compiling.
    """

    call: Callable[[], object]
    temporaries: int
    compiling: float


@contextlib.contextmanager
def _patched(patches: dict[str, Any]) -> Iterator[None]:
    """Replace attributes, given by their dotted names."""
    jax.clear_caches()
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            module, attribute = name.rsplit(".", 1)
            stack.enter_context(
                mock.patch.object(importlib.import_module(module), attribute, value)
            )
        yield
    jax.clear_caches()


def prepared(task: str, setting: Setting, workaround: Workaround | None) -> Program:
    """The program of `task`, without `workaround` if one is given."""
    options: dict[str, str] = compiler_options()
    for name, value in workaround.options if workaround else ():
        if value is None:
            options.pop(name, None)
        else:
            options[name] = value
    with _patched(workaround.patches() if workaround else {}):
        return _training(setting, options) if task == TRAINING else _inference(setting, options)


def _training(setting: Setting, options: dict[str, str]) -> Program:
    model = setting.build()
    preprocess = resolve(model.spec).preprocess
    optimizer = optim.make(RECIPE, 1000, groups.assign(RECIPE, nnx.state(model, nnx.Param)))
    state, step = train_step.make(model, optimizer, preprocess)
    batch = jax.device_put({"image": setting.images(), "mask": setting.labels()})
    began = time.perf_counter()
    run = jax.jit(step, donate_argnums=0, compiler_options=options).lower(state, batch).compile()
    compiling = time.perf_counter() - began
    trim_malloc()

    def call() -> None:
        nonlocal state
        state, metrics = run(state, batch)
        jax.block_until_ready((state, metrics))

    return Program(call, run.memory_analysis().temp_size_in_bytes, compiling)


def _inference(setting: Setting, options: dict[str, str]) -> Program:
    model = setting.build()
    preprocess = resolve(model.spec).preprocess
    model.eval()
    graphdef, state = nnx.split(model)
    images = jax.device_put(setting.images())

    def mask(state: Any, images: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, state)(normalize(images, preprocess))
        # Masks hold bytes; with more classes the types only have to be wide enough.
        return jnp.argmax(logits, -1).astype(jnp.uint8 if setting.num_classes <= 255 else jnp.int32)

    began = time.perf_counter()
    run = jax.jit(mask, compiler_options=options).lower(state, images).compile()
    compiling = time.perf_counter() - began
    trim_malloc()
    return Program(
        lambda: jax.block_until_ready(run(state, images)),
        run.memory_analysis().temp_size_in_bytes,
        compiling,
    )


def measure(
    task: str, setting: Setting, names: list[str], rounds: int
) -> dict[str, dict[str, Any]]:
    """A row for each work-around of `names`: a network with all of them and without this one."""
    process.configure_process(trains=task == TRAINING)  # as the library's commands do
    programs = {"": prepared(task, setting, None)}
    for name in names:
        programs[name] = prepared(task, setting, WORKAROUNDS[name])
        compiling = programs[name].compiling
        print(
            f"{setting.model}, {task}, without {name}: compiled in {compiling:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    timings = timing.interleaved(
        {name: program.call for name, program in programs.items()}, rounds, warm_up=1
    )
    figures = {
        name: {
            "seconds": min(timings[name].seconds),
            "median_seconds": timings[name].median,
            "temporary_bytes": program.temporaries,
            "compile_seconds": program.compiling,
        }
        for name, program in programs.items()
    }
    return {
        name: {
            "where": WORKAROUNDS[name].where,
            "plain": WORKAROUNDS[name].plain,
            "without": figures[name],
            "with": figures[""],
        }
        for name in names
    }


# Settings of a whole process.

PROCESS: dict[str, tuple[str, tuple[tuple[str, Setting], ...]]] = {
    "tune_malloc": ("runtime/memory.py", _both("resnet18", 4, _SIZE)),
    "disable_async_dispatch": ("runtime/memory.py", _step("resnet18", 4, _SIZE)),
    "disable_loop_unrolling": ("runtime/process.py", _step("resnet18", 4, _SIZE)),
}


def measure_one(task: str, setting: Setting, without: str, rounds: int) -> dict[str, Any]:
    """The figures of a network in this process, whose settings are all made except `without`."""
    from benchmarks.worker import _peak, _start_peak

    with contextlib.ExitStack() as stack:
        if without:
            owner = process if without == "disable_loop_unrolling" else memory
            stack.enter_context(mock.patch.object(owner, without, return_value=False))
        process.configure_process(trains=task == TRAINING)
    program = prepared(task, setting, None)
    program.call()
    trim_malloc()
    _start_peak()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        program.call()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": min(seconds),
        "median_seconds": statistics.median(seconds),
        "peak_bytes": _peak(),
        "temporary_bytes": program.temporaries,
        "compile_seconds": program.compiling,
    }


def measure_process(
    task: str, setting: Setting, names: list[str], rounds: int, processes: int
) -> dict[str, dict[str, Any]]:
    """`measure` for the settings of a process: processes with all and without each, in turn."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("", *names)}
    for _ in range(processes):
        for name, results in found.items():
            results.append(_child("measure_one", task, setting, name, rounds))
            print(
                f"{task}, {f'without {name}' if name else 'as it is'}: {results[-1]}",
                file=sys.stderr,
                flush=True,
            )
    best = {
        name: {key: min(result[key] for result in results) for key in results[0]}
        for name, results in found.items()
    }
    return {
        name: {
            "where": PROCESS[name][0],
            "plain": "not set",
            "without": best[name],
            "with": best[""],
        }
        for name in names
    }


def _child(function: str, task: str, setting: Setting, *rest: Any) -> Any:
    """The result of a function of this module in a new process, without a compilation cache."""
    call = json.dumps([function, task, dataclasses.asdict(setting), *rest])
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, "-m", "benchmarks.workarounds", "--call", call]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _called(call: str) -> Any:
    function, task, setting, *rest = json.loads(call)
    setting = {
        name: tuple(value) if isinstance(value, list) else value for name, value in setting.items()
    }
    return globals()[function](task, Setting(**setting), *rest)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| work-around | where | network | without | with | factor | temporaries | compiling "
        "| without it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        off, on, setting = row["without"], row["with"], row["setting"]
        size = "x".join(map(str, (setting["batch"], *setting["size"])))
        memory_key = "peak_bytes" if "peak_bytes" in on else "temporary_bytes"
        lines.append(
            f"| {row['name']} | `{row['where']}` | {setting['model']} {row['task']}, {size} "
            f"| {1000 * off['seconds']:.0f} ms "
            f"| {1000 * on['seconds']:.0f} ms | {off['seconds'] / on['seconds']:.2f} "
            f"| {off[memory_key] / 1e6:.0f} -> {on[memory_key] / 1e6:.0f} MB "
            f"| {off['compile_seconds']:.0f} -> {on['compile_seconds']:.0f} s | {row['plain']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, write after each network."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workarounds", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[*WORKAROUNDS, *PROCESS],
        metavar="NAME",
        help="a work-around; repeatable",
    )
    parser.add_argument("--task", choices=(TRAINING, INFERENCE), help="only this one")
    parser.add_argument(
        "--rounds", type=int, default=7, help="timed calls of each program, at least 2"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="processes for each setting of a whole process"
    )
    args = parser.parse_args()
    if args.rounds < 2 or args.processes < 1:
        parser.error("expected at least 2 rounds and 1 process")
    device = jax.default_backend()
    out = RESULTS / f"workarounds_{device}.json"
    wanted = args.only or [*WORKAROUNDS, *PROCESS]
    work: dict[tuple[str, Setting], list[str]] = {}
    for name in wanted:
        for task, setting in PROCESS[name][1] if name in PROCESS else WORKAROUNDS[name].settings:
            if args.task in (None, task):
                work.setdefault((task, setting), []).append(name)
    rows = []
    for (task, setting), names in work.items():
        inner, outer = (
            [name for name in names if name in WORKAROUNDS],
            [name for name in names if name in PROCESS],
        )
        found = _child("measure", task, setting, inner, args.rounds) if inner else {}
        found |= measure_process(task, setting, outer, args.rounds, args.processes) if outer else {}
        for name, row in found.items():
            key = {"name": name, "task": task, "setting": dataclasses.asdict(setting)}
            rows.append({**key, **row})
            keep(
                out, key, row | {"environment": environment("cuda" if device == "gpu" else device)}
            )
        print(table(rows[-len(found) :]), flush=True)
    print(f"\n{table(rows)}\n\n{out}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        print(json.dumps(_called(sys.argv[2])))
    else:
        main()
