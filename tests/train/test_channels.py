"""Training, evaluation and prediction on images of other channels, and with changed classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax import checkpoint, cli
from fcn_jax.data.value_range import Stored
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.eval.predictor import Predictor
from tests.helpers import scenes
from tests.helpers.tiff_files import tiff_bytes

pytestmark = pytest.mark.usefixtures("tiny_plugin")

QUICK = (
    "data.batch_size=2",
    "data.crop_size=[32,32]",
    "train.epochs=1",
    "model.backbone_options.width=4",
)
REFLECTANCE = (
    "model.in_channels=5",
    "model.mean=[0.3, 0.3, 0.3, 0.0, 1.0]",
    "model.std=[0.2, 0.2, 0.2, 1.0, 0.5]",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_recipe(tmp_path_factory.mktemp("recipe"))


def convert(root: Path, kind: str) -> Path:
    """Write the images of a dataset of scenes again, with other channels."""
    for path in sorted((root / "images").rglob("*.png")):
        rgb = np.array(Image.open(path))
        if kind == "npy":  # float32 of five channels, some negative
            light = rgb.astype(np.float32) / 255
            more = np.stack([light[..., 0] - light[..., 1], light.sum(-1)], -1)
            np.save(path.with_suffix(".npy"), np.concatenate([light, more], -1))
        elif kind == "tif":  # uint8 of four channels
            four = np.concatenate([rgb, 255 - rgb[..., :1]], -1)
            path.with_suffix(".tif").write_bytes(tiff_bytes(four, photometric=1))
        else:
            Image.fromarray(rgb).convert("L").save(path)
            continue
        path.unlink()
    return root


@pytest.fixture(scope="module")
def reflectance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = scenes.write_scenes(tmp_path_factory.mktemp("npy"), train=4, val=2)
    return convert(root, "npy")


@pytest.fixture(scope="module")
def run(recipe: Path, reflectance: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "npy"
    scenes.train_here(recipe, reflectance, run, *QUICK, *REFLECTANCE)
    return run


def last(run: Path, event: str) -> dict:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event][-1]


def test_trains_on_arrays_of_stored_values(run: Path) -> None:
    assert np.isfinite(last(run, "train")["loss"])
    spec = checkpoint.read_spec(checkpoint.find(run))
    assert (spec.model.in_channels, spec.model.std) == (5, (0.2, 0.2, 0.2, 1.0, 0.5))
    assert spec.value_range == {"stored": "float32"}
    arrays = checkpoint.read_arrays(checkpoint.find(run))
    assert arrays["backbone.conv1.conv.kernel"].shape == (5, 5, 5, 4)
    (picture, *_) = (run / "samples").rglob("*.png")
    assert Image.open(picture).mode == "RGB"


def test_resumes_a_finished_run(run: Path, recipe: Path, reflectance: Path) -> None:
    settings = (*QUICK, *REFLECTANCE)
    result = scenes.train_here(recipe, reflectance, run, *settings)
    assert result.was_finished


def test_evaluates_as_in_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["miou"] == pytest.approx(last(run, "val")["miou"])
    for protocol in (["--scales", "0.5,1"], ["--window", "32x32"], ["--size", "40x40"]):
        assert cli.main(["eval", str(run), "--json", *protocol]) == 0
        assert json.loads(capsys.readouterr().out)["images"] == 2


def test_predicts_files_and_arrays_alike(run: Path, reflectance: Path, tmp_path: Path) -> None:
    images = reflectance / "images" / "val"
    assert cli.main(["predict", str(run), str(images), "-o", str(tmp_path / "out")]) == 0
    predictor = Predictor.from_checkpoint(run)
    assert (predictor.channels, predictor.value_range) == (5, Stored("float32"))
    for path in sorted(images.iterdir()):
        mask = np.array(Image.open(tmp_path / "out" / f"{path.stem}.png"))
        np.testing.assert_array_equal(predictor(path), mask)
        np.testing.assert_array_equal(predictor(np.load(path)), mask)
        assert Image.open(tmp_path / "out" / f"{path.stem}_overlay.png").mode == "RGB"
    with pytest.raises(ValueError, match=r"expected an image f32\[H,W,5\]; got uint8\[8, 8, 5\]"):
        predictor(np.zeros((8, 8, 5), np.uint8))


def test_predict_names_images_of_other_channels(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert cli.main(["predict", str(run), str(tmp_path / "a.png"), "-o", str(tmp_path / "o")]) == 2
    assert "a.png: the image has 3 channels, but the model takes 5" in capsys.readouterr().err
    assert (
        cli.main(["predict", str(run), str(tmp_path), "-o", str(tmp_path / "o"),
                  "--value-range", "0", "1"])
        == 2
    )  # fmt: skip
    assert "--value-range: the model takes stored values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "settings", "shape"),
    [
        ("tif", ("model.in_channels=4", "augment.blur.sigma=[0.1, 1.0]"), (5, 5, 4, 4)),
        ("png", ("model.in_channels=1", "data.scale_range=[0.5, 2.0]"), (5, 5, 1, 4)),
    ],
)
def test_trains_on_8_bits_without_a_mean(
    kind: str, settings: tuple[str, ...], shape: tuple[int, ...], recipe: Path, tmp_path: Path
) -> None:
    root = convert(scenes.write_scenes(tmp_path / "data", train=2, val=1), kind)
    run = tmp_path / "run"
    scenes.train_here(recipe, root, run, *QUICK, *settings)
    spec = checkpoint.read_spec(checkpoint.find(run))
    assert spec.value_range is None
    arrays = checkpoint.read_arrays(checkpoint.find(run))
    assert arrays["backbone.conv1.conv.kernel"].shape == shape


def test_names_wrong_settings_before_the_run(
    recipe: Path, reflectance: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"\.npy: the image has 5 channels, but the model takes 3"):
        scenes.train_here(recipe, reflectance, run, *QUICK)
    with pytest.raises(DataError, match="negative values"):
        scenes.train_here(recipe, reflectance, run, *QUICK, REFLECTANCE[0])
    with pytest.raises(ConfigError, match=r"data\.value_range and model\.mean: the range scales"):
        scenes.train_here(recipe, reflectance, run, *QUICK, *REFLECTANCE, "data.value_range=[0,1]")
    with pytest.raises(ConfigError, match=r"brightness: only for RGB .*in_channels is 5"):
        scenes.train_here(recipe, reflectance, run, *QUICK, *REFLECTANCE, "data.brightness=0.2")
    with pytest.raises(ConfigError, match="mean is given without std"):
        scenes.train_here(recipe, reflectance, run, *QUICK, *REFLECTANCE[:2])
    assert not run.exists()


def test_names_a_mean_in_other_units(recipe: Path, labeled: Path, tmp_path: Path) -> None:
    units = ("model.mean=[0.485, 0.456, 0.406]", "model.std=[0.229, 0.224, 0.225]")
    with pytest.raises(ConfigError, match="0 to 255 for these images; multiply both by 255"):
        scenes.train_here(recipe, labeled, tmp_path / "run", *QUICK, *units)


@pytest.mark.slow
def test_own_mean_of_8_bits_equals_the_backbone_s(
    recipe: Path, labeled: Path, tmp_path: Path
) -> None:
    mean, std = (
        [255 * x for x in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    for name, units in (("own", (f"model.mean={mean}", f"model.std={std}")), ("default", ())):
        scenes.train_here(recipe, labeled, tmp_path / name, *QUICK, *units)
    own, default = (last(tmp_path / name, "train") for name in ("own", "default"))
    assert own["loss"] == pytest.approx(default["loss"], rel=1e-4)
    assert checkpoint.read_spec(checkpoint.find(tmp_path / "own")).value_range == {
        "stored": "uint8"
    }


# ------------------------------------------------------------------------------- changed classes


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("labels"), train=4, val=2)


CHANGED = (
    'data.merge_classes.round=["disc", "ring"]',
    'data.ignore_classes=["star"]',
    'data.label_map={"6" = "square"}',
)


def test_training_and_evaluation_follow_changed_classes(
    recipe: Path, labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    scenes.train_here(recipe, labeled, run, *QUICK, *CHANGED)
    names = ("background", "round", "square", "triangle")
    spec = checkpoint.read_spec(checkpoint.find(run))
    assert spec.classes.names == names
    assert spec.model.num_classes == 4
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["miou"] == pytest.approx(last(run, "val")["miou"])
    masks = [np.array(Image.open(p)) for p in (labeled / "masks/val").iterdir()]
    ignored = sum(int(np.isin(mask, (4, 255)).sum()) for mask in masks)
    assert scores["pixels_ignored"] == ignored
    with pytest.raises(ConfigError, match=r"data\.ignore_classes"):
        scenes.train_here(recipe, labeled, run, *QUICK, *CHANGED[::2])


def test_the_cache_of_masks_does_not_hide_changed_classes(labeled: Path) -> None:
    from fcn_jax.data.labels.remap import Remap
    from fcn_jax.data.splits import open_splits
    from fcn_jax.plugins import registry

    folder = registry.default().dataset("folder")
    plain = open_splits(folder, labeled, ["train"])
    changed = open_splits(folder, labeled, ["train"], remap=Remap(merge_classes={"disc": ["ring"]}))
    again = open_splits(folder, labeled, ["train"])
    np.testing.assert_array_equal(plain.class_pixels, again.class_pixels)
    expected = plain.class_pixels.copy()
    expected[1] += expected[5]
    np.testing.assert_array_equal(changed.class_pixels, np.delete(expected, 5))
    assert any("1 disc (from disc, ring)" in note for note in changed.notes)
