"""The entry points of fcn_jax that the cases call. If one of them changes, adapt this file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import FcnJaxError

CLASSES = ("sky", "road", "car")
COLORS = ((0, 0, 0), (128, 64, 128), (0, 0, 142))
TINY: dict[str, Any] = {
    "backbone": "tiny",
    "head": "fcn32s",
    "backbone_options": {"width": 4, "dropout": 0.0},
    "head_options": {},
}


class CommandError(FcnJaxError):
    """The error line of a command that ended with status 1 or 2."""


# --------------------------------------------------------------------------------------------- data


def read_image(path: Path) -> np.ndarray:
    """Read an image as training and prediction do: u8[H,W,3]."""
    from fcn_jax.data import decode

    return decode.read_image(path)


def read_mask(
    path: Path,
    num_classes: int,
    *,
    void: tuple[int, ...] = (255,),
    palette: Mapping[tuple[int, int, int], int] | None = None,
) -> np.ndarray:
    """Read the labels of a mask: u8[H,W]."""
    from fcn_jax.data import decode
    from fcn_jax.data.labels.label_map import LabelMap

    return decode.read_mask(path, LabelMap.of(num_classes, void=void, palette=palette))


def decode_pair(image: Path, mask: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image and its mask together."""
    from fcn_jax.api import Record
    from fcn_jax.data import decode

    example = decode.decode_record(Record(image.stem, image, mask), num_classes)
    return example.image, example.mask


@dataclasses.dataclass(frozen=True)
class Reading:
    """The decoded contents of a dataset: classes, and (name, pixels, labels) of each image."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    examples: tuple[tuple[str, np.ndarray, np.ndarray], ...]


def read_folder(root: Path, split: str = "train") -> Reading:
    """Open a split of a folder dataset, and decode all of it."""
    from fcn_jax.data.datasets.folder import FOLDER

    source = FOLDER.open(root, split)
    examples = []
    for index in range(len(source)):
        record = source[index]
        example = source.decode(record)
        examples.append((Path(str(record.image)).stem, example.image, example.mask))
    return Reading(tuple(source.classes.names), tuple(source.classes.palette), tuple(examples))


# ------------------------------------------------------------------------------------------ weights


def open_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a weights file by name."""
    from fcn_jax.pytorch import files

    tensors = files.open_tensors(path)
    return {name: tensors[name] for name in tensors}


@functools.cache
def _parts() -> tuple[Any, Any]:
    from flax import nnx

    from fcn_jax.api import ModelSpec
    from fcn_jax.models.build import build

    return nnx.split(build(ModelSpec(num_classes=len(CLASSES), **TINY), rngs=nnx.Rngs(0)))


def tiny_model(seed: int) -> Any:
    """Build a model of a few hundred parameters, with random parameters and statistics."""
    import jax.numpy as jnp
    from flax import nnx

    from fcn_jax.models.names import leaves

    model, rng = nnx.merge(*_parts(), copy=True), np.random.default_rng(seed)
    for leaf in leaves(model).values():
        value = leaf.get_value()
        if jnp.issubdtype(value.dtype, jnp.floating):
            leaf.set_value(jnp.asarray(rng.uniform(0.1, 1, value.shape).astype(np.float32)))
        else:
            leaf.set_value(jnp.asarray(rng.integers(1, 9, value.shape).astype(value.dtype)))
    return model


def state_dict(model: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a model by their PyTorch names."""
    import fcn_jax

    return {name: np.asarray(value) for name, value in fcn_jax.to_torch(model).items()}


def load_torch(model: Any, path: Path) -> Any:
    """Load a weights file into a model; returns the report."""
    import fcn_jax

    return fcn_jax.load_torch(model, path)


def arrays(model: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a model by dotted name."""
    from fcn_jax import checkpoint

    return {name: np.asarray(value) for name, value in checkpoint.arrays(model).items()}


# ----------------------------------------------------------------------------------------- settings


def read_recipe(path: Path) -> dict[str, Any]:
    """Read and validate the recipe of a TOML file; returns its table."""
    from fcn_jax import config, recipes

    return config.parse(recipes.read_recipe(str(path)), str(path)).model_dump(mode="json")


def with_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Change settings of the recipe `shapes` as `--set` does; returns its table."""
    from fcn_jax import config, recipes

    return config.parse(
        recipes.override(recipes.read_recipe("shapes"), settings), "shapes"
    ).model_dump(mode="json")


def read_run_config(run: Path) -> dict[str, Any]:
    """Read the recipe of a run directory; returns its table."""
    from fcn_jax.recipes import read_run

    return read_run(run).model_dump(mode="json")


def default_config() -> dict[str, Any]:
    """Return the default of every setting."""
    from fcn_jax.config import Config

    return Config().model_dump(mode="json")


# -------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(directory: Path, model: Any) -> None:
    """Write a checkpoint of a model."""
    from fcn_jax import checkpoint
    from fcn_jax.api import Classes

    spec = checkpoint.make_spec(model.spec, Classes(CLASSES, COLORS))
    checkpoint.save_model(directory, spec, checkpoint.arrays(model))


def load_checkpoint(directory: Path) -> tuple[dict[str, np.ndarray], str]:
    """Load a run or checkpoint; returns its arrays, and its spec as JSON."""
    from fcn_jax import checkpoint

    model, spec = checkpoint.load_model(directory)
    return arrays(model), json.dumps(spec.to_dict(), sort_keys=True, default=str)


# ----------------------------------------------------------------------------------------- commands


def command(*argv: str) -> str:
    """Run the command line in this process; returns its output.

    Raises:
        CommandError: the status is 1 or 2.
    """
    from fcn_jax import cli

    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors)
        for errors in ("strict", "backslashreplace")
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(list(argv))
        except SystemExit as stop:  # argparse
            status = stop.code if isinstance(stop.code, int) else 1
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return _judged(status, *texts)


def process(*argv: str, cwd: Path) -> str:
    """Run the command line in a separate process; see `command`."""
    done = subprocess.run(
        [sys.executable, "-m", "fcn_jax", *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=100,
        check=False,
    )
    return _judged(done.returncode, done.stdout, done.stderr)


def _judged(status: int, out: str, err: str) -> str:
    if "Traceback" in err + out:
        raise AssertionError(f"the command printed a traceback: {err[-2000:]}")
    if status == 0:
        return out
    if status not in (1, 2):
        raise AssertionError(f"exit status {status}: {err[-2000:]}")
    lines = [line for line in err.splitlines() if "error:" in line and line.startswith("fcn-jax")]
    if len(lines) != 1:
        raise AssertionError(f"exit status {status} with {len(lines)} error lines: {err[-2000:]!r}")
    raise CommandError(lines[0].partition("error: ")[2])
