"""A small folder dataset of drawn scenes, and processes that train on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax.data.datasets.shapes import SHAPES_CLASSES, draw_scene

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
    """For a process in which the tiny plugin is installed, with so many CPU devices."""
    path = os.pathsep.join(filter(None, [str(TINY), os.environ.get("PYTHONPATH", "")]))
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def command(recipe: Path, data: Path, run: Path, *more: str) -> list[str]:
    """`fcn-jax train` in a process of its own."""
    return [
        sys.executable,
        "-m",
        "fcn_jax",
        "train",
        str(recipe),
        "--data",
        str(data),
        "--workdir",
        str(run),
        *more,
    ]


def train(
    recipe: Path, data: Path, run: Path, *more: str, devices: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(recipe, data, run, *more),
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
