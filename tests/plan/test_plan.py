"""The plan of a tiny recipe, against real arrays, XLA, and its own claims."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest

from fcn_jax import config
from fcn_jax.cli import main
from fcn_jax.errors import ConfigError
from fcn_jax.plan import kinds, plan, text, training, xla
from fcn_jax.plugins.api import Classes
from fcn_jax.train import setup

pytestmark = pytest.mark.usefixtures("tiny_plugin")

H100 = kinds.find("H100")
CLASSES = 7


def recipe(**sections):
    table = {
        "model": {"backbone": "tiny", "backbone_options": {"width": 16}},
        "data": {"batch_size": 8, "crop_size": [32, 48]},
        "optim": {"name": "adamw", "ema_decay": 0.99},
    }
    for section, values in sections.items():
        table[section] = table.get(section, {}) | values
    return config.parse(table)


@pytest.fixture(scope="module")
def found():
    return plan.plan(recipe(), H100, 2)


def test_parts_of_the_memory_are_those_of_real_arrays(found):
    classes = Classes(tuple("abcdefg"), ((0, 0, 0),) * CLASSES)
    _, state, _ = setup.make(recipe(), classes, 100)

    def size(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    memory = found.memory
    assert memory["parameters"] == memory["gradients"] == size(state.params)
    assert memory["statistics"] == size(state.batch_stats)
    assert memory["optimizer"] == size(state.opt_state) > 2 * size(state.params)
    assert memory["averages"] == size(state.ema) > 0
    assert memory["inputs"] == 4 * 32 * 48 * (3 + 1)
    assert found.total == sum(memory.values())


def test_frozen_parameters_have_no_gradient(found):
    frozen = plan.plan(recipe(optim={"freeze": ["backbone"]}), H100, 2).memory
    assert 0 < frozen["gradients"] < found.memory["gradients"] == frozen["parameters"]


def test_activations_and_flops_follow_the_images_of_a_device(found):
    alone = plan.plan(recipe(), H100, 1)
    assert alone.images == 2 * found.images
    assert alone.memory["activations"] == pytest.approx(2 * found.memory["activations"], rel=0.01)
    assert sum(alone.flops.values()) == 2 * sum(found.flops.values())


def test_largest_batch_fits_and_the_next_one_does_not(found):
    small = dataclasses.replace(H100, memory=4e6)
    most = plan.plan(recipe(), small, 1).largest
    assert most > 1

    def fits(images):
        return plan.plan(recipe(data={"batch_size": images}), small, 1).fits

    assert fits(most)
    assert not fits(most + 1)


def test_largest_batch_is_zero_if_nothing_fits():
    found = plan.plan(recipe(), dataclasses.replace(H100, memory=1e5), 1)
    assert found.largest == 0
    assert not found.fits
    assert "not even one image fits" in text.text(found, "tiny", recipe())


def test_accumulation_and_remat_take_less_memory(found):
    parts = plan.plan(recipe(optim={"accumulate_steps": 4}), H100, 2)
    assert parts.memory["activations"] < 0.5 * found.memory["activations"]
    assert sum(parts.flops.values()) == sum(found.flops.values())
    assert parts.largest % 4 == 0


@pytest.mark.slow
def test_recomputed_blocks_take_less_memory_and_more_operations():
    model = {"backbone": "resnet18", "backbone_options": {}}
    plain, blocks = (
        plan.plan(recipe(model=model, optim={"remat": remat}), H100, 2)
        for remat in (False, "blocks")
    )
    assert blocks.memory["activations"] < 0.8 * plain.memory["activations"]
    assert 1.2 < sum(blocks.flops.values()) / sum(plain.flops.values()) < 4 / 3 + 0.01


def test_bfloat16_moves_less_and_is_faster(found):
    narrow = plan.plan(recipe(model={"dtype": "bfloat16"}), H100, 2)
    assert set(narrow.flops) == {"bfloat16, default"} != set(found.flops)
    assert narrow.compute_seconds < found.compute_seconds
    assert narrow.bytes < found.bytes


def test_step_takes_at_least_the_time_of_each_resource(found):
    rounding = 1 + 1e-9
    assert rounding * found.alone_seconds >= max(found.compute_seconds, found.bytes_seconds)
    assert found.here.seconds >= found.alone_seconds
    assert found.here.devices == 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_agrees_with_xla_on_this_machine(dtype):
    changed = recipe(model={"dtype": dtype}, data={"crop_size": [64, 96]})
    table = xla.figures(changed, plan.plan(changed, H100, 2))
    own = table["planned"]
    assert table["devices"] == 1
    # XLA counts elementwise operations, too; it stores and moves more than a lower bound.
    assert own["flops"] <= table["flops"] <= 2 * own["flops"]
    assert 0.8 * own["bytes"] <= table["bytes"] <= 8 * own["bytes"]
    assert 0.5 * own["memory"] <= table["memory"] <= 2 * own["memory"]
    assert "XLA's figures" in xla.text(table)


def test_slices_have_certain_numbers_of_chips():
    v5e = plan.plan(recipe(), kinds.find("TPUv5e"), 2)
    with pytest.raises(ConfigError, match=r"no slice of 2 TPUv5e; compile for 1, 4, 8, 16, 32,"):
        xla._slice(v5e)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices"), [("TPUv5e", 1), ("TPUv5p", 4)])
def test_libtpu_compiles_for_absent_chips(name, devices):
    pytest.importorskip("libtpu")
    found = plan.plan(recipe(), kinds.find(name), devices)
    table = xla.figures(recipe(), found)
    assert (table["devices"], "TPU" in table["device"]) == (devices, True)
    assert table["flops"] > 0.9 * table["planned"]["flops"]
    assert (table["all_reduces"] > 0) == (devices > 1)


LIBTPU = Path(__file__).parents[2] / "benchmarks" / "results" / "tpu_aot.json"


@pytest.mark.slow
def test_agrees_with_the_figures_of_libtpu():
    rows = json.loads(LIBTPU.read_text("utf-8"))["programs"]
    rows = [row for row in rows if row["program"] == "training"]
    assert {row["chips"] for row in rows} == {1, 4, 8}
    same = config.parse(
        {
            "model": {"backbone": "resnet18", "dtype": "bfloat16"},
            "data": {"batch_size": 128, "crop_size": [320, 480]},
        }
    )
    found = plan.plan(same, kinds.find("TPUv5e"), 1, 21)
    for row in rows:
        assert 1 <= row["flops"] / sum(found.flops.values()) < 1.03
        assert 0.8 < row["bytes_accessed"] / found.bytes < 1
        assert 0.75 < row["memory"]["peak"] / found.total < 1
        if row["chips"] > 1:
            assert row["collectives"]["all-reduce"]["bytes"] == pytest.approx(
                found.reduced, rel=0.01
            )


def on_mesh(recipe, **sizes):
    return recipe.model_copy(update={"mesh": config.MeshConfig(**sizes)})


def test_fsdp_divides_large_arrays_and_what_follows_them():
    wide = recipe(model={"backbone_options": {"width": 512}})
    whole, split = plan.plan(wide, H100, 4), plan.plan(on_mesh(wide, fsdp=4), H100, 4)
    large = 9 * 512 * 512 * 4
    assert large > 4 * 2**20
    assert split.mesh == {"data": 1, "fsdp": 4, "spatial": 1}
    for part, arrays in (("parameters", 1), ("gradients", 1), ("optimizer", 2), ("averages", 1)):
        assert whole.memory[part] - split.memory[part] == arrays * large * 3 / 4, part
    assert (whole.memory["gathered"], split.memory["gathered"]) == (0, large)
    assert split.memory["activations"] == whole.memory["activations"]
    assert split.images == whole.images == 2
    assert "mesh: data 1, fsdp 4, spatial 1" in text.text(split, "wide", wide)


def test_spatial_divides_the_rows():
    whole, split = plan.plan(recipe(), H100, 1), plan.plan(on_mesh(recipe(), spatial=2), H100, 2)
    assert split.images == split.here.images == whole.images == 8
    assert split.memory["inputs"] == whole.memory["inputs"] / 2
    assert split.memory["activations"] == pytest.approx(whole.memory["activations"] / 2, rel=0.3)
    assert [row.devices for row in split.table][:2] == [4, 16]


@pytest.mark.parametrize(
    ("sizes", "devices", "message"),
    [
        ({"spatial": 2}, 2, r"has 33 rows; with mesh.spatial = 2 they must be a multiple of 2"),
        ({"data": 2, "fsdp": 2}, 3, r"--devices 3: mesh.data = 2, .*4 devices are needed"),
    ],
)
def test_mesh_that_does_not_fit(sizes, devices, message):
    with pytest.raises(ConfigError, match=message):
        plan.plan(on_mesh(recipe(data={"crop_size": [33, 48]}), **sizes), H100, devices)


def test_batch_that_cannot_be_split_names_one_that_can():
    with pytest.raises(
        ConfigError,
        match=r"data.batch_size is 8; with --devices 3 it must be a multiple of 3, such as "
        r"--set data.batch_size=9",
    ):
        plan.plan(recipe(), H100, 3)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"dataset": "voc2012"}, 21),
        ({"dataset": "camvid"}, 11),
        ({"dataset": "folder", "classes": ["road", "car"]}, 2),
    ],
)
def test_number_of_classes_needs_no_files(data, expected):
    assert training.number_of_classes(recipe(data=data)) == expected


@pytest.mark.parametrize(
    "data",
    [{"dataset": "folder"}, {"dataset": "voc2012", "ignore_classes": ["cat"]}],
)
def test_unknown_number_of_classes_asks_for_it(data):
    with pytest.raises(ConfigError, match=r"number of classes is not known.*--num-classes N"):
        plan.plan(recipe(data=data), H100, 1)
    assert plan.plan(recipe(data=data), H100, 1, classes=3).images == 8


def test_automatic_settings_are_assumed_and_said():
    found = plan.plan(recipe(data={"crop_size": "auto"}), H100, 1)
    assert found.notes == (
        "data.crop_size is 'auto': [320,480] is assumed; set another with "
        "--set data.crop_size=[320,480]",
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        '[model]\nbackbone = "tiny"\n[data]\nbatch_size = 8\ncrop_size = [32, 48]\n', "utf-8"
    )
    return path


EXACT = ("FILE", "tiny", "All", "real", "  parameters", "  statistics", "  optimizer")
EXACT += ("  gradients", "  inputs")


def without_figures(text):
    return "".join(
        line if line.startswith(EXACT) else re.sub(r"[ \d.,]*\d", " #", line)
        for line in text.splitlines(keepends=True)
    )


def test_text(file, tmp_path, capsys):
    """A snapshot. Figures that depend on the version of JAX are left out."""
    written = tmp_path / "plan.json"
    arguments = ["plan", str(file), "--kind", "h100", "--devices", "4", "--json", str(written)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert without_figures(out.replace(str(file), "FILE")) == SNAPSHOT
    table = json.loads(written.read_text("utf-8"))
    assert table["memory_total"] == sum(table["memory"].values())
    assert [row["devices"] for row in table["table"]] == [1, 4, 16, 64, 256, 1024, 4096]
    assert table["kind"]["name"] == "H100"


SNAPSHOT = """\
FILE on 4 x H100 (80 GB, 3.35 TB/s)
tiny + fcn32s, float32, crops of 32x48: a batch of 8, 2 on each device
All figures are bounds from the traced step and from datasheets: no device was used. A
real step takes longer; memory may differ by tens of percent.

memory of each device
  parameters         55.3 kB
  statistics            68 B  of batch normalization
  optimizer          55.3 kB
  gradients          55.3 kB
  inputs             12.3 kB  images and masks
  activations # kB  kept for the backward pass
  workspace # kB  an estimate: other temporary values
  sum # kB  of # GB #% of # GB (XLA_PYTHON_CLIENT_MEM_FRACTION): fits
  largest batch # images on each device, data.batch_size= #

a step takes at least
 # us # MFLOP at # TFLOP/s, the peak for float #
 # us # MB read and written
 # us  one operation after the other: limited by memory
 # us # kB added up by all devices
 # us  if they do so during the backward pass; after it # us
  at most # images/s, which the input must deliver

with # images on each device, at best
  devices    batch  all-reduce  efficiency    images/s
 # % #
 # us #- # % #
 # us #- # % #
 # us #- # % #
 # us #- # % #
 # us #- # % #
 # us #- # % #
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "H10O"], "--kind H10O: unknown kind of device. Did you mean 'H100'?"),
        (["--kind", "H100", "--set", "optim.lr=no"], "optim.lr"),
        (["--kind", "H100", "--devices", "3"], "--devices 3 it must be a multiple of 3"),
    ],
)
def test_wrong_arguments_are_one_line(file, capsys, arguments, message):
    assert main(["plan", str(file), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fcn-jax: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("devices", ["0", "-1", "many"])
def test_wrong_number_of_devices(file, capsys, devices):
    with pytest.raises(SystemExit):
        main(["plan", str(file), "--kind", "H100", "--devices", devices])
    assert f"invalid number '{devices}', expected 1 or more" in capsys.readouterr().err
