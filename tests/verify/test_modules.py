"""Comparison of two modules: right ports pass, and reports name the failing layer of wrong ones."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fcn_jax import nn, verify
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.resnet import RESNET50
from fcn_jax.models.resnet_blocks import Bottleneck, Stage
from fcn_jax.pytorch.rules import CONV, Op, Rule, Table, batch_norm, conv, conv_norm
from fcn_jax.verify.randomize import randomize

torch = pytest.importorskip("torch")

TABLE = RESNET50.torch.tables_of(RESNET50.options())["torchvision"]
CONVS = ("conv1", "conv2", "conv3", "downsample")
IMAGES = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)


class Stem(nnx.Module):
    """ResNet's stem and one bottleneck, under ResNet-50's names."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv1 = nn.ConvNormAct(3, 64, 7, stride=2, rngs=rngs)
        block = Bottleneck(64, 32, Stage(2, 1, 1), rngs=rngs)
        self.layer2 = nnx.List([block])

    def __call__(self, x):
        return self.layer2[0](nn.max_pool(self.conv1(x), 3, 2, 1))


@pytest.fixture(scope="module")
def reference(torchvision):
    resnet = torchvision.models.resnet

    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(64)
            self.maxpool = torch.nn.MaxPool2d(3, 2, 1)
            shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(64, 128, 1, 2, bias=False), torch.nn.BatchNorm2d(128)
            )
            self.layer2 = torch.nn.Sequential(resnet.Bottleneck(64, 32, 2, shortcut))
            self.fc = torch.nn.Linear(128, 10)

        def forward(self, x):
            return self.layer2(self.maxpool(torch.relu_(self.bn1(self.conv1(x)))))

    torch.manual_seed(0)
    network = Reference()
    randomize(network, seed=0)
    return network


@pytest.fixture
def port():
    return Stem()


def compare(reference, port, table=TABLE, images=IMAGES, **settings):
    return verify.compare(reference, port, images, rules=table, **settings)


class Repeated(nn.Conv):
    """A convolution applied twice."""

    def __call__(self, x):
        return super().__call__(super().__call__(x))


class OnceAndTwice(nnx.Module):
    """A layer, and a layer of a derived class."""

    def __init__(self):
        self.once = nn.Conv(3, 4, 3, padding=1, rngs=nnx.Rngs(0))
        self.twice = Repeated(4, 4, 3, padding=1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.twice(self.once(x))


def test_layer_that_calls_its_parent_class_counts_once():
    class TorchTwice(torch.nn.Conv2d):
        def forward(self, x):
            return super().forward(super().forward(x))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.once = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.twice = TorchTwice(4, 4, 3, padding=1)

        def forward(self, x):
            return self.twice(self.once(x))

    table = Table(conv("once", bias=True), conv("twice", bias=True))
    report = compare(Network(), OnceAndTwice(), table, IMAGES[:, :16, :16], grad=False)
    assert report.equal, report
    for section in report.sections[:2]:
        assert [c.name for c in section.comparisons] == ["once", "twice"]


@pytest.mark.parametrize(("activation", "equal"), [(jax.nn.relu6, True), (nnx.relu, False)])
def test_normalization_of_timm_is_compared_without_its_activation(torchvision, activation, equal):
    layers = pytest.importorskip("timm.layers")  # it imports torchvision

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.bn = layers.BatchNormAct2d(4, act_layer=torch.nn.ReLU6)

        def forward(self, x):
            return self.bn(self.conv(x))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return self.block(x)

    class Port(nnx.Module):
        def __init__(self):
            self.block = nn.ConvNormAct(3, 4, 3, activation=activation, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.block(x)

    table = Table(conv_norm("block.conv", "block.bn", "block"))
    images = 4 * IMAGES[:, :16, :16]
    report = compare(Network(), Port(), table, images, grad=False, sensitive=False)
    isolated = {c.name: c.equal for c in report.sections[0].comparisons}
    assert isolated == {"block.conv": True, "block.bn": True, "block": equal}
    assert report.equal == equal


def test_right_port_is_equal(reference, port):
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    mode = reference.training
    report = compare(reference, port)
    assert report.equal, report
    layers, accumulated, outputs, train_mode, gradients = report.sections
    # Every convolution, normalization, shortcut and block, in the order in which they are computed.
    block = [f"{conv}.{part}" for conv in CONVS for part in ("conv", "bn")]
    names = ["conv1.conv", "conv1.bn", *(f"layer2.0.{name}" for name in block)]
    names += ["layer2.0.downsample", "layer2.0"]
    assert [c.name for c in layers.comparisons] == names
    assert [c.name for c in accumulated.comparisons] == names
    assert [c.name for c in outputs.comparisons] == ["output"]
    statistics = [n for n, _ in reference.named_buffers()]
    assert [c.name for c in train_mode.comparisons] == ["output", *statistics]
    assert len(gradients.comparisons) == 1 + len(
        [n for n, _ in reference.named_parameters() if not n.startswith("fc.")]
    )
    assert report.skipped == {}
    after = reference.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), (
        "PyTorch's module must not change"
    )
    assert reference.training == mode
    assert all(parameter.grad is None for parameter in reference.parameters())


def with_rules(*rules):
    return lambda port, monkeypatch: Table(*rules, TABLE.rules, *TABLE.drops)


def flipped_kernel():
    op = Op("flipped", lambda x: CONV.to_jax(x)[::-1, ::-1], lambda x: CONV.to_torch(x[::-1, ::-1]))
    return with_rules(Rule("layer2.0.conv2.weight", "layer2.0.conv2.conv.kernel", op))


def wrongly_transposed_kernel():
    op = Op("OIHW -> HWOI", lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
    return with_rules(Rule("layer2.0.conv2.weight", "layer2.0.conv2.conv.kernel", op))


def swapped_vectors():
    return with_rules(
        Rule("layer2.0.bn2.weight", "layer2.0.conv2.bn.bias"),
        Rule("layer2.0.bn2.bias", "layer2.0.conv2.bn.scale"),
    )


def wrong_eps():
    def fault(port, monkeypatch):
        port.layer2[0].conv3.bn.eps = 1e-3

    return fault


class SamePadded(nn.Conv):
    def __call__(self, x):
        strides = (self.stride, self.stride)
        return lax.conv_general_dilated(
            x, self.kernel[...], strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


def same_padding_in_the_stem():
    def fault(port, monkeypatch):
        port.conv1.conv = SamePadded(
            3, 64, 7, stride=2, padding=3, use_bias=False, rngs=nnx.Rngs(0)
        )

    return fault


def stride_on_the_first_convolution_of_a_bottleneck():
    def fault(port, monkeypatch):
        block = port.layer2[0]
        block.conv1.conv.stride, block.conv2.conv.stride = 2, 1

    return fault


def same_padding_in_the_pool():
    def fault(port, monkeypatch):
        def pool(x, size, stride, padding):
            return lax.reduce_window(
                x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), "SAME"
            )

        monkeypatch.setattr(nn, "max_pool", pool)

    return fault


@pytest.mark.parametrize(
    ("make_fault", "expected"),
    [
        (flipped_kernel, "layer2.0.conv2.conv"),
        (wrongly_transposed_kernel, "layer2.0.conv2.conv"),
        (swapped_vectors, "layer2.0.conv2.bn"),
        (wrong_eps, "layer2.0.conv3.bn"),
        pytest.param(same_padding_in_the_stem, "conv1.conv", marks=pytest.mark.slow),
        pytest.param(
            stride_on_the_first_convolution_of_a_bottleneck,
            "layer2.0.conv1.conv",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            same_padding_in_the_pool,
            "between conv1.bn and layer2.0.conv1.conv",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_fault_exceeds_the_limit_ten_times_and_is_located(
    reference, port, monkeypatch, make_fault, expected
):
    table = make_fault()(port, monkeypatch) or TABLE
    report = compare(reference, port, table, grad=False)
    assert not report.equal
    assert report.failure.startswith(f"{expected}: ")
    assert report.verdict.startswith("NOT EQUAL")
    failures = [c for c in report.failures if c.name == expected.split(" and ")[-1]]
    assert failures
    assert min(c.excess for c in failures) >= 10
    # Layers that are right do not fail because of a wrong input.
    isolated = [c.name for c in report.sections[0].comparisons if not c.equal]
    strided = {"layer2.0.conv2.conv"} if expected == "layer2.0.conv1.conv" else set()
    assert set(isolated) <= {expected, "layer2.0"} | strided


@pytest.mark.slow
def test_finds_wrong_gradients_of_right_outputs(reference, port, monkeypatch):
    @jax.custom_vjp
    def relu(x):
        return jnp.maximum(x, 0)

    relu.defvjp(lambda x: (relu(x), x), lambda x, grad: (jnp.where(x > 0.1, grad, 0),))
    monkeypatch.setattr(nnx, "relu", relu)
    report = compare(reference, port)
    assert [section.title for section in report.sections if not section.equal] == ["gradients"]
    assert report.failures[0].excess > 10


def test_rejects_rules_that_do_not_match_the_state_dict(reference, port):
    with pytest.raises(WeightsError, match=r"surplus 2: fc\.weight, fc\.bias"):
        compare(reference, port, Table(TABLE.rules))


def test_compares_modules_with_several_inputs():
    class Gate(nnx.Module):
        def __init__(self):
            self.norm = nn.BatchNorm(5)

        def __call__(self, x, y):
            return {"gated": self.norm(x) * y}

    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(5)

        def forward(self, x, y):
            return {"gated": self.norm(x) * y}

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((7, 5)).astype(np.float32) for _ in range(2)]
    report = compare(Reference(), Gate(), Table(batch_norm("norm")), inputs, subject="gate")
    assert report.equal, report
    assert report.subject == "gate"
    assert [section.title for section in report.sections] == [
        "layers, isolated",
        "layers, accumulated",
        "outputs",
        "train mode",
        "gradients",
    ]


class InPlacePort(nnx.Module):
    """An activation, a convolution and dropout."""

    def __init__(self, first=True):
        self.first = first
        self.conv = nn.Conv(3, 4, 1, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dropout(self.conv(nnx.hard_swish(x) if self.first else x))


def in_place_reference():
    layers = {
        "act": torch.nn.Hardswish(inplace=True),
        "conv": torch.nn.Conv2d(3, 4, 1),
        "dropout": torch.nn.Dropout(0.5),
    }
    network = torch.nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


def test_in_place_layers_change_neither_comparison_nor_inputs():
    images = IMAGES[:, :8, :8].copy()
    port = InPlacePort()
    report = compare(in_place_reference(), port, Table(conv("conv", bias=True)), images)
    assert report.equal, report
    assert max(c.reference_error for section in report.sections for c in section.comparisons) < 1e-5
    np.testing.assert_array_equal(images, IMAGES[:, :8, :8])
    assert port.dropout.rate == 0.5, "dropout is disabled only during the comparison"
    wrong = compare(
        in_place_reference(), InPlacePort(first=False), Table(conv("conv", bias=True)), images
    )
    assert wrong.failure.startswith("between the input and conv: ")


def test_surplus_or_missing_outputs_are_not_equal():
    table, images = Table(conv("conv", bias=True)), IMAGES[:, :8, :8]
    report = compare(
        in_place_reference(),
        InPlacePort(),
        table,
        images,
        call_jax=lambda module, x: {"output": module(*x), "more": x[0]},
    )
    assert "more: PyTorch has no such tensor" in str(report)
    assert not report.equal
    report = compare(
        in_place_reference(),
        InPlacePort(),
        table,
        images,
        call_torch=lambda *_: {},
        call_jax=lambda *_: {},
        grad=False,
    )
    assert not report.equal
    assert "nothing was compared in: " in report.failure


def test_skips_gradients_of_frozen_parameters():
    reference = in_place_reference()
    reference.conv.bias.requires_grad_(False)
    report = compare(reference, InPlacePort(), Table(conv("conv", bias=True)), IMAGES[:, :8, :8])
    assert report.equal, report
    assert [c.name for c in report.sections[-1].comparisons] == ["loss", "conv.weight"]


def test_rejects_unknown_dtype():
    with pytest.raises(
        ConfigError, match="dtype is 'float16'; it must be one of float32, bfloat16"
    ):
        compare(
            in_place_reference(),
            InPlacePort(),
            Table(conv("conv", bias=True)),
            IMAGES,
            dtype="float16",
        )


def test_lists_layers_that_pytorch_does_not_call():
    class Functional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.conv.weight, self.conv.bias)

    class Port(nnx.Module):
        def __init__(self):
            self.conv = nn.Conv(3, 4, 1, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.conv(x)

    report = compare(Functional(), Port(), Table(conv("conv", bias=True)), IMAGES[:, :8, :8])
    assert report.equal, report
    assert report.skipped == {"conv": "PyTorch does not call it with a single tensor"}
    assert "not compared one by one: conv (PyTorch does not call it" in str(report).splitlines()[1]


class Wrapped(nnx.Module):
    """Adds its input to the output of `body`, a module or a list of modules."""

    def __init__(self, body):
        self.body = body

    def __call__(self, x):
        y = x
        for layer in self.body if isinstance(self.body, nnx.List) else [self.body]:
            y = layer(y)
        return x + y


class Twice(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([nn.Conv(3, 3, 1, rngs=nnx.Rngs(i)) for i in range(2)])

    def __call__(self, x):
        return self.layers[1](self.layers[0](x))


@pytest.mark.parametrize("nested", [True, False])
def test_nested_blocks_with_the_same_tensors_are_not_mixed_up(nested):
    """As in torchvision's MobileNets: a Sequential has all tensors, its parent adds a shortcut."""

    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1))

        def forward(self, x):
            return x + self.body(x)

    class Port(nnx.Module):
        def __init__(self):
            self.net = Wrapped(Twice() if nested else Twice().layers)

        def __call__(self, x):
            return self.net(x)

    inner = "net.body.layers" if nested else "net.body"
    table = Table(conv("0.body.{i}", inner + ".{i}", bias=True))
    report = compare(torch.nn.Sequential(Around()), Port(), table, IMAGES[:, :8, :8], grad=False)
    assert report.equal, report
    blocks = ["net.body", "net"] if nested else []
    assert [c.name for c in report.sections[0].comparisons] == [f"{inner}.0", f"{inner}.1", *blocks]


def test_accepts_another_order_of_summation():
    # At this size PyTorch sums a convolution of 256 channels in blocks, and its error is a third of
    # that at most other sizes.
    class Port(nnx.Module):
        def __init__(self):
            self.conv = nn.Conv(256, 256, 3, padding=1, use_bias=False, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.conv(x)

    torch.manual_seed(0)
    reference = torch.nn.Sequential(
        collections.OrderedDict(conv=torch.nn.Conv2d(256, 256, 3, padding=1, bias=False))
    )
    images = np.maximum(np.random.default_rng(0).standard_normal((1, 8, 8, 256)), 0).astype(
        np.float32
    )
    report = compare(reference, Port(), Table(conv("conv")), images, grad=False)
    assert report.equal, report


class OnTheEdge(nnx.Module):
    """A ReLU with an input of 3e-8 where the image is zero, rounded to multiples of 2**-23."""

    def __init__(self):
        self.conv = nn.Conv(3, 4, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.relu(lax.optimization_barrier(self.conv(x) + 1) - 1)


def test_accepts_a_unit_at_the_edge_of_a_relu():
    torch.manual_seed(0)
    reference = torch.nn.Sequential(
        collections.OrderedDict(conv=torch.nn.Conv2d(3, 4, 1), relu=torch.nn.ReLU())
    )
    torch.nn.init.constant_(reference.conv.bias, 3e-8)
    images = IMAGES[:, :8, :8].copy()
    images[0, :4] = 0
    port = OnTheEdge()
    report = compare(reference, port, Table(conv("conv", bias=True)), images)
    assert report.equal, report
    assert report.sections[-1].attempts == 1
    assert max(c.reference_error for c in report.sections[-1].comparisons) < 1e-5
    np.testing.assert_array_equal(port.conv.bias[...], np.float32(3e-8), "only for the gradients")
    assert (reference.conv.bias == 3e-8).all()
