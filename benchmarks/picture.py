"""Make the README's picture: `python -m benchmarks.picture RUN docs/images/shapes.png`.

It stacks validation panels (image, ground truth, prediction) of a run, such as `make train` writes
to `runs/shapes/samples`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.arguments import Parser


def stack(panels: list[Path], width: int) -> Image.Image:
    """Stack panels of equal width, resize the result to `width` pixels, reduce it to 128 colors."""
    rows = np.concatenate([np.asarray(Image.open(panel).convert("RGB")) for panel in panels])
    height = round(rows.shape[0] * width / rows.shape[1])
    picture = Image.fromarray(rows).resize((width, height), Image.Resampling.LANCZOS)
    return picture.quantize(128, dither=Image.Dither.NONE)


def main() -> None:
    """Write the picture."""
    parser = Parser("benchmarks.picture", __doc__)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("out", type=Path, help="the PNG file")
    parser.add_argument("--rows", type=int, default=2, help="number of panels")
    parser.add_argument("--width", type=int, default=900, help="width in pixels")
    arguments = parser.parse_args()
    newest = max((arguments.run / "samples").iterdir())
    panels = sorted(newest.glob("*.png"))[: arguments.rows]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    stack(panels, arguments.width).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
