"""Time of the check of all masks before training: `python -m benchmarks.label_look`.

Drawn masks of Pascal VOC's size, stored as indexed PNGs, are checked twice: cold, with an empty
cache, and warm, with unchanged files. CPU time is also measured, because other load on the machine
affects it less.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment
from benchmarks.scenes import SIZE
from fcn_jax.data.datasets.folder import FOLDER
from fcn_jax.data.datasets.shapes import SHAPES_CLASSES, draw_scene
from fcn_jax.data.inspection import inspect
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.runtime import cache
from fcn_jax.runtime.atomic import write_json

DRAWN = 100
"""Number of drawn scenes. Further masks are copies with an added line, so that all files differ."""


def write(root: Path, count: int) -> Path:
    """Write `count` masks with images of a single color as split `train` of a `folder` dataset."""
    images, masks = root / "images" / "train", root / "masks" / "train"
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    blank = io.BytesIO()
    Image.new("RGB", SIZE[::-1]).save(blank, "JPEG")
    colors = [part for color in voc_palette(256) for part in color]
    drawn = [draw_scene(seed, SIZE)[1] for seed in range(min(DRAWN, count))]
    for number in range(count):
        mask = drawn[number % DRAWN].copy()
        mask[number // DRAWN, : number % DRAWN + 1] = 255
        image = Image.fromarray(mask)
        image.putpalette(colors)
        image.save(masks / f"{number:05}.png")
        (images / f"{number:05}.jpg").write_bytes(blank.getvalue())
    (root / "classes.txt").write_text("\n".join(SHAPES_CLASSES.names) + "\n")
    return root


def measure(root: Path) -> dict[str, float]:
    """Open a dataset and check its masks; returns the time in total and per mask."""
    began, used = time.perf_counter(), time.process_time()
    source = FOLDER.open(root, "train")
    inspect({"train": source}, stream=io.StringIO())
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - used
    return {
        "seconds": seconds,
        "masks_per_second": len(source) / seconds,
        "processor_ms_per_mask": 1000 * cpu_seconds / len(source),
    }


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get(cache.VARIABLE)
    os.environ[cache.VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[cache.VARIABLE]
        else:
            os.environ[cache.VARIABLE] = before


def main() -> None:
    """Measure, print and write the results."""
    parser = Parser("benchmarks.label_look", __doc__)
    parser.add_argument("--masks", type=int, default=3000, help="number of masks")
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of rounds; the fastest counts"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "label_look_cpu.json", help="JSON file"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder) / "data", args.masks)
        rounds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
        for number in range(args.rounds):
            with _cache_in(Path(folder) / f"cache{number}"):
                for kind in ("cold", "warm"):
                    rounds[kind].append(measure(root))
        size = float(
            np.mean([path.stat().st_size for path in (root / "masks" / "train").iterdir()])
        )
    best = {kind: min(found, key=lambda one: one["seconds"]) for kind, found in rounds.items()}
    for kind, found in best.items():
        print(
            f"{kind}: {found['masks_per_second']:8.0f} masks/s, "
            f"{found['processor_ms_per_mask']:.3f} ms of CPU time per mask"
        )
    setting = {"masks": args.masks, "size": SIZE, "bytes": round(size)}
    write_json(args.out, {"environment": environment("cpu"), "setting": setting, **best})


if __name__ == "__main__":
    main()
