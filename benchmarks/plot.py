"""Bar chart of a result file of `python -m benchmarks`: images per second."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLORS = ("#2c6fbb", "#9a9a9a", "#5c5c5c", "#c8a05a", "#b9c9dd")


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot the images per second for each task; the suffix of `path` selects PNG or SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = result["tasks"]
    figure, panels = pyplot.subplots(
        1, len(tasks), figsize=(3.6 * len(tasks), 3.4), squeeze=False, layout="constrained"
    )
    for panel, task in zip(panels[0], tasks, strict=True):
        names = list(task["contenders"])
        rows = [task["contenders"][name] for name in names]
        batch = task["images"]
        speeds = [row["images_per_second"] for row in rows]
        # A bar ends at the median. The error bar spans the quartiles.
        errors = [
            [speed - batch / row["quartiles"][1] for speed, row in zip(speeds, rows, strict=True)],
            [batch / row["quartiles"][0] - speed for speed, row in zip(speeds, rows, strict=True)],
        ]
        positions = range(len(names))
        panel.barh(
            positions,
            speeds,
            xerr=errors,
            color=COLORS[: len(names)],
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        panel.set_yticks(positions, names if panel is panels[0][0] else [""] * len(names))
        panel.invert_yaxis()
        panel.set_title(task["task"])
        panel.set_xlabel("images/s")
        panel.set_xlim(0, max(speeds) * 1.25)
        for position, speed, above in zip(positions, speeds, errors[1], strict=True):
            panel.text(
                speed + above + max(speeds) * 0.03,
                position,
                f"{speed:.1f}",
                va="center",
                fontsize=8,
            )
        panel.spines[["top", "right"]].set_visible(False)
    setting, environment = result["setting"], result["environment"]
    height, width = setting["size"]
    network = f"{setting['model']}, {setting['head']}"
    figure.suptitle(
        f"{network}, batch {setting['batch']}, {height}x{width}, {setting['dtype']}; "
        f"{environment['device']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
