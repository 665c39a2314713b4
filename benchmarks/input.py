"""CPU time of the stages of the input pipeline, on one core: `python -m benchmarks.input`.

    python -m benchmarks.input                                # drawn scenes of VOC's size
    python -m benchmarks.input --dataset voc2012 --data DIR --scale 1 1

In each round, the stages are timed one after the other for each image, in CPU time of the thread.
The result is the mean over the images of each image's fastest round. Decoding and resizing are one
stage, because a source can decode at a fraction of the size. The time of flips and colors is the
time that could be saved by computing them on the device.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks import scenes
from benchmarks.arguments import Parser
from benchmarks.record import RESULTS, environment, prepare_backend
from fcn_jax.api import Source
from fcn_jax.data.augment.colors import jitter_colors
from fcn_jax.data.geometry import crop, flip_left_right
from fcn_jax.plugins import registry
from fcn_jax.runtime.atomic import write_json

IMAGES = 64
STAGES = ("decode and resize", "crop", "flip", "colors")


def measure(
    source: Source, size: tuple[int, int], scale: tuple[float, float], rounds: int
) -> dict[str, float]:
    """Return the milliseconds per image of each stage.

    Half of the images are flipped. The colors of all images are changed.

    Args:
        source: the dataset.
        size: height and width of the crops.
        scale: range of the random resize factor.
        rounds: number of times that each image is processed.
    """
    indices = np.linspace(0, len(source) - 1, min(IMAGES, len(source))).astype(int).tolist()
    seconds = np.zeros((rounds, len(indices), len(STAGES)))
    for times in seconds:
        rng = np.random.default_rng(0)
        for number, index in enumerate(indices):
            factor = float(np.exp(rng.uniform(*np.log(scale))))
            at = tuple(rng.random(2).tolist())
            marks = [time.thread_time()]
            example = source.decode_resized(source[index], factor)
            marks.append(time.thread_time())
            example = crop(example, size, at=at)
            marks.append(time.thread_time())
            example = flip_left_right(example) if number % 2 else example
            marks.append(time.thread_time())
            jitter_colors(example.image, 1.1, 0.9, 1.2)
            marks.append(time.thread_time())
            times[number] = np.diff(marks)
    return dict(zip(STAGES, (1000 * seconds.min(axis=0).mean(axis=0)).tolist(), strict=True))


def main() -> None:
    """Measure, print and write the results."""
    parser = Parser("benchmarks.input", __doc__)
    parser.add_argument(
        "--dataset", default="folder", help="registered dataset, whose split train is read"
    )
    parser.add_argument("--data", type=Path, help="folder of the dataset (default: drawn scenes)")
    parser.add_size("size of the crops in pixels")
    parser.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=(0.5, 2.0),
        metavar=("LOW", "HIGH"),
        help="range of the random resize factor",
    )
    parser.add_argument("--rounds", type=int, default=7, help="times that each image is processed")
    parser.add_argument("--out", type=Path, default=RESULTS / "input_cpu.json", help="JSON file")
    args = parser.parse_args()
    prepare_backend("cpu")
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = args.data or scenes.write(Path(folder), IMAGES)
        source = registry.default().dataset(args.dataset).open(root, "train")
        stages = measure(source, tuple(args.size), tuple(args.scale), args.rounds)
    total = sum(stages.values())
    for name, milliseconds in stages.items():
        print(f"{name:<17} {milliseconds:7.3f} ms  {milliseconds / total:5.1%}")
    print(f"{'all':<17} {total:7.3f} ms")
    setting = {
        "dataset": args.dataset if args.data else "drawn scenes",
        "size": args.size,
        "scale": args.scale,
    }
    write_json(
        args.out, {"environment": environment("cpu"), "setting": setting, "milliseconds": stages}
    )


if __name__ == "__main__":
    main()
