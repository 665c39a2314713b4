"""A contact sheet of a split: images, masks, and what training sees after augmentation."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax.config import Config
from fcn_jax.data.damage import KeptSource
from fcn_jax.data.geometry import resize_image, resize_mask
from fcn_jax.data.images.picture import as_rgb
from fcn_jax.data.images.size import image_size
from fcn_jax.data.multilabel import label_counts
from fcn_jax.data.pipeline import train_batches
from fcn_jax.data.source import Source
from fcn_jax.data.training_set import training_set
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.eval.draw import IGNORED_COLOR, layer
from fcn_jax.explore.opening import open_splits
from fcn_jax.plugins.api import IGNORE_INDEX, Classes, Example
from fcn_jax.plugins.registry import OWN_DISTRIBUTION
from fcn_jax.runtime import destination
from fcn_jax.runtime.atomic import write_text
from fcn_jax.runtime.progress import Progress
from fcn_jax.train import auto

GENERATOR = "fcn-jax data browse"

_MARK = f'<meta name=generator content="{GENERATOR}">'

_TEMPLATE = Path(__file__).with_name("browse.html.jinja")

_LONGEST = 360
"""Longest side of the pictures on the page, in pixels."""


def browse(
    config: Config, path: Path, *, split: str | None = None, count: int = 24, seed: int = 0,
    draws: int = 3,
) -> tuple[str, ...]:  # fmt: skip
    """Write a contact sheet as one HTML file that needs no other file.

    The images are chosen at random. Each is shown alone, with its mask, and as `draws` training
    images, made by `fcn_jax.data.pipeline.train_batches`. Files that cannot be read are replaced by
    other images.

    Args:
        config: the settings of a training.
        path: the file, which ends in `.html`; needs jinja2.
        split: the split; by default the one that is trained on.
        count: the largest number of images, 1 or more.
        seed: seed of the choice and of the augmentation, 0 to 2**32 - 1.
        draws: number of training images of each image, 0 or more.

    Returns:
        Errors of images that cannot be read, one line each.

    Raises:
        ConfigError: a value is out of range, or jinja2 is not installed.
        DataError: the split cannot be opened, or none of its images can be read.
        WriteError: the file cannot be written, or an existing file is not a contact sheet.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed = {seed}: expected 0 to {2**32 - 1}")
    if count < 1 or draws < 0:
        raise ConfigError(f"{count} images with {draws} draws: expected 1 or more images")
    check_path(path)
    split = split or config.data.train_split
    opened = open_splits(config, split)
    source, config = opened.sources[split], _decided(opened.config, opened.sources[split])
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    cards: list[dict[str, Any]] = []
    failures: list[str] = []
    with Progress("drawing", min(count, len(order))) as progress:
        for index in order:
            try:
                cards.append(_card(config, source, index, seed, draws))
            except DataError as error:
                failures.append(str(error))
                continue
            progress.advance()
            if len(cards) == count:
                break
    if not cards:
        raise DataError(f"none of the {len(order)} images of {split} can be read: {failures[0]}")
    cards.sort(key=lambda card: card["index"])
    write_text(path, _page(config, split, source, cards, failures, seed))
    return tuple(failures)


def check_path(path: Path) -> None:
    """Check that a contact sheet can be written, before it is drawn.

    Raises:
        ConfigError: another suffix, or jinja2 is not installed.
        WriteError: the path is a folder or a file that is not a contact sheet, or its folder is not
            writable.
    """
    if path.suffix != ".html":
        raise ConfigError(f"{path}: a contact sheet is an HTML page; its name must end in .html")
    destination.check_file(path, _is_ours, f"a contact sheet of {GENERATOR}")
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{path}: contact sheets need {error.name}; pip install {error.name}"
        ) from error


def _is_ours(path: Path) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return _MARK.encode() in file.read(512)


def _decided(config: Config, source: Source) -> Config:
    """The settings without "auto", as far as augmentation depends on them."""
    if not auto.undecided(config):
        return config
    sizes = [size for record in source if (size := image_size(record.image))]
    if not sizes:
        return auto.provisional(config)
    names = source.classes.names
    facts = auto.Facts(np.array(sizes, np.int64), names, np.zeros(len(names), np.int64))
    return auto.decide_from(config, facts)[0]


def _card(config: Config, source: Source, index: int, seed: int, draws: int) -> dict[str, Any]:
    """What the page shows of one image."""
    example = source.decode(source[index])
    height, width = example.mask.shape[:2]
    pictures = [_picture("image", example), _picture("mask", example, source.classes)]
    for number, drawn in enumerate(_draws(config, source, index, seed, draws), 1):
        pictures.append(_picture(f"training {number}", drawn, source.classes))
    shares = sorted(_shares(example.mask).items(), key=lambda share: -share[1])
    return {
        "index": index,
        "id": example.id,
        "size": (width, height),
        "small": max(width, height) < _LONGEST / 2,
        "pictures": pictures,
        "shares": shares,
    }


def _shares(mask: np.ndarray) -> dict[int, float]:
    """The share of the pixels by label; together more than 1 if classes of u8[H,W,K] overlap."""
    if mask.ndim == 2:
        labels, pixels = np.unique(mask, return_counts=True)
        return dict(zip(labels.tolist(), (pixels / mask.size).tolist(), strict=True))
    _, positive, ignored = label_counts(mask) / (mask.shape[0] * mask.shape[1])
    shares = {**dict(enumerate(positive.tolist())), IGNORE_INDEX: float(ignored.mean())}
    return {label: share for label, share in shares.items() if share}


def _picture(
    caption: str, example: Example, classes: Classes | None = None
) -> tuple[str, float, str, str | None]:
    """A caption, the ratio of width to height, the image, and the mask if there are classes."""
    height, width = example.mask.shape[:2]
    aspect = min(max(width / height, 0.4), 2.5)
    return caption, aspect, _photo(example), _mask(example, classes) if classes else None


def _draws(config: Config, source: Source, index: int, seed: int, draws: int) -> Iterator[Example]:
    """Training images of one image, from the pipeline of training."""
    if not draws:
        return
    with_one, _ = training_set(
        KeptSource(source, [index] * draws),
        config.data.crop_size,
        drop_small=False,
        void_as_background=config.data.void_as_background,
    )
    batches = train_batches(
        with_one,
        augment=Augment.of(config.data, config.augment),
        batch_size=draws,
        seed=(seed + index) % 2**32,
    )
    try:
        batch = next(batches)
    finally:
        batches.close()
    for image, mask in zip(batch["image"], batch["mask"], strict=True):
        yield Example("", image, mask)


def _photo(example: Example) -> str:
    """The image as the data URL of a small JPEG."""
    height, width = example.mask.shape[:2]
    image = resize_image(as_rgb(example.image), (height, width), _factor(example))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return _url(buffer, "jpeg")


def _mask(example: Example, classes: Classes) -> str:
    """The mask's colors as the data URL of a PNG that lies over the image."""
    mask = resize_mask(example.mask, _factor(example))
    pixels = layer(np.ascontiguousarray(mask), classes)
    colors, indices = np.unique(pixels.view(np.uint32)[..., 0], return_inverse=True)
    picture, options = Image.fromarray(pixels), {}
    if len(colors) <= 256:  # an indexed PNG is several times smaller
        palette = colors.view(np.uint8).reshape(-1, 4)
        picture = Image.fromarray(indices.reshape(pixels.shape[:2]).astype(np.uint8), "P")
        picture.putpalette(palette[:, :3].tobytes())
        options = {"transparency": palette[:, 3].tobytes()}
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, **options)
    return _url(buffer, "png")


def _factor(example: Example) -> float:
    return min(1.0, _LONGEST / max(example.mask.shape[:2]))


def _url(buffer: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _page(
    config: Config,
    split: str,
    source: Source,
    cards: list[dict[str, Any]],
    failures: list[str],
    seed: int,
) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    classes = source.classes
    shown = {label for card in cards for label, _ in card["shares"]}
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        mark=Markup(_MARK),
        dataset=config.data.dataset.removeprefix(f"{OWN_DISTRIBUTION}:"),
        split=split,
        total=len(source),
        several=config.model.task == "multilabel",
        cards=cards,
        legend=[
            (label, name, _css(color), sum(label in dict(card["shares"]) for card in cards))
            for label, name, color in _labels(classes)
            if label < len(classes) or label in shown
        ],
        names={label: name for label, name, _ in _labels(classes)},
        colors={label: _css(color) for label, _, color in _labels(classes)},
        settings=_settings(config, seed),
        failures=failures,
    )


def _labels(classes: Classes) -> Iterator[tuple[int, str, tuple[int, int, int]]]:
    for label, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        yield label, name, color
    yield IGNORE_INDEX, "ignored", IGNORED_COLOR


def _css(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _settings(config: Config, seed: int) -> str:
    """The settings of the data that differ from their defaults, or decide on augmentation."""
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    data["crop_size"] = list(config.data.crop_size)
    for name in (
        "dataset",
        "root",
        "classes",
        "train_split",
        "val_split",
        "batch_size",
        "num_workers",
    ):
        data.pop(name, None)
    data |= config.augment.model_dump(mode="json", exclude_defaults=True)
    said = ", ".join(f"{name} = {value}" for name, value in sorted(data.items()))
    return f"{said}, seed = {seed}"
