"""The benchmarks measure the same work as the library does."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from fcn_jax import cli, recipes
from fcn_jax.api import Example, Record, Source
from fcn_jax.convert.export import to_torch
from tests.helpers import scenes


class WholeSource(Source):
    """A source of one image that records how it was decoded."""

    def __init__(self):
        self.calls = []

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Record("0", b"", b"")

    def decode(self, record):
        self.calls.append("whole")
        return Example("0", np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8))


class ResizingSource(WholeSource):
    """A source that can also decode at other sizes."""

    def decode_resized(self, record, factor):
        self.calls.append(round(factor, 3))
        return Example("0", np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))


@pytest.mark.needs_torch
def test_input_is_timed_as_the_pipeline_decodes_it(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # benchmarks are not installed
    benchmark = importlib.import_module("benchmarks.input")
    for source, call in ((WholeSource(), "whole"), (ResizingSource(), 0.5)):
        stages = benchmark.measure(source, (4, 4), (0.5, 0.5), rounds=2)
        assert tuple(stages) == benchmark.STAGES
        assert source.calls == [call] * 2


@pytest.mark.needs_torch
def test_label_check_is_timed_cold_and_warm(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    benchmark = importlib.import_module("benchmarks.label_look")
    root = benchmark.write(tmp_path / "data", 4)
    for _ in range(2):
        figures = benchmark.measure(root)
        assert figures["masks_per_second"] == pytest.approx(4 / figures["seconds"])
    assert len({path.read_bytes() for path in (root / "masks" / "train").iterdir()}) == 4


def run(*arguments):
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--task",
        "logits",
        "--batch",
        "1",
        "--size",
        "64",
        "64",
        "--rounds",
        "2",
        *arguments,
    ]
    return subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.needs_torch
@pytest.mark.parametrize("few", [("--processes", "0"), ("--rounds", "1")])
def test_rejects_too_few_rounds_or_processes(tmp_path, few):
    done = run("--out", str(tmp_path / "speed.json"), *few)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "--processes must be at least 1 and --rounds at least 2"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.needs_torch
def test_contenders_run_in_their_own_processes_and_write_results(tmp_path):
    out = tmp_path / "speed.json"
    done = run("--contender", "torch eager", "--processes", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(out.read_text())["tasks"]
    assert set(task["contenders"]) == {"fcn_jax", "torch eager"}
    for row in task["contenders"].values():
        assert len(row["rounds"]) == 2 * 2
        assert row["seconds"] > 0
        assert row["bytes"] > 0
        assert row["first_call_bytes"] > 0
    assert out.with_suffix(".png").exists()


@pytest.mark.slow
@pytest.mark.needs_torch
def test_stops_if_the_contenders_disagree(tmp_path):
    program = """
import numpy as np
from benchmarks import __main__, tasks
from benchmarks.setting import Setting
def check(task, answers, dtype): raise SystemExit("they disagree")
tasks.check_agreement = check
if __name__ == "__main__":
    setting, peak = Setting(batch=1, size=(64, 64)), {"flops": 1.0, "bytes": 1.0}
    __main__.measure("logits", setting, 2, peak, [tasks.LIBRARY])
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("they disagree")


RECIPES = {
    "averages, class weights, AdamW": (
        "loss.cross_entropy={class_weights = 'median_frequency', label_smoothing = 0.1}",
        "loss.dice={weight = 0.5}",
        "optim={name = 'adamw', lr = 1e-3, eps = 1e-4, schedule = 'cosine', warmup_steps = 3}",
        "optim.ema_decay=0.8",
        "optim.ema_warmup=true",
        "optim.decay_norm_and_bias=false",
    ),
    "Lovász, groups, clipping, frozen layers": (
        "loss.cross_entropy={}",
        "loss.lovasz={}",
        "optim={lr = 0.02, clip_norm = 0.5, schedule = 'one_cycle'}",
        "optim.freeze=['backbone.conv1']",
        "optim.freeze_batch_norm=true",
        "optim.param_groups=[{match = 'head.*', lr_mult = 3.0, decay_mult = 0.0}]",
    ),
    "d2l": (
        "data.drop_small=true",
        "data.void_as_background=true",
        "optim.schedule=constant",
        "eval.protocol=d2l",
        "eval.crop=[48, 48]",
        "eval.drop_last=1",
        'eval.also=["native"]',
    ),
}


@pytest.mark.needs_torch
@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_a_recipe_trains_in_pytorch_as_in_the_library(
    settings, tmp_path, tiny_plugin, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    benchmark = importlib.import_module("benchmarks.torch_training")
    data, recipe = scenes.write_scenes(tmp_path / "data", train=24), scenes.write_recipe(tmp_path)
    more = ("model.backbone_options.dropout=0.0", "train.epochs=2")
    run = scenes.train_here(recipe, data, tmp_path / "run", *settings, *more).run
    result = benchmark.train(recipes.read_run(run), workdir=tmp_path / "torch")
    if "optim.ema_decay=0.8" in settings:
        _is_on_the_page(run, tmp_path / "torch", monkeypatch)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "train"]
    assert len(losses) == 6
    assert result.losses == pytest.approx(losses, rel=2e-4)
    scores = [record for record in records if record["event"] == "val"]
    assert list(result.scores) == [1, 2]
    for ours, theirs in zip(scores, result.scores.values(), strict=True):
        assert theirs.miou == pytest.approx(ours["miou"], abs=2e-3)
    for ours, theirs in zip(scores, result.also.values(), strict=True):
        assert {name: s.miou for name, s in theirs.items()} == pytest.approx(
            {name: s["miou"] for name, s in ours.get("also", {}).items()}, abs=2e-3
        )
    monkeypatch.setattr(sys, "argv", ["torch_training", "--run", str(run), "--epochs", "1"])
    benchmark.main()
    printed = capsys.readouterr().out.splitlines()
    assert f"{scores[0]['miou']:.4f}" in printed[-2]
    assert json.loads(printed[-1])["miou"] == pytest.approx(result.scores[1].miou)


def test_table_of_losses_is_that_of_the_results(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    benchmark = importlib.import_module("benchmarks.losses")
    page, found = benchmark.PAGE.read_text(), benchmark.rows(benchmark.RESULTS / "losses_cpu.json")
    assert page == benchmark.with_table(page, found)
    assert {row["loss"] for row in found} <= set(benchmark.LOSSES)
    for row in found:
        assert f"| {row['loss']} | {row['cpu_ratio']:.2f} | {row['ratio']:.2f} |" in page


def _is_on_the_page(run, torch_run, monkeypatch):
    """The extracts of both runs, and their row on the page of results."""
    page, extracts = (importlib.import_module(f"benchmarks.{n}") for n in ("results_page", "runs"))
    monkeypatch.setattr(extracts, "RUNS", run.parent / "extracts")
    for name, folder in (("ours", run), ("theirs", torch_run)):
        extracts.keep(name, extracts.extract(folder, every=2, min_images=1))
    ours, theirs = extracts.kept()
    assert (ours["framework"], theirs["framework"]) == ("fcn-jax", "pytorch")
    assert "torch" in theirs["packages"]
    assert [record["step"] for record in ours["train"]] == [2, 4, 6]
    assert theirs["train"] == [
        {"step": record["step"], "loss": pytest.approx(record["loss"], rel=2e-4)}
        for record in ours["train"]
    ]
    assert str(run.parent) not in json.dumps([ours, theirs])
    scores = [record["val"][-1] for record in (ours, theirs)]
    row = next(line for line in page.page([ours, theirs]).splitlines() if "optim.ema_decay" in line)
    cells = [cell.strip() for cell in row.split("|")]
    figures = [f"{score['miou']:.4f}" for score in scores]
    assert [cells[3], cells[6]] == figures
    frequent = [scores[0]["iou"][name] for name in ours["frequent"]["classes"]]
    mean = np.mean([iou for iou in frequent if iou is not None])
    assert float(cells[8]) == pytest.approx(mean, abs=1e-4)
    report = run.parent / "report.html"
    assert cli.main(["report", str(run), str(torch_run), "-o", str(report)]) == 0
    assert "torch" in report.read_text()


@pytest.mark.needs_torch
def test_training_step_trains_the_same_recipe_on_both_sides(tmp_path, tiny_plugin, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    benchmark = importlib.import_module("benchmarks.training_step")
    sides = []
    for name in ("JaxTraining", "TorchTraining"):
        made = getattr(benchmark, name)
        monkeypatch.setattr(
            benchmark, name, lambda *given, made=made: sides.append(made(*given)) or sides[-1]
        )
    data = scenes.write_scenes(tmp_path / "data", train=24)
    table = recipes.read_recipe(str(scenes.write_recipe(tmp_path)))
    given = [
        f"data.root={json.dumps(str(data))}",
        *RECIPES["averages, class weights, AdamW"],
        "optim.freeze=['backbone.conv1.conv']",
        "model.backbone_options.dropout=0.0",
        "train.epochs=2",
    ]
    row = benchmark.measure(benchmark.config.parse(recipes.override(table, given)), rounds=3)
    assert len(row["losses"]["jax"]) == 4
    assert row["losses"]["jax"] == pytest.approx(row["losses"]["torch"], rel=2e-4)
    assert set(row["step_seconds"]) == {"jax", "torch"}
    torch_side, jax_side = sides
    average = nnx.merge(
        jax_side.setup.graphdef,
        jax_side.state.params,
        jax_side.state.batch_stats,
        jax_side.setup.random_keys,
    )
    nnx.update(average, jax_side.state.ema)
    theirs = torch_side.average.module.state_dict()
    for name, value in to_torch(average).items():
        np.testing.assert_allclose(theirs[name].numpy(), value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            ("optim.name=lion", "optim.accumulate_steps=2"),
            "not support optim.name = lion.*; nor optim.accumulate_steps",
        ),
        (("loss.ohem={}",), "not support loss 'ohem'; it has cross_entropy"),
        (("eval.protocol=sliding",), "by the protocols native and d2l only"),
    ],
)
def test_settings_that_pytorch_lacks_are_rejected(
    settings, complaint, tmp_path, tiny_plugin, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    benchmark = importlib.import_module("benchmarks.torch_training")
    data = scenes.write_scenes(tmp_path / "data", train=8)
    table = recipes.read_recipe(str(scenes.write_recipe(tmp_path)))
    given = [f"data.root={json.dumps(str(data))}", *settings]
    with pytest.raises(SystemExit, match=complaint):
        benchmark.train(benchmark.config.parse(recipes.override(table, given)))


_COLLECTIVES = """
%fused_computation.1 (param_0: bf16[8]) -> bf16[64] {
  %param_0 = bf16[8]{0} parameter(0)
  ROOT %all-gather.1 = bf16[64]{0} all-gather(%param_0), channel_id=31, dimensions={0}
}

%async_collective_fusion.2 (param_1: bf16[8]) -> bf16[64] {
  %param_1 = bf16[8]{0} parameter(0)
  ROOT %all-gather.2 = bf16[64]{0} all-gather(%param_1), channel_id=31, dimensions={0}
}

ENTRY %main (state: bf16[8]) -> bf16[64] {
  %state = bf16[8]{0} parameter(0)
  %sum.1 = f32[10]{0} all-reduce(%state), to_apply=%add
  %sum.2 = f32[10]{0} all-reduce(%state), to_apply=%add
  %sum.3 = f32[10]{0} all-reduce(%state), channel_id=31, to_apply=%add
  ROOT %all-gather.3 = bf16[64]{0} all-gather(%state), channel_id=32, dimensions={0}
}
"""


def test_a_collective_that_a_tpu_program_repeats_counts_once():
    hlo = importlib.import_module("benchmarks.hlo")
    assert hlo.Program(_COLLECTIVES).collectives() == {
        "all-gather": {"count": 2, "bytes": 2 * 64 * 2},
        "all-reduce": {"count": 3, "bytes": 3 * 10 * 4},
    }
