"""Mean and standard deviation of the channels of images."""

from __future__ import annotations

import numpy as np

from fcn_jax.data.source import Source
from fcn_jax.data.threads import each_on_threads
from fcn_jax.runtime.progress import Progress


def channel_moments(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, over all pixels of all images.

    Every image is decoded, on threads. The sums of images are combined as by Chan et al. 1983,
    which loses no digits to a large mean.

    Args:
        source: images of C channels, u8 or f32.

    Returns:
        f64[C] and f64[C], in units of the images' values.

    Raises:
        DataError: an image cannot be decoded.
    """

    def of_one(index: int) -> tuple[int, np.ndarray, np.ndarray]:
        image = source.decode(source[index]).image
        pixels = image.reshape(-1, image.shape[2]).astype(np.float64)
        mean = pixels.mean(0)
        return len(pixels), mean, np.square(pixels - mean).sum(0)

    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    with Progress("measuring the images' mean and deviation", len(source)) as progress:
        for pixels, its_mean, its_squares in each_on_threads(of_one, range(len(source))):
            total, difference = count + pixels, its_mean - mean
            squares = squares + its_squares + difference**2 * (count * pixels / total)
            mean = mean + difference * (pixels / total)
            count = total
            progress.advance()
    return mean, np.sqrt(squares / count)
