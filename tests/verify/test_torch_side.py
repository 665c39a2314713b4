"""Correct runs of PyTorch in each precision."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn, verify
from fcn_jax.pytorch.rules import Table, conv
from fcn_jax.verify import torch_side
from fcn_jax.verify.sides import called
from fcn_jax.verify.torch_side import REFERENCE, TorchSide, Variant, variants

torch = pytest.importorskip("torch")

UNFUSED = Variant("bfloat16", fused=False)


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv2d(4, 5, 3),
        torch.nn.ConvTranspose2d(4, 5, 3),
        torch.nn.Linear(6, 5),
        torch.nn.Conv2d(4, 5, 3, bias=False),
    ],
)
def test_sums_are_rounded_before_the_bias_is_added(layer):
    torch.nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(0))
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 4)).astype(np.float32)
    if isinstance(layer, torch.nn.Linear):
        x = x[:, :, :, 0]
    side = TorchSide(layer, "bfloat16", called)
    side.train(False)
    found = side.outputs(UNFUSED, [x])["output"]
    assert found.dtype == torch.bfloat16
    plain = TorchSide(layer, "bfloat16", called)
    for network in plain.networks():
        network.bias = None
    expected = plain.outputs(Variant("bfloat16"), [x])["output"]
    if layer.bias is not None:
        shape = (-1,) if isinstance(layer, torch.nn.Linear) else (-1, 1, 1)
        expected = expected + layer.bias.bfloat16().view(shape)
    if layer.bias is not None and not isinstance(layer, torch.nn.ConvTranspose2d):
        # PyTorch's own transposed convolution rounds its sums, too.
        fused = side.outputs(Variant("bfloat16"), [x])["output"]
        assert not torch.equal(found, fused)
    assert torch.equal(found, expected)


def test_float32_has_no_such_run():
    runs = {
        dtype: TorchSide(torch.nn.Linear(2, 2), dtype, called) for dtype in ("float32", "bfloat16")
    }
    assert runs["float32"].variants == variants("float32")
    assert runs["bfloat16"].variants == (*variants("bfloat16"), UNFUSED)
    assert all(variant.fused for variant in (REFERENCE, *variants("bfloat16")))


class Port(nnx.Module):
    def __init__(self, factor=1.0):
        self.fc = nn.Conv(64, 8, 1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        self.factor = factor

    def __call__(self, x):
        return self.fc(x) * self.factor


def cancelling():
    """A layer whose bias is the opposite of its sums, except for two percent.

    All values are bfloat16, so only sums are rounded.
    """
    torch.manual_seed(0)
    layer = torch.nn.ModuleDict({"fc": torch.nn.Conv2d(64, 8, 1)})
    with torch.no_grad():
        layer["fc"].weight.copy_(layer["fc"].weight.bfloat16())
        sums = layer["fc"](TENSOR) - layer["fc"].bias.view(-1, 1, 1)
        layer["fc"].bias.copy_((-0.98 * sums[0, :, 0, 0]).bfloat16())
    return layer


TENSOR = torch.rand(1, 64, 1, 1, generator=torch.Generator().manual_seed(0)).bfloat16().float()
IMAGES = TENSOR.repeat(2, 1, 1, 1).numpy().transpose(0, 2, 3, 1)


def compare(port):
    return verify.compare(
        cancelling(),
        port,
        IMAGES,
        rules=Table(conv("fc", bias=True)),
        call_torch=lambda net, x: net["fc"](*x),
        layout="NHWC",
        dtype="bfloat16",
        grad=False,
        sensitive=False,
        train=False,
    )


def test_bias_that_cancels_is_equal_in_bfloat16(monkeypatch):
    assert compare(Port()).equal
    wrong = compare(Port(factor=1.5))
    assert not wrong.equal, "a fault is still seen"
    monkeypatch.setattr(torch_side, "_separate_bias", contextlib.nullcontext)
    assert not compare(Port()).equal, "the other runs of PyTorch round only once"
