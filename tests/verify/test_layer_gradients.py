"""Gradients of single layers in bfloat16, and verdicts that rest on single layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from fcn_jax import verify, verify_model
from fcn_jax.nn import _conv
from fcn_jax.verify import Comparison, Report, Section
from fcn_jax.verify.criterion import LAYER_GRADIENTS, LAYERS

torch = pytest.importorskip("torch")

SMALL = {"sizes": [(33, 49)], "num_classes": 3, "dtype": "bfloat16", "grad": True}
CONV, NORM = "backbone.conv1", "backbone.bn1"


def section(report, title):
    return next(section for section in report.sections if section.title == title)


def test_gradients_of_every_layer_are_compared(tiny_plugin):
    report = verify_model("tiny", **SMALL)
    assert report.equal, str(report)
    names = [c.name for c in section(report, LAYER_GRADIENTS).comparisons]
    assert names[:6] == [
        *(f"input of {CONV}", f"{CONV}.weight", f"{CONV}.bias"),
        *(f"input of {NORM}", f"{NORM}.weight", f"{NORM}.bias"),
    ]
    assert len(names) == 5 + 10, "five layers with ten parameters"


@pytest.mark.slow
def test_gradient_that_is_summed_in_bfloat16_is_caught(tiny_plugin, monkeypatch):
    def backward(axis, bias, grad):
        grads = grad.reshape(-1, grad.shape[-1])
        total = jax.lax.scan(lambda s, g: (s + g, None), jnp.zeros_like(grads[0]), grads)[0]
        return grad, total.astype(bias.dtype)

    @jax.custom_vjp
    def add_bias(x, bias):
        return x + bias.astype(x.dtype)

    add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), lambda *a: backward(-1, *a))
    monkeypatch.setattr(_conv, "add_bias", add_bias)
    report = verify_model("tiny", **SMALL)
    assert not report.equal
    failed = [c.name for c in section(report, LAYER_GRADIENTS).failures]
    assert f"{CONV}.bias" in failed
    assert all(name.endswith("bias") for name in failed)


def test_float32_compares_gradients_of_the_whole_network_only(tiny_plugin):
    report = verify_model("tiny", **{**SMALL, "dtype": "float32"})
    assert LAYER_GRADIENTS not in [section.title for section in report.sections]


class LinenNet(linen.Module):
    """A linear layer, and a normalization, which Linen cannot run alone in train mode."""

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Dense(6, dtype=jnp.bfloat16, name="fc")(x)
        return linen.BatchNorm(
            use_running_average=not train, momentum=0.9, dtype=jnp.bfloat16, name="bn"
        )(x)


def test_layers_of_linen_are_differentiated():
    layers = {"fc": torch.nn.Linear(4, 6), "bn": torch.nn.BatchNorm1d(6)}
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    network = torch.nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    module = LinenNet()
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    report = verify.compare(network, (module, variables), x, dtype="bfloat16", train=False)
    names = [c.name for c in section(report, LAYER_GRADIENTS).comparisons]
    assert names == ["input of fc", "fc.weight", "fc.bias"]
    assert section(report, LAYER_GRADIENTS).equal, str(report)


# The verdict.


def made(title, noisy, error=1e-3, total=10):
    """A section of which some tensors are inconclusive."""
    tensors = [
        Comparison(f"t{i}", (4,), error, 0.7 if i < noisy else 1e-3, 0.9 if i < noisy else 3e-3, 1)
        for i in range(total)
    ]
    return Section(title, 3.0, tuple(tensors))


def report_of(*sections, **fields):
    return Report("net", "bfloat16", sections=list(sections), **fields)


PROVEN = (made(LAYERS, 0), made(LAYER_GRADIENTS, 0))


@pytest.mark.parametrize(
    ("title", "noisy"), [("gradients", 10), ("logits at 8x8", 5), ("training with sgd, step 1", 5)]
)
def test_verdict_rests_on_the_layers_where_the_network_is_too_noisy(title, noisy):
    report = report_of(*PROVEN, made(title, noisy))
    assert report.equal
    assert report.verdict.startswith("EQUAL, layer by layer: net in bfloat16 is the same function")
    assert report.to_dict()["verdict"] == "equal"
    assert Report.from_dict(report.to_dict()).verdict == report.verdict
    assert f"{title}: in bfloat16, PyTorch's own whole network is too noisy; the verdict" in str(
        report
    )


@pytest.mark.parametrize(
    "report",
    [
        report_of(made(LAYERS, 0), made("gradients", 5)),
        report_of(made(LAYERS, 1), made(LAYER_GRADIENTS, 0), made("gradients", 5)),
        report_of(*PROVEN, made("training with sgd, step 1", 6)),
        report_of(*PROVEN, made("gradients", 5), skipped={"fc": "it is not called"}),
        report_of(*PROVEN[:1], made(LAYER_GRADIENTS, 1), made("gradients", 5)),
    ],
    ids=["no gradients of layers", "noisy layers", "noisy steps", "skipped", "noisy gradients"],
)
def test_verdict_is_inconclusive_if_the_layers_do_not_prove_it(report):
    assert report.verdict.startswith("INCONCLUSIVE")


def test_failures_are_never_excused_by_the_layers():
    assert report_of(*PROVEN, made("gradients", 5, error=0.1)).verdict.startswith("NOT EQUAL")
    report = report_of(made(LAYERS, 0, error=0.1), *PROVEN[1:], made("gradients", 5))
    assert report.verdict.startswith("NOT EQUAL")


def test_float32_has_no_such_verdict():
    report = report_of(*PROVEN, made("gradients", 5))
    report.dtype = "float32"
    assert report.verdict.startswith("INCONCLUSIVE")
