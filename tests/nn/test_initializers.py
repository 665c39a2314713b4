import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn

torch = pytest.importorskip("torch")


def d2l_bilinear_kernel(in_channels, out_channels, kernel_size):
    """The function `bilinear_kernel` of the book chapter, word for word."""
    factor = (kernel_size + 1) // 2
    center = factor - 1 if kernel_size % 2 == 1 else factor - 0.5
    og = (torch.arange(kernel_size).reshape(-1, 1), torch.arange(kernel_size).reshape(1, -1))
    filt = (1 - torch.abs(og[0] - center) / factor) * (1 - torch.abs(og[1] - center) / factor)
    weight = torch.zeros((in_channels, out_channels, kernel_size, kernel_size))
    weight[range(in_channels), range(out_channels), :, :] = filt
    return weight


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 11, 16, 64])
def test_bilinear_matches_d2l_bit_for_bit(size):
    ours = nn.bilinear(None, (size, size, 3, 3), jnp.float32)
    np.testing.assert_array_equal(
        ours, d2l_bilinear_kernel(3, 3, size).numpy().transpose(2, 3, 0, 1)
    )
    assert ours.dtype == jnp.float32


def quantiles(values, shares=(0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)):
    return np.quantile(np.asarray(values), shares)


@pytest.mark.parametrize("shape", [(7, 7, 3, 64), (3, 3, 64, 64), (1, 1, 256, 512), (3, 5, 24, 48)])
def test_kaiming_matches_the_distribution_of_torch(shape):
    ours = np.asarray(nn.kaiming_normal_fan_out(jax.random.key(0), shape))
    weight = torch.empty([shape[axis] for axis in (3, 2, 0, 1)])
    fan = torch.nn.init._calculate_correct_fan(weight, "fan_out")
    deviation = torch.nn.init.calculate_gain("relu") / math.sqrt(fan)
    torch.manual_seed(0)
    torch.nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    # Five standard errors of n draws.
    assert abs(ours.mean()) < 5 * deviation / math.sqrt(ours.size)
    assert ours.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * ours.size))
    np.testing.assert_allclose(
        quantiles(ours), quantiles(weight), atol=5 * deviation * 5 / math.sqrt(ours.size)
    )
    assert len(np.unique(ours)) > 0.9 * ours.size, "the blocks that it is drawn in differ"


def test_default_of_a_1x1_convolution_matches_the_distribution_of_torch():
    ours = nn.Conv(512, 210, 1, rngs=nnx.Rngs(0))  # the head's, with ten times its classes
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(512, 210, 1)
    bound = 1 / math.sqrt(512)
    for a, b in (
        (ours.kernel[...], theirs.weight.detach()),
        (ours.bias[...], theirs.bias.detach()),
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(a).max() <= bound
        error = 5 * bound / math.sqrt(a.size)
        np.testing.assert_allclose(quantiles(a), quantiles(b), atol=2 * error)
        np.testing.assert_allclose(a.std(), bound / math.sqrt(3), atol=error)


@pytest.mark.parametrize("shape", [(3, 3, 16, 64), (1, 1, 128, 64), (200, 100)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            nn.kaiming_uniform_fan_in,
            lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu"),
        ),
        (nn.xavier_uniform, torch.nn.init.xavier_uniform_),
    ],
)
def test_uniform_initializers_match_the_bounds_of_torch(ours, theirs, shape):
    weight = torch.empty([shape[axis] for axis in ((3, 2, 0, 1) if len(shape) == 4 else (1, 0))])
    torch.manual_seed(0)
    theirs(weight)
    found = np.asarray(ours(jax.random.key(0), shape))
    assert found.shape == shape
    assert bound_of(found) == pytest.approx(bound_of(weight), rel=0.01)
    assert found.std() == pytest.approx(bound_of(weight) / math.sqrt(3), rel=0.03), "uniform"


def bound_of(values):
    return float(np.abs(np.asarray(values)).max())


def test_default_of_conv_matches_the_bounds_of_torch():
    ours = nn.Conv(64, 400, 3, groups=2, rngs=nnx.Rngs(0))
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(64, 400, 3, groups=2)
    bound = 1 / math.sqrt(3 * 3 * 32)
    for a, b in ((ours.kernel[...], theirs.weight), (ours.bias[...], theirs.bias)):
        assert bound_of(b.detach()) == pytest.approx(bound, rel=0.03)
        assert bound_of(a) == pytest.approx(bound, rel=0.03)
        assert bound_of(a) <= bound
        assert np.asarray(a).std() == pytest.approx(bound / math.sqrt(3), rel=0.1), "uniform"


def test_bias_of_conv_transpose_matches_the_bound_of_torch():
    ours = nn.ConvTranspose(2, 300, 4, stride=2, rngs=nnx.Rngs(0))
    torch.manual_seed(0)
    theirs = torch.nn.ConvTranspose2d(2, 300, 4, stride=2)
    bound = 1 / math.sqrt(4 * 4 * 300)
    assert bound_of(theirs.bias.detach()) == pytest.approx(bound, rel=0.03)
    assert bound_of(ours.bias[...]) == pytest.approx(bound, rel=0.03)


def test_draws_different_parameters_for_different_keys():
    first, second = (nn.Conv(2, 3, 3, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    assert not np.array_equal(first.kernel[...], second.kernel[...])
    assert not np.array_equal(first.kernel[...].reshape(-1)[:3], first.bias[...])
