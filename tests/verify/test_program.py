"""Traced programs: their values, what a change reaches, and the modules of equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fcn_jax import nn
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify.mutation.trace import trace
from fcn_jax.verify.ports import make_port
from fcn_jax.verify.program import Patch, trace_function
from fcn_jax.verify.types import Pair

X = np.random.default_rng(0).standard_normal((2, 9, 9, 3)).astype(np.float32)


class Block(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nn.ConvNormAct(3, 4, 3, rngs=rngs)
        self.grouped = nn.Conv(4, 4, 3, padding=1, groups=4, rngs=rngs)
        self.stem = nn.Conv(4, 4, 3, stride=2, padding=1, rngs=rngs)

    def __call__(self, x):
        y = self.conv(x)
        y = nn.residual_add(self.grouped(y), y, nnx.relu)
        y = jax.checkpoint(lambda y: nn.gelu(nn.max_pool(y, 3, 2, 1)))(y) + self.stem(y)
        return {"out": nn.resize_bilinear(y, (9, 9)), "mean": nn.global_average_pool(y)}


def traced(network, *inputs, train=False):
    port = make_port(network)
    return trace(Pair(None, port, Table(), "float32", {}), inputs, train=train)


@pytest.mark.parametrize("train", [False, True])
def test_program_has_the_values_of_the_jitted_network(train):
    port = make_port(Block())

    @jax.jit
    def run(leaves, x):
        return port.run(leaves, (x,), train=train, watch=None)

    outputs, updates = run(port.leaves, X)
    program = traced(port, X, train=train)
    assert set(program.outputs) == {"out", "mean"}
    for name, value in program.outputs.items():
        np.testing.assert_allclose(program.base[value], outputs[name], rtol=2e-5, atol=2e-6)
    assert set(program.updates) == set(updates)
    assert bool(updates) == train
    for path, value in program.updates.items():
        np.testing.assert_allclose(program.base[value], updates[path], rtol=2e-5, atol=2e-6)


def test_calls_are_inlined_and_platforms_take_their_plainest_form():
    program = traced(Block(), X)
    names = [equation.name for equation in program.equations]
    assert not {"jit", "pjit", "cond", "custom_vjp_call", "custom_jvp_call", "remat2"} & set(names)
    assert "checkpoint" not in names
    assert names.count("conv_general_dilated") == 3
    assert names.count("reduce_window_max") == 1


def test_equations_know_their_module():
    program = traced(Block(), X)
    modules = {e.name: e.module for e in program.equations}
    assert modules["rsqrt"] == "conv.bn"
    assert modules["reduce_window_max"] == ""
    convs = [e.module for e in program.equations if e.name == "conv_general_dilated"]
    assert convs == ["conv.conv", "grouped", "stem"]


def test_calls_know_argument_and_result():
    program = traced(Block(), X)
    calls = {call.path: call for call in program.calls if call.input is not None}
    assert set(calls) == {"conv", "conv.conv", "conv.bn", "grouped", "stem"}
    assert calls["conv"].input is program.arguments["input"]
    assert calls["conv.bn"].input is calls["conv.conv"].output
    assert calls["grouped"].output.shape == (2, 9, 9, 4)


def test_linen_modules_have_names_and_arguments():
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Dense(5)(x))
            return linen.Dense(4)(x)

    network = Network()
    program = traced((network, network.init(jax.random.key(0), X)), X)
    modules = [e.module for e in program.equations if e.name == "dot_general"]
    assert modules == ["Dense_0", "Dense_1"]
    calls = {call.path: call for call in program.calls}
    assert calls["Dense_0"].input is program.arguments["input"]
    assert calls["Dense_1"].output is program.outputs["output"]


def function(leaves, inputs):
    (x,) = inputs
    y = jnp.tanh(x @ leaves["a"]) + jnp.arange(3.0)
    z = jax.nn.softmax(y * leaves["b"])
    return {"y": y, "z": z, "sum": (y + z).sum()}, {"b": leaves["b"] * 0.9}


LEAVES = {"a": np.eye(3, dtype=np.float32), "b": np.float32([1, 2, 3])}
ROW = np.float32([[1, -2, 3]])


@given(
    name=st.sampled_from(["a", "b", "input"]),
    factor=st.floats(-3, 3, width=32),
)
@settings(max_examples=25, deadline=None)
def test_changed_argument_gives_what_the_function_gives(name, factor):
    program = trace_function(function, LEAVES, (ROW,))
    changed = {"a": LEAVES["a"], "b": LEAVES["b"], "input": ROW}
    changed[name] = changed[name] * np.float32(factor)
    expected, _ = function(changed, (changed["input"],))
    found = program.run({program.arguments[name]: jnp.asarray(changed[name])}, {})
    for key, value in program.outputs.items():
        np.testing.assert_allclose(
            found.get(value, program.base[value]), expected[key], rtol=1e-5, atol=1e-6
        )


def test_evaluates_only_what_depends_on_the_change():
    program = trace_function(function, LEAVES, (ROW,))
    index = next(i for i, e in enumerate(program.equations) if e.name == "exp")
    equation = program.equations[index]
    found = program.run({}, {index: Patch(equation.inputs, equation.run)})
    assert program.outputs["y"] not in found
    assert {program.outputs["z"], program.outputs["sum"]} <= set(found)
    assert set(found) == program.dependents(equation.outputs)
    np.testing.assert_array_equal(found[program.outputs["z"]], program.base[program.outputs["z"]])


def test_change_that_breaks_shapes_gives_no_values():
    program = trace_function(function, LEAVES, (ROW,))
    index = next(i for i, e in enumerate(program.equations) if e.name == "tanh")
    equation = program.equations[index]
    found = program.run({}, {index: Patch(equation.inputs, lambda x: (x[:, :2],))})
    assert found[equation.outputs[0]].shape == (1, 2)
    assert all(found[value] is None for value in program.outputs.values())


def test_constants_are_computed_once_and_numbers_are_recognized():
    program = trace_function(function, LEAVES, (ROW,))
    assert "iota" not in [e.name for e in program.equations]
    addition = next(e for e in program.equations if e.name == "add")
    constants = [v for v in addition.inputs if v in program.known]
    assert len(constants) == 1
    assert program.scalar(constants[0]) is None
    scaled = trace_function(lambda leaves, x: ({"y": x[0] * jnp.full(3, 0.5)}, {}), {}, (ROW,))
    product = next(e for e in scaled.equations if e.name == "mul")
    assert [scaled.scalar(value) for value in product.inputs] == [None, 0.5]


def test_part_between_two_values_stops_at_the_first():
    program = trace_function(function, LEAVES, (ROW,))
    indices, arguments = program.between(program.outputs["y"], program.outputs["z"])
    names = [program.equations[i].name for i in sorted(indices)]
    assert "tanh" not in names
    assert "mul" in names
    assert names[-1] == "div"
    assert arguments == {program.arguments["b"]}


def test_value_that_is_fed_is_not_rewired():
    program = trace_function(function, LEAVES, (ROW,))
    y, z = program.outputs["y"], program.outputs["z"]
    indices, _ = program.between(y, z)
    first = min(index for index in indices if y in program.equations[index].inputs)
    equation = program.equations[first]
    other = program.arguments["input"]
    inputs = tuple(other if value is y else value for value in equation.inputs)
    patches = {first: Patch(inputs, equation.run, rewired=y)}
    changed = program.run({}, patches)
    assert not np.allclose(changed[z], program.base[z])
    alone = program.run({y: program.base[y]}, patches, indices, fed=y)
    np.testing.assert_allclose(alone[z], program.base[z], rtol=1e-6)


def test_loop_is_one_equation():
    def scanned(leaves, inputs):
        total, _ = lax.scan(lambda c, row: (c + row, None), leaves["b"], inputs[0])
        return {"output": total}, {}

    program = trace_function(scanned, LEAVES, (ROW,))
    assert [e.name for e in program.equations].count("scan") == 1
    np.testing.assert_allclose(program.base[program.outputs["output"]], LEAVES["b"] + ROW[0])
