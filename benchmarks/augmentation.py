"""Images that one core augments per second, next to Albumentations and torchvision.

    python -m benchmarks.augmentation                  # drawn scenes of VOC's size
    python -m benchmarks.augmentation --dataset voc2012 --data DIR

Three chains of the same operations with the same ranges, on the same decoded images: the basic one
(random resize, crop, flip), the same with colors, and all operations; and each further operation
alone, on a crop. For each image, the libraries take turns. Times are CPU times of the process, in
which each library uses one thread: set OMP_NUM_THREADS=1. The result is the median over the rounds,
which draw other random numbers. Albumentations and torchvision v2 take part if installed.
"""

from __future__ import annotations

import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import scenes
from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment
from fcn_jax.api import IGNORE_INDEX, Example
from fcn_jax.config import parse
from fcn_jax.data.transforms import Augment
from fcn_jax.plugins import registry
from fcn_jax.pytorch.reference import import_torchvision
from fcn_jax.runtime.atomic import write_json
from fcn_jax.runtime.versions import package_versions

IMAGES = 48
SCALE = (0.5, 2.0)
Call = Callable[[int, int], object]
"""Number of the image, seed -> a transformed image and its mask."""

_BASE = ("resize", "crop", "flip")
_GEOMETRY = ("resize", "crop", "rotate", "flip", "vertical_flip")
_EFFECTS = ("colors", "blur", "jpeg", "cutout")
CHAINS: dict[str, tuple[str, ...]] = {
    "resize, crop, flip": _BASE,
    "with colors": (*_BASE, "colors"),
    "all except JPEG": (*_GEOMETRY, "colors", "blur", "cutout"),
    "all": (*_GEOMETRY, *_EFFECTS),
    **{name: (name,) for name in ("rotate", *_EFFECTS)},
}
"""Name in the results -> operations. Chains without a crop are applied to crops."""


def ours(chain: tuple[str, ...], examples: list[Example], size: tuple[int, int]) -> Call:
    """The library's chain."""
    shortest = min(examples[0].mask.shape)
    tables: dict[str, Any] = {
        "resize": {"shorter_side": [round(shortest * part) for part in SCALE]},
        "rotate": {"degrees": 10, "probability": 0.5 if "crop" in chain else 1.0},
        "vertical_flip": {"probability": 0.5},
        "blur": {"sigma": [0.1, 2.0], "probability": 0.5 if "crop" in chain else 1.0},
        "jpeg": {"quality": [30, 95], "probability": 0.5 if "crop" in chain else 1.0},
        "cutout": {"size": [0.1, 0.3], "probability": 0.5 if "crop" in chain else 1.0},
    }
    chosen = {name: table for name, table in tables.items() if name in chain}
    jitter = (0.25, 0.25, 0.25, 0.1) if "colors" in chain else (0.0, 0.0, 0.0, 0.0)
    augment = Augment(
        size, (1.0, 1.0), "flip" in chain, *jitter, tables=parse({"augment": chosen}).augment
    )
    return lambda number, seed: augment(examples[number], np.random.default_rng(seed))


def albumentations(chain: tuple[str, ...], examples: list[Example], size: tuple[int, int]) -> Call:
    """Albumentations' transforms."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    a = importlib.import_module("albumentations")
    p = 0.5 if "crop" in chain else 1.0
    steps: dict[str, list[Any]] = {
        # Area interpolation for shrinking, as the library does.
        "resize": [a.RandomScale((SCALE[0] - 1, SCALE[1] - 1), area_for_downscale="image", p=1)],
        "crop": [a.PadIfNeeded(*size, border_mode=0, fill_mask=IGNORE_INDEX), a.RandomCrop(*size)],
        "rotate": [a.Rotate(10, border_mode=0, fill_mask=IGNORE_INDEX, p=p)],
        "flip": [a.HorizontalFlip(p=0.5)],
        "vertical_flip": [a.VerticalFlip(p=0.5)],
        "colors": [
            a.ColorJitter(
                brightness=(0.75, 1.25),
                contrast=(0.75, 1.25),
                saturation=(0.75, 1.25),
                hue=(-0.1, 0.1),
                p=1,
            )
        ],
        "blur": [a.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=p)],
        "jpeg": [a.ImageCompression("jpeg", (30, 95), p=p)],
        "cutout": [
            a.CoarseDropout((1, 1), (0.1, 0.3), (0.1, 0.3), fill_mask=IGNORE_INDEX, p=p),
        ],
    }
    pipeline = a.Compose([step for name in chain for step in steps[name]])

    def call(number: int, seed: int) -> object:
        pipeline.set_random_seed(seed)
        return pipeline(image=examples[number].image, mask=examples[number].mask)

    return call


def torchvision(chain: tuple[str, ...], examples: list[Example], size: tuple[int, int]) -> Call:
    """Torchvision's transforms, version 2, of u8 tensors."""
    import torch

    import_torchvision()
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    shortest = min(examples[0].mask.shape)
    fill = {tv_tensors.Mask: IGNORE_INDEX, "others": 0}
    p = 0.5 if "crop" in chain else 1.0
    steps: dict[str, Any] = {
        "resize": v2.RandomResize(*(round(shortest * part) for part in SCALE), antialias=True),
        "crop": v2.RandomCrop(size, pad_if_needed=True, fill=fill),
        "rotate": v2.RandomApply(
            [v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)], p
        ),
        "flip": v2.RandomHorizontalFlip(0.5),
        "vertical_flip": v2.RandomVerticalFlip(0.5),
        "colors": v2.ColorJitter(0.25, 0.25, 0.25, 0.1),
        "blur": v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p),
        "cutout": v2.RandomErasing(p, scale=(0.01, 0.09)),
    }
    transform = v2.Compose([steps[name] for name in chain])
    pairs = [
        (
            tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))),
            tv_tensors.Mask(torch.from_numpy(mask)),
        )
        for _, image, mask in examples
    ]

    def call(number: int, seed: int) -> object:
        torch.manual_seed(seed)
        return transform(*pairs[number])

    return call


CONTENDERS: dict[str, tuple[str, Callable[..., Call]]] = {
    "fcn_jax": ("numpy", ours),
    "albumentations": ("albumentations", albumentations),
    "torchvision": ("torchvision", torchvision),
}
"""Name -> the module that must be installed, and a function that builds a chain."""


def measure(calls: Mapping[str, Call], images: int, rounds: int) -> dict[str, float]:
    """Return the images per second of CPU time of each contender.

    Args:
        calls: the contenders.
        images: number of images.
        rounds: number of times that each image is transformed, after one that is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        spent = dict.fromkeys(calls, 0.0)
        for image in range(images):
            for name, call in calls.items():
                began = time.process_time()
                call(image, number * images + image)
                spent[name] += time.process_time() - began
        if number:
            for name, taken in spent.items():
                seconds[name].append(taken)
    return {name: images / statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Measure, print and write the results."""
    parser = Parser("benchmarks.augmentation", __doc__)
    parser.add_argument(
        "--dataset", default="folder", help="registered dataset, whose split train is read"
    )
    parser.add_argument("--data", type=Path, help="folder of the dataset (default: drawn scenes)")
    parser.add_size("size of the crops in pixels")
    parser.add_argument(
        "--rounds", type=int, default=9, help="times that each image is transformed"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "augmentation_cpu.json", help="JSON file"
    )
    args = parser.parse_args()
    cv2.setNumThreads(0)
    size = (args.size[0], args.size[1])
    with tempfile.TemporaryDirectory() as folder:
        root = args.data or scenes.write(Path(folder), IMAGES)
        source = registry.default().dataset(args.dataset).open(root, "train")
        count = min(IMAGES, len(source))
        indices = np.linspace(0, len(source) - 1, count).astype(int).tolist()
        examples = [source.decode(source[index]) for index in indices]
    crops = [Augment(size, flip=False)(e, np.random.default_rng(0)) for e in examples]
    found = [name for name, (module, _) in CONTENDERS.items() if importlib.util.find_spec(module)]
    rows = []
    for title, chain in CHAINS.items():
        inputs = examples if "crop" in chain else crops
        # torchvision's JPEG needs its compiled extension, which builds next to a CPU build lack.
        names = [name for name in found if name != "torchvision" or "jpeg" not in chain]
        calls = {name: CONTENDERS[name][1](chain, inputs, size) for name in names}
        speeds = measure(calls, count, args.rounds)
        rows.append({"chain": title, "operations": chain, "images_per_second": speeds})
        shown = "  ".join(f"{name} {speed:8.1f}" for name, speed in speeds.items())
        print(f"{title:<20} images/s  {shown}")
    setting = {
        "dataset": args.dataset if args.data else "drawn scenes",
        "images": count,
        "image_size": examples[0].mask.shape,
        "crop": size,
        "rounds": args.rounds,
    }
    versions = package_versions(("albumentations", "opencv-python-headless", "pillow"))
    write_json(
        args.out,
        {"environment": environment("cpu") | versions, "setting": setting, "rows": rows},
    )


if __name__ == "__main__":
    main()
