"""Changes of the training split that the protocol of d2l needs; scores are not affected."""

from __future__ import annotations

import numpy as np

from fcn_jax.data.damage import KeptSource
from fcn_jax.data.images.size import image_size
from fcn_jax.data.source import Source
from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import IGNORE_INDEX, Example, Record
from fcn_jax.runtime.progress import Progress


class VoidAsBackground(KeptSource):
    """A source whose ignored pixels are those of class 0."""

    def __init__(self, source: Source) -> None:
        """Take all records of a source."""
        super().__init__(source, range(len(source)))

    def decode(self, record: Record) -> Example:
        """Decode a record as the source does, and replace `IGNORE_INDEX` by 0."""
        return _filled(super().decode(record))

    def decode_resized(self, record: Record, factor: float) -> Example:
        """Decode a record at another size, and replace `IGNORE_INDEX` by 0."""
        return _filled(super().decode_resized(record, factor))


def _filled(example: Example) -> Example:
    mask = np.where(example.mask == IGNORE_INDEX, np.uint8(0), example.mask)
    return Example(example.id, example.image, mask)


def training_set(
    source: Source, crop_size: tuple[int, int], *, drop_small: bool, void_as_background: bool
) -> tuple[Source, list[str]]:
    """The training split as the settings of the same names ask for.

    Args:
        source: the whole split.
        crop_size: height and width of the training crop, in pixels.
        drop_small: leave out images that are lower or narrower than the crop, by their headers.
        void_as_background: read ignored pixels as pixels of class 0.

    Returns:
        The source, and lines that say what was left out.

    Raises:
        ConfigError: no image is as large as the crop.
    """
    notes = []
    if drop_small:
        with Progress("reading image sizes", len(source)) as progress:
            kept = []
            for index, record in enumerate(source):
                size = image_size(record.image) or source.decode(record).mask.shape
                if size[0] >= crop_size[0] and size[1] >= crop_size[1]:
                    kept.append(index)
                progress.advance()
        height, width = crop_size
        left_out = f"{len(source) - len(kept)} of {len(source)} training images are smaller than "
        left_out += f"the crop {height}x{width} and are left out (data.drop_small)"
        if not kept:
            raise ConfigError(f"{left_out}, so that none remains; lower data.crop_size")
        if len(kept) < len(source):
            notes.append(left_out)
            source = KeptSource(source, kept)
    return (VoidAsBackground(source) if void_as_background else source), notes
