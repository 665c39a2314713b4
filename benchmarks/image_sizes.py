"""Predict images of many sizes, exactly or padded: `python -m benchmarks.image_sizes`.

    python -m benchmarks.image_sizes                # drawn scenes, drawn weights: times only
    python -m benchmarks.image_sizes PHOTOS --masks MASKS --checkpoint runs/voc2012

XLA compiles a program for each size of its input. The command compares two ways to predict a folder
of images that all differ in size:

* `exact`: one program for each size;
* `pad N`: the image is padded at the bottom and right to a multiple of N pixels, and the mask is
  cropped. The border is filled with the mean color, with copies of the last row and column, or with
  the image mirrored.

Each way runs in a process with an empty compilation cache, and in a second one that finds the
programs of the first in the cache. All ways of a round run in turn. The table has the number of
programs; the processor time of compiling, which other load on the machine changes least; the
seconds of the first and of a later pass over all images; and the share of pixels whose class
differs from that of `exact`: of all pixels, and of those near the right and bottom. With masks it
also has the mean IoU. Results are written to benchmarks/results/image_sizes_DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

EXACT = "exact"
WAYS = (EXACT, "pad 32", "pad 64", "pad 128")
FILLS = {
    "mean": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "mirror": cv2.BORDER_REFLECT_101,
}
"""OpenCV's border types by the name of the fill."""
BORDER = 64
"""Width in pixels of the strips at the right and bottom that also have their own count."""
MEAN_COLOR = (124, 116, 104)
"""RGB color that ImageNet's normalization maps to zero, rounded."""
SCALES = (0.6, 1.2)
"""Range of the random resize of an image that has the size of another."""

Predict = Callable[[np.ndarray, str], np.ndarray]
"""u8[H,W,3], name of a fill -> u8[H,W]."""


def write_inputs(
    target: Path, folder: Path | None, masks: Path | None, count: int, *, native: bool
) -> int:
    """Write images and masks as arrays; each image has another size unless `native`.

    Returns:
        The number of images.

    Raises:
        SystemExit: the folder has no readable images.
    """
    rng, seen = np.random.default_rng(0), set()
    number = 0
    for number, (image, mask) in enumerate(_pairs(target, folder, masks, count), 1):
        original, truth = image, mask
        while not native and image.shape[:2] in seen:
            height, width = (
                max(32, round(size * rng.uniform(*SCALES))) for size in original.shape[:2]
            )
            image = cv2.resize(original, (width, height), interpolation=cv2.INTER_AREA)
            if truth is not None:
                mask = cv2.resize(truth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        seen.add(image.shape[:2])
        np.save(target / f"image_{number - 1:04d}.npy", image)
        if mask is not None:
            np.save(target / f"mask_{number - 1:04d}.npy", mask)
    if not number:
        raise SystemExit(
            f"{folder}: there are no images"
            + (f" that have a mask STEM.png in {masks}" if masks else "")
        )
    return number


def _pairs(
    target: Path, folder: Path | None, masks: Path | None, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    from PIL import Image

    if folder is None:
        from benchmarks import scenes

        root = scenes.write(target / "scenes", count)
        folder, masks = root / "images" / "train", None  # other classes than the network's
    found = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    if masks is not None:
        found = [path for path in found if (masks / f"{path.stem}.png").exists()]
    for i in np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int):
        image = np.asarray(Image.open(found[i]).convert("RGB"))
        yield (
            image,
            None if masks is None else np.asarray(Image.open(masks / f"{found[i].stem}.png")),
        )


def predictor(way: str, model: Any) -> tuple[Predict, Callable[[], int]]:
    """The function that predicts an image in this way, and one that counts its programs."""
    from fcn_jax.eval.predictor import Predictor

    exact = Predictor(model)
    multiple = 1 if way == EXACT else int(way.removeprefix("pad "))

    def predict(image: np.ndarray, fill: str) -> np.ndarray:
        height, width = image.shape[:2]
        size = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
        return exact.batch(pad(image, size, fill)[None])[0, :height, :width]

    return predict, exact._segment._cache_size


def pad(image: np.ndarray, size: tuple[int, int], fill: str) -> np.ndarray:
    """u8[H,W,3] -> u8[h,w,3], filled at the bottom and right; `size` is (h, w), at least (H, W)."""
    down, right = size[0] - image.shape[0], size[1] - image.shape[1]
    return cv2.copyMakeBorder(image, 0, down, 0, right, FILLS[fill], value=MEAN_COLOR)


def work(way: str, inputs: Path, checkpoint: str, answers: Path) -> dict[str, Any]:
    """Predict all images with each fill in this process; write the masks to `answers`."""
    from fcn_jax.runtime import process

    process.configure_process(trains=False)
    from benchmarks.setting import Setting
    from benchmarks.worker import _peak
    from fcn_jax import checkpoint as checkpoints

    model = checkpoints.load_model(checkpoint)[0] if checkpoint else Setting().build()
    predict, programs = predictor(way, model)
    images = [np.load(path) for path in sorted(inputs.glob("image_*.npy"))]
    seconds, busy = [], []
    for fill in FILLS:
        began, begun = time.perf_counter(), time.process_time()
        masks = [predict(image, fill) for image in images]
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - begun)
        np.savez(f"{answers}_{fill}.npz", *masks)
    return {
        "programs": programs(),
        "first_pass": seconds[0],
        "later_pass": min(seconds[1:]),
        "cpu": busy,
        "peak_bytes": _peak(),
    }


def run(way: str, inputs: Path, checkpoint: str, answers: Path, cache: Path) -> dict[str, Any]:
    """`work` in a new process that keeps its compiled programs in `cache`."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.image_sizes",
        "--work",
        way,
        str(inputs),
        checkpoint,
        str(answers),
    ]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def differences(inputs: Path, answers: Path, exact: Path, num_classes: int) -> dict[str, float]:
    """Shares of pixels whose class is not that of `exact`, and with masks the mean IoU."""
    from fcn_jax.eval.metrics import ConfusionMatrix

    matrix, masked = ConfusionMatrix(num_classes), False
    changed, total, near_changed, near_total = 0, 0, 0, 0
    ours, theirs = np.load(answers), np.load(exact)
    for i in range(len(ours.files)):
        mask, other = ours[f"arr_{i}"], theirs[f"arr_{i}"]
        near = np.zeros(mask.shape, bool)
        near[-BORDER:] = near[:, -BORDER:] = True
        unequal = mask != other
        changed, total = changed + int(unequal.sum()), total + mask.size
        near_changed, near_total = (
            near_changed + int(unequal[near].sum()),
            near_total + int(near.sum()),
        )
        truth = inputs / f"mask_{i:04d}.npy"
        if truth.exists():
            masked = True
            matrix.add(np.load(truth), mask)
    found = {"changed": changed / total, "changed_near_border": near_changed / near_total}
    scores = matrix.scores()
    return found | (
        {"mean_iou": scores.miou, "pixel_accuracy": scores.pixel_accuracy} if masked else {}
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each way and fill."""
    lines = [
        "| way | fill | programs | compiling, CPU time | first pass, cold | first pass, cached | "
        "later pass | peak memory "
        "| changed pixels | near the border | mean IoU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for fill, found in row["fills"].items():
            iou = f"{found['mean_iou']:.4f}" if "mean_iou" in found else ""
            lines.append(
                f"| {row['way']} | {fill} | {row['programs']} | {row['compile_cpu_seconds']:.1f} s "
                f"| {row['cold_seconds']:.1f} s | {row['cached_seconds']:.1f} s | "
                f"{row['later_seconds']:.1f} s "
                f"| {row['peak_bytes'] / 2**30:.2f} GiB | {found['changed']:.3%} | "
                f"{found['changed_near_border']:.3%} | {iou} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run all ways in turn, print the table, write the rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.image_sizes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", nargs="?", type=Path, help="images; drawn scenes if not given")
    parser.add_argument(
        "--masks",
        type=Path,
        help="folder of ground truth, STEM.png with the labels as values, 255 ignored",
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        help="run or checkpoint; a ResNet-18 FCN-32s with drawn weights if not given",
    )
    parser.add_argument("--count", type=int, default=50, help="images to take")
    parser.add_argument(
        "--native",
        action="store_true",
        help="keep the images' own sizes, also where several have the same",
    )
    parser.add_argument(
        "--way", action="append", choices=WAYS, help=f"default: all; {EXACT} always runs"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="processes of each way; medians are taken"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file (default: benchmarks/results/image_sizes_DEVICE.json)"
    )
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("expected at least 1 round")
    import jax

    from benchmarks.record import RESULTS, environment, keep
    from benchmarks.setting import Setting
    from fcn_jax import checkpoint as checkpoints

    device = jax.default_backend()
    num_classes = (
        checkpoints.read_spec(checkpoints.find(args.checkpoint)).model
        if args.checkpoint
        else Setting()
    ).num_classes
    out = args.out or RESULTS / f"image_sizes_{device}.json"
    ways = [EXACT, *(way for way in args.way or WAYS if way != EXACT)]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        inputs = root / "inputs"
        inputs.mkdir()
        count = write_inputs(inputs, args.folder, args.masks, args.count, native=args.native)
        sizes = len({np.load(path, mmap_mode="r").shape for path in inputs.glob("image_*.npy")})
        print(f"{count} images of {sizes} sizes", flush=True)
        for number in range(args.rounds):
            for i, way in enumerate(ways):
                cache, answers = root / f"cache_{number}_{i}", root / f"answers_{i}"
                cold = run(way, inputs, args.checkpoint, answers, cache)
                cached = run(way, inputs, args.checkpoint, answers, cache)
                found[way].append(
                    {
                        "programs": cold["programs"],
                        "cold_seconds": cold["first_pass"],
                        "cached_seconds": cached["first_pass"],
                        "later_seconds": min(cold["later_pass"], cached["later_pass"]),
                        "compile_cpu_seconds": cold["cpu"][0] - min(cold["cpu"][1:]),
                        "peak_bytes": cold["peak_bytes"],
                    }
                )
                print(f"{way}: {found[way][-1]}", flush=True)
        rows = []
        for i, way in enumerate(ways):
            row: dict[str, Any] = {
                name: statistics.median(one[name] for one in found[way]) for name in found[way][0]
            }
            exact = root / "answers_0_mean.npz"
            fills = {"": "mean"} if way == EXACT else {fill: fill for fill in FILLS}
            row["fills"] = {
                name: differences(inputs, root / f"answers_{i}_{fill}.npz", exact, num_classes)
                for name, fill in fills.items()
            }
            kind = {
                "images": "photographs" if args.folder else "drawn scenes",
                "count": count,
                "sizes": sizes,
            }
            rows.append({"way": way, **row})
            keep(
                out,
                {"way": way, **kind},
                row | {"environment": environment("cuda" if device == "gpu" else device)},
            )
    print(f"\n{table(rows)}\n\n{out}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        way, inputs, checkpoint, answers = sys.argv[2:]
        print(json.dumps(work(way, Path(inputs), checkpoint, Path(answers))))
    else:
        main()
