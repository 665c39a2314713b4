"""A small folder dataset of drawn scenes, and processes that train on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax import config, recipes
from fcn_jax.data.datasets.shapes import SHAPES_CLASSES, draw_scene
from fcn_jax.train import loop

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"

RECIPE = """
[model]
backbone = "tiny"

[data]
dataset = "folder"
batch_size = 8
crop_size = [48, 48]

[optim]
lr = 0.05

[train]
epochs = 5
log_every_steps = 1
num_visualizations = 1
"""


def write_scenes(root: Path, train: int = 32, val: int = 3) -> Path:
    """Write a dataset of 64x64 scenes in the `folder` layout."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        (root / "images" / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
        for number in range(count):
            image, mask = draw_scene(first + number)
            image, mask = image[64:128, 64:128], mask[64:128, 64:128]
            Image.fromarray(np.ascontiguousarray(image)).save(
                root / "images" / split / f"{number}.png"
            )
            Image.fromarray(np.ascontiguousarray(mask)).save(
                root / "masks" / split / f"{number}.png"
            )
    (root / "classes.txt").write_text("\n".join(SHAPES_CLASSES.names) + "\n")
    return root


def environment(devices: int = 1) -> dict[str, str]:
    """Return the environment of a process with the tiny plugin and this number of CPU devices."""
    path = os.pathsep.join(filter(None, [str(TINY), os.environ.get("PYTHONPATH", "")]))
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """Write a recipe file."""
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def arguments(recipe: Path, data: Path, run: Path, *more: str) -> list[str]:
    """Return the arguments of `fcn-jax train`."""
    return ["train", str(recipe), "--data", str(data), "--workdir", str(run), *more]


def command(*arguments: str) -> list[str]:
    """Return the command that runs `fcn-jax` in a separate process."""
    return [sys.executable, "-m", "fcn_jax", *arguments]


def train(
    recipe: Path, data: Path, run: Path, *more: str, devices: int = 1
) -> subprocess.CompletedProcess[str]:
    """Train in a separate process and wait until it ends."""
    return subprocess.run(
        command(*arguments(recipe, data, run, *more)),
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def train_here(recipe: Path, data: Path, run: Path, *settings: str) -> loop.Result:
    """Train in this process, with changed settings."""
    given = [f"data.root={json.dumps(str(data))}", *settings]
    table = recipes.override(recipes.read_recipe(str(recipe)), given)
    return loop.train(config.parse(table), run)


def start(recipe: Path, data: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """Start training in a separate process, with its own process group."""
    return subprocess.Popen(
        command(*arguments(recipe, data, run, *more)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
