"""Settings that are decided from the data, and training on a folder with them."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from fcn_jax import cli, config, recipes
from fcn_jax.cli import train as train_command
from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.splits import Splits
from fcn_jax.plugins.api import Classes, Record
from fcn_jax.train import auto
from tests.helpers import scenes


def parse(**sections):
    return config.parse(sections)


def opened(tmp_path, sizes, pixels=(50, 50), names=("a", "b")):
    """Splits whose images have these sizes; the masks are never read."""
    records = []
    for number, (height, width) in enumerate(sizes):
        path = tmp_path / f"{number}.png"
        Image.new("L", (width, height)).save(path)
        records.append(Record(str(number), path, path))
    classes = Classes(names, ((0, 0, 0),) * len(names))
    sources = {"train": DirectorySource(classes, records)}
    return Splits(sources, (0, 255), (), {}, np.array(pixels), np.array(pixels))


AUTO_DATA = {"crop_size": "auto", "batch_size": "auto", "scale_range": "auto"}


def test_every_auto_setting_has_a_rule():
    assert {*auto._RULES, "data.classes"} == set(config.AUTO_SETTINGS)
    assert auto.undecided(config.Config()) == []


@pytest.mark.parametrize(
    ("sizes", "crop", "reason"),
    [
        ([(280, 300)] * 3 + [(400, 500)], (256, 288), "the smallest image is 280x300"),
        ([(280, 500), (400, 300)], (256, 288), "no image is lower than 280 or narrower than 300"),
        ([(900, 1000)] * 4, (512, 512), "at most 512"),
        ([(20, 70)], (32, 64), "the smallest image is 20x70"),
        ([(40, 40)] + [(200, 200)] * 19, (192, 192), "nine of ten images have 200x200 pixels"),
    ],
)
def test_crop_is_what_most_images_have(tmp_path, sizes, crop, reason):
    decided, notes = auto.decide(parse(data={"crop_size": "auto"}), opened(tmp_path, sizes))
    assert decided.data.crop_size == crop
    assert notes[0].startswith(f"data.crop_size = {list(crop)}: ")
    assert reason in notes[0]


def test_large_photographs_are_shrunk_in_training_and_evaluation(tmp_path):
    settings = parse(data=AUTO_DATA, eval={"scales": "auto"})
    decided, notes = auto.decide(settings, opened(tmp_path, [(2048, 3072)] * 4))
    assert decided.data.scale_range == (0.188, 0.333)
    assert decided.data.crop_size == (512, 512)
    assert decided.eval.scales == (0.25,)
    assert decided.eval.flip is False
    assert len(notes) == 5
    assert "initial weights are random" in notes[-1]
    small, _ = auto.decide(settings, opened(tmp_path, [(600, 800)]))
    assert small.data.scale_range == (0.75, 1.33)
    assert (small.eval.scales, small.eval.flip) == (None, None)


def test_a_resize_of_the_section_augment_is_the_only_one(tmp_path):
    settings = parse(data=AUTO_DATA, augment={"resize": {"shorter_side": [200, 400]}})
    decided, _ = auto.decide(settings, opened(tmp_path, [(2048, 3072)]))
    assert decided.data.scale_range == (1.0, 1.0)


def test_a_given_protocol_is_kept(tmp_path):
    settings = parse(data=AUTO_DATA, eval={"scales": "auto", "window": [64, 64]})
    decided, notes = auto.decide(settings, opened(tmp_path, [(2048, 3072)]))
    assert decided.eval.scales is None
    assert "eval.scales is not set: the recipe names another protocol" in notes


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "every"),
    [(1, 1, 200, 20), (5, 5, 200, 20), (50, 8, 100, 10), (1000, 8, 10, 1), (2, 2, 200, 20)],
)
def test_steps_follow_from_the_number_of_images(tmp_path, images, batch, epochs, every):
    settings = parse(
        data={"batch_size": "auto"}, train={"epochs": "auto", "eval_every_epochs": "auto"}
    )
    decided, notes = auto.decide(settings, opened(tmp_path, [(9, 9)] * images))
    assert decided.data.batch_size == batch
    assert (decided.train.epochs, decided.train.eval_every_epochs) == (epochs, every)
    assert f"train.epochs = {epochs}: {epochs * (images // batch)} steps" in notes[1]


@pytest.mark.parametrize(
    ("pixels", "weights", "reason"),
    [
        ([500, 500], None, "no class is rare"),
        ([960, 40], "median_frequency", "'b' has only 4.00% of the pixels"),
        ([940, 60], None, "no class is rare"),
        ([1000, 0], None, "no class is rare"),
        ([0, 0], None, "no class is rare"),
    ],
)
def test_rare_classes_are_weighted(tmp_path, pixels, weights, reason):
    settings = parse(loss={"cross_entropy": {"class_weights": "auto"}, "dice": {}})
    decided, notes = auto.decide(settings, opened(tmp_path, [(9, 9)], pixels))
    assert decided.losses()["cross_entropy"]["class_weights"] == weights
    assert "class_weights" not in decided.losses()["dice"]
    assert reason in notes[0]


def test_explicit_settings_win(tmp_path):
    settings = parse(data=AUTO_DATA | {"crop_size": [64, 96], "batch_size": 3})
    decided, notes = auto.decide(settings, opened(tmp_path, [(280, 300)] * 9))
    assert (decided.data.crop_size, decided.data.batch_size) == ((64, 96), 3)
    assert len(notes) == 2
    same = parse(data={"crop_size": [64, 96]})
    assert auto.decide(same, dataclasses.replace(opened(tmp_path, []), sources={})) == (same, [])


def test_a_resumed_run_takes_what_the_run_recorded(tmp_path):
    settings = parse(
        data=AUTO_DATA | {"classes": "auto"}, loss={"cross_entropy": {"class_weights": "auto"}}
    )
    assert auto.as_recorded(settings, tmp_path) is settings
    before = parse(
        data={"crop_size": [32, 64], "batch_size": 2, "classes": ["a 0", "b 255"]},
        loss={"cross_entropy": {"class_weights": "median_frequency"}},
        optim={"lr": 0.5},
    )
    (tmp_path / "config.json").write_text(before.to_json())
    resumed = auto.as_recorded(settings, tmp_path)
    assert resumed == before.model_copy(update={"optim": settings.optim})


# -------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def mydata(tmp_path_factory):
    """Drawn scenes in one folder, with masks of 0 and 255, without classes and splits."""
    folder = tmp_path_factory.mktemp("own") / "mydata"
    root = scenes.write_scenes(folder, train=10, val=0)
    for kind in ("images", "masks"):
        for path in sorted((root / kind / "train").iterdir()):
            with Image.open(path) as picture:
                pixels = np.asarray(picture)
            if kind == "masks":
                pixels = np.where((pixels == 0) | (pixels == 255), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / path.name)
            path.unlink()
        for split in ("train", "val"):
            (root / kind / split).rmdir()
    (root / "classes.txt").unlink()
    return root


@pytest.fixture
def train_folder(mydata, tmp_path, monkeypatch, tiny_plugin, capfd):
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))

    def train(*more):
        words = ("train", "folder", "--data", str(mydata), "--workdir", str(tmp_path / "run"))
        model = ("--set", "model.backbone=tiny", *more)
        status = cli.main([*words, *model])
        return status, capfd.readouterr()

    return train


def test_folder_trains_evaluates_and_resumes_with_decided_settings(
    train_folder, tmp_path, mydata, capfd
):
    status, said = train_folder("--set", "train.epochs=2")
    assert status == 0, said.err
    for line in (
        "the values in 10 masks are the classes: background 0, foreground 255",
        "images are divided by a hash of their names into train",
        "data.crop_size = [64, 64]: the smallest image is 64x64",
        "data.batch_size = ",
        "train.eval_every_epochs = 1: 2 evaluations",
    ):
        assert line in said.err, line
    run = tmp_path / "run"
    recorded = recipes.read_run(run)
    assert auto.undecided(recorded) == []
    assert recorded.data.classes == ("background 0", "foreground 255")
    assert recorded.data.crop_size == (64, 64)
    assert list((run / "samples").glob("step_*/*.png"))
    assert f"report: {run / 'report.html'}" in said.out
    assert "foreground" in (run / "report.html").read_text()
    assert cli.main(["eval", str(run), "--json"]) == 0
    outcome = json.loads(capfd.readouterr().out)
    assert outcome["classes"] == 2
    status, said = train_folder("--set", "train.epochs=2")
    assert status == 0, said.err
    assert "is finished" in said.out


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    train_command._write_report(tmp_path)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "the training is done, but not its report: " in record.message


def test_folder_names_all_problems_before_it_reads_the_data(train_folder):
    status, said = train_folder("--set", "data.crop_size=yes", "--set", "optim.lr=fast")
    assert status == 2
    assert "data.crop_size is 'yes'" in said.err
    assert "optim.lr is 'fast'" in said.err
