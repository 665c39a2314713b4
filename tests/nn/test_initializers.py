import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from fcn_jax import nn


def d2l_bilinear_kernel(in_channels, out_channels, kernel_size):
    """The function `bilinear_kernel` of the book chapter, word for word."""
    factor = (kernel_size + 1) // 2
    center = factor - 1 if kernel_size % 2 == 1 else factor - 0.5
    og = (torch.arange(kernel_size).reshape(-1, 1), torch.arange(kernel_size).reshape(1, -1))
    filt = (1 - torch.abs(og[0] - center) / factor) * (1 - torch.abs(og[1] - center) / factor)
    weight = torch.zeros((in_channels, out_channels, kernel_size, kernel_size))
    weight[range(in_channels), range(out_channels), :, :] = filt
    return weight


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 64])
def test_bilinear_equals_the_chapters(size):
    ours = nn.bilinear(None, (size, size, 3, 3), jnp.float32)
    np.testing.assert_allclose(ours, d2l_bilinear_kernel(3, 3, size).numpy().transpose(2, 3, 0, 1), atol=1e-7)
    assert ours.dtype == jnp.float32


def test_kaiming_has_the_variance_of_torchs_fan_out():
    shape = (7, 7, 16, 64)
    ours = np.asarray(nn.kaiming_normal_fan_out(jax.random.key(0), shape))
    weight = torch.empty(64, 16, 7, 7)
    torch.manual_seed(0)
    torch.nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    assert ours.std() == pytest.approx(math.sqrt(2 / (7 * 7 * 64)), rel=0.02)
    assert ours.std() == pytest.approx(float(weight.std()), rel=0.02)
    assert abs(ours.mean()) < 5 * ours.std() / math.sqrt(ours.size)


def bound_of(values):
    return float(np.abs(np.asarray(values)).max())


def test_default_of_conv_has_torchs_bounds():
    ours = nn.Conv(64, 400, 3, groups=2, rngs=nnx.Rngs(0))
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(64, 400, 3, groups=2)
    bound = 1 / math.sqrt(3 * 3 * 32)
    for a, b in ((ours.kernel[...], theirs.weight), (ours.bias[...], theirs.bias)):
        assert bound_of(b.detach()) == pytest.approx(bound, rel=0.03)
        assert bound_of(a) == pytest.approx(bound, rel=0.03)
        assert bound_of(a) <= bound
        assert np.asarray(a).std() == pytest.approx(bound / math.sqrt(3), rel=0.1), "uniform"


def test_bias_of_conv_transpose_has_torchs_bound():
    ours = nn.ConvTranspose(2, 300, 4, stride=2, rngs=nnx.Rngs(0))
    torch.manual_seed(0)
    theirs = torch.nn.ConvTranspose2d(2, 300, 4, stride=2)
    bound = 1 / math.sqrt(4 * 4 * 300)
    assert bound_of(theirs.bias.detach()) == pytest.approx(bound, rel=0.03)
    assert bound_of(ours.bias[...]) == pytest.approx(bound, rel=0.03)


def test_different_keys_give_different_parameters():
    first, second = (nn.Conv(2, 3, 3, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    assert not np.array_equal(first.kernel[...], second.kernel[...])
    assert not np.array_equal(first.kernel[...].reshape(-1)[:3], first.bias[...])
