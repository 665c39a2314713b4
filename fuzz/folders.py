"""Folder datasets: class lists, split lists, names, and unrelated files."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fuzz import damage, product
from fuzz.cases import Trial, mutation
from fuzz.encoders import INDEXED, png
from fuzz.masks import labels

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The contents of a dataset: class names and colors, and pixels and labels by image name."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    images: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]


_WORDS = (
    "sky",
    "road",
    "car",
    "tree trunk",
    "Straße",
    "人",
    "pole",
    "side walk",
    "bicycle",
    "fence",
    "sign-symbol",
    "void space",
    "7up",
)


def draw(
    rng: Rng,
    names: Sequence[str] | None = None,
    ids: Sequence[str] = ("a", "b", "c"),
    void: bool = True,
) -> Dataset:
    """Draw a dataset."""
    if names is None:
        names = [_WORDS[k] for k in rng.permutation(len(_WORDS))[: rng.integers(2, 8)]]
    codes = rng.choice(2**24, len(names), replace=False)
    colors = tuple((int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes)
    masks = {name: labels(rng, len(names), void) for name in ids}
    images = {
        name: rng.integers(0, 256, (*mask.shape, 3), np.uint8) for name, mask in masks.items()
    }
    return Dataset(tuple(names), colors, images, masks)


def write(place: Path, data: Dataset, classes: bytes | str, *, split: str | None = None) -> Path:
    """Write a dataset of PNG images and gray PNG masks.

    If `split` is None, `splits/train.txt` lists all images. Otherwise the files are in subfolders
    of that name.
    """
    root = place / "data"
    for part in ("images", "masks"):
        (root / part / (split or "")).mkdir(parents=True)
    for name, image in data.images.items():
        (root / "images" / (split or "") / f"{name}.png").write_bytes(png(image))
        (root / "masks" / (split or "") / f"{name}.png").write_bytes(png(data.masks[name]))
    (root / "classes.txt").write_bytes(classes.encode() if isinstance(classes, str) else classes)
    if split is None:
        (root / "splits").mkdir()
        (root / "splits" / "train.txt").write_text("".join(f"{name}\n" for name in data.images))
    return root


def _plain(name: str) -> str:
    return " ".join(
        unicodedata.normalize("NFC", name).replace("\ufeff", "").replace("\u200b", "").split()
    )


def reads(
    data: Dataset,
    *,
    names: Sequence[str] | None = None,
    colors: bool = False,
    ids: Sequence[str] | None = None,
    masks: dict[str, np.ndarray] | None = None,
) -> Callable[[product.Reading], str | None]:
    """Check that the dataset is read correctly.

    Args:
        data: the dataset.
        names: expected class names; by default the dataset's.
        colors: whether the colors must also be the dataset's.
        ids: expected image names in this order; by default all in any order.
        masks: expected labels; by default the dataset's.
    """
    expected = tuple(map(_plain, data.names if names is None else names))

    def right(reading: product.Reading) -> str | None:
        if tuple(map(_plain, reading.names)) != expected:
            return f"the classes are read as {list(reading.names)}, expected {list(expected)}"
        if colors and reading.palette != data.colors:
            return f"the colors are read as {list(reading.palette)}, expected {list(data.colors)}"
        found = [_plain(name) for name, _, _ in reading.examples]
        if (
            (found != [_plain(name) for name in ids])
            if ids is not None
            else (sorted(found) != sorted(map(_plain, data.images)))
        ):
            return f"the images are {found}, expected {list(data.images if ids is None else ids)}"
        own = {_plain(name): name for name in data.images}
        for name, image, mask in reading.examples:
            if not np.array_equal(image, data.images[own[_plain(name)]]):
                return f"{name}: the pixels differ"
            expected_mask = (masks or data.masks)[own[_plain(name)]]
            if mask.shape != expected_mask.shape or (mask != expected_mask).any():
                wrong = (
                    mask != expected_mask if mask.shape == expected_mask.shape else np.ones(1, bool)
                )
                return f"{name}: {int(wrong.sum())} labels differ"
        return None

    return right


def _trial(
    root: Path, right: Callable[[product.Reading], str | None] | None, refusable: bool, *names: str
) -> Trial:
    return Trial(
        call=lambda: product.read_folder(root),
        right=right,
        refusable=refusable,
        names=names or ["classes.txt"],
    )


# --------------------------------------------------------------------------------- lists of classes


def _lines(rng: Rng, data: Dataset, colors: bool) -> list[str]:
    gap = str(rng.choice([" ", "  ", "\t"]))
    return [
        name + (gap + gap.join(map(str, color)) if colors else "")
        for name, color in zip(data.names, data.colors, strict=True)
    ]


@mutation("folders", 6)
def classes_from_any_editor(rng: Rng, place: Path) -> Trial:
    """Byte order marks, line ends, comments, blank lines and spaces do not change the classes."""
    data, colors = draw(rng), bool(rng.integers(2))
    lines: list[str] = []
    for line in _lines(rng, data, colors):
        while rng.integers(4) == 0:
            lines.append(
                str(rng.choice(["", "# a comment", "   ", "#", "\t# road 1 2 3", "  # x"]))
            )
        lines.append(" " * int(rng.integers(2)) + line + str(rng.choice(["", " ", "\t", "   "])))
    if rng.integers(2):
        lines.insert(0, "# my classes")
    text = str(rng.choice(["\n", "\r\n", "\r"])).join(lines)
    text += str(rng.choice(["", "\n", "\r\n", "\n\n\n"]))
    contents = (b"\xef\xbb\xbf" if rng.integers(2) else b"") + text.encode()
    # The masks store labels as gray values, so the dataset may be rejected if the classes have
    # colors.
    return _trial(write(place, data, contents), reads(data, colors=colors), colors)


@mutation("folders", 3)
def masks_by_the_colors_of_the_classes(rng: Rng, place: Path) -> Trial:
    """Masks are RGB, or indexed with a palette in another order."""
    data = draw(rng, void=False)
    root = write(place, data, "\n".join(_lines(rng, data, True)))
    indexed = bool(rng.integers(2))
    order = rng.permutation(len(data.names))
    for name, mask in data.masks.items():
        table = np.array(data.colors, np.uint8)
        contents = (
            png(np.argsort(order).astype(np.uint8)[mask], color=INDEXED, palette=table[order])
            if indexed
            else png(table[mask])
        )
        (root / "masks" / f"{name}.png").write_bytes(contents)
    return _trial(root, reads(data, colors=True), indexed, ".png")


@mutation("folders", 2)
def void_lines(rng: Rng, place: Path) -> Trial:
    """The last classes are void, and become 255; or the first is void, which may be rejected."""
    data = draw(rng, void=False)
    lines = list(data.names)
    first = bool(rng.integers(2))
    voids = 1 if first else int(rng.integers(1, 3))
    lines = [*["void"] * voids, *lines] if first else [*lines, *["void"] * voids]
    kept = {name: mask.copy() for name, mask in data.masks.items()}
    for mask in kept.values():
        mask += first
        mask[-1] = 0 if first else len(data.names)
    right = {name: mask.copy() for name, mask in data.masks.items()}
    for mask in right.values():
        mask[-1] = 255
    root = write(place, dataclasses.replace(data, masks=kept), "\n".join(lines))
    return _trial(root, reads(data, masks=right), first)


@mutation("folders", 4)
def lists_of_annotation_tools(rng: Rng, place: Path) -> Trial:
    """Class lists of annotation tools, such as labelme and CVAT, are read correctly or rejected."""
    data = draw(rng, names=[_WORDS[k] for k in rng.permutation(3)] + ["pole"], void=False)
    rows = list(zip(data.names, data.colors, strict=True))
    texts = {
        "cvat": "# label:color_rgb:parts:actions\n"
        + "".join(f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in rows),
        "cvat without its first line": "".join(f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in rows),
        "camvid": "".join(f"{r} {g} {b}\t\t{n}\n" for n, (r, g, b) in rows),
        "camvid with tabs": "".join(f"{r}\t{g}\t{b}\t{n}\n" for n, (r, g, b) in rows),
        "csv": "name,r,g,b\n" + "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in rows),
        "csv with spaces": "name, r, g, b\n"
        + "".join(f"{n}, {r}, {g}, {b}\n" for n, (r, g, b) in rows),
        "csv without its first line": "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in rows),
        "csv with semicolons": "name;r;g;b\n"
        + "".join(f"{n};{r};{g};{b}\n" for n, (r, g, b) in rows),
        "csv with an index": "id,name,r,g,b\n"
        + "".join(f"{k},{n},{r},{g},{b}\n" for k, (n, (r, g, b)) in enumerate(rows)),
        "quoted csv": '"name","r","g","b"\n'
        + "".join(f'"{n}","{r}","{g}","{b}"\n' for n, (r, g, b) in rows),
        "one line": ",".join(data.names) + "\n",
        "one line of JSON": json.dumps(list(data.names)) + "\n",
        "cityscapes": json.dumps(
            [{"name": n, "id": k, "trainId": k, "color": list(c)} for k, (n, c) in enumerate(rows)],
            indent=1,
        ),
        "indented JSON": json.dumps({n: k for k, n in enumerate(data.names)}, indent=2),
        "yolo": f"names: {list(data.names)}\nnc: {len(data.names)}\n",
        "yolo list": "names:\n" + "".join(f"  {k}: {n}\n" for k, n in enumerate(data.names)),
        "supervisely": json.dumps(
            {
                "classes": [
                    {"title": n, "shape": "bitmap", "color": f"#{bytes(c).hex()}"} for n, c in rows
                ]
            }
        ),
        "hex colors": "".join(f"{n} #{r:02x}{g:02x}{b:02x}\n" for n, (r, g, b) in rows),
        "colors in brackets": "".join(f"{n} ({r}, {g}, {b})\n" for n, (r, g, b) in rows),
        "labelme": "__ignore__\n_background_\n" + "".join(f"{n}\n" for n in data.names),
        "numbered from 0": "".join(f"{k} {n}\n" for k, n in enumerate(data.names)),
        "numbered from 0 with colons": "".join(f"{k}: {n}\n" for k, n in enumerate(data.names)),
        "numbered behind": "".join(f"{n},{k}\n" for k, n in enumerate(data.names)),
    }
    kind = str(rng.choice(list(texts)))
    names: Sequence[str] = data.names
    masks = data.masks
    if kind == "labelme":
        # In labelme, label 0 is the background, and the other labels start at 1.
        names = ("_background_", *data.names)
        masks = {name: mask + 1 for name, mask in data.masks.items()}
    root = write(place, dataclasses.replace(data, masks=masks), texts[kind])
    return _trial(root, reads(data, names=names, masks=masks), True, "data")


@mutation("folders", 2)
def numbered_out_of_order(rng: Rng, place: Path) -> Trial:
    """Class numbers that contradict the order of the lines are never ignored."""
    data = draw(rng, void=False)
    order = rng.permutation(len(data.names))
    if (order == np.arange(len(order))).all():
        order = order[::-1]
    form = str(rng.choice(["{k} {n}", "{k}: {n}", "{k},{n}", "{k}\t{n}", "{n},{k}"]))
    text = "".join(form.format(k=k, n=data.names[k]) + "\n" for k in order)
    return _trial(write(place, data, text), reads(data), True)


@mutation("folders", 2)
def classes_that_contradict_themselves(rng: Rng, place: Path) -> Trial:
    """A name or color occurs twice, a color has the value 256, or only some classes have colors."""
    data = draw(rng, void=False)
    lines = _lines(rng, data, True)
    at = int(rng.integers(len(lines)))
    other = (at + 1) % len(lines)
    if (choice := int(rng.integers(4))) == 0:
        lines[at] = f"{data.names[other]} 1 2 3"
    elif choice == 1:
        lines[at] = f"{data.names[at]} {' '.join(map(str, data.colors[other]))}"
    elif choice == 2:
        lines[at] = f"{data.names[at]} 1 256 3"
    else:
        lines[at] = data.names[at]
    return _trial(write(place, data, "\n".join(lines)), None, True)


@mutation("folders", 2)
def classes_in_another_encoding(rng: Rng, place: Path) -> Trial:
    """A class list in UTF-16, UTF-32, Latin-1 or CP437, an empty one, or a binary file."""
    data = draw(rng, names=["Straße", "sky"])
    text = "Straße\nsky\n"
    contents = [
        text.encode("utf-16"),
        text.encode("utf-16-le"),
        text.encode("utf-16-be"),
        text.encode("utf-32"),
        text.encode("latin-1"),
        text.encode("cp437"),
        b"",
        b"\n \n# nothing\n",
        b"\xef\xbb\xbf",
        rng.bytes(100) + b"\0",
    ]
    return _trial(write(place, data, contents[int(rng.integers(len(contents)))]), None, True)


@mutation("folders", 3)
def odd_characters_in_names(rng: Rng, place: Path) -> Trial:
    """Only line feeds and carriage returns end a line, as in editors; other separators do not."""
    odd = str(
        rng.choice(
            [
                "\x0b",
                "\x0c",
                "\x1c",
                "\x1d",
                "\x1e",
                "\x85",
                "\u2028",
                "\u2029",
                "\xa0",
                "\u3000",
                "\ufeff",
                "\u200b",
            ]
        )
    )
    data = draw(rng, names=["sky", f"road{odd}way", "car"], void=False)
    return _trial(
        write(place, data, "".join(f"{name}\n" for name in data.names)), reads(data), True
    )


@mutation("folders", 4)
def damaged_classes(rng: Rng, place: Path) -> Trial:
    """A damaged class list is rejected, or read as one class per line."""
    data = draw(rng, void=False)
    contents = damage.some(rng, "".join(f"{name}\n" for name in data.names).encode())
    text = contents.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    lines = [
        line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")
    ]
    return _trial(
        write(place, data, contents), reads(data, names=lines), True, "classes.txt", "masks", ".png"
    )


# ---------------------------------------------------------------------------------- lists of splits

_IDS = ("photo 0", "photo 1", "IMG_0001", "2024-01-01 10.30.00", "ünï", "a.b.c", "x" * 60)


@mutation("folders", 6)
def splits_as_people_write_them(rng: Rng, place: Path) -> Trial:
    """Lines have spaces, endings, paths or backslashes, but mean the same images."""
    data = draw(rng, ids=[_IDS[k] for k in rng.permutation(len(_IDS))[:3]])
    root = write(place, data, "\n".join(data.names))
    ids = list(rng.permutation(list(data.images)))
    form = str(
        rng.choice(
            [
                "{}",
                "{}.png",
                "images/{}.png",
                "./images/{}.png",
                "data/images/{}.png",
                "images\\{}.png",
                "{}.jpg",
                "  {}  ",
            ]
        )
    )
    text = str(rng.choice(["\n", "\r\n", "\r"])).join(
        [*(form.format(name) for name in ids), *([""] * int(rng.integers(0, 3)))]
    )
    contents = (b"\xef\xbb\xbf" if rng.integers(2) else b"") + text.encode()
    (root / "splits" / "train.txt").write_bytes(contents)
    return _trial(
        root, reads(data, ids=ids), form not in ("{}", "  {}  ", "{}.png"), "train.txt", "data"
    )


@mutation("folders", 3)
def splits_of_two_columns(rng: Rng, place: Path) -> Trial:
    """Each line has an image and its mask or a number: read as the same images, or rejected."""
    data = draw(rng)
    root = write(place, data, "\n".join(data.names))
    form = str(
        rng.choice(
            [
                "images/{0}.png masks/{0}.png",
                "{0}.png,{0}.png",
                "{0}  1",
                "{0}\t{0}.png",
                "/images/{0}.png /masks/{0}.png",
            ]
        )
    )
    (root / "splits" / "train.txt").write_text(
        "".join(form.format(name) + "\n" for name in data.images)
    )
    return _trial(root, reads(data, ids=list(data.images)), True, "train.txt", "data")


@mutation("folders", 3)
def splits_that_are_wrong(rng: Rng, place: Path) -> Trial:
    """An image occurs twice, or is missing; the list is empty, or in another encoding."""
    data = draw(rng)
    root = write(place, data, "\n".join(data.names))
    texts = [
        "a\nb\na\n",
        "a\na.png\n",
        "a\n./images/a.png\n",
        "a\nnot there\n",
        "a\n../a\n",
        "",
        "\n\n",
        "a\n/etc/passwd\n",
        "a\n..\n",
        "a\nA\n",
    ]
    contents = [
        *(text.encode() for text in texts),
        "a\nb\n".encode("utf-16"),
        b"a\n\xff\xfe\n",
        b"a\n\0\n",
    ]
    chosen = contents[int(rng.integers(len(contents)))]
    (root / "splits" / "train.txt").write_bytes(chosen)
    # An image that is listed twice may be used once.
    twice = b"\na" in chosen and b"not" not in chosen
    ids = ["a", "b"] if chosen == b"a\nb\na\n" else ["a"]
    return _trial(root, reads(data, ids=ids) if twice else None, True, "train.txt", "data")


@mutation("folders", 2)
def damaged_splits(rng: Rng, place: Path) -> Trial:
    """A damaged split list is rejected, or selects some of the images with their own masks."""
    data = draw(rng, ids=["alpha", "beta", "gamma"])
    root = write(place, data, "\n".join(data.names))
    (root / "splits" / "train.txt").write_bytes(damage.some(rng, b"alpha\nbeta\ngamma\n"))

    def right(reading: product.Reading) -> str | None:
        found = [name for name, _, _ in reading.examples]
        if not found or set(found) - set(data.images):
            return f"the images are {found}"
        return reads(data, ids=found)(reading)

    return _trial(root, right, True, "train.txt", "data")


# -------------------------------------------------------------------------------------------------
# names and stray files


@mutation("folders", 5)
def hidden_files_and_stray_folders(rng: Rng, place: Path) -> Trial:
    """Hidden files and folders of operating systems and tools are ignored."""
    data, split = draw(rng), str(rng.choice(["", "train"]))
    root = write(place, data, "\n".join(data.names), split=split or None)
    strays = {
        ".DS_Store": b"\0\0\0\1Bud1",
        "._a.png": b"\0\5\x16\7",
        ".a.png": png(np.zeros((2, 2, 3), np.uint8)),
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "desktop.ini": b"[.ShellClassInfo]\r\n",
        "README.md": b"photos",
        "a.png.part": b"\x89PNG",
        "a.txt": b"a",
        "a.json": b"{}",
        "originals/a.png": png(np.zeros((2, 2, 3), np.uint8)),
        ".ipynb_checkpoints/a-checkpoint.png": png(np.zeros((2, 2, 3), np.uint8)),
        "__MACOSX/._a.png": b"\0",
        "@eaDir/a.png/thumb.jpg": b"\xff\xd8",
        ".thumbnails/a.png": b"\x89PNG",
        "empty/.gitkeep": b"",
    }
    for part in ("images", "masks"):
        for name in rng.permutation(list(strays))[: rng.integers(1, 5)]:
            folder = root / part / (split if "/" not in name else str(rng.choice(["", split])))
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(strays[name])
    for name, contents in (
        ("splits/.train.txt.swp", b"b0VIM"),
        ("splits/._train.txt", b"\0"),
        (".classes.txt.swp", b"b0"),
        ("notes.txt", b"x"),
    ):
        if rng.integers(2) and (root / name).parent.is_dir():
            (root / name).write_bytes(contents)
    return _trial(root, reads(data), False)


@mutation("folders", 3)
def names_that_a_person_calls_the_same(rng: Rng, place: Path) -> Trial:
    """Names of image and mask differ in case, suffix or Unicode form: matched, or rejected."""
    data = draw(rng, ids=["Café 1", "b", "c"])
    root = write(place, data, "\n".join(data.names))
    image, mask = root / "images" / "Café 1.png", root / "masks" / "Café 1.png"
    decomposed = unicodedata.normalize("NFD", "Café 1")
    choice = int(rng.integers(6))
    if choice == 0:
        image.rename(image.with_name("Café 1.PNG"))
    elif choice == 1:
        mask.rename(mask.with_name("CAFÉ 1.png"))
    elif choice == 2:
        mask.rename(mask.with_name(f"{decomposed}.png"))
    elif choice == 3:
        for path in (root / "masks").iterdir():
            path.rename(path.with_name(f"{path.stem}_mask.png"))
    elif choice == 4:
        (root / "splits" / "train.txt").write_text(f"{decomposed}\nb\nc\n")
    else:
        mask.rename(mask.with_name(" Café 1 .png"))
    return _trial(root, reads(data), True, "data")


@mutation("folders", 3)
def files_that_do_not_belong_together(rng: Rng, place: Path) -> Trial:
    """A mask or image is missing, empty, a folder or a broken link, or two images have one name."""
    data = draw(rng)
    root = write(place, data, "\n".join(data.names))
    choice = int(rng.integers(7))
    if choice == 0:
        (root / "masks" / "a.png").unlink()
    elif choice == 1:
        (root / "images" / "a.png").unlink()
    elif choice == 2:
        (root / "images" / "a.jpg").write_bytes(png(data.images["b"]))
    elif choice == 3:
        (root / "masks" / "a.png").unlink()
        (root / "masks" / "a.png").symlink_to("gone.png")
    elif choice == 4:
        (root / "images" / "a.png").unlink()
        (root / "images" / "a.png").mkdir()
    elif choice == 5:
        (root / "masks" / "a.png").write_bytes(b"")
    else:
        for path in (root / "masks").iterdir():
            path.unlink()
    # In choice 2, both a.jpg and a.png match the name.
    return _trial(root, None, True, "data")


@mutation("folders", 2)
def parts_missing(rng: Rng, place: Path) -> Trial:
    """classes.txt, the images, the masks or the split are missing, or the root is a file."""
    data = draw(rng)
    root = write(place, data, "\n".join(data.names))
    choice = int(rng.integers(6))
    if choice == 0:
        (root / "classes.txt").unlink()
    elif choice == 1:
        (root / "images").rename(root / "pictures")
    elif choice == 2:
        (root / "masks").rename(root / "labels")
        (root / "masks").write_text("a file")
    elif choice == 3:
        (root / "splits" / "train.txt").rename(root / "splits" / "training.txt")
    elif choice == 4:
        (root / "classes.txt").unlink()
        (root / "classes.txt").mkdir()
    else:
        root = root / "classes.txt"
    return _trial(root, None, True, "data")
