import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fcn_jax import nn
from fcn_jax.nn import _batch_norm

torch = pytest.importorskip("torch")


def to_torch(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def to_numpy(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def pair(channels, **options):
    """The same layer here and in PyTorch, with a scale and bias that are not the initial ones."""
    rng = np.random.default_rng(3)
    ours, theirs = nn.BatchNorm(channels, **options), torch.nn.BatchNorm2d(channels, **options)
    scale, bias = (
        rng.uniform(0.5, 2, channels).astype(np.float32),
        rng.standard_normal(channels).astype(np.float32),
    )
    ours.scale[...], ours.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    theirs.weight.data, theirs.bias.data = torch.tensor(scale), torch.tensor(bias)
    return ours, theirs


@pytest.mark.parametrize("options", [{}, {"momentum": 0.01, "eps": 1e-3}])
def test_outputs_and_running_statistics_match_torch_over_several_steps(options):
    ours, theirs = pair(5, **options)
    rng = np.random.default_rng(0)
    for step in range(4):
        # Six values per channel: the biased variance would be a sixth too small.
        x = (rng.standard_normal((1, 3, 2, 5)) * (step + 1) + step).astype(np.float32)
        np.testing.assert_allclose(ours(jnp.asarray(x)), to_numpy(theirs(to_torch(x))), atol=2e-5)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-5)
    assert int(ours.num_batches_tracked[...]) == int(theirs.num_batches_tracked) == 4

    ours.eval()
    theirs.eval()
    np.testing.assert_allclose(
        ours(jnp.asarray(x)), to_numpy(theirs(to_torch(x))), rtol=1e-5, atol=1e-5
    )
    assert int(ours.num_batches_tracked[...]) == 4, "evaluation must not count"


@settings(max_examples=10)
@example(
    shape=(1, 2, 1, 3), momentum=0.1, eps=1e-5
)  # two values: the unbiased variance is twice the biased one
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
    momentum=st.sampled_from([0.1, 0.01, 0.3, 1.0]),
    eps=st.sampled_from([1e-5, 1e-3]),
)
def test_matches_torch_in_float64_for_any_shape_momentum_and_eps(shape, momentum, eps):
    assume(np.prod(shape[:3]) > 1)
    ours, theirs = pair(shape[3], momentum=momentum, eps=eps)
    theirs.double()
    rng = np.random.default_rng(0)
    for step in range(3):
        x = (rng.standard_normal(shape) * (step + 1) + step).astype(np.float32)
        # Up to 1 / sqrt(eps) times the rounding of the input, where the values of a channel are
        # close together.
        np.testing.assert_allclose(
            ours(jnp.asarray(x)), to_numpy(theirs(to_torch(x).double())), atol=2e-6 / np.sqrt(eps)
        )
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-5, atol=1e-6)
    ours.eval()
    theirs.eval()
    np.testing.assert_allclose(
        ours(jnp.asarray(x)),
        to_numpy(theirs(to_torch(x).double())),
        rtol=1e-5,
        atol=2e-6 / np.sqrt(eps),
    )


def test_gradients_match_torch_in_float64():
    rng = np.random.default_rng(1)
    x, grad = (rng.standard_normal((2, 3, 4, 3)).astype(np.float32) for _ in range(2))
    scale, bias = (
        rng.uniform(0.5, 2, 3).astype(np.float32),
        rng.standard_normal(3).astype(np.float32),
    )
    _, vjp = jax.vjp(lambda *args: nn.batch_norm_train(*args)[0], x, scale, bias)
    ours = vjp(jnp.asarray(grad))

    tx, ts, tb = (
        a.double().requires_grad_() for a in (to_torch(x), torch.tensor(scale), torch.tensor(bias))
    )
    torch.nn.functional.batch_norm(tx, None, None, ts, tb, training=True).backward(
        to_torch(grad).double()
    )
    for name, a, b in zip(
        ("x", "scale", "bias"),
        ours,
        (to_numpy(tx.grad), ts.grad.numpy(), tb.grad.numpy()),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=3e-6, err_msg=name)


def test_keeps_precision_for_a_mean_much_larger_than_the_deviation():
    # With the variance as a difference of squares nothing of it would be left: 1000^2 against
    # 0.01^2.
    x = (1000 + 0.01 * np.random.default_rng(2).standard_normal((2, 8, 8, 2))).astype(np.float32)
    y, _, var = nn.batch_norm_train(jnp.asarray(x), jnp.ones(2), jnp.zeros(2))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(var, wide.var((0, 1, 2)), rtol=1e-2)
    np.testing.assert_allclose(
        y, (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5), atol=2e-2
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("mean", [10, 1000])
@pytest.mark.parametrize("off", [None, 0, 1])
def test_keeps_precision_in_16_bits_for_a_mean_much_larger_than_the_deviation(dtype, mean, off):
    # One pixel in 128 is off by a step of the dtype, the others are equal. The guess of the mean is
    # off by so many steps.
    step = float(jnp.finfo(dtype).eps) * 2 ** np.floor(np.log2(mean))
    x = np.full((2, 8, 8, 2), mean, np.float64)
    x[1, 3, 4] += step
    x = jnp.asarray(x, dtype)
    near = None if off is None else jnp.full(2, mean + off * step, jnp.float32)
    y, found, var = nn.batch_norm_train(x, jnp.ones(2), jnp.zeros(2), 1e-5, near)
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(found, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, wide.var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(
        np.asarray(y, np.float64),
        (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5),
        rtol=2e-2,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_new_layer_in_16_bits_computes_the_variance_far_from_its_running_mean(dtype):
    # The mean is 60 deviations away: as far as bfloat16 tells values apart.
    x = jnp.asarray(np.random.default_rng(6).standard_normal((4, 16, 16, 3)) + 60, dtype)
    layer = nn.BatchNorm(3, dtype=dtype, momentum=1.0)
    wide = np.asarray(x, np.float64)
    for rtol in (3e-2, 1e-4):  # the second batch is seen from the mean of the first
        layer(x)
        np.testing.assert_allclose(layer.var[...], wide.var((0, 1, 2), ddof=1), rtol=rtol)


@pytest.mark.parametrize(
    ("dtype", "passes"),
    [("float32", "_moments"), ("bfloat16", "_moments_near"), ("float16", "_moments_near")],
)
def test_layer_takes_one_pass_in_16_bits_and_two_in_32(monkeypatch, dtype, passes):
    used = []
    for name in ("_moments", "_moments_near"):
        own = getattr(_batch_norm, name)
        monkeypatch.setattr(
            _batch_norm, name, lambda *args, name=name, own=own: used.append(name) or own(*args)
        )
    nn.BatchNorm(3, dtype=dtype)(jnp.ones((2, 3, 4, 3)))
    assert used == [passes]


def test_estimate_of_the_mean_changes_no_gradient_and_has_none():
    x, one = (
        jnp.asarray(np.random.default_rng(7).standard_normal((2, 3, 4, 2)), jnp.float32),
        jnp.ones(2),
    )

    def loss(x, scale, bias, near):
        return jnp.sin(nn.batch_norm_train(x, scale, bias, 1e-5, near)[0]).sum()

    exact = jax.grad(loss, (0, 1, 2))(x, one, one, None)
    *near, of_guess = jax.grad(loss, (0, 1, 2, 3))(x, one, one, one)
    for found, wanted in zip(near, exact, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not of_guess.any()


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3)])
def test_rejects_a_single_value_per_channel_only_in_train_mode(shape):
    layer = nn.BatchNorm(3)
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(jnp.ones(shape))
    layer.eval()
    assert layer(jnp.ones(shape)).shape == shape


def test_computes_bfloat16_in_float32():
    x = jnp.asarray(np.random.default_rng(4).standard_normal((4, 5, 5, 3)) + 30, jnp.bfloat16)
    layer = nn.BatchNorm(3, dtype=jnp.bfloat16)
    y = layer(x)
    assert y.dtype == jnp.bfloat16
    assert layer.mean[...].dtype == layer.var[...].dtype == layer.scale[...].dtype == jnp.float32
    wide = np.asarray(x, np.float64)
    # The batch's mean to float32's precision, though bf16 has only steps of 1/8 at 30.
    np.testing.assert_allclose(layer.mean[...], 0.1 * wide.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), (wide - wide.mean((0, 1, 2))) / wide.std((0, 1, 2)), atol=2e-2
    )


def test_statistics_pass_no_gradient():
    grads = jax.grad(
        lambda x: sum(s.sum() for s in nn.batch_norm_train(x, jnp.ones(2), jnp.zeros(2))[1:])
    )(jnp.arange(8.0).reshape(1, 2, 2, 2))
    assert not np.asarray(grads).any()


def test_updates_statistics_under_jit():
    layer, x = nn.BatchNorm(2), jnp.arange(8.0).reshape(1, 2, 2, 2)
    graphdef, state = nnx.split(layer)

    @jax.jit
    def run(state, x):
        layer = nnx.merge(graphdef, state)
        layer(x)
        return nnx.state(layer)

    moved = nnx.merge(graphdef, run(state, x))
    np.testing.assert_allclose(moved.mean[...], [0.3, 0.4], rtol=1e-6)
    assert int(moved.num_batches_tracked[...]) == 1
    assert not np.asarray(layer.mean[...]).any()
