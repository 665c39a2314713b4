"""The tasks, the contenders that run them, and the number of operations of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.networks import BASIC_DEPTHS
from benchmarks.setting import Setting

TASKS = {
    "logits": "images to logits",
    "mask": "u8 images to u8 masks",
    "training": "a training step on images in device memory",
    "head": "loss and gradients of the head alone",
    "trunk": "features and gradients of the backbone alone",
    "pipeline": "reading, decoding, resizing, cropping and flipping an epoch of files",
    "photographs": "the same with photographs of 12 megapixels, scaled by 0.1 to 0.3",
    "epoch": "an epoch of training from files",
}
"""Name -> description."""

MAIN = ("logits", "mask", "training")
"""The default tasks."""

INPUT = ("pipeline", "photographs")
INFERENCE = ("logits", "mask")
READ_FILES = (*INPUT, "epoch")

IN_A_ROW = 10
"""Calls before each wait on a GPU. For a single call, its launch would take most of the time."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A prepared task.

    Attributes:
        start: does the work once; a GPU may still compute the returned result.
        wait: waits until a result is computed.
        on_host: converts a result to an array.
    """

    start: Callable[[], Any]
    wait: Callable[[Any], Any]
    on_host: Callable[[Any], np.ndarray]

    def __call__(self, times: int = 1) -> Any:
        """Do the work `times` times in a row, wait, and return the last result."""
        for _ in range(times):
            result = self.start()
        self.wait(result)
        return result


@dataclasses.dataclass(frozen=True)
class Contender:
    """An implementation that runs the tasks.

    Attributes:
        name: its name in tables.
        framework: "fcn_jax", "flax" or "torch".
        compiled: whether torch.compile compiles it.
        product: whether PyTorch computes the head as a matrix product.
    """

    name: str
    framework: str
    compiled: bool = False
    product: bool = False

    def prepare(self, task: str, setting: Setting) -> Work:
        """Build the networks and inputs of a task."""
        if self.framework == "torch":
            from benchmarks import torch_tasks

            start = torch_tasks.TASKS[task](setting, self.compiled, self.product)
            return Work(start, lambda _: torch_tasks.wait(setting.device), torch_tasks.on_host)
        from benchmarks import jax_tasks

        prepare = jax_tasks.LIBRARY if self.framework == "fcn_jax" else jax_tasks.PLAIN_FLAX
        return Work(prepare[task](setting), jax_tasks.wait, np.asarray)


LIBRARY = Contender("fcn_jax", "fcn_jax")
EAGER = Contender("torch eager", "torch")
COMPILED = Contender("torch.compile", "torch", compiled=True)
PRODUCT = Contender("torch.compile, product head", "torch", compiled=True, product=True)
PLAIN_FLAX = Contender("plain flax", "flax")
LOADER = Contender("torchvision v2, DataLoader", "torch")

NAMES = tuple(one.name for one in (EAGER, COMPILED, PRODUCT, PLAIN_FLAX, LOADER))
"""Names of the contenders, without the library."""


def possible(setting: Setting) -> tuple[str, ...]:
    """Return the tasks of a model. Only for d2l's network can PyTorch train and run the parts."""
    return tuple(TASKS) if setting.is_d2l else INFERENCE


def default(setting: Setting) -> tuple[str, ...]:
    """Return the default tasks of a model."""
    return MAIN if setting.is_d2l else INFERENCE


def contenders(task: str, setting: Setting) -> list[Contender]:
    """Return the contenders that can run a task, the library first.

    The plain Flax network has no bottleneck blocks.
    """
    if task in INPUT:
        return [LIBRARY, LOADER]
    found = [LIBRARY, EAGER, COMPILED]
    if task == "epoch" or not setting.is_d2l:
        return found
    if task != "trunk":
        found.append(PRODUCT)
    return [*found, PLAIN_FLAX] if setting.spec.backbone in BASIC_DEPTHS else found


def check_agreement(task: str, answers: Mapping[str, np.ndarray], dtype: str) -> None:
    """Check that all contenders have the same results, within a tolerance.

    For tasks that read files, only shapes are compared, because the contenders draw their random
    augmentations in different ways.

    Args:
        task: one of `TASKS`.
        answers: the first result of each contender.
        dtype: compute dtype, which determines the tolerance.

    Raises:
        SystemExit: two results differ.
    """
    (first, reference), *others = answers.items()
    tolerance = 1e-3 if dtype == "float32" else 5e-2
    for name, answer in others:
        if reference.shape != answer.shape:
            raise SystemExit(
                f"{task}: {name} returned the shape {answer.shape}, {first} {reference.shape}"
            )
        if task in READ_FILES:
            continue
        one, other = np.asarray(reference, np.float32), np.asarray(answer, np.float32)
        off = float(
            (one != other).mean()
            if task == "mask"
            else np.linalg.norm(one - other) / np.linalg.norm(one)
        )
        if not off < tolerance:
            raise SystemExit(
                f"{task}: {name} and {first} disagree by {off:.1e}, more than {tolerance:g}"
            )


def flops(task: str, setting: Setting) -> float | None:
    """Return the floating-point operations of a task as PyTorch counts them; None for input tasks.

    A multiply-add is two operations.
    """
    if task in INPUT:
        return None
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.networks import torch_network

    model = setting.build()
    network: Any = torch_network(setting, model, product=True)
    deepest = model.features[-1]
    x = torch.zeros(1, 3, *setting.size)
    backward = task not in ("logits", "mask")
    if task == "head":
        network = network[-2:]
        x = torch.zeros(
            1,
            deepest.channels,
            *(size // deepest.stride for size in setting.size),
            requires_grad=True,
        )
    elif task == "trunk":
        network, x = network[:-2], x.requires_grad_()
    network.train(backward)
    with FlopCounterMode(display=False) as counter:
        out = network(x)
        if backward:
            out.sum().backward()
    return float(counter.get_total_flops()) * images(task, setting)


def in_a_row(task: str, setting: Setting) -> int:
    """Return the number of calls before each wait."""
    return IN_A_ROW if setting.device == "cuda" and task not in ("mask", *READ_FILES) else 1


def images(task: str, setting: Setting) -> int:
    """Return the number of images that one call processes."""
    if task not in READ_FILES:
        return setting.batch
    from pathlib import Path

    count = len(list((Path(setting.data) / "images" / "train").iterdir()))
    return count // setting.batch * setting.batch
