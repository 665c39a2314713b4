"""Tensors find their counterparts, by names, values, or the order of use."""

import collections
import dataclasses
import functools
import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fcn_jax import nn, verify
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.pytorch import Table, conv
from fcn_jax.pytorch.rules import LINEAR
from fcn_jax.verify.axes import fitting
from fcn_jax.verify.order import pair_in_order
from fcn_jax.verify.randomize import randomize

torch = pytest.importorskip("torch")
eqx = pytest.importorskip("equinox")

PORTS = Path(__file__).parents[1] / "fixtures" / "ports"
IMAGES = np.random.default_rng(0).standard_normal((2, 9, 8, 4)).astype(np.float32)
TOKENS = np.random.default_rng(3).standard_normal((2, 5, 8)).astype(np.float32)
QUICK = {"train": False, "grad": False, "sensitive": False}


def port_of(name):
    """A module of the fixtures."""
    spec = importlib.util.spec_from_file_location(name, PORTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Linen looks up annotations there
    spec.loader.exec_module(module)
    return module


def shapes_of(module, *inputs):
    return module, jax.eval_shape(module.init, jax.random.key(0), *inputs)


# A stranger's Linen network, without names.


@pytest.fixture
def resnet(torchvision):
    blocks = torchvision.models.resnet

    class TorchResNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 8, 7, 2, 3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(8)
            self.maxpool = torch.nn.MaxPool2d(3, 2, 1)
            shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(8, 16, 1, 2, bias=False), torch.nn.BatchNorm2d(16)
            )
            self.layer1 = torch.nn.Sequential(blocks.BasicBlock(8, 8))
            self.layer2 = torch.nn.Sequential(
                blocks.BasicBlock(8, 16, 2, shortcut), blocks.BasicBlock(16, 16)
            )
            self.fc = torch.nn.Linear(16, 5)

        def forward(self, x):
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))

    torch.manual_seed(0)
    network = TorchResNet()
    randomize(network, 0)
    return network


def linen_resnet(**settings):
    module = port_of("linen_resnet").ResNet(5, **settings)
    return shapes_of(module, jnp.zeros((1, 32, 40, 3)))


RGB = np.random.default_rng(1).standard_normal((2, 32, 40, 3)).astype(np.float32)


def test_linen_network_without_names_is_paired_in_the_order_of_use(resnet):
    report = verify.compare(resnet, linen_resnet(), RGB, **QUICK)
    assert report.equal, str(report)
    assert "tensors are paired by the order in which both sides use them" in str(report)
    loaded = report.coverage.loaded
    assert loaded["BasicBlock_1.Conv_2.kernel"] == "layer2.0.downsample.0.weight"
    assert loaded["BasicBlock_2.BatchNorm_1.var"] == "layer2.1.bn2.running_var"


def test_names_the_wrong_pooling_of_a_linen_network(resnet):
    report = verify.compare(resnet, linen_resnet(pool="SAME"), RGB, **QUICK)
    assert report.failure.startswith("between BatchNorm_0 and BasicBlock_0.Conv_0: ")


def test_names_the_wrong_momentum_of_a_linen_network(resnet):
    report = verify.compare(resnet, linen_resnet(momentum=0.1), RGB, **{**QUICK, "train": True})
    assert {c.name.rpartition(".")[2] for c in report.failures} == {"running_mean", "running_var"}


@dataclasses.dataclass
class Settings:
    """Compared by value, so it has no hash."""

    features: int = 3


class Configured(linen.Module):
    config: Settings

    @linen.compact
    def __call__(self, x):
        return ConfiguredDense(self.config, name="inner")(x)


class ConfiguredDense(linen.Module):
    config: Settings

    @linen.compact
    def __call__(self, x):
        return linen.Dense(self.config.features, name="dense")(x)


def test_linen_layers_with_a_configuration_are_compared_alone():
    inner = torch.nn.Sequential(collections.OrderedDict(dense=torch.nn.Linear(8, 3)))
    reference = torch.nn.Sequential(collections.OrderedDict(inner=inner, end=torch.nn.Identity()))
    report = verify.compare(
        reference,
        shapes_of(Configured(Settings()), TOKENS),
        TOKENS,
        **QUICK,
    )
    assert report.equal, str(report)
    assert "inner.dense" in {c.name for c in report.sections[0].comparisons}


# A stranger's Equinox network, with keys in every call.


@pytest.fixture
def vit(torchvision):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=5
    )
    randomize(network, 0)
    return network


def equinox_vit(**settings):
    build = port_of("equinox_vit").VisionTransformer
    return build(12, 2, 2, 8, 4, 5, key=jax.random.key(0), **settings)


SQUARES = np.random.default_rng(2).standard_normal((2, 16, 16, 3)).astype(np.float32)
exact_gelu = functools.partial(jax.nn.gelu, approximate=False)


@pytest.mark.slow
def test_equinox_network_with_keys_is_compared_layer_by_layer(vit):
    report = verify.compare(vit, equinox_vit(act=exact_gelu, eps=1e-6), SQUARES, **QUICK)
    assert report.equal, str(report)
    block = [
        f"blocks.0.{name}" for name in ("prenorm", "attn.qkv", "attn", "norm", "mlp", "mlp.fc1")
    ]
    assert {*block, "blocks.0", "patch_embed"} <= {c.name for c in report.sections[0].comparisons}
    assert report.skipped == {}


@pytest.mark.parametrize(
    ("settings", "failure"),
    [
        pytest.param({"act": exact_gelu}, "blocks.0.prenorm: error ", marks=pytest.mark.slow),
        ({"eps": 1e-6}, "blocks.0.mlp, between blocks.0.mlp.fc1 and blocks.0.mlp.fc2: error "),
    ],
)
def test_names_the_faults_that_defaults_of_jax_cause(vit, settings, failure):
    report = verify.compare(vit, equinox_vit(**settings), SQUARES, **QUICK)
    assert report.failure.startswith(failure)


def test_layers_with_channels_second_on_jax_side_only():
    class Norm(eqx.Module):
        norm: eqx.nn.LayerNorm

        def __call__(self, x):
            return jnp.moveaxis(jax.vmap(jax.vmap(self.norm))(jnp.moveaxis(x, 0, -1)), -1, 0)

    class TorchNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(4)

        def forward(self, x):
            return self.norm(x)

    class Around(eqx.Module):
        layer: Norm

        def __call__(self, x):
            return self.layer(x)

    class TorchAround(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = TorchNorm()

        def forward(self, x):  # channels last inside, as in torchvision's ConvNeXt
            return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    port = Around(Norm(eqx.nn.LayerNorm(4)))
    report = verify.compare(TorchAround(), port, IMAGES, **QUICK)
    assert report.equal, str(report)
    assert "layer" in {c.name for c in report.sections[0].comparisons}


# Queries, keys and values.


class TorchAttention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = torch.nn.Linear(8, 3)
        torch.nn.init.uniform_(self.attn.in_proj_bias)

    def forward(self, x):
        return self.out(self.attn(x, x, x, need_weights=False)[0])


class LinenAttention(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.MultiHeadDotProductAttention(2, name="attn")(x)
        return linen.Dense(3, name="out")(x)


def nnx_attention():
    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.out = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(self.attn(x))

    return Network()


@pytest.mark.parametrize("build", [lambda: shapes_of(LinenAttention(), TOKENS), nnx_attention])
def test_joins_queries_keys_and_values(build):
    report = verify.compare(TorchAttention(), build(), TOKENS)
    assert report.equal, str(report)
    joined = "attn.query/kernel+key/kernel+value/kernel"
    assert report.coverage.loaded[joined] == "attn.in_proj_weight"
    assert "attn.in_proj_bias" in {c.name for c in report.sections[-1].comparisons}


def test_splits_queries_keys_and_values():
    class Separate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.k_proj = torch.nn.Linear(8, 8)
            self.q_proj = torch.nn.Linear(8, 8)
            self.v_proj = torch.nn.Linear(8, 8)

        def forward(self, x):
            weights = torch.softmax(self.q_proj(x) @ self.k_proj(x).mT, -1)
            return weights @ self.v_proj(x)

    def fused(params, x):
        q, k, v = jnp.split(x @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, -1)
        return jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2), -1) @ v

    params = {"qkv": {"kernel": jnp.zeros((8, 24)), "bias": jnp.zeros(24)}}
    report = verify.compare(Separate(), (fused, params), TOKENS)
    assert report.equal, str(report)
    parts = {"q_proj": 0, "k_proj": 1, "v_proj": 2}
    names = {
        f"{name}.{kind}": f"qkv.{own}"
        for name in parts
        for kind, own in (("weight", "kernel"), ("bias", "bias"))
    }
    by_map = verify.compare(Separate(), (fused, params), TOKENS, state_dict_map=names, **QUICK)
    assert by_map.equal, by_map


def test_joins_what_the_map_lists():
    def attention(params, x):
        named = {name: params[name] for name in ("a", "b", "c")}
        q, k, v = (x @ named[name]["w"].T + named[name]["b"] for name in ("b", "a", "c"))
        q, k, v = (y.reshape(*y.shape[:2], 2, 4).swapaxes(1, 2) for y in (q, k, v))
        y = jax.nn.softmax(q @ k.swapaxes(2, 3) / 2, -1) @ v
        y = y.swapaxes(1, 2).reshape(x.shape)
        y = y @ params["p"]["weight"].T + params["p"]["bias"]
        return y @ params["out"]["weight"].T + params["out"]["bias"]

    def linear(out, weight, bias):
        return {weight: jnp.zeros((out, 8)), bias: jnp.zeros(out)}

    params = {name: linear(8, "w", "b") for name in ("a", "b", "c")}
    params |= {"p": linear(8, "weight", "bias"), "out": linear(3, "weight", "bias")}
    identity = fitting((8, 8), (8, 8), "weight")[0].op
    assert identity.name.startswith("axes (0, 1)")
    names = {
        "attn.in_proj_weight": ["b.w", "a.w", "c.w"],
        "attn.in_proj_bias": ["b.b", "a.b", "c.b"],
    }
    # A `w` is taken as [in, out], so this port, which has it the other way round, is not equal.
    report = verify.compare(
        TorchAttention(), (attention, params), TOKENS, state_dict_map=names, **QUICK
    )
    assert not report.equal
    assert "square parts are taken with the inputs first, by their names: b.w, a.w" in str(report)
    params = {
        name: {"weight": value["w"], "bias": value["b"]} if "w" in value else value
        for name, value in params.items()
    }
    names = {
        "attn.in_proj_weight": ["b.weight", "a.weight", "c.weight"],
        "attn.in_proj_bias": ["b.bias", "a.bias", "c.bias"],
    }

    def renamed(params, x):
        old = {
            name: {"w": value["weight"], "b": value["bias"]} if name in "abc" else value
            for name, value in params.items()
        }
        return attention(old, x)

    report = verify.compare(
        TorchAttention(), (renamed, params), TOKENS, state_dict_map=names, **QUICK
    )
    assert report.equal, str(report)


# Kernels of transposed convolutions, which only PyTorch mirrors.


def nnx_transpose(**settings):
    class Network(nnx.Module):
        def __init__(self):
            self.up = nnx.ConvTranspose(
                4, 4, (3, 3), strides=(2, 2), padding="VALID", rngs=nnx.Rngs(0), **settings
            )

        def __call__(self, x):
            return self.up(x)

    return Network()


class LinenTranspose(linen.Module):
    transpose_kernel: bool = False

    @linen.compact
    def __call__(self, x):
        up = linen.ConvTranspose(
            4, (3, 3), (2, 2), "VALID", transpose_kernel=self.transpose_kernel, name="up"
        )
        return up(x)


class EquinoxTranspose(eqx.Module):
    up: eqx.nn.ConvTranspose2d

    def __call__(self, x):
        return self.up(x)


@pytest.mark.parametrize(
    "build",
    [
        nnx_transpose,
        lambda: nnx_transpose(transpose_kernel=True),
        lambda: shapes_of(LinenTranspose(), IMAGES),
        lambda: shapes_of(LinenTranspose(True), IMAGES),
        lambda: EquinoxTranspose(eqx.nn.ConvTranspose2d(4, 4, 3, 2, key=jax.random.key(0))),
    ],
)
def test_mirrors_kernels_of_transposed_convolutions(build):
    torch.manual_seed(0)
    reference = torch.nn.ModuleDict({"up": torch.nn.ConvTranspose2d(4, 4, 3, 2)})
    report = verify.compare(
        reference,
        build(),
        IMAGES,
        call_torch=lambda net, x: net["up"](*x),
        **{**QUICK, "grad": True},
    )
    assert report.equal, str(report)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("jax_shape", [(3, 5, 2, 4), (3, 5, 4, 2), (2, 4, 3, 5)])
def test_axes_are_inverted(flipped, jax_shape):
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 5))
    for axes in fitting(x.shape, jax_shape, "kernel", flipped=flipped):
        assert axes.to_jax(x).shape == jax_shape
        np.testing.assert_array_equal(axes.to_torch(axes.to_jax(x)), x)


def test_square_matrices_have_the_order_that_others_have():
    """`weight` may be either; the other layer of the network shows which."""

    def network(params, x):
        return x @ params["first"]["weight"] @ params["last"]["weight"]

    params = {"first": {"weight": jnp.zeros((8, 8))}, "last": {"weight": jnp.zeros((8, 3))}}
    layers = {name: torch.nn.Linear(8, n, bias=False) for name, n in (("first", 8), ("last", 3))}
    report = verify.compare(
        torch.nn.Sequential(torch.nn.ModuleDict(layers)),
        (network, params),
        TOKENS,
        state_dict_map={"0.first.weight": "first.weight", "0.last.weight": "last.weight"},
        call_torch=lambda net, x: net[0]["last"](net[0]["first"](*x)),
        **QUICK,
    )
    assert report.equal, str(report)
    reason = "decided by the order of most other tensors named 'weight': 0.first.weight -> first"
    assert reason in str(report)


@pytest.mark.parametrize(
    ("leaf", "value", "reason"),
    [
        ("kernel", None, r"the name 'kernel': weight -> \S+: axes \(1, 0\)"),
        ("kernel", "same", r"their present values: weight -> \S+: axes \(0, 1\)"),
        ("weight", "transposed", r"their present values: weight -> \S+: axes \(1, 0\)"),
    ],
)
def test_says_how_the_axes_of_a_square_matrix_are_chosen(leaf, value, reason):
    reference = torch.nn.Linear(8, 8, bias=False)
    array = reference.weight.detach().numpy().copy()
    transposed = value != "same"
    given = jnp.zeros((8, 8)) if value is None else jnp.asarray(array.T if transposed else array)

    def network(params, x):
        return x @ (params["only"][leaf] if transposed else params["only"][leaf].T)

    report = verify.compare(
        reference,
        (network, {"only": {leaf: given}}),
        TOKENS,
        state_dict_map={"weight": f"only.{leaf}"},
        **QUICK,
    )
    assert report.equal, str(report)
    assert re.search(f"several orders of axes fit 1 tensors, .*decided by {reason}", str(report))


def test_says_that_a_wrong_square_matrix_was_chosen_by_its_name():
    network = (lambda params, x: x @ params["weight"], {"weight": jnp.zeros((8, 8))})
    names = {"weight": "weight"}
    reference = torch.nn.Linear(8, 8, bias=False)
    report = verify.compare(reference, network, TOKENS, state_dict_map=names, **QUICK)
    assert not report.equal
    assert "decided by the name 'weight': weight -> weight: axes (0, 1) of (8, 8)" in str(report)
    names = {"weight": ("weight", LINEAR)}
    stated = verify.compare(reference, network, TOKENS, state_dict_map=names, **QUICK)
    assert stated.equal, str(stated)
    assert "several orders of axes" not in str(stated)


def test_rejects_shapes_that_split_no_axis():
    assert fitting((2, 6), (3, 4), "kernel") == []
    assert [axes.order for axes in fitting((6, 8), (2, 4, 6), "kernel")] == [(1, 0)]
    assert [axes.order for axes in fitting((8, 6), (6, 2, 4), "kernel")] == [(1, 0)]
    assert len(fitting((8, 8), (8, 2, 4), "kernel")) == 2


# Kernels with an axis of heads.


class TorchHeads(torch.nn.Module):
    """Attention with 3 heads of 4 features, whose layers are called with single tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn = torch.nn.Module()
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self.attn, name, torch.nn.Linear(8, 12))
        self.attn.out_proj = torch.nn.Linear(12, 8)

    def forward(self, x):
        layers = (self.attn.q_proj, self.attn.k_proj, self.attn.v_proj)
        q, k, v = (layer(x).unflatten(-1, (3, 4)).transpose(1, 2) for layer in layers)
        y = torch.softmax(q @ k.mT / 2, -1) @ v
        return self.attn.out_proj(y.transpose(1, 2).flatten(2))


class LinenHeads(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.MultiHeadDotProductAttention(3, qkv_features=12, name="attn")(x)


class Louder(nnx.LinearGeneral):
    """Wrong by one percent."""

    def __call__(self, x, **settings):
        return 1.01 * super().__call__(x, **settings)


def nnx_heads(query=None, **settings):
    class Network(nnx.Module):
        def __init__(self):
            self.attn = nnx.MultiHeadAttention(
                3, 8, qkv_features=12, decode=False, rngs=nnx.Rngs(0), **settings
            )
            if query is not None:
                self.attn.query = query

        def __call__(self, x):
            return self.attn(x)

    return Network()


@pytest.mark.parametrize("build", [lambda: shapes_of(LinenHeads(), TOKENS), nnx_heads])
def test_layers_with_an_axis_of_heads_are_compared_alone(build):
    report = verify.compare(TorchHeads(), build(), TOKENS, **QUICK)
    assert report.equal, str(report)
    assert report.coverage.loaded["attn.out.kernel"] == "attn.out_proj.weight"
    isolated = {c.name: c.shape for c in report.sections[0].comparisons}
    shapes = dict.fromkeys(("attn.query", "attn.key", "attn.value"), (2, 5, 12))
    assert isolated == {**shapes, "attn.out": (2, 5, 8)}
    assert report.skipped == {}


def test_names_a_wrong_layer_with_an_axis_of_heads():
    query = Louder(8, (3, 4), rngs=nnx.Rngs(0))
    report = verify.compare(TorchHeads(), nnx_heads(query), TOKENS, **QUICK)
    assert report.failure.startswith("attn.query: error ")
    assert [c.name for c in report.sections[0].comparisons if not c.equal] == ["attn.query"]


def test_dropout_inside_of_attention_is_off_and_said():
    port = nnx_heads(dropout_rate=0.5)
    report = verify.compare(TorchHeads(), port, TOKENS)
    assert report.equal, str(report)
    assert "the dropout inside of attention is off on JAX's side: attn" in str(report)
    assert "gradients" in [section.title for section in report.sections]
    assert port.attn.dropout_rate == 0.5, "it is off only during the comparison"
    assert "dropout inside" not in str(verify.compare(TorchHeads(), nnx_heads(), TOKENS))


class OwnDropout(nnx.Module):
    """Calls the function of attention with a rate of its own."""

    def __init__(self):
        self.query = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        self.rngs = nnx.Rngs(1)
        self.deterministic = False

    def __call__(self, x):
        heads = x[:, :, None]
        y = nnx.dot_product_attention(
            heads,
            heads,
            heads,
            dropout_rate=0.5,
            dropout_rng=self.rngs(),
            deterministic=self.deterministic,
        )
        return self.query(y[:, :, 0])


def test_rejects_dropout_of_a_function_of_attention():
    names = {"weight": "query.kernel", "bias": "query.bias"}
    with pytest.raises(ConfigError, match="OwnDropout is random in train mode: output differ"):
        verify.compare(torch.nn.Linear(8, 8), OwnDropout(), TOKENS, state_dict_map=names)


# The order of use.


def pair(theirs, ours, sizes, known=None, roles=None):
    kinds = {"w": "weight", "b": "bias"}

    def kind(name):
        own = name.rpartition(".")[2]
        return kinds.get(own, own)

    return pair_in_order(theirs, ours, sizes, kind, known or {}, roles or {})


def test_pairs_a_shortcut_that_comes_first_on_one_side():
    theirs = ["conv1.w", "bn1.w", "bn1.b", "conv2.w", "bn2.w", "bn2.b", "short.w", "sbn.w", "sbn.b"]
    ours = ["S.w", "SB.w", "SB.b", "C1.w", "B1.w", "B1.b", "C2.w", "B2.w", "B2.b"]
    convs = {"conv1.w": 72, "conv2.w": 144, "short.w": 8, "C1.w": 72, "C2.w": 144, "S.w": 8}
    sizes = {name: convs.get(name, 4) for name in theirs + ours}
    found = pair(theirs, ours, sizes)
    assert found["sbn.w"] == "SB.w"
    assert found["bn1.b"] == "B1.b"
    assert found["bn2.w"] == "B2.w"
    assert len(found) == 9


def test_pairs_what_follows_a_known_layer_first():
    sizes = dict.fromkeys(["a.w", "b.w", "c.w", "x.w", "y.w", "z.w"], 4)
    found = pair(["a.w", "b.w", "c.w"], ["x.w", "y.w", "z.w"], sizes, known={"a.w": "y.w"})
    assert found == {"b.w": "z.w", "c.w": "x.w"}


def test_pairs_tensors_of_one_role_only():
    sizes = dict.fromkeys(["k.w", "q.w", "query.w", "key.w"], 4)
    roles = {"k.w": "key", "key.w": "key", "q.w": "query", "query.w": "query"}
    found = pair(["k.w", "q.w"], ["query.w", "key.w"], sizes, roles=roles)
    assert found == {"k.w": "key.w", "q.w": "query.w"}


# Inputs that a side cannot take, and noise.


def test_rejects_inputs_that_pytorch_cannot_take():
    with pytest.raises(
        ConfigError,
        match=r"module Linear cannot be called with tensors of shape \(2, 5, 7\): .*pass",
    ):
        verify.compare(
            torch.nn.Linear(8, 3),
            (lambda params, x: x[..., :3] + params["weight"].sum(), {"weight": jnp.zeros((3, 8))}),
            TOKENS[..., :7],
            state_dict_map={"bias": None},
        )


def test_rejects_networks_that_need_more_than_the_inputs():
    with pytest.raises(
        ConfigError, match=r"cannot be run .*'mask'; pass call_jax if it takes more"
    ):
        verify.compare(torch.nn.Identity(), (lambda params, x, mask: x, {}), TOKENS)


class AttentionWithDropout(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        attention = linen.MultiHeadDotProductAttention(
            2, dropout_rate=0.5, deterministic=not train, name="attn"
        )
        return linen.Dense(3, name="out")(attention(x))


def test_rejects_dropout_that_is_no_layer():
    network = shapes_of(AttentionWithDropout(), TOKENS)
    with pytest.raises(ConfigError, match=r"cannot be run in train mode: .*set rates of dropout"):
        verify.compare(TorchAttention(), network, TOKENS)
    report = verify.compare(TorchAttention(), network, TOKENS, **QUICK)
    assert report.equal, str(report)


class Noisy(nnx.Module):
    def __init__(self, keys):
        self.linear = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.rngs = nnx.Rngs(2)
        self.always = keys

    def __call__(self, x):
        x = self.dropout(self.linear(x))
        if self.always or not self.dropout.deterministic:
            x = x + jax.random.normal(self.rngs(), x.shape)
        return x


@pytest.mark.parametrize(("always", "mode"), [(True, "eval"), (False, "train")])
def test_rejects_random_networks(always, mode):
    names = {"weight": "linear.kernel", "bias": "linear.bias"}
    message = f"Noisy is random in {mode} mode: output differ between two runs with other seeds"
    network = Noisy(always)
    before = network.rngs.default.key.get_value()
    with pytest.raises(ConfigError, match=message):
        verify.compare(torch.nn.Linear(8, 3), network, TOKENS, state_dict_map=names)
    assert (network.rngs.default.key.get_value() == before).all()


def test_notes_random_numbers_from_a_fixed_key():
    def noisy(params, x):
        return x @ params["kernel"] + 0 * jax.random.normal(jax.random.key(0), (3,))

    reference = torch.nn.Linear(8, 3, bias=False)
    report = verify.compare(reference, (noisy, {"kernel": jnp.zeros((8, 3))}), TOKENS, **QUICK)
    assert report.equal, str(report)
    assert "JAX's side draws random numbers in eval mode, from a fixed key" in str(report)


class Normed(nnx.Module):
    """Layers of fcn-jax, whose batch normalizations count batches as PyTorch's do."""

    def __init__(self, first, second):
        for name, channels in ((first, (4, 3)), (second, (3, 3))):
            setattr(self, name, nn.ConvNormAct(*channels, 3, rngs=nnx.Rngs(0)))
        self.names = first, second

    def __call__(self, x):
        return getattr(self, self.names[1])(getattr(self, self.names[0])(x))


@pytest.mark.parametrize("names", [("first", "second"), ("stem", "last")])
def test_counts_of_batches_are_paired_by_their_layers(names):
    class Block(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv = torch.nn.Conv2d(channels, 3, 3, padding=1, bias=False)
            self.bn = torch.nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(x)).relu()

    reference = torch.nn.Sequential()
    reference.add_module("first", Block(4))
    reference.add_module("second", Block(3))
    randomize(reference, 0)
    reference[0].bn.num_batches_tracked.fill_(5)
    port = Normed(*names)
    report = verify.compare(reference, port, IMAGES, **QUICK)
    assert report.equal, str(report)
    assert getattr(port, names[0]).bn.num_batches_tracked[...] == 5
    assert getattr(port, names[1]).bn.num_batches_tracked[...] == 0


def test_error_about_a_table_names_what_it_lacks():
    reference = torch.nn.Sequential(torch.nn.Conv2d(4, 3, 1))
    port = nn.Conv(4, 3, 1, rngs=nnx.Rngs(0))
    with pytest.raises(WeightsError) as error:
        verify.compare(reference, port, IMAGES, rules=Table(conv("0")), **QUICK)
    assert str(error.value) == (
        "state dict does not fit Conv; missing 2: bias (no rule names it), kernel (no rule names "
        "it); surplus 2: 0.weight, 0.bias; correct the rules of the table (drop(NAME, REASON) "
        "leaves out a tensor)"
    )
