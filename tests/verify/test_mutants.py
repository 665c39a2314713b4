"""Planted faults: each kind is planted where it can be, caught, and found in the right layer."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fcn_jax import nn
from fcn_jax.pytorch.rules import Op, Rule, Table, batch_norm, conv, layer_norm, linear
from fcn_jax.verify import compare, verify_model
from fcn_jax.verify.mutation import score
from fcn_jax.verify.mutation.activations import missing_activation, nonnegative
from fcn_jax.verify.mutation.score import KINDS
from fcn_jax.verify.mutation.tensors import flipped, swapped
from fcn_jax.verify.ports import make_port
from fcn_jax.verify.program import trace_function
from fcn_jax.verify.sides import load_port, paired

torch = pytest.importorskip("torch")

IMAGES = 2 * np.random.default_rng(0).standard_normal((2, 35, 35, 3)).astype(np.float32)


def randomized(network):
    """Give every tensor values of order one, none of them constant."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.ndim == 1 and not name.endswith("bias"):
            tensor.data.uniform_(1, 4, generator=generator)
        elif tensor.ndim == 1:
            tensor.data.uniform_(-1, 1, generator=generator)
    return network


def scored(reference, port, rules, **settings):
    table, port = Table(*rules), make_port(port)
    load_port(port, reference.state_dict(), table)
    with paired(reference, port, table, "float32") as pair:
        return score(pair, (IMAGES,), **settings)


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.conv2 = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.bn1(self.conv1(x))))


class TorchConvs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.block = TorchBlock()
        self.head = torch.nn.Conv2d(8, 5, 1)

    def forward(self, x):
        functional = torch.nn.functional
        y = functional.relu6(self.norm(self.stem(x)))
        y = self.block(functional.max_pool2d(y, 3, 2, 1))
        z = functional.avg_pool2d(functional.relu(y), 3, 1, 1)
        y = functional.leaky_relu(self.head(y + z), 0.1) * torch.sigmoid(self.head(z))
        return functional.interpolate(y, scale_factor=3, mode="bilinear")


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nn.ConvNormAct(8, 8, 3, rngs=rngs)
        self.conv2 = nn.Conv(8, 8, 3, padding=2, dilation=2, rngs=rngs)

    def __call__(self, x):
        return x + self.conv2(self.conv1(x))


class Convs(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem = nn.ConvNormAct(3, 8, 7, stride=2, activation=nnx.relu6, rngs=rngs)
        self.block = Block(rngs)
        self.head = nn.Conv(8, 5, 1, rngs=rngs)

    def __call__(self, x):
        y = self.block(nn.max_pool(self.stem(x), 3, 2, 1))
        z = nnx.avg_pool(nnx.relu(y), (3, 3), (1, 1), ((1, 1), (1, 1)))
        y = nnx.leaky_relu(self.head(y + z), 0.1) * nnx.sigmoid(self.head(z))
        return nn.upsample(y, 3)


CONV_RULES = [
    *conv("stem", "stem.conv"),
    *batch_norm("norm", "stem.bn"),
    *conv("block.conv1", "block.conv1.conv"),
    *batch_norm("block.bn1", "block.conv1.bn"),
    *conv("block.conv2", bias=True),
    *conv("head", bias=True),
]

CHANNELS, HEADS = 12, 3


class TorchTokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, CHANNELS, 4, 4)
        self.positions = torch.nn.Parameter(torch.randn(1, CHANNELS, 4, 4))
        self.norm = torch.nn.LayerNorm(CHANNELS, eps=1e-5)
        self.qkv = torch.nn.Linear(CHANNELS, 3 * CHANNELS)
        self.project = torch.nn.Linear(CHANNELS, CHANNELS)
        self.grow = torch.nn.Linear(CHANNELS, CHANNELS)
        self.shrink = torch.nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        functional = torch.nn.functional
        positions = functional.interpolate(self.positions, (8, 8), mode="bicubic")
        x = (self.embed(x) + positions).flatten(2).transpose(1, 2)
        parts = self.qkv(self.norm(x)).reshape(2, -1, 3, HEADS, CHANNELS // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(CHANNELS // HEADS), -1)
        x = x + self.project((weights @ v).transpose(1, 2).reshape(2, -1, CHANNELS))
        y = functional.gelu(self.grow(x))
        return x + self.shrink(functional.gelu(y, approximate="tanh"))


class Tokens(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nn.Conv(3, CHANNELS, 4, stride=4, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((4, 4, CHANNELS)))
        self.norm = nn.LayerNorm(CHANNELS)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, rngs=rngs)
        self.project = nn.Linear(CHANNELS, CHANNELS, rngs=rngs)
        self.grow = nn.Linear(CHANNELS, CHANNELS, rngs=rngs)
        self.shrink = nn.Linear(CHANNELS, CHANNELS, rngs=rngs)

    def __call__(self, x):
        cubic = torch.nn.functional.interpolate(
            torch.eye(4)[None, None], (8, 4), mode="bicubic"
        ).numpy()[0, 0]
        positions = jnp.einsum("hwc,yh,xw->yxc", self.positions[...], cubic, cubic)
        x = (self.embed(x) + positions).reshape(2, -1, CHANNELS)
        parts = self.qkv(self.norm(x)).reshape(2, -1, 3, HEADS, CHANNELS // HEADS)
        q, k, v = jnp.moveaxis(parts, 2, 0)
        logits = jnp.einsum("nqhc,nkhc->nhqk", q, k) / math.sqrt(CHANNELS // HEADS)
        mixed = jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(logits), v)
        x = x + self.project(mixed.reshape(2, -1, CHANNELS))
        y = nn.gelu(self.grow(x))
        return x + self.shrink(nn.gelu(y, "tanh"))


POSITIONS = Op(
    "1CHW <-> HWC", lambda x: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None]
)
TOKEN_RULES = [
    *conv("embed", bias=True),
    *layer_norm("norm"),
    *(rule for name in ("qkv", "project", "grow", "shrink") for rule in linear(name)),
    Rule("positions", "positions", POSITIONS),
]


@pytest.fixture(scope="module")
def convs():
    torch.manual_seed(0)
    return scored(randomized(TorchConvs()), Convs(), CONV_RULES)


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(1)
    return scored(randomized(TorchTokens()), Tokens(), TOKEN_RULES)


def test_right_port_passes_all_checks(convs, tokens):
    assert convs.unusable == ()
    assert tokens.unusable == ()


# Kind and number of faults in each network.
CONV_KINDS = {
    "swapped tensors": 6,
    "transposed kernel": 3 + 2,
    "flipped kernel": 3,
    "dropped bias": 4,
    "dropped scale": 2,
    "channel order": 1,
    "eps": 4,
    "momentum": 4,
    "frozen statistics": 2,
    "biased variance": 2,
    "padding mode": 6,
    "stride": 2,
    "dilation": 3,
    "pool window": 2,
    "ceil mode": 1,
    "count_include_pad": 1,
    "resizing": 4,
    "ReLU6": 3,
    "missing activation": 5,
    "wrong residual": 3,
    "in-place ReLU": 1,
    "wrong feature": 2,
}
TOKEN_KINDS = {
    "eps": 2,
    "GELU form": 2,
    "softmax axis": 1,
    "head order": 3,
    "position interpolation": 2,
    "wrong residual": 6,
    "in-place ReLU": 2,
    "missing activation": 2,
    "stride": 1,
    "wrong feature": 3,
}


@pytest.mark.parametrize("kind", CONV_KINDS)
def test_fault_of_convolutional_network_is_caught_and_located(convs, kind):
    check_kind(convs, kind, CONV_KINDS[kind])


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_fault_of_token_network_is_caught_and_located(tokens, kind):
    check_kind(tokens, kind, TOKEN_KINDS[kind])


def check_kind(result, kind, number):
    found = [outcome for outcome in result.outcomes if outcome.kind == kind]
    assert len(found) == number, "\n".join(o.fault for o in found)
    for outcome in found:
        if not outcome.equivalent:
            assert outcome.caught, outcome
            assert outcome.right, outcome


def test_plants_nothing_where_the_construct_is_missing(convs, tokens):
    attention = {"GELU form", "softmax axis", "head order", "position interpolation"}
    assert not attention & {o.kind for o in convs.outcomes}
    absent = {"momentum", "biased variance", "padding mode", "ReLU6", "resizing", "pool window"}
    assert not absent & {o.kind for o in tokens.outcomes}


def test_every_kind_is_planted_in_one_of_the_networks(convs, tokens):
    assert {o.kind for o in convs.outcomes} == set(CONV_KINDS)
    assert {o.kind for o in (*convs.planted, *tokens.planted)} == {*CONV_KINDS, *TOKEN_KINDS}


def test_faults_of_statistics_are_visible_in_train_mode_only(convs):
    for outcome in convs.planted:
        if outcome.kind in ("momentum", "frozen statistics", "biased variance"):
            assert outcome.caught == "train", outcome
            assert outcome.first_failing.startswith(f"{outcome.layers[0]}."), outcome


def test_fault_between_layers_is_located_between_them(convs):
    named = {o.kind: o.first_failing for o in convs.outcomes}
    assert named["pool window"].startswith("between block and head")
    assert named["channel order"] == "between the input and stem.conv"
    assert named["resizing"] == "output output"


class TorchPair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.b = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return torch.relu(torch.relu(self.b(self.a(x))))


class Chain(nnx.Module):
    def __init__(self):
        self.a = nn.Conv(3, 3, 3, padding=1, rngs=nnx.Rngs(0))
        self.b = nn.Conv(3, 3, 3, padding=1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return nnx.relu(nnx.relu(self.b(self.a(x))))


CHAIN_RULES = [*conv("a", bias=True), *conv("b", bias=True)]


def test_tensors_that_are_alike_hide_a_swap():
    reference = TorchPair()
    reference.b.load_state_dict(reference.a.state_dict())
    result = scored(reference, Chain(), CHAIN_RULES, kinds=[swapped])
    assert len(result.survivors) == len(result.planted) == 2
    assert all(outcome.identical for outcome in result.survivors)
    assert result.caught == 0
    assert "2 survived:" in str(result)
    assert "swapped tensors: a, b: a.kernel and b.kernel (not a bit differs)" in str(result)


def test_symmetric_kernel_hides_a_flip():
    reference = TorchPair()
    torch.nn.init.ones_(reference.a.weight)
    result = scored(reference, Chain(), CHAIN_RULES, kinds=[flipped])
    assert [o.layers for o in result.survivors] == [("a",)]
    assert not any(o.equivalent for o in result.outcomes)


def test_relu_of_a_relu_is_not_planted():
    result = scored(TorchPair(), Chain(), CHAIN_RULES, kinds=[missing_activation])
    first, second = result.outcomes
    assert second.equivalent == "the operand of the ReLU is never negative"
    # The second ReLU hides the loss of the first one, which no analysis of operands shows.
    assert not first.caught
    assert first.identical


def test_search_for_negative_values_is_quick_in_chains_of_gates():
    def gated(leaves, inputs):
        (x,) = inputs
        for _ in range(60):
            x = x * (jnp.maximum(x, 0) + jnp.square(x))
        return {"gated": x, "square": jnp.square(x) + jnp.exp(x)}, {}

    program = trace_function(gated, {}, (np.ones(3, np.float32),))
    found = nonnegative(program)
    assert program.outputs["square"] in found
    assert program.outputs["gated"] not in found


def test_wrong_port_is_reported_as_unusable_checks():
    class Wrong(Chain):
        def __call__(self, x):
            return super().__call__(x) * 1.01

    result = scored(TorchPair(), Wrong(), CHAIN_RULES, kinds=[flipped])
    assert result.unusable == ("output (outputs)", "output (train)")


class TorchDense(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(6, eps=1e-6)
        self.fc = torch.nn.Linear(6, 6)

    def forward(self, x):
        return torch.nn.functional.relu6(self.fc(self.norm(x)))


class TorchMlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.part = TorchDense()
        self.last = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.part(x))


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm")(x)
        return jax.nn.relu6(linen.Dense(6, name="fc")(x))


class Mlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4, name="last")(Dense(name="part")(x))


ROWS = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)


def compared(reference, network, **settings):
    variables = network.init(jax.random.key(0), ROWS)
    return compare(reference, (network, variables), ROWS, grad=False, **settings)


def test_finds_faults_of_linen_networks_at_other_scales_of_the_input():
    torch.manual_seed(0)
    report = compared(randomized(TorchMlp()), Mlp(), mutate=True)
    assert report.equal, report
    result = report.mutation
    assert {"eps", "dropped scale", "wrong feature"} <= {o.kind for o in result.planted}
    # Its effect on values of order one is half a unit in the last place.
    smaller = [o for o in result.planted if o.what == "1e-07 for 1e-06"]
    assert [o.first_failing for o in smaller] == ["part.norm"]
    assert smaller[0].caught == "layers"
    # The normalization undoes the scale of the input, so that no value reaches 6.
    assert [(o.what, o.identical) for o in result.survivors] == [("ReLU for ReLU6", True)]
    assert str(result) in str(report)
    assert report.to_dict()["mutation"]["caught"] == result.caught


def test_number_of_faults_can_be_limited():
    report = compared(TorchMlp(), Mlp(), mutate=1)
    kinds = collections.Counter(o.kind for o in report.mutation.outcomes)
    assert set(kinds.values()) == {1}
    assert report.mutation.left_out > 0
    assert f"{report.mutation.left_out} more of the same kinds" in str(report)


@pytest.mark.usefixtures("tiny_plugin")
def test_bfloat16_sees_faults_of_statistics():
    """Their change by a call is small, but they are float32."""
    kinds = ("momentum", "frozen statistics", "missing activation", "swapped tensors")
    settings = {"sizes": [(33, 49)], "num_classes": 3, "dtype": "bfloat16"}
    outcomes = verify_model("tiny", mutate=True, **settings).mutation.planted
    found = [o for o in outcomes if o.kind in kinds]
    assert {o.kind for o in found} >= {"momentum", "frozen statistics", "missing activation"}
    assert [o.fault for o in found if not o.caught] == []
    statistics = [o for o in found if o.kind in ("momentum", "frozen statistics")]
    assert {o.first_failing for o in statistics} <= {
        "backbone.conv1.bn.mean",
        "backbone.conv1.bn.var",
    }


def test_plants_no_faults_in_a_wrong_port():
    class Wrong(Mlp):
        @linen.compact
        def __call__(self, x):
            return 1.01 * linen.Dense(4, name="last")(Dense(name="part")(x))

    report = compared(TorchMlp(), Wrong(), mutate=True)
    assert report.mutation is None
    assert "no faults were planted, because the port is not equal without them" in str(report)


@pytest.mark.slow
def test_faults_of_a_registered_model_are_caught():
    report = verify_model("fcn32s_resnet18", sizes=[(64, 96)], num_classes=2, mutate=2)
    assert report.mutation.shapes == ((2, 64, 64, 3),)
    assert report.mutation.caught == 1, report.mutation
    assert report.mutation.right_layer == 1, report.mutation


def test_result_is_json_and_sums_up_the_kinds(convs):
    record = convs.to_dict()
    assert record["planted"] == len(convs.planted) == sum(not o.equivalent for o in convs.outcomes)
    assert record["caught"] == convs.caught == 1
    assert record["shapes"] == [[2, 35, 35, 3]]
    assert len(record["outcomes"]) == len(convs.outcomes)
    header, *rows, total = convs.table()
    assert header[:3] == ("planted fault", "number", "caught")
    assert int(total[1]) == sum(int(row[1]) for row in rows) == len(convs.planted)
    counted = collections.Counter(o.kind for o in convs.planted)
    assert {row[0]: int(row[1]) for row in rows} == {r[0]: counted[r[0]] for r in rows}


def test_share_of_right_layers_counts_caught_faults_only(convs):
    first, *others = convs.planted
    wrong = dataclasses.replace(first, right=False)
    unseen = dataclasses.replace(others[0], caught="", right=False)
    result = dataclasses.replace(convs, outcomes=(wrong, unseen, *others[1:3]))
    assert result.right_layer == pytest.approx(2 / 3)
    assert result.caught == pytest.approx(3 / 4)


def test_progress_counts_to_the_end():
    steps = []
    scored(
        TorchPair(),
        Chain(),
        CHAIN_RULES,
        kinds=[swapped, flipped],
        progress=lambda done, total, what: steps.append((done, total)),
    )
    done = [step for step, _ in steps]
    assert done == list(range(1, len(steps) + 1))
    assert steps[-1] == (len(steps), len(steps))


def test_all_kinds_have_a_docstring():
    assert all(find.__doc__ for find in KINDS)
