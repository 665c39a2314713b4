"""`predict`: which files are inputs, and that it never overwrites files of the user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax import checkpoint
from fcn_jax.api import Classes, ModelSpec
from fcn_jax.data.value_range import Assumed
from fcn_jax.errors import DataError, WriteError
from fcn_jax.eval import draw, predict
from fcn_jax.eval.image_files import find_images
from fcn_jax.eval.predict import predict_files
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.build import build
from tests.helpers import scenes

SPEC = ModelSpec("tiny", "fcn32s", 3, backbone_options={"width": 4})
CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (1, 0, 0), (2, 0, 0)))


@pytest.fixture(scope="module")
def model(tiny_plugin, tmp_path_factory) -> Path:
    """A checkpoint whose masks vary from pixel to pixel."""
    network = build(SPEC, rngs=nnx.Rngs(0))
    kernel = network.head.transpose_conv.kernel
    kernel[...] = np.random.default_rng(1).standard_normal(kernel[...].shape, np.float32)
    directory = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.save_model(
        directory, checkpoint.make_spec(SPEC, CLASSES), checkpoint.arrays(network)
    )
    return directory


def photograph(path: Path, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    ).save(path)
    return path.read_bytes()


def predict_folder(
    model: Path, images: list[Path | str], output: Path, **options: object
) -> list[Path]:
    return [
        path
        for pair in predict_files(model, [str(image) for image in images], output, **options)
        for path in pair
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------------------------- no file is lost


def test_never_replaces_an_input_by_its_mask(model, tmp_path, monkeypatch):
    folder = tmp_path / "ph"
    for number in range(2):
        photograph(folder / f"photo{number}.png", number)
    before = contents(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for images, output in (
        ([folder], folder),
        ([folder], tmp_path / "link"),
        ([tmp_path / "link"], folder),
        ([folder], folder / ".." / "ph"),
        (["photo0.png", "photo1.png"], Path(".")),
        (["*.png"], Path("")),
    ):
        for overwrite in (False, True):
            with pytest.raises(WriteError) as error:
                predict_folder(model, images, output, overwrite=overwrite)
            assert str(error.value).startswith(
                "nothing was written: 2 inputs would be replaced by results: "
            )
            assert "photo0.png" in str(error.value)
            assert "-o DIR" in str(error.value)
            assert contents(tmp_path) == before


def test_never_writes_through_a_second_name_of_an_input(model, tmp_path):
    before = photograph(tmp_path / "a.jpg")
    (tmp_path / "out").mkdir()
    os.link(tmp_path / "a.jpg", tmp_path / "out" / "a.png")
    (tmp_path / "out" / "a_overlay.png").symlink_to(tmp_path / "a.jpg")
    with pytest.raises(WriteError, match="2 inputs would be replaced"):
        predict_folder(model, [tmp_path / "a.jpg"], tmp_path / "out", overwrite=True)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "out" / "a.png").read_bytes() == before
    assert (tmp_path / "out" / "a_overlay.png").is_symlink()


def test_never_replaces_an_input_by_the_result_of_another(model, tmp_path):
    photograph(tmp_path / "x" / "a.jpg")
    before = photograph(tmp_path / "out" / "a_overlay.png", 1)
    with pytest.raises(
        DataError,
        match=r"1 pair of images would write the same file: .*a\.jpg and .*a_overlay\.png",
    ):
        predict_folder(
            model, [tmp_path / "x", tmp_path / "out" / "a_overlay.png"], tmp_path / "out"
        )
    assert contents(tmp_path / "out") == {"a_overlay.png": before}


@pytest.mark.parametrize("overwrite", [False, True])
def test_rejects_all_files_of_other_programs_before_writing(model, tmp_path, overwrite):
    for name in "abc":
        photograph(tmp_path / "in" / f"{name}.jpg")
    out = tmp_path / "out"
    photograph(out / "b.png")
    draw.write_image(
        out / "c_overlay.png", np.zeros((2, 2, 3), np.uint8)
    )  # by this package, but not by predict
    before = contents(tmp_path)
    with pytest.raises(WriteError) as error:
        predict_folder(model, [tmp_path / "in"], out, overwrite=overwrite)
    assert "2 files would be replaced that fcn-jax predict did not write" in str(error.value)
    assert f"{out / 'b.png'}, {out / 'c_overlay.png'}" in str(error.value)
    assert contents(tmp_path) == before


def test_rejects_folders_links_and_damaged_files_as_targets(model, tmp_path):
    photograph(tmp_path / "a.jpg")
    out = tmp_path / "out"
    for make in (
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_bytes(b""),
        lambda path: os.mkfifo(path),
    ):
        out.mkdir()
        make(out / "a.png")
        with pytest.raises(WriteError, match="1 file would be replaced"):
            predict_folder(model, [tmp_path / "a.jpg"], out, overwrite=True)
        assert os.listdir(out) == ["a.png"]
        (out / "a.png").rename(tmp_path / f"was{len(os.listdir(tmp_path))}")
        out.rmdir()


def test_keeps_a_file_that_appears_during_the_prediction(model, tmp_path):
    for name in "ab":
        photograph(tmp_path / "in" / f"{name}.jpg")
    out = tmp_path / "out"
    going = predict_files(model, [str(tmp_path / "in")], out)
    next(going)
    (out / "b.png").write_bytes(b"mine")
    with pytest.raises(WriteError, match=r"stopped before .*b\.png; earlier results are complete"):
        next(going)
    assert (out / "b.png").read_bytes() == b"mine"
    assert sorted(os.listdir(out)) == ["a.png", "a_overlay.png", "b.png"]


def test_rejects_unwritable_output_before_reading_the_checkpoint(tmp_path, monkeypatch):
    photograph(tmp_path / "a.jpg")
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for output, reason in (
        ("file", "file is not a writable folder"),
        ("file/new", "file is not a writable folder"),
        ("dangling", "it is a symbolic link to nowhere, which does not exist"),
        ("dangling/new", "dangling is not a writable folder"),
        ("n" * 256, "a name in it is longer than 255 bytes"),
    ):
        with pytest.raises(WriteError) as error:
            predict_files(tmp_path / "no checkpoint", [str(tmp_path / "a.jpg")], tmp_path / output)
        assert str(error.value).startswith(f"{tmp_path / output}: cannot be written (")
        assert str(error.value).endswith(f"{reason})")
    monkeypatch.setattr(
        "tempfile.TemporaryFile",
        lambda dir: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(WriteError, match="No space left on device"):
        predict_files(tmp_path / "no checkpoint", [str(tmp_path / "a.jpg")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_full_disk_is_one_line_and_leaves_complete_files(model, tmp_path, monkeypatch):
    for name in "ab":
        photograph(tmp_path / "in" / f"{name}.jpg")
    going = predict_files(model, [str(tmp_path / "in")], tmp_path / "out")
    first = [path.read_bytes() for path in next(going)]
    save = Image.Image.save

    def full(self, target, **options):
        save(self, target, **options)
        Path(target).write_bytes(Path(target).read_bytes()[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(WriteError) as error:
        next(going)
    assert (
        str(error.value)
        == f"{tmp_path / 'out' / 'b.png'}: cannot be written (No space left on device)"
    )
    assert contents(tmp_path / "out") == {"a.png": first[0], "a_overlay.png": first[1]}


def test_rejects_names_too_long_for_their_results(model, tmp_path):
    photograph(tmp_path / f"{'x' * 240}.jpg")
    with pytest.raises(
        WriteError,
        match=r"nothing was written: 1 name would be too long: .*_overlay\.png; rename the images",
    ):
        predict_folder(model, [tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ a second call


def test_second_call_on_the_same_folder_skips_results(model, tmp_path):
    for name in "abc":
        photograph(tmp_path / f"{name}.jpg", ord(name))
    written = predict_folder(model, [tmp_path], tmp_path)
    assert len(written) == 6
    before = contents(tmp_path)
    lines: list[str] = []
    with pytest.raises(WriteError) as error:
        predict_folder(model, [tmp_path], tmp_path, say=lines.append)
    assert "6 results of an earlier prediction exist: " in str(error.value)
    assert "--overwrite replaces results" in str(error.value)
    assert lines == ["left out 6 results of an earlier prediction"]
    assert contents(tmp_path) == before

    photograph(tmp_path / "b.jpg", 77)
    assert predict_folder(model, [tmp_path], tmp_path, overwrite=True) == written
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        "b.jpg",
        "b.png",
        "b_overlay.png",
    }
    # A shell names every file of `photos/*`.
    named = sorted(path for path in tmp_path.iterdir())
    assert predict_folder(model, named, tmp_path / "other") == [
        tmp_path / "other" / path.name for path in written
    ]


def test_predicts_a_new_image_to_another_folder(model, tmp_path):
    photograph(tmp_path / "a.jpg")
    predict_folder(model, [tmp_path], tmp_path)
    photograph(tmp_path / "b.jpg")
    assert [path.name for path in predict_folder(model, [tmp_path / "*.*"], tmp_path / "out")] == [
        "a.png",
        "a_overlay.png",
        "b.png",
        "b_overlay.png",
    ]


def test_rejects_a_folder_of_results_only(model, tmp_path):
    photograph(tmp_path / "a.jpg")
    predict_folder(model, [tmp_path / "a.jpg"], tmp_path / "out")
    for images in (
        [tmp_path / "out"],
        [tmp_path / "out" / "a.png", tmp_path / "out" / "a_overlay.png"],
    ):
        with pytest.raises(
            DataError,
            match="nothing to segment: 2 files found, all of them results of fcn-jax predict",
        ):
            find_images([str(image) for image in images])


# ------------------------------------------------------------------------------------------- inputs


def test_takes_a_named_file_with_any_ending(model, tmp_path):
    (photo := tmp_path / "a.jpg", photograph(photo), photo.rename(tmp_path / "scan"))
    assert [path.name for path in predict_folder(model, [tmp_path / "scan"], tmp_path / "out")] == [
        "scan.png",
        "scan_overlay.png",
    ]


# ------------------------------------------------------------------------------------------ results


def test_writes_masks_and_overlays_of_the_predictor(model, tmp_path):
    photograph(tmp_path / "a.png")
    mask_path, overlay_path = predict_folder(model, [tmp_path / "a.png"], tmp_path / "out")
    image = np.asarray(Image.open(tmp_path / "a.png"))
    mask = Predictor.from_checkpoint(model)(image)
    assert len(np.unique(mask)) > 1
    np.testing.assert_array_equal(np.asarray(Image.open(mask_path)), mask)
    np.testing.assert_array_equal(
        np.asarray(Image.open(overlay_path)), draw.overlay(image, mask, CLASSES)
    )


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_results_are_upright(model, tmp_path, orientation, turn):
    """A viewer turns the stored pixels left by `turn` quarter turns."""
    photograph(tmp_path / "stored.png")
    stored = Image.open(tmp_path / "stored.png")
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone.png", exif=exif)
    Image.fromarray(np.rot90(np.asarray(stored), turn)).save(tmp_path / "upright.png")
    turned = predict_folder(model, [tmp_path / "phone.png"], tmp_path / "out")
    upright = predict_folder(model, [tmp_path / "upright.png"], tmp_path / "out")
    for ours, theirs in zip(turned, upright, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(theirs)))
        assert 0x0112 not in Image.open(ours).getexif(), "or a viewer would turn it again"


def test_names_unreadable_images_at_the_end(model, tmp_path):
    for name in "ac":
        photograph(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    going = predict_files(model, [str(tmp_path)], tmp_path / "out")
    assert [mask.name for mask, _ in (next(going), next(going))] == ["a.png", "c.png"]
    with pytest.raises(DataError, match=r"1 of 3 images left out: .*b\.png"):
        next(going)


def test_continues_after_an_image_too_large_for_the_memory(model, tmp_path, monkeypatch):
    for name in "ab":
        photograph(tmp_path / f"{name}.jpg")
    overlay = draw.overlay
    calls: list[int] = []

    def fails_once(*args):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return overlay(*args)

    monkeypatch.setattr(draw, "overlay", fails_once)
    going = predict_files(model, [str(tmp_path)], tmp_path / "out")
    assert next(going)[0].name == "b.png"
    with pytest.raises(
        DataError,
        match=r"1 of 2 images left out: .*a\.jpg: cannot be segmented, .* too large for the memory",
    ):
        next(going)


def test_uses_the_given_value_range_or_that_of_the_training(tiny_plugin, tmp_path, monkeypatch):
    seen: list[object] = []

    def reader(file, **options):
        seen.append(options.get("value_range"))
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(predict, "read_image", reader)
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / "a.png")
    lines: list[str] = []
    network = build(SPEC, rngs=nnx.Rngs(0))
    for number, (recorded, asked, expected) in enumerate(
        [
            ([0, 4095], None, (0, 4095)),
            ([0, 4095], (5.0, 9.0), (5, 9)),
            ({"integers": [0, 16383], "floats": None}, None, Assumed((0, 16383))),
        ]
    ):
        checkpoint_of = tmp_path / f"model{number}"
        spec = checkpoint.make_spec(network.spec, CLASSES, value_range=recorded)
        checkpoint.save_model(checkpoint_of, spec, checkpoint.arrays(network))
        predict_folder(
            checkpoint_of,
            [tmp_path / "a.png"],
            tmp_path / f"out{number}",
            value_range=asked,
            say=lines.append,
        )
        assert seen.pop() == expected
    assert lines == []
    checkpoint.save_model(
        tmp_path / "plain", checkpoint.make_spec(network.spec, CLASSES), checkpoint.arrays(network)
    )
    predict_folder(tmp_path / "plain", [tmp_path / "a.png"], tmp_path / "out", say=lines.append)
    assert seen.pop().integers == (0, 1023)
    assert lines == [
        "1 image has 16 bits: largest value 1000, read as 10 bits (0 to 1023); "
        "--value-range LOW HIGH sets another range"
    ]


@pytest.mark.slow
def test_pads_images_of_many_sizes_with_a_note(model, tmp_path, compiled):
    rng = np.random.default_rng(0)
    for number in range(9):
        pixels = rng.integers(0, 256, (30, 20 + number, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    lines: list[str] = []

    def masks_match(output: str, multiple: int, **options: object) -> None:
        compiled.clear()
        written = predict_folder(model, [tmp_path], tmp_path / output, say=lines.append, **options)
        shapes = list(compiled)
        assert len(written) == 2 * len(list(tmp_path.glob("*.png")))
        predictor = Predictor.from_checkpoint(model, pad_to_multiple=multiple)
        for mask_path in written[::2]:
            image = np.asarray(Image.open(tmp_path / mask_path.name))
            np.testing.assert_array_equal(np.asarray(Image.open(mask_path)), predictor(image))
        assert compiled == 2 * shapes

    masks_match("padded", 64)
    assert compiled[0] == (1, 64, 64, 3)
    assert len(compiled) == 2
    assert lines == [
        "9 image sizes: padded to multiples of 64 pixels, so that 1 program is compiled; "
        "--exact-sizes compiles one for each size"
    ]
    masks_match("exact", 1, exact_sizes=True)
    assert len(set(compiled)) == 9
    (tmp_path / "0.png").unlink()  # 8 sizes are left
    masks_match("few", 1)
    assert len(set(compiled)) == 8
    assert len(lines) == 1, "a note only if images are padded"


DEVICES = """
import sys
import jax
from pathlib import Path
from fcn_jax.errors import DataError
from fcn_jax.eval.predict import predict_files

model, images, output = sys.argv[1:]
every = jax.local_devices
for count in (1, 2):
    jax.local_devices = lambda: every()[:count]
    try:
        print(len(list(predict_files(model, [images], Path(output) / str(count)))))
    except DataError as error:
        print(error)
"""


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_devices(model, tmp_path):
    for number in range(4):
        photograph(tmp_path / "images" / f"{number}.png", number)
    (tmp_path / "images" / "1.png").write_bytes(b"not an image")
    Image.new("RGB", (9, 17)).save(tmp_path / "images" / "4.png")
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(model), str(tmp_path / "images"), str(tmp_path)],
        env=scenes.environment(2),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 of 5 images left out") == 2
    one, two = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert one == two
    assert len(one) == 8
    assert len(set(one.values())) == 8
