"""The page of results, from extracts of runs."""

import copy
import json

import pytest

from fcn_jax import config, recipes

pytest.importorskip("torch")

from benchmarks import results_page, runs


@pytest.fixture(scope="module")
def extract(tmp_path_factory):
    """The extract of a run directory, whose records a training would write."""
    folder = tmp_path_factory.mktemp("run")
    table = recipes.override(
        recipes.read_recipe("shapes"), ["train.epochs=2", "train.seed=3", "data.root=/a/b/mine"]
    )
    (folder / "config.json").write_text(config.parse(table).to_json())
    (folder / "versions.json").write_text(
        json.dumps({"python": "3.12", "packages": {"jax": "1.2", "fcn-jax": "0.1"}, "devices": []})
    )
    records = [
        {"step": 0, "event": "compile", "setup_seconds": 1.0, "compile_seconds": 2.0},
        {"step": 2, "event": "train", "loss": 1.0, "step_seconds": 0.5},
        {"step": 4, "event": "train", "loss": 0.5, "step_seconds": 0.25},
        *(
            {
                "step": step,
                "event": "val",
                "epoch": step / 2,
                "seconds": 3.0,
                "miou": miou,
                "pixel_accuracy": 0.75,
                "iou": {"sky": miou, "road": None},
            }
            for step, miou in ((2, 0.5), (4, 0.25))
        ),
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in records))
    return {"name": "first", **runs.extract(folder, every=4)}


def varied(extract, name, seed=3, miou=0.25, **changes):
    """An extract with other values."""
    found = copy.deepcopy(extract)
    found |= {"name": name, "seed": seed, **changes}
    found["val"][-1] |= {"miou": miou, "iou": {"sky": miou, "road": None}}
    return found


def rows(text, start):
    """The cells of a page's rows that start with a text."""
    lines = (line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_extract_holds_settings_scores_and_times(extract):
    assert (extract["recipe"], extract["seed"], extract["steps"]) == ("shapes", 3, 4)
    assert extract["changes"] == {} or set(extract["changes"]) <= {"train.epochs"}
    assert extract["settings"]["data"]["root"] == "mine"
    assert extract["train"] == [{"step": 4, "loss": 0.5}]
    assert extract["seconds"] == 1 + 2 + 2 * 0.5 + 2 * 0.25 + 2 * 3
    assert extract["val"][0]["iou"] == {"sky": 0.5, "road": None}
    assert extract["epoch_steps"] == 2


def test_changed_settings_are_named(tmp_path, extract):
    table = recipes.override(recipes.read_recipe("shapes"), ["optim.lr=0.5", "data.num_workers=2"])
    (tmp_path / "config.json").write_text(config.parse(table).to_json())
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"event": "val", "epoch": 1.0, "seconds": 1.0, **extract["val"][0]})
    )
    assert runs.extract(tmp_path)["changes"] == {"optim.lr": 0.5}


def test_rejects_a_run_without_evaluation(tmp_path):
    (tmp_path / "config.json").write_text(config.parse(recipes.read_recipe("shapes")).to_json())
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit, match="no evaluation"):
        runs.extract(tmp_path)


def test_seeds_make_up_a_mean_and_pytorch_stands_next_to_it(extract):
    found = [
        extract,
        varied(extract, "second", seed=4, miou=0.35),
        varied(extract, "torch", miou=0.31, framework="pytorch"),
    ]
    text = results_page.page(found)
    (row,) = [row for row in rows(text, "`shapes`") if "±" in row[2]]
    assert row[2] == "0.3000 ± 0.0707 (2 seeds)"
    assert row[3] == "0.5000 ± 0.0000 (2 seeds)"
    assert row[5:7] == ["0.3100", "0.7500"]
    assert rows(text, "sky") == [["sky", "0.3000 ± 0.0707 (2 seeds)"]]
    assert [row[1] for row in rows(text, "`torch`")] == ["PyTorch"]


def test_runs_of_other_data_do_not_make_up_a_mean(extract):
    subset = varied(extract, "subset", seed=4, note="656 images")
    shorter = varied(extract, "shorter", seed=4, steps=2)
    text = results_page.page([extract, subset, shorter])
    assert text.count("\n## ") == 2
    assert "seeds)" not in text


def test_ablation_names_the_change_and_takes_differences_of_common_seeds(extract):
    base = [extract, varied(extract, "other", seed=4, miou=0.5)]
    change = varied(extract, "change", miou=0.375, base="first")
    change["settings"]["optim"]["ema_decay"] = 0.9
    change["changes"] = {"optim.ema_decay": 0.9}
    text = results_page.page([*base, change])
    assert "Changes of `shapes`" in text
    assert rows(text, "`optim.ema_decay = 0.9`") == [
        ["`optim.ema_decay = 0.9`", "+0.1250", "+0.0000"]
    ]
    with pytest.raises(SystemExit, match="base 'first' is not kept"):
        results_page.page([change])


def test_page_is_that_of_the_kept_extracts():
    kept = runs.kept()
    assert results_page.PAGE.exists() == bool(kept)
    if kept:
        assert results_page.PAGE.read_text() == results_page.page(kept)
