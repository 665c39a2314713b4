"""Padding of images, so that images of many sizes share a few compiled programs.

XLA compiles a program for each size of its input. If a set of images has few sizes, each image runs
at its own size and the result is exact. Otherwise images are padded at the bottom and right with
copies of their last row and column, to a multiple of pixels that leaves few sizes, and the mask is
cropped. The network then sees rows and columns that are not part of the image, where it would see
its own zero padding at the image's own size. This changes features and logits within a receptive
field of the bottom and right border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fcn_jax.data.images.size import image_size

MAX_PROGRAMS = 8
"""Up to so many image sizes are exact. More sizes are padded until so few are left, if possible."""

MULTIPLES = (64, 128, 256, 512)
"""Height and width of padded images are multiples of one of these, in pixels."""


def choose_multiple(
    images: Iterable[Path | bytes],
    *,
    exact: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, str]:
    """Decide whether a set of images is padded.

    Only the files' headers are read. Files that are missing or damaged are skipped: the decoder
    reports them.

    Args:
        images: files or their contents.
        exact: never pad.
        progress: called with the number of images seen so far.

    Returns:
        The multiple, 1 for no padding, and one line about the padding, empty without it.
    """
    if exact:
        return 1, ""
    sizes = set()
    for number, image in enumerate(images, start=1):
        sizes.add(image_size(image))
        if progress:
            progress(number)
    sizes.discard(None)
    if len(sizes) <= MAX_PROGRAMS:
        return 1, ""
    for multiple in MULTIPLES:
        programs = len({(-(-h // multiple), -(-w // multiple)) for h, w in filter(None, sizes)})
        if programs <= MAX_PROGRAMS:
            break
    return multiple, (
        f"{len(sizes)} image sizes: padded to multiples of {multiple} pixels, so that {programs} "
        f"program{'s are' if programs > 1 else ' is'} compiled"
    )


def pad(images: np.ndarray, multiple: int) -> np.ndarray:
    """Pad images at the bottom and right with copies of the last row and column.

    Args:
        images: [N,H,W,C] with H and W of at least 1.
        multiple: at least 1.

    Returns:
        [N,h,w,C], where h and w are the next multiples.
    """
    down, right = (-length % multiple for length in images.shape[1:3])
    if not (down or right):
        return images
    return np.pad(images, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
