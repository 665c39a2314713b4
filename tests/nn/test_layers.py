"""Linear, LayerNorm, LayerScale, gelu, silu: values and gradients of torch's layers, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.models.names import leaves
from fcn_jax.pytorch.rules import Table, layer_norm, layer_scale, linear

torch = pytest.importorskip("torch")


class TorchScale(torch.nn.Module):
    """A factor for each channel, in the layout NHWC."""

    def __init__(self):
        super().__init__()
        self.gamma = torch.nn.Parameter(torch.empty(12))

    def forward(self, x):
        return x * self.gamma


CASES = {
    "linear": (
        lambda **types: nn.Linear(12, 12, rngs=nnx.Rngs(0), **types),
        lambda: torch.nn.Linear(12, 12),
        Table(linear("")),
    ),
    "linear without bias": (
        lambda **types: nn.Linear(12, 5, use_bias=False, rngs=nnx.Rngs(0), **types),
        lambda: torch.nn.Linear(12, 5, bias=False),
        Table(linear("", bias=False)),
    ),
    "layer norm": (
        lambda **types: nn.LayerNorm(12, **types),
        lambda: torch.nn.LayerNorm(12),
        Table(layer_norm("")),
    ),
    "layer norm with eps": (
        lambda **types: nn.LayerNorm(12, eps=0.3, **types),
        lambda: torch.nn.LayerNorm(12, eps=0.3),
        Table(layer_norm("")),
    ),
    "layer scale": (
        lambda **types: nn.LayerScale(12, **types),
        TorchScale,
        Table(layer_scale("gamma", "scale")),
    ),
}


def filled(case, **types):
    """The layer and torch's, with the same random parameters, and the name of each parameter."""
    make, make_torch, table = CASES[case]
    layer, reference = make(**types), make_torch()
    torch.manual_seed(0)
    names = {}
    for path, leaf in leaves(layer).items():
        name, rule = table.to_torch(f".{path}" if case != "layer scale" else path)
        names[path] = name.removeprefix(".")
        parameter = reference.get_parameter(names[path])
        torch.nn.init.normal_(parameter)
        leaf.set_value(jnp.asarray(rule.op.to_jax(parameter.detach().numpy())))
    return layer, reference, names


def both(case, dtype, shape):
    """Outputs, gradients by the input and by each parameter: ours, and torch's in float64."""
    layer, reference, names = filled(case, dtype=dtype)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
    graphdef, state = nnx.split(layer)
    y, vjp = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1.5, y.shape), dtype)
    grads, grad_x = vjp(weights)
    layer_grads = dict(zip(leaves(layer), jax.tree.leaves(grads), strict=True))
    tx = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    ty = reference.double()(tx)
    ty.backward(torch.tensor(np.asarray(weights, np.float64)))
    pairs = {"output": (y, ty.detach()), "input": (grad_x, tx.grad)}
    for path, grad in layer_grads.items():
        expected = reference.get_parameter(names[path]).grad
        pairs[path] = (grad, expected.T if expected.ndim == 2 else expected)
    return {key: tuple(np.asarray(v, np.float64) for v in pair) for key, pair in pairs.items()}, y


@pytest.mark.parametrize("case", CASES)
def test_matches_torch(case):
    pairs, y = both(case, jnp.float32, (2, 3, 5, 12))
    assert y.dtype == jnp.float32
    for key, (found, expected) in pairs.items():
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("case", CASES)
def test_sums_gradients_of_parameters_in_float32_in_bfloat16(case):
    # Sums of 3,200 values in bfloat16 would be wrong by at least a rounding, about 2e-3.
    pairs, y = both(case, jnp.bfloat16, (2, 40, 40, 12))
    assert y.dtype == jnp.bfloat16
    for key, (found, expected) in pairs.items():
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < (1e-2 if key in ("output", "input") else 1e-4), key


def test_initial_values_are_those_of_torch():
    kernel = np.asarray(nn.Linear(64, 500, rngs=nnx.Rngs(0)).kernel[...])
    bound = 1 / np.sqrt(64)
    assert kernel.shape == (64, 500)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    norm = nn.LayerNorm(3)
    assert (norm.scale[...].tolist(), norm.bias[...].tolist()) == ([1, 1, 1], [0, 0, 0])
    assert nn.LayerScale(2, init_value=0.5).scale[...].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_matches_torch(approximate, dtype):
    x = jnp.linspace(-6, 6, 401).astype(dtype)
    y, vjp = jax.vjp(lambda x: nn.gelu(x, approximate), x)
    (grad,) = vjp(jnp.ones_like(x))
    tx = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    ty = torch.nn.functional.gelu(tx, approximate=approximate)
    ty.sum().backward()
    assert y.dtype == grad.dtype == x.dtype
    atol = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(np.asarray(y, np.float64), ty.detach(), rtol=1e-2, atol=atol)
    np.testing.assert_allclose(np.asarray(grad, np.float64), tx.grad, rtol=1e-2, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_silu_matches_torch(dtype):
    x = jnp.concatenate([jnp.linspace(-8, 8, 401), jnp.array([-1e4, -90.0, 90.0, 1e4])])
    x = x.astype(dtype)
    y, vjp = jax.vjp(nn.silu, x)
    (grad,) = vjp(jnp.ones_like(x))
    tx = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    ty = torch.nn.functional.silu(tx)
    ty.sum().backward()
    assert y.dtype == grad.dtype == x.dtype
    # Each is rounded once.
    rtol = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(np.asarray(y, np.float64), ty.detach(), rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(np.asarray(grad, np.float64), tx.grad, rtol=rtol, atol=1e-6)


def test_gelu_rejects_an_unknown_approximation():
    with pytest.raises(ValueError, match="approximate is 'sigmoid'; it must be 'none' or 'tanh'"):
        nn.gelu(jnp.zeros(3), "sigmoid")


def test_scale_rule_converts_both_shapes_of_torch():
    x = np.arange(3, dtype=np.float32)
    for spatial, shape in ((False, (3,)), (True, (3, 1, 1))):
        _, rule = Table(layer_scale("gamma", "scale", spatial=spatial)).to_torch("scale")
        assert rule.op.to_torch(x).shape == shape
        np.testing.assert_array_equal(rule.op.to_jax(rule.op.to_torch(x)), x)
    with pytest.raises(ValueError, match=r"needs shape \[C, 1, 1\], got \(3,\)"):
        rule.op.to_jax(x)
