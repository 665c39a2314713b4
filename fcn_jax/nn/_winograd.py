"""3x3 convolution with stride 1 by Winograd's minimal filtering F(2x2, 3x3), for CPUs.

Lavin and Gray 2015, arXiv:1509.09308. Each tile of 2x2 outputs depends on 4x4 inputs. Both are
transformed, y = A^T [(G g G^T) * (B^T d B)] A, so that 16 multiplications replace 36; over all
tiles and channels these are 16 matrix products. B and A contain only 0, 1 and -1, so little
precision is lost. The transforms pay from 64 channels on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def conv3x3(
    x: jax.Array, kernel: jax.Array, padding: int, dilation: int, *, transpose: bool = False
) -> jax.Array:
    """`fcn_jax.nn.conv` with a 3x3 kernel and stride 1.

    Args:
        x: f[N, H, W, I].
        kernel: f[3, 3, I, O]; f[3, 3, O, I] with `transpose`.
        padding: zeros on each side, at least 0.
        dilation: distance between the taps of the kernel, at least 1.
        transpose: flip the kernel both ways and swap its channels, as for the gradient of the input
            of a convolution.

    Returns:
        f[N, H + 2 padding - 2 dilation, W + 2 padding - 2 dilation, O].
    """
    rows, cols = (size + 2 * padding - 2 * dilation for size in x.shape[1:3])
    phases = _phases(_pad(x, padding, dilation, rows, cols), dilation)
    tiles = _inputs(phases)
    shape = tiles[0][0].shape
    columns = [tile.reshape(-1, shape[3]) for row in tiles for tile in row]
    taps = [
        [kernel[2 - a, 2 - b] if transpose else kernel[a, b] for b in range(3)] for a in range(3)
    ]
    contract = (((1,), (1 if transpose else 0,)), ((), ()))
    products = [
        lax.dot_general(column, matrix, contract)
        for column, matrix in zip(columns, _transformed(taps), strict=True)
    ]
    grid = [[products[4 * i + j].reshape(*shape[:3], -1) for j in range(4)] for i in range(4)]
    # A^T M A
    across = [_outputs([grid[i][j] for i in range(4)]) for j in range(4)]
    quads = [_outputs([across[j][i] for j in range(4)]) for i in range(2)]
    y = jnp.stack([jnp.stack(pair, 3) for pair in quads], 2).reshape(
        shape[0], 2 * shape[1], 2 * shape[2], -1
    )
    return _whole(y, dilation)[:, :rows, :cols]


def kernel_grad(x: jax.Array, grad: jax.Array, padding: int, dilation: int) -> jax.Array:
    """Kernel gradient f32[3,3,I,O] of `conv3x3`, from f[N,H,W,I] and the gradient f[N,h,w,O]."""
    rows, cols = grad.shape[1:3]
    tiles = _inputs(_phases(_pad(x, padding, dilation, rows, cols), dilation))
    tall, wide = _tiles(rows, dilation), _tiles(cols, dilation)
    edges = ((0, 0), (0, 2 * dilation * tall - rows), (0, 2 * dilation * wide - cols), (0, 0))
    phases = _phases(jnp.pad(grad, edges), dilation)
    quads = [[phases[:, a::2, b::2] for b in range(2)] for a in range(2)]
    # A Q A^T
    across = [_outputs_transposed([quads[a][b] for a in range(2)]) for b in range(2)]
    spread = [_outputs_transposed([across[b][i] for b in range(2)]) for i in range(4)]
    products = [
        [
            lax.dot_general(
                tiles[i][j].reshape(-1, x.shape[3]),
                spread[i][j].reshape(-1, grad.shape[3]),
                (((0,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            for j in range(4)
        ]
        for i in range(4)
    ]
    # G^T P G
    down = [_kernel_transposed([products[i][j] for i in range(4)]) for j in range(4)]
    return jnp.stack(
        [jnp.stack(_kernel_transposed([down[j][a] for j in range(4)])) for a in range(3)]
    )


def _tiles(size: int, dilation: int) -> int:
    """Number of tiles of 2 outputs that cover `size` outputs, in each phase of a dilation."""
    return -(-size // (2 * dilation))


def _pad(x: jax.Array, padding: int, dilation: int, rows: int, cols: int) -> jax.Array:
    """Pad to whole tiles. The inputs of a tile reach two taps further than its outputs."""
    margins = [
        (padding, 2 * dilation * (_tiles(out, dilation) + 1) - size - padding)
        for size, out in zip(x.shape[1:3], (rows, cols), strict=True)
    ]
    config = [(0, 0, 0), *((low, high, 0) for low, high in margins), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _phases(x: jax.Array, dilation: int) -> jax.Array:
    """f[N, dH, dW, C] -> f[N d d, H, W, C]: pixels grouped by coordinates modulo the dilation d."""
    if dilation == 1:
        return x
    batch, rows, cols, channels = x.shape
    cells = x.reshape(batch, rows // dilation, dilation, cols // dilation, dilation, channels)
    return cells.transpose(0, 2, 4, 1, 3, 5).reshape(
        -1, rows // dilation, cols // dilation, channels
    )


def _whole(y: jax.Array, dilation: int) -> jax.Array:
    """The inverse of `_phases`."""
    if dilation == 1:
        return y
    _, rows, cols, channels = y.shape
    cells = y.reshape(-1, dilation, dilation, rows, cols, channels).transpose(0, 3, 1, 4, 2, 5)
    return cells.reshape(-1, rows * dilation, cols * dilation, channels)


def _inputs(x: jax.Array) -> list[list[jax.Array]]:
    """B^T d B of every tile: [4][4] of f[N, th, tw, C]."""
    rows, cols = x.shape[1] - 2, x.shape[2] - 2
    tiles = [[x[:, a : a + rows : 2, b : b + cols : 2] for b in range(4)] for a in range(4)]
    down = [_differences([tiles[a][b] for a in range(4)]) for b in range(4)]
    return [_differences([down[b][i] for b in range(4)]) for i in range(4)]


def _differences(d: Sequence[Any]) -> list[Any]:
    """B^T d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _outputs(m: Sequence[Any]) -> list[Any]:
    """A^T m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _outputs_transposed(q: Sequence[Any]) -> list[Any]:
    """A q."""
    return [q[0], q[0] + q[1], q[0] - q[1], -q[1]]


def _kernel(g: Sequence[Any]) -> list[Any]:
    """G g."""
    half, rest = (g[0] + g[2]) / 2, g[1] / 2
    return [g[0], half + rest, half - rest, g[2]]


def _kernel_transposed(p: Sequence[Any]) -> list[Any]:
    """G^T p."""
    total, difference = (p[1] + p[2]) / 2, (p[1] - p[2]) / 2
    return [p[0] + total, difference, total + p[3]]


def _transformed(taps: Sequence[Sequence[jax.Array]]) -> list[jax.Array]:
    """G g G^T of a kernel's 3x3 elements: 16 matrices."""
    down = [_kernel([taps[a][b] for a in range(3)]) for b in range(3)]
    return [matrix for i in range(4) for matrix in _kernel([down[b][i] for b in range(3)])]
