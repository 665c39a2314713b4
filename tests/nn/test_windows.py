"""Windows of images against timm's Swin transformer."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax import nn


@pytest.fixture(scope="module")
def swin():
    pytest.importorskip("torch")
    from fcn_jax.pytorch import import_torchvision

    import_torchvision()
    return pytest.importorskip("timm.models.swin_transformer")


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_windows_are_put_together_again(window, rows, cols):
    size = (rows * window, cols * window)
    x = np.arange(2 * size[0] * size[1] * 3, dtype=np.float32).reshape(2, *size, 3)
    windows = nn.to_windows(jnp.asarray(x), window)
    assert windows.shape == (2, rows * cols, window**2, 3)
    np.testing.assert_array_equal(nn.from_windows(windows, size, window), x)


def test_windows_match_timm(swin):
    import torch

    x = np.random.default_rng(0).standard_normal((2, 6, 9, 4)).astype(np.float32)
    theirs = swin.window_partition(torch.tensor(x), (3, 3)).reshape(2, 6, 9, 4)
    np.testing.assert_array_equal(nn.to_windows(jnp.asarray(x), 3), theirs.numpy())


@pytest.mark.parametrize("window", [1, 2, 7])
def test_relative_positions_match_timm(swin, window):
    theirs = swin.get_relative_position_index(window, window)
    np.testing.assert_array_equal(nn.relative_positions(window), theirs.numpy())


@pytest.mark.parametrize(
    ("size", "window", "shift"), [((14, 21), 7, 3), ((7, 7), 7, 3), ((4, 6), 2, 1)]
)
def test_masks_match_timm(swin, size, window, shift):
    import torch

    block = swin.SwinTransformerBlock(
        4, (64, 64), num_heads=1, window_size=window, shift_size=shift, dynamic_mask=True
    )
    theirs = block.get_attn_mask(torch.zeros(1, *size, 4))
    np.testing.assert_array_equal(nn.shift_mask(size, window, shift), theirs.numpy())


def test_rejects_sizes_that_windows_do_not_divide():
    with pytest.raises(ValueError, match="images of 6x8 cannot be cut into windows of 3x3; pad"):
        nn.to_windows(jnp.zeros((1, 6, 8, 2)), 3)
