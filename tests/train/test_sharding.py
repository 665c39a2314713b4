"""Placement of state and batches: the mesh, the rule, and the lowered step."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from fcn_jax import config
from fcn_jax.config import MeshConfig, OptimConfig
from fcn_jax.errors import ConfigError
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.train import sharding
from tests.helpers import meshes, scenes


@pytest.fixture
def devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)


# --------------------------------------------------------------------------------------------- mesh


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 8, (8, 1, 1)),
        ({"fsdp": 4}, 8, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "spatial": 2}, 8, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "spatial": 2}, 8, (2, 2, 2)),
    ],
)
def test_remaining_devices_go_to_the_open_axis(sizes, count, expected):
    assert tuple(sharding.axis_sizes(MeshConfig(**sizes), count).values()) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": -1}, "mesh.data = -1, mesh.fsdp = -1, mesh.spatial = 1: at most one"),
        ({"fsdp": 3}, "mesh.fsdp = 3, .* a multiple of 3 devices are needed, and JAX has 8"),
        (
            {"data": 2, "fsdp": 2},
            "mesh.data = 2, mesh.fsdp = 2, mesh.spatial = 1: 4 devices are needed, and JAX has 8",
        ),
        ({"data": 16}, "16 devices are needed, and JAX has 8; change the sizes"),
    ],
)
def test_rejects_a_mesh_that_does_not_fit_the_devices(sizes, message):
    with pytest.raises(ConfigError, match=message):
        sharding.axis_sizes(MeshConfig(**sizes), 8)


@pytest.mark.parametrize("value", [0, -2, True, "2", 1.5])
def test_rejects_an_invalid_axis_size(value):
    with pytest.raises(ConfigError, match=r"mesh\.fsdp is"):
        config.parse({"mesh": {"fsdp": value}})


@pytest.mark.parametrize(
    ("sizes", "batch_size", "accumulate_steps", "rows", "message"),
    [
        ({}, 6, 1, None, r"^data\.batch_size is 6; with 4 devices it must be a multiple of 4$"),
        (
            {},
            12,
            2,
            None,
            r"^data\.batch_size is 12; with 2 optim\.accumulate_steps on 4 devices it must be a "
            "multiple of 8$",
        ),
        (
            {"spatial": 2},
            3,
            1,
            33,
            r"^data\.batch_size is 3; with 4 devices that split it into 2 parts it must be a "
            r"multiple of 2; data\.crop_size has 33 rows; with mesh\.spatial = 2 they must be a "
            "multiple of 2$",
        ),
    ],
)
def test_rejects_a_batch_that_the_devices_cannot_split(
    devices, sizes, batch_size, accumulate_steps, rows, message
):
    with pytest.raises(ConfigError, match=message):
        sharding.make_placement(
            MeshConfig(**sizes), batch_size, accumulate_steps=accumulate_steps, rows=rows
        )


def test_mesh_covers_all_devices():
    placement = sharding.make_placement(
        MeshConfig(), 8 * jax.device_count(), accumulate_steps=2, rows=1
    )
    assert placement.mesh.shape == {"data": jax.device_count(), "fsdp": 1, "spatial": 1}
    assert str(placement).startswith(f"{jax.device_count()} x ")


# --------------------------------------------------------------------------------------------- rule


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 3, 512, 512), (None, None, None, "fsdp")),  # 9 MiB; the last of two equal axes
        ((3, 3, 2048, 256), (None, None, "fsdp")),
        ((1, 1, 2048, 513), (None, None, "fsdp")),
        ((1, 1, 2048, 512), ()),  # exactly 4 MiB
        ((1025, 1027), ()),  # four divides no axis
        ((), ()),
    ],
)
def test_splits_the_largest_axis_of_large_arrays(shape, expected):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    assert meshes.abstract(data=2, fsdp=4).spec(leaf) == PartitionSpec(*expected)


@given(
    shape=st.lists(st.integers(1, 12), max_size=4),
    parts=st.integers(2, 6),
    dtype=st.sampled_from([np.float32, np.int8]),
)
def test_an_array_is_split_where_the_devices_divide_it(shape, parts, dtype):
    leaf = jax.ShapeDtypeStruct(tuple(shape), dtype)
    least = 64
    spec = meshes.abstract(fsdp=parts, mib=least / 2**20).spec(leaf)
    divisible = [size for size in shape if size % parts == 0]
    if math.prod(shape) * np.dtype(dtype).itemsize <= least or not divisible:
        assert spec == PartitionSpec()
    else:
        assert list(spec).count("fsdp") == 1
        assert shape[list(spec).index("fsdp")] == max(divisible)


@pytest.fixture(params=meshes.MODELS)
def golden(request):
    """Name of a model, and its golden table."""
    if "deeplab" in request.param:
        pytest.importorskip("fcn_jax_deeplab")
    return request.param, json.loads(meshes.GOLDEN.read_text())[request.param]


def test_partitions_are_those_of_the_golden_table(golden):
    name, table = golden
    assert meshes.table(name) == table, "python -m tests.helpers.meshes golden writes a new one"


def test_optimizer_and_averages_follow_their_parameter(golden):
    _, table = golden
    params = {key[7:]: spec for key, spec in table.items() if key.startswith("params.")}
    assert sum(map(bool, params.values())) >= 5
    for key, spec in params.items():
        for part in ("opt_state.0.mu", "opt_state.0.nu", "ema"):
            assert table[f"{part}.{key}"] == spec


# --------------------------------------------------------------------------------------------- step


def lowered(placement, platform):
    """StableHLO of a training step."""
    _, jitted, shapes = meshes.tiny(placement, OptimConfig(), blocks=platform != "cpu")
    with folding(platform == "cuda"):
        return jitted.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.usefixtures("tiny_plugin")
def test_one_device_runs_the_program_without_a_mesh():
    placement = meshes.real((1, 1, 1))
    assert lowered(placement, "cpu") == lowered(None, "cpu")
    batch = placement.put_batch({"image": np.zeros((2, 4, 4, 3), np.uint8)})
    assert len(batch["image"].sharding.device_set) == 1


@pytest.mark.lowering
@pytest.mark.usefixtures("tiny_plugin")
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_the_sharded_step_for_absent_devices(platform):
    text = lowered(meshes.abstract(data=2, fsdp=4, mib=2**-10), platform)
    assert "mhlo.num_partitions = 8" in text
    constraints = re.findall(r"sdy.sharding_constraint .*<@mesh, \[(.*)\]> : tensor<(.*)>", text)
    for kernel in ("5x5x3x16xf32", "3x3x16x16xf32"):
        # Each parameter is gathered once, and each gradient is summed once, into its partition.
        found = [spec for spec, shape in constraints if shape == kernel]
        assert found == ["{}, {}, {}, {}", '{}, {}, {}, {"fsdp"}']
    head = next(line for line in text.splitlines() if "func.func public @main" in line)
    # Parameters and momentum, as arguments and as results, besides the gradients.
    assert head.count('[{}, {}, {}, {"fsdp"}]') == 2 * 2 * 2
    assert '[{"data", "fsdp"}, {"spatial"}, {}, {}]' in head


# ------------------------------------------------------------------------------------ eight devices


def run_on_eight_devices(*arguments):
    environment = scenes.environment(8)
    environment["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.meshes", *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def losses():
    return run_on_eight_devices("losses")


def same(one, other):
    """Compare the values of two runs, which are equal except for the order of sums."""
    np.testing.assert_allclose(one["curve"], other["curve"], rtol=2e-5)
    for part, expected in zip(one["values"], other["values"], strict=True):
        assert part.keys() == expected.keys()
        for name, values in part.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_every_split_has_the_loss_curve_of_one_device(losses):
    found = losses["sgd"]
    assert found.keys() == meshes.SPLITS.keys()
    curve = [loss for loss, _ in found["1"]["curve"]]
    assert len(set(curve)) == meshes.STEPS
    for split in found.values():
        same(split, found["1"])


@pytest.mark.slow
def test_adamw_averages_and_accumulation_do_not_depend_on_the_split(losses):
    one, split = losses["adamw"].values()
    assert len(one["values"]) == 3
    same(split, one)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_gathers_parameters_once_and_no_image(platform):
    found = run_on_eight_devices("collectives", platform)
    assert len(found) == 4
    for split, program in found.items():
        by_kind = {}
        for kind, dtype, shape in program["collectives"]:
            by_kind.setdefault(kind, []).append((dtype, tuple(shape)))
        gathered = sorted(("f32", tuple(shape)) for shape in program["split"])
        assert sorted(by_kind.pop("all-gather", [])) == gathered, split
        assert bool(gathered) == ("fsdp" in split)
        rows = by_kind.pop("collective-permute", [])
        assert bool(rows) == ("spatial" in split)
        # A device has 16 of the 32 rows, and sends up to 4 of them. Kernels have up to 5: a part of
        # a gradient may move to another device.
        assert all(shape[1] <= 5 for _, shape in rows), (split, rows)
        summed = sum(
            math.prod(shape)
            for kind in ("all-reduce", "reduce-scatter")
            for dtype, shape in by_kind.pop(kind, [])
            if dtype == "f32"
        )
        assert not by_kind, split
        # A sum over several axes of the mesh may take one step for each, see docs/devices.md.
        axes = 1 + ("fsdp" in split and "data" in split) + ("spatial" in split)
        # GPUs compute the gradient of the first kernel in another shape, with zeros.
        expected = program["parameters"] + (2896 if platform == "cuda" else 0)
        assert program["parameters"] <= summed < 1.1 * axes * expected, split
