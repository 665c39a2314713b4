"""Rounding errors of a convolution by the order of its sums: `python -m benchmarks.summation`.

It prints the relative L2 error of a 3x3 convolution against float64 at several sizes, in units in
the last place of float32 (2**-23). PyTorch's error depends on the size. Therefore
`fcn_jax.verify.criterion.FLOOR` allows a few roundings even where PyTorch has a smaller error.
"""

from __future__ import annotations

import jax
import numpy as np
import torch

from fcn_jax import nn
from fcn_jax.verify.criterion import ReferenceErrors
from fcn_jax.verify.torch_side import to_nchw, variants

SIZES = ((1, 3, 4), (2, 3, 4), (1, 8, 8), (2, 8, 9), (1, 24, 32), (2, 40, 60))
WIDTHS = (32, 64, 128, 256, 512)


def measure(
    width: int, size: tuple[int, int, int], rng: np.random.Generator
) -> tuple[float, float]:
    """Return the error of the library and the largest error of PyTorch's variants.

    Both are in units in the last place.

    Args:
        width: number of input and output channels.
        size: batch, height, width.
        rng: random numbers for the images (rectified normal) and the kernel (normal).
    """
    x = np.maximum(rng.standard_normal((*size, width)), 0).astype(np.float32)
    kernel = (rng.standard_normal((3, 3, width, width)) / np.sqrt(9 * width)).astype(np.float32)
    x_torch, kernel_torch = torch.tensor(to_nchw(x)), torch.tensor(kernel.transpose(3, 2, 0, 1))
    exact = torch.nn.functional.conv2d(x_torch.double(), kernel_torch.double(), padding=1).numpy()
    errors = ReferenceErrors({"y": exact}, "float32")
    for variant in variants("float32"):
        images = x_torch.contiguous(
            memory_format=torch.channels_last if variant.channels_last else torch.contiguous_format
        )
        torch.backends.mkldnn.enabled = variant.onednn
        y = torch.nn.functional.conv2d(images, kernel_torch, padding=1)
        errors.add({"y": y.numpy()})
    ours = np.asarray(jax.jit(lambda x, kernel: nn.conv(x, kernel, 1, 1))(x, kernel))
    (comparison,) = errors.compare({"y": to_nchw(ours)}, 1.0)
    return comparison.error * 2**23, comparison.reference_error * 2**23


def main() -> None:
    """Print the errors of the library and PyTorch for each width and size."""
    rng = np.random.default_rng(0)
    print("errors of fcn_jax/PyTorch by channels and batch x height x width")
    print("channels  " + "  ".join(f"{'x'.join(map(str, size)):>11}" for size in SIZES))
    for width in WIDTHS:
        errors = (measure(width, size, rng) for size in SIZES)
        print(
            f"{width:8}  "
            + "  ".join(
                f"{jax_error:5.2f}/{torch_error:5.2f}" for jax_error, torch_error in errors
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
