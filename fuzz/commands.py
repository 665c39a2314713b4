"""Command lines: unusual arguments, and the files that commands write."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz import product
from fuzz.cases import Trial, WrongError, mutation
from fuzz.checkpoints import copy
from fuzz.encoders import by_pillow, exif, png, stored

Rng = np.random.Generator


def photo(rng: Rng) -> np.ndarray:
    """u8[H,W,3]."""
    return rng.integers(0, 256, (int(rng.integers(17, 40)), int(rng.integers(17, 40)), 3), np.uint8)


def _mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def _predict(
    model: Path,
    images: Sequence[str],
    output: Path,
    sizes: dict[str, tuple[int, int]] | None,
    *more: str,
) -> Trial:
    """Return a call of `predict`.

    If `sizes` is None, it must be rejected. Otherwise the masks with these names must have these
    sizes.
    """

    def right(_: str) -> str | None:
        for name, size in (sizes or {}).items():
            if not (output / name).is_file():
                found = sorted(path.name for path in output.iterdir())
                return f"{name} is missing; the output has {found}"
            if _mask(output / name).shape != size:
                return f"{name} is {_mask(output / name).shape}, expected {size}"
        return None

    arguments = ["predict", str(model), *images, "-o", str(output), *more]
    return Trial(
        call=lambda: product.command(*arguments),
        right=right if sizes is not None else None,
        outputs=[output],
        partial=True,
    )


@mutation("commands", 3)
def predict_names(rng: Rng, place: Path) -> Trial:
    """Names have spaces, other scripts, leading dashes or brackets; each image gets its mask."""
    model = copy(place)
    names = [
        "a b.png",
        "ünï.png",
        "日本.PNG",
        "-x.png",
        "[1].png",
        "a.b.c.png",
        "100%.png",
        "'q'.png",
        "x.jpg",
        "*.png",
        "é\u0301.png",
        ".hidden.png",
    ]
    name = str(rng.choice(names))
    image = photo(rng)
    (place / "photos").mkdir()
    (place / "photos" / name).write_bytes(png(image))
    given = [str(place / "photos" / name), "photos"][
        int(rng.integers(2)) if name != ".hidden.png" else 0
    ]
    trial = _predict(model, [given], place / "out", {f"{Path(name).stem}.png": image.shape[:2]})
    trial.refusable = name in ("*.png", ".hidden.png")
    return trial


@mutation("commands", 1)
def predict_name_that_is_no_text(rng: Rng, place: Path) -> Trial:
    """The name of an image has bytes that are not UTF-8."""
    model = copy(place)
    (place / "photos").mkdir()
    path = os.fsencode(place / "photos") + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(png(photo(rng)))
    return _predict(model, ["photos"], place / "out", {})


@mutation("commands", 4)
def predict_over_its_inputs(rng: Rng, place: Path) -> Trial:
    """The output is the folder of the images, or another path to it. No photograph changes."""
    model = copy(place)
    folder = place / "photos"
    folder.mkdir()
    ending = str(rng.choice([".png", ".jpg", ".PNG"]))
    names = [f"a{ending}", "b.png"] if rng.integers(2) else [f"a{ending}", f"a_overlay{ending}"]
    for name in names:
        (folder / name).write_bytes(png(photo(rng)))
    choice = int(rng.integers(4))
    output = [folder, place / "photos" / ".." / "photos", place / "link", folder / "."][choice]
    if choice == 2:
        output.symlink_to("photos")
    before = {name: (folder / name).read_bytes() for name in names}

    def right(_: str) -> str | None:
        changed = [name for name in names if (folder / name).read_bytes() != before[name]]
        return f"{', '.join(changed)}: the photograph is replaced" if changed else None

    images = ["photos"] if rng.integers(2) else [f"photos/{name}" for name in names]
    return Trial(
        call=_checked(
            lambda: product.command("predict", str(model), *images, "-o", str(output)), right
        ),
        right=right,
        outputs=[folder],
        partial=True,
    )


def _checked(call: Callable[[], str], right: Callable[[str], str | None]) -> Callable[[], str]:
    """Return a call that also checks the inputs afterwards, even if it was rejected."""

    def checked() -> str:
        try:
            return call()
        finally:
            if fault := right(""):
                raise WrongError(fault)

    return checked


@mutation("commands", 2)
def predict_over_files_of_others(rng: Rng, place: Path) -> Trial:
    """The output folder already holds a file with the name of a result."""
    model = copy(place)
    (place / "photos").mkdir()
    (place / "photos" / "a.jpg").write_bytes(by_pillow(photo(rng), "JPEG"))
    output = place / "out"
    output.mkdir()
    name = str(rng.choice(["a.png", "a_overlay.png"]))
    contents = [png(photo(rng)), b"my notes", b""][int(rng.integers(3))]
    (output / name).write_bytes(contents)

    def right(_: str) -> str | None:
        return f"{name} is replaced" if (output / name).read_bytes() != contents else None

    return Trial(
        call=_checked(
            lambda: product.command("predict", str(model), "photos", "-o", str(output)), right
        ),
        right=right,
        outputs=[output],
        partial=True,
    )


@mutation("commands", 2)
def predict_twice(rng: Rng, place: Path) -> Trial:
    """A second call for the same folder does not segment the results of the first call."""
    model = copy(place)
    folder = place / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(by_pillow(photo(rng), "JPEG"))
    output = folder if rng.integers(2) else place / "out"

    def twice() -> str:
        product.command("predict", str(model), "photos", "-o", str(output))
        first = sorted(path.name for path in output.iterdir())
        with contextlib.suppress(product.CommandError):
            product.command("predict", str(model), "photos", "-o", str(output))
        return f"{first} become {sorted(path.name for path in output.iterdir())}"

    def right(result: str) -> str | None:
        first, _, second = result.partition(" become ")
        return result if first != second else None

    return Trial(call=twice, right=right, outputs=[output], partial=True)


@mutation("commands", 2)
def predict_orientation(rng: Rng, place: Path) -> Trial:
    """The mask of a rotated photograph has the size of the upright picture."""
    model, image, turn = copy(place), photo(rng)[:17, :], int(rng.integers(2, 9))
    (place / "photo.jpg").write_bytes(by_pillow(stored(image, turn), "JPEG", exif=exif(turn)))
    return _predict(model, ["photo.jpg"], place / "out", {"photo.png": image.shape[:2]})


@mutation("commands", 3)
def predict_nothing(rng: Rng, place: Path) -> Trial:
    """No image, an empty folder, a text file, two images with one name, or a file as output."""
    model = copy(place)
    (place / "empty").mkdir()
    (place / "a.txt").write_text("a")
    (place / "one").mkdir()
    (place / "one" / "a.png").write_bytes(png(photo(rng)))
    (place / "a.jpg").write_bytes(by_pillow(photo(rng), "JPEG"))
    choice = int(rng.integers(8))
    images = [
        ["gone.png"],
        ["empty"],
        ["a.txt"],
        ["one", "a.jpg"],
        ["*.gif"],
        [""],
        ["one/a.png"],
        ["one/a.png"],
    ][choice]
    output = (
        place / "a.txt"
        if choice == 6
        else place / "a.txt" / "below"
        if choice == 7
        else place / "out"
    )
    trial = _predict(model, images, output, None)
    trial.partial, trial.outputs = False, [place / "out"]
    return trial


@mutation("commands", 2)
def predict_some_damaged(rng: Rng, place: Path) -> Trial:
    """A damaged photograph is named, and the others are segmented."""
    model = copy(place)
    (place / "photos").mkdir()
    for name in ("a", "b", "c"):
        (place / "photos" / f"{name}.png").write_bytes(png(photo(rng)))
    bad = str(rng.choice(["a", "b", "c"]))
    contents = (place / "photos" / f"{bad}.png").read_bytes()
    (place / "photos" / f"{bad}.png").write_bytes(contents[: len(contents) // 2])
    trial = _predict(model, ["photos"], place / "out", None)
    trial.names = [f"{bad}.png"]

    def others(call: Callable[[], object]) -> Callable[[], object]:
        def checked() -> object:
            try:
                return call()
            finally:
                found = (
                    {path.name for path in (place / "out").iterdir()}
                    if (place / "out").is_dir()
                    else set()
                )
                meant = {
                    f"{name}{kind}.png"
                    for name in {"a", "b", "c"} - {bad}
                    for kind in ("", "_overlay")
                }
                if found != meant:
                    raise WrongError(f"{sorted(found)} are written, expected {sorted(meant)}")

        return checked

    trial.call = others(trial.call)
    return trial


# ----------------------------------------------------------------------------------- other commands


def _scenes(rng: Rng, place: Path, remap: Callable[[np.ndarray], np.ndarray], classes: str) -> Path:
    """Write a dataset whose images show the class as brightness; `remap` changes labels 0 to 2."""
    root = place / "data"
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for k in range(3):
            mask = np.kron(rng.integers(0, 3, (4, 4), np.uint8), np.ones((8, 8), np.uint8))
            image = np.repeat((mask * 100)[..., None], 3, -1) + rng.integers(
                0, 20, (32, 32, 3), np.uint8
            )
            (root / "images" / split / f"{k}.png").write_bytes(png(image.astype(np.uint8)))
            (root / "masks" / split / f"{k}.png").write_bytes(png(remap(mask).astype(np.uint8)))
    (root / "classes.txt").write_text(classes)
    return root


_TRAIN = (
    "--set", "model.backbone=tiny", "--set", "data.dataset=folder", "--set",
    "data.crop_size=[32, 32]",
    "--set", "data.batch_size=2", "--set", "train.epochs=1",
)  # fmt: skip


@mutation("commands", 3)
def train_on_contradictions(rng: Rng, place: Path) -> Trial:
    """Masks that contradict the classes are rejected before the first step; no run is left."""
    kinds: list[tuple[Callable[[np.ndarray], np.ndarray], str]] = [
        (lambda mask: np.where(mask == 1, 255, 0), "background\nroad\n"),
        (lambda mask: np.where(mask == 1, 255, 0), "background 0 0 0\nroad 9 9 9\n"),
        (lambda mask: np.where(mask == 1, 255, 0), "road\n"),
        (lambda mask: np.full_like(mask, 255), "sky\nroad\ncar\n"),
        (lambda mask: mask + 7, "sky\nroad\ncar\n"),
        (lambda mask: mask * 100, "sky\nroad\ncar\n"),
    ]
    remap, classes = kinds[int(rng.integers(len(kinds)))]
    root = _scenes(rng, place, remap, classes)
    arguments = ["train", "shapes", "--data", str(root), "--workdir", str(place / "run"), *_TRAIN]
    return Trial(call=lambda: product.command(*arguments), outputs=[place / "run"])


@mutation("commands", 4)
def train_with_wrong_settings(rng: Rng, place: Path) -> Trial:
    """A wrong setting is rejected in one line before the first step; no run is left."""
    root = _scenes(rng, place, lambda mask: mask, "sky\nroad\ncar\n")
    wrong = [
        "model.backbone=resnet19", "model.head=fcn33s", "model.output_stride=3",
        "model.backbone_options={depth=3}",
        "model.aux_head=none",
        "data.crop_size=[0, 32]", "data.crop_size=[32]", "data.batch_size=0",
        "data.batch_size=1000000",
        "data.train_split=trian",
        "data.dataset=foldr",
        "data.dataset=shapes:folder", "data.scale_range=[2.0, 0.5]", "data.scale_range=[0, 1]",
        "optim.lr=nan",
        "optim.lr=-1",
        "optim.name=adam",
        "optim.accumulate_steps=3", "optim.param_groups=[{match='nothing.*'}]",
        "init.weights=gone.pth",
        "init.weights=",
        "init.reinit=['nothing*']",
        "train.epochs=0", "train.seed=-1", "train.epochs=1e3", "train.eval_every_epochs=0",
        "data.num_workers=-1", "optim.betas=[0.9]",
        "x.y=1", "train",
        "data.root=gone", "data.root=", "model.dtype=float16", "optim.warmup_steps=-1",
        "model.head_options.x=1",
    ]  # fmt: skip
    setting = str(rng.choice(wrong))
    arguments = [
        "train",
        "shapes",
        "--data",
        str(root),
        "--workdir",
        str(place / "run"),
        *_TRAIN,
        "--set",
        setting,
    ]
    if setting.startswith("data.root"):
        arguments[2:4] = []
    return Trial(call=lambda: product.command(*arguments), outputs=[place / "run"])


@mutation("commands", 2)
def eval_of_nothing_but_void(rng: Rng, place: Path) -> Trial:
    """JSON output stays valid if masks have no pixels of some or all classes."""
    model = copy(place)
    root = _scenes(
        rng,
        place,
        lambda mask: np.full_like(mask, 255) if rng.integers(2) else np.zeros_like(mask),
        "sky\nroad\ncar\n",
    )

    def right(out: str) -> str | None:
        def refuse(word: str) -> None:
            raise ValueError(word)

        try:
            json.loads(out, parse_constant=refuse)
        except ValueError as error:
            return f"invalid JSON ({error}): {out[:200]}"
        return None

    arguments = ["eval", str(model), "--dataset", "folder", "--data", str(root), "--json"]
    return Trial(call=lambda: product.command(*arguments), right=right)


@mutation("commands", 8)
def odd_arguments(rng: Rng, place: Path) -> Trial:
    """Random commands, options and words, which form no valid command line."""
    model = copy(place)
    (place / "file.txt").write_text("text")
    words = [
        "", "-", "--", "x", "run", str(model), "file.txt", "gone", "..", "/", "nul\0l", "-o",
        "--workdir", "--set", "a=b", "--json", "--split", "9" * 50, "ü", "*", "--key-format",
        "--model", "tiny", "resnet18", "--size", "0x0", "--num-classes", "-1", "--debu", "-h1",
        "file:///x", "~",
    ]  # fmt: skip
    starts = [
        ["predict", "gone"], ["predict", "file.txt"], ["eval", "gone"], ["eval", str(model)],
        ["eval", "file.txt", "--json"], ["convert", "gone"], ["convert", "file.txt"],
        ["convert", str(model)], ["export", "gone"], ["train", "gone"], ["train", "file.txt"],
        ["train", "gone.toml"], ["train", "--workdir", "file.txt"], ["verify"],
        ["verify", "--model", "gone"], ["plugins"], ["plugins", "check", "gone"],
        ["plugins", "new", "Not A Name"], ["plugins", "new", "resnet18"], ["pred"], [""], ["x"],
    ]  # fmt: skip
    arguments = list(starts[int(rng.integers(len(starts)))])
    for _ in range(rng.integers(0, 6)):
        arguments.insert(
            int(rng.integers(1, len(arguments) + 1)), str(rng.choice(np.array(words, object)))
        )
    allowed = [place / name for name in ("x", "run", "gone", "fcn-jax-resnet18")]
    return Trial(call=lambda: product.command(*arguments), right=lambda out: None, outputs=allowed)


@mutation("commands", 2)
def convert_over_files(rng: Rng, place: Path) -> Trial:
    """An existing output is never overwritten."""
    model = copy(place)
    out = place / str(rng.choice(["out.pth", "out.safetensors", "folder"]))
    if out.suffix:
        out.write_bytes(b"mine")
        return Trial(
            call=lambda: product.command("export", str(model), "-o", str(out)),
            names=[out.name],
        )
    out.mkdir()
    (out / "mine").write_text("mine")
    product.command("export", str(model), "-o", str(place / "weights.safetensors"))
    return Trial(
        call=lambda: product.command(
            "convert", "weights.safetensors", "--model", "tiny", "-o", str(out)
        ),
        names=["folder"],
    )


@mutation("commands", 1)
def in_a_process_of_its_own(rng: Rng, place: Path) -> Trial:
    """A separate process has the right exit status and prints no traceback."""
    model = copy(place)
    (place / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    commands = [
        ["predict", str(model), "bad.png"],
        ["predict", str(model), "gone.png"],
        ["eval", str(model)],
        ["train", "gone.toml"],
        ["train", "shapes", "--set", "train.epochs=" + "9" * 5000],
        ["convert", "bad.png", "--model", "resnet18", "-o", "out"],
    ]
    arguments = commands[int(rng.integers(len(commands)))]
    return Trial(
        call=lambda: product.process(*arguments, cwd=place), outputs=[place / "predictions"]
    )
