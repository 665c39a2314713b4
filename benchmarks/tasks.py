"""What is timed, by whom, and how much work it is."""

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
    "training": "a training step on images that lie on the device",
    "head": "the head alone, loss and gradients",
    "trunk": "the trunk alone, forward and gradients",
    "pipeline": "reading, decoding, resizing, cropping and flipping an epoch of files",
    "photographs": "the same with photographs of 12 megapixels, shrunk to 0.1 to 0.3 of their size",
    "epoch": "an epoch of training from files",
}
"""What each task is."""

MAIN = ("logits", "mask", "training")
"""What is run unless tasks are named."""

INPUT = ("pipeline", "photographs")
INFERENCE = ("logits", "mask")
READ_FILES = (*INPUT, "epoch")

IN_A_ROW = 10
"""Calls between two waits on a GPU: a single call would mostly time its start."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A prepared task.

    Attributes:
        start: does the work once; on a GPU its result may be still to come.
        wait: until a result is there.
        on_host: a result as an array.
    """

    start: Callable[[], Any]
    wait: Callable[[Any], Any]
    on_host: Callable[[Any], np.ndarray]

    def __call__(self, times: int = 1) -> Any:
        """Do the work so many times in a row, wait, and give the last result."""
        for _ in range(times):
            result = self.start()
        self.wait(result)
        return result


@dataclasses.dataclass(frozen=True)
class Contender:
    """Who runs a task.

    Attributes:
        name: in tables.
        framework: "fcn_jax", "flax" or "torch".
        compiled: by torch.compile.
        product: PyTorch with the head as a matrix product.
    """

    name: str
    framework: str
    compiled: bool = False
    product: bool = False

    def prepare(self, task: str, setting: Setting) -> Work:
        """Everything but the work itself."""
        if self.framework == "torch":
            from benchmarks import torch_tasks

            start = torch_tasks.TASKS[task](setting, self.compiled, self.product)
            return Work(start, lambda _: torch_tasks.wait(setting.device), torch_tasks.on_host)
        from benchmarks import jax_tasks

        forms = jax_tasks.LIBRARY if self.framework == "fcn_jax" else jax_tasks.PLAIN_FLAX
        return Work(forms[task](setting), jax_tasks.wait, np.asarray)


LIBRARY = Contender("fcn_jax", "fcn_jax")
EAGER = Contender("torch eager", "torch")
COMPILED = Contender("torch.compile", "torch", compiled=True)
PRODUCT = Contender("torch.compile, product head", "torch", compiled=True, product=True)
PLAIN_FLAX = Contender("plain flax", "flax")
LOADER = Contender("torchvision v2, DataLoader", "torch")

NAMES = tuple(one.name for one in (EAGER, COMPILED, PRODUCT, PLAIN_FLAX, LOADER))
"""The contenders, without the library itself."""


def possible(setting: Setting) -> tuple[str, ...]:
    """The tasks of a model. Only d2l's network has a PyTorch side for training and parts."""
    return tuple(TASKS) if setting.is_chapters else INFERENCE


def default(setting: Setting) -> tuple[str, ...]:
    """Those that are run unless tasks are named."""
    return MAIN if setting.is_chapters else INFERENCE


def contenders(task: str, setting: Setting) -> list[Contender]:
    """All that can run a task, the library first. Plain Flax has no bottleneck blocks here."""
    if task in INPUT:
        return [LIBRARY, LOADER]
    found = [LIBRARY, EAGER, COMPILED]
    if task == "epoch" or not setting.is_chapters:
        return found
    if task != "trunk":
        found.append(PRODUCT)
    return [*found, PLAIN_FLAX] if setting.spec.backbone in BASIC_DEPTHS else found


def check_agreement(task: str, answers: Mapping[str, np.ndarray], dtype: str) -> None:
    """Raise `SystemExit` unless the contenders have equal results.

    Tasks that read files draw their augmentations each in its own way, so only shapes are compared.
    """
    (first, reference), *others = answers.items()
    tolerance = 1e-3 if dtype == "float32" else 5e-2
    for name, answer in others:
        if reference.shape != answer.shape:
            raise SystemExit(f"{task}: {name} gave {answer.shape} and {first} {reference.shape}")
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
    """Operations of the model, 2 for each multiply-add, as PyTorch counts; None for input."""
    if task in INPUT:
        return None
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.networks import in_torch, original

    model = setting.build()
    network: Any = (
        in_torch(model, product=True) if setting.is_chapters else original(setting, model)
    )
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
    """Calls between two waits."""
    return IN_A_ROW if setting.device == "cuda" and task not in ("mask", *READ_FILES) else 1


def images(task: str, setting: Setting) -> int:
    """How many images a call works on."""
    if task not in READ_FILES:
        return setting.batch
    from pathlib import Path

    count = len(list((Path(setting.data) / "images" / "train").iterdir()))
    return count // setting.batch * setting.batch
