"""Networks of every framework are compared with PyTorch, and their faults are located."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name

from fcn_jax import verify
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.pytorch.rules import CONV, IDENTITY, Op

torch = pytest.importorskip("torch")
eqx = pytest.importorskip("equinox")

IMAGES = np.random.default_rng(0).standard_normal((2, 12, 10, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 11, (2, 7))


class TorchNet(torch.nn.Module):
    """Two convolutions with batch normalization, and a linear layer over the mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = torch.nn.BatchNorm2d(4)
        self.conv2 = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.fc = torch.nn.Linear(4, 5)
        for value in (self.bn1.weight, self.bn1.bias, self.bn1.running_mean, self.bn1.running_var):
            torch.nn.init.uniform_(value, 0.5, 1.5)

    def forward(self, x):
        x = torch.nn.functional.gelu(self.bn1(self.conv1(x)))
        x = x + self.conv2(x)
        return self.fc(x.mean((2, 3)))


class LinenNet(linen.Module):
    eps: float = 1e-5
    momentum: float = 0.9
    approximate: bool = False

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.Conv(4, (3, 3), name="conv1")(x)
        x = linen.BatchNorm(
            use_running_average=not train, momentum=self.momentum, epsilon=self.eps, name="bn1"
        )(x)
        x = linen.Dropout(0.5, deterministic=not train)(linen.gelu(x, self.approximate))
        x = x + linen.Conv(4, (3, 3), use_bias=False, name="conv2")(x)
        return linen.Dense(5, name="fc")(x.mean((1, 2)))


def linen_net(**settings):
    module = LinenNet(**settings)
    return module, module.init(jax.random.key(0), IMAGES)


def train_options(**settings):
    # Flax averages the biased variance, PyTorch the unbiased one.
    return {"train": False, "grad": False, **settings}


def test_linen_network_is_equal_and_paired_by_names():
    report = verify.compare(TorchNet(), linen_net(), IMAGES, train=False)
    assert report.equal, report
    assert [c.name for c in report.sections[0].comparisons] == ["conv1", "bn1", "conv2", "fc"]
    assert report.skipped == {}


def test_finds_the_biased_variance_of_linen():
    report = verify.compare(TorchNet(), linen_net(), IMAGES, grad=False)
    assert [section.title for section in report.sections if not section.equal] == ["train mode"]
    assert [c.name for c in report.failures] == ["bn1.running_var"]


def test_finds_the_momentum_of_the_other_convention():
    report = verify.compare(TorchNet(), linen_net(momentum=0.1), IMAGES, grad=False)
    assert [c.name for c in report.failures] == ["bn1.running_mean", "bn1.running_var"]


def test_names_the_faulty_linen_layer():
    report = verify.compare(TorchNet(), linen_net(eps=1e-3), IMAGES, **train_options())
    assert report.failure.startswith("bn1: ")
    report = verify.compare(TorchNet(), linen_net(approximate=True), IMAGES, **train_options())
    assert report.failure.startswith("between bn1 and conv2: ")


def test_linen_takes_images_in_either_layout():
    report = verify.compare(TorchNet(), linen_net(), np.moveaxis(IMAGES, -1, 1), **train_options())
    assert report.equal, report
    assert "inputs of shape (2, 3, 12, 10) are taken as NCHW (layout)" in str(report)


class EquinoxNet(eqx.Module):
    conv1: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    layers: list
    fc: eqx.nn.Linear
    scale: float = eqx.field(static=True)

    def __init__(self, eps=1e-5, scale=1.0):
        keys = jax.random.split(jax.random.key(0), 4)
        self.conv1 = eqx.nn.Conv2d(3, 4, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.GroupNorm(2, 4, eps=eps)
        self.layers = [eqx.nn.Conv2d(4, 4, 3, padding=1, key=key) for key in keys[1:3]]
        self.fc = eqx.nn.Linear(4, 5, key=keys[3])
        self.scale = scale

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.conv1(x)))
        for layer in self.layers:
            x = x + self.scale * layer(x)
        return self.fc(x.mean((1, 2)))


class TorchGroup(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 4)
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.fc = torch.nn.Linear(4, 5)
        torch.nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv1(x)))
        for layer in self.layers:
            x = x + layer(x)
        return self.fc(x.mean((2, 3)))


def test_equinox_network_is_equal():
    # XLA adds the gradient of a bias one by one; with more pixels its error exceeds PyTorch's.
    report = verify.compare(TorchGroup(), EquinoxNet(), IMAGES[:, :5, :4])
    assert report.equal, str(report)
    names = ["conv1", "norm", "layers.0", "layers.1", "fc"]
    assert [c.name for c in report.sections[0].comparisons] == names
    assert len(report.sections[-1].comparisons) == 1 + 10


@pytest.mark.parametrize(
    ("settings", "failure"),
    [({"eps": 1e-3}, "norm: "), ({"scale": 0.9}, "between layers.0 and layers.1: ")],
)
def test_names_the_faulty_equinox_layer(settings, failure):
    report = verify.compare(TorchGroup(), EquinoxNet(**settings), IMAGES, **train_options())
    assert report.failure.startswith(failure)


class TorchTokens(torch.nn.Module):
    """Tokens through an embedding, a normalization and a linear layer; two outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.LayerNorm(6, eps=1e-6)
        self.out = torch.nn.Linear(6, 3)
        torch.nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, tokens):
        x = self.norm(self.embed(tokens))
        return {"hidden": (x, x.mean(1)), "logits": self.out(x)}


def tokens_function(params, tokens, eps=1e-6):
    x = params["embed"][tokens]
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(var + eps) * params["norm"]["scale"] + params["norm"]["bias"]
    x = checkpoint_name(x, "norm")
    return {"hidden": (x, x.mean(1)), "logits": x @ params["out"]["w"] + params["out"]["b"]}


PARAMS = {
    "embed": jnp.zeros((11, 6)),
    "norm": {"scale": jnp.zeros(6), "bias": jnp.zeros(6)},
    "out": {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)},
}
NAMES = {
    "embed.weight": "embed",
    "norm.weight": "norm.scale",
    "norm.bias": "norm.bias",
    "out.weight": "out.w",
    "out.bias": "out.b",
}


def test_function_of_tokens_is_equal_by_a_map_of_names():
    network = (tokens_function, PARAMS)
    report = verify.compare(TorchTokens(), network, TOKENS, state_dict_map=NAMES)
    assert report.equal, report
    outputs = next(section for section in report.sections if section.title == "outputs")
    assert [c.name for c in outputs.comparisons] == ["hidden.0", "hidden.1", "logits"]
    accumulated = next(s for s in report.sections if s.title == "layers, accumulated")
    assert [c.name for c in accumulated.comparisons] == ["norm"]


def test_names_the_faulty_value_of_a_function():
    def wrong(params, tokens):
        return tokens_function(params, tokens, eps=1e-3)

    report = verify.compare(TorchTokens(), (wrong, PARAMS), TOKENS, state_dict_map=NAMES)
    assert report.failure.startswith("between the input and norm: ")


def test_pairs_tensors_by_values():
    reference = TorchTokens()
    torch.nn.init.uniform_(reference.norm.bias)
    state = {name: jnp.asarray(value.numpy()) for name, value in reference.state_dict().items()}
    params = {
        "a": state["embed.weight"],
        "b": [state["norm.weight"], state["norm.bias"]],
        "c": [state["out.weight"].T, state["out.bias"]],
    }

    def function(params, tokens):
        named = {
            "embed": params["a"],
            "norm": dict(zip(("scale", "bias"), params["b"], strict=True)),
            "out": dict(zip(("w", "b"), params["c"], strict=True)),
        }
        return tokens_function(named, tokens)

    report = verify.compare(reference, (function, params), TOKENS)
    assert report.equal, report


def test_rejects_tensors_that_cannot_be_paired():
    params = {**PARAMS, "more": jnp.zeros((2, 3)), "other": jnp.zeros(5)}
    with pytest.raises(
        WeightsError,
        match=r"PyTorch's none and JAX's more \(2, 3\), other \(5,\) remain; name them",
    ):
        verify.compare(TorchTokens(), (tokens_function, params), TOKENS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({**NAMES, "out.wieght": "out.w"}, r"no 'out.wieght' \(did you mean 'out.weight'\?\)"),
        ({**NAMES, "out.weight": "out.v"}, r"JAX's side has no 'out.v' \(did you mean"),
        ({**NAMES, "out.weight": "embed"}, r"'out.weight' has shape \(3, 6\), 'embed' \(11, 6\)"),
        (
            {**NAMES, "out.weight": ["out.w", "out.b"]},
            r"'out.weight' has shape .*its parts 'out.w'",
        ),
        ({**NAMES, "out.bias": None}, r"PyTorch's none and JAX's out\.b \(3,\) remain"),
        ({**NAMES, "head.*": None}, r"the state dict has no 'head\.\*'"),
    ],
)
def test_rejects_maps_that_do_not_fit(names, message):
    with pytest.raises(WeightsError, match=message):
        verify.compare(TorchTokens(), (tokens_function, PARAMS), TOKENS, state_dict_map=names)


def test_map_takes_operations_and_drops():
    class Scaled(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.zeros((1, 1, 3, 4)))

        def __call__(self, x):
            return x @ (2 * self.kernel[...][0, 0])

    halved = Op("half", lambda x: CONV.to_jax(x) / 2, lambda x: CONV.to_torch(x * 2))
    reference = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Dropout(0.5))
    reference.register_buffer("unused", torch.ones(3))
    names = {"0.weight": ("kernel", halved), "unused": None}
    report = verify.compare(reference, Scaled(), IMAGES, state_dict_map=names, grad=False)
    assert report.equal, report
    assert IDENTITY.name not in str(report)


def test_reports_outputs_of_another_structure():
    def fewer(params, tokens):
        return {"logits": tokens_function(params, tokens)["logits"]}

    report = verify.compare(
        TorchTokens(), (fewer, PARAMS), TOKENS, state_dict_map=NAMES, grad=False, train=False
    )
    assert not report.equal
    assert "hidden.0: JAX has no such tensor" in str(report)


def test_port_that_takes_nchw_is_recognized():
    def convolve(params, x):
        kernel = params["weight"]
        return (
            jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID") + params["bias"][:, None, None]
        )

    params = {"weight": jnp.zeros((4, 3, 3, 3)), "bias": jnp.zeros(4)}
    report = verify.compare(torch.nn.Conv2d(3, 4, 3), (convolve, params), IMAGES)
    assert report.equal, report
    assert "JAX's side takes images as NCHW" in str(report)


def test_rejects_networks_that_cannot_be_jitted():
    def branches(params, x):
        return x if float(x.sum()) > 0 else -x

    with pytest.raises(ConfigError, match="branches cannot be jitted: "):
        verify.compare(torch.nn.Identity(), (branches, {}), IMAGES, rules=None, state_dict_map={})


def test_rejects_networks_that_cannot_be_run():
    with pytest.raises(ConfigError, match=r"LinenNet cannot be run on inputs of shape \(2, 3\): "):
        verify.compare(TorchNet(), linen_net(), IMAGES[:, 0, 0])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (LinenNet(), r"without values; pass a pair: \(Linen module, variables\)"),
        (tokens_function, r"function without values; pass a pair"),
        (3, "the JAX network is a builtins.int; expected an nnx.Module"),
    ],
)
def test_rejects_networks_of_unknown_kind(network, message):
    with pytest.raises(ConfigError, match=message):
        verify.compare(TorchNet(), network, IMAGES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "CHWN"}, "layout is 'CHWN'; it must be one of NHWC, NCHW, same"),
        ({"rules": (), "state_dict_map": {}}, "rules and state_dict_map are both given"),
    ],
)
def test_rejects_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        verify.compare(TorchNet(), linen_net(), IMAGES, **settings)


def test_transposed_square_output_is_not_equal():
    class Square(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(3, 4, bias=False)
            self.b = torch.nn.Linear(3, 4, bias=False)

        def forward(self, x):
            return self.a(x) @ self.b(x).mT

    def square(params, x, transposed=False):
        y = (x @ params["a"]) @ jnp.swapaxes(x @ params["b"], 1, 2)
        return jnp.swapaxes(y, 1, 2) if transposed else y

    params = {"a": jnp.zeros((3, 4)), "b": jnp.zeros((3, 4))}
    names = {"a.weight": "a", "b.weight": "b"}
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    assert verify.compare(Square(), (square, params), x, state_dict_map=names, grad=False).equal

    def wrong(params, x):
        return square(params, x, transposed=True)

    assert not verify.compare(Square(), (wrong, params), x, state_dict_map=names, grad=False).equal


def scaled(params, x, train=False):
    mean, var = params["running_mean"], params["running_var"]
    if train:
        mean, var = x.mean(0), x.var(0)
    return (x - mean) / jnp.sqrt(var + 1e-5) * params["weight"] + params["bias"]


def test_statistics_of_a_function_have_no_gradient():
    reference = torch.nn.BatchNorm1d(4)
    torch.nn.init.uniform_(reference.weight)
    params = {name: jnp.zeros(4) for name in ("weight", "bias", "running_mean", "running_var")}
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    names = {name: name for name in params}
    report = verify.compare(reference, (scaled, params), x, state_dict_map=names, train=False)
    assert report.equal, str(report)
    assert [c.name for c in report.sections[-1].comparisons] == ["loss", "weight", "bias"]


def test_same_layout_holds_for_equinox():
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32)
    port = eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0))
    report = verify.compare(torch.nn.Conv2d(3, 4, 3), port, x, layout="same", grad=False)
    assert report.equal, str(report)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("frozen", r"PyTorch trains no parameter \(requires_grad\)"),
        ("integers", "no output is a floating-point number"),
        ("shape", "the outputs of the two sides do not fit each other"),
    ],
)
def test_says_why_gradients_are_not_compared(change, reason):
    class Argmax(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(-1) if change == "integers" else super().forward(x)

    def function(params, x):
        y = x @ params["weight"]
        return y.argmax(-1) if change == "integers" else y[:1] if change == "shape" else y

    reference = Argmax(4, 5, bias=False)
    if change == "frozen":
        reference.requires_grad_(False)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    names = {"weight": "weight"}
    params = {"weight": jnp.zeros((4, 5))}
    report = verify.compare(reference, (function, params), x, state_dict_map=names)
    assert report.equal == (change != "shape"), str(report)
    assert f"gradients are not compared, since {reason}".replace("\\", "") in str(report)


def test_takes_arrays_of_jax_and_torch_as_one_input():
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    reference, names = torch.nn.Linear(4, 5, bias=False), {"weight": "weight"}
    network = (lambda params, x: x @ params["weight"], {"weight": jnp.zeros((4, 5))})
    for given in (jnp.asarray(x), torch.from_numpy(x)):
        assert verify.compare(reference, network, given, state_dict_map=names, grad=False).equal


def test_rejects_modules_that_are_not_on_the_cpu_or_cannot_be_called():
    network = (lambda params, x: x @ params["weight"], {"weight": jnp.zeros((4, 5))})
    x = np.zeros((3, 4), np.float32)
    with pytest.raises(ConfigError, match="the PyTorch module is on meta; move it to the CPU"):
        verify.compare(
            torch.nn.Linear(4, 5, bias=False, device="meta"),
            network,
            x,
            rules=verify_table(),
        )
    with pytest.raises(ConfigError, match=r"cannot be called with tensors of shape \(3, 4\)"):
        verify.compare(
            torch.nn.Linear(4, 5, bias=False),
            network,
            x,
            rules=verify_table(),
            call_torch=lambda m, x: m(x[0][:, :2]),
        )


def verify_table():
    from fcn_jax.pytorch.rules import LINEAR, Rule, Table

    return Table(Rule("weight", "weight", LINEAR))
