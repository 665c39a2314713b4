"""TFDS datasets: prepared once, without TensorFlow, from a download or local files."""

import functools
import hashlib
import http.server
import io
import pickle
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.datasets import tfds_datasets
from fcn_jax.data.datasets.shapes import SHAPES_CLASSES
from fcn_jax.data.datasets.tfds_datasets import SHAPES, VOC2012_TFDS
from fcn_jax.data.datasets.voc import VOC2012
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.data.pipeline import train_batches
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import DataError

tfds_builders = pytest.importorskip("fcn_jax.data.datasets.tfds_builders")
IDS = {"train": ["2007_000039", "2007_000032"], "val": ["2007_000033"]}


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_builders.Shapes, "SIZES", {"train": 6, "val": 2})


def voc_files() -> dict[str, bytes]:
    files = {}
    for split, ids in IDS.items():
        files[f"ImageSets/Segmentation/{split}.txt"] = "".join(f"{name}\n" for name in ids).encode()
        for k, name in enumerate(ids):
            image = np.random.default_rng(k).integers(0, 256, (20, 30, 3), np.uint8)
            files[f"JPEGImages/{name}.jpg"] = cv2.imencode(".jpg", image)[1].tobytes()
            mask = Image.fromarray(np.full((20, 30), 20 - k, np.uint8))
            mask.putpalette([value for color in voc_palette(256) for value in color])
            buffer = io.BytesIO()
            mask.save(buffer, "PNG")
            files[f"SegmentationClass/{name}.png"] = buffer.getvalue()
    return files


def make_tar(path: Path, prefix: str = "VOCdevkit/VOC2012/") -> None:
    with tarfile.open(path, "w") as archive:
        for name, contents in voc_files().items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(contents)
            archive.addfile(entry, io.BytesIO(contents))


def extract(tar: Path, root: Path) -> Path:
    with tarfile.open(tar) as archive:
        archive.extractall(root, filter="data")
    return root


class _Quiet(http.server.SimpleHTTPRequestHandler):
    requests: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A local download site: the folder with its files, and the list of requests so far."""
    served = tmp_path / "site"
    served.mkdir()
    asked: list[str] = []
    handler = functools.partial(
        type("Handler", (_Quiet,), {"requests": asked}), directory=str(served)
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        name = tfds_builders.VOC_ARCHIVE
        monkeypatch.setattr(
            tfds_builders.Voc2012Segmentation, "URLS", (f"{base}/{name}", f"{base}/mirror/{name}")
        )
        yield served, asked
        server.shutdown()


def set_md5(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    monkeypatch.setattr(
        tfds_builders.Voc2012Segmentation, "MD5", hashlib.md5(archive.read_bytes()).hexdigest()
    )


def check_voc(root: Path, against: Path) -> None:
    for split, ids in IDS.items():
        source, in_place = VOC2012_TFDS.open(root, split), VOC2012.open(against, split)
        assert [source[i].id for i in range(len(source))] == ids
        for index in range(len(source)):
            ours, theirs = source.decode(source[index]), in_place.decode(in_place[index])
            assert np.array_equal(ours.image, theirs.image)
            assert np.array_equal(ours.mask, theirs.mask)


def test_prepares_shapes_once_and_reads_them_by_index(
    small_shapes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SHAPES.open(tmp_path, "train")
    assert len(source) == 6
    assert source.classes is SHAPES_CLASSES
    example = source.decode(source[5])
    assert example.id == "train_00005"
    assert example.image.shape == (192, 192, 3)
    assert example.mask.shape == (192, 192)
    monkeypatch.setattr(tfds_builders, "draw_scene", None)  # drawing again would fail
    assert len(SHAPES.open(tmp_path, "val")) == 2
    assert len(SHAPES.open(tmp_path, "val+train[:50%]")) == 5
    assert "tensorflow" not in sys.modules


def test_tfds_own_decoder_reads_the_labels_too(small_shapes: None, tmp_path: Path) -> None:
    source = SHAPES.open(tmp_path, "train")
    mask = tfds_builders.Shapes(data_dir=tmp_path).as_data_source("train")[1]["mask"]
    assert np.array_equal(mask[..., 0], source.decode(source[1]).mask)


def test_prepared_source_pickles_and_feeds_workers(small_shapes: None, tmp_path: Path) -> None:
    source = SHAPES.open(tmp_path, "train")
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2] == source[2]
    batches = [
        next(train_batches(source, augment=Augment((32, 32)), batch_size=3, seed=0, num_workers=w))
        for w in (0, 1)
    ]
    assert np.array_equal(batches[0]["image"], batches[1]["image"])


def test_uses_the_cache_without_a_folder(
    small_shapes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    SHAPES.open(None, "val")
    assert (tmp_path / "cache" / "tfds" / "shapes" / "1.0.0" / "dataset_info.json").exists()


def test_interrupted_preparation_leaves_no_dataset(
    small_shapes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = tfds_builders.draw_scene, []

    def interrupted(seed: int) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(seed)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return real(seed)

    monkeypatch.setattr(tfds_builders, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SHAPES.open(tmp_path, "train")
    assert not list((tmp_path / "shapes").glob("*"))
    monkeypatch.setattr(tfds_builders, "draw_scene", real)
    assert len(SHAPES.open(tmp_path, "train")) == 6


def test_full_disk_is_one_line(
    small_shapes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    def full(self: object) -> None:
        raise RuntimeError("write() failed: No space left on device; at byte 307200")

    monkeypatch.setattr(ArrayRecordWriter, "close", full)
    with pytest.raises(DataError, match=r"No space left on device.*pass --data DIR") as caught:
        SHAPES.open(tmp_path, "train")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "shapes").glob("*"))


def test_damaged_prepared_files_are_one_line(small_shapes: None, tmp_path: Path) -> None:
    SHAPES.open(tmp_path, "train")
    (path,) = tmp_path.rglob("shapes-train.array_record*")
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:30_000] + bytes(99) + whole[30_099:], b""):
        path.write_bytes(broken)
        source = SHAPES.open(tmp_path, "train")
        with pytest.raises(DataError, match=r"the prepared dataset is damaged .* delete the fold"):
            list(source)


def test_two_processes_can_prepare_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from fcn_jax.data.datasets import tfds_builders, tfds_datasets\n"
        "tfds_builders.Shapes.SIZES = {'train': 40, 'val': 2}\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "source = tfds_datasets.SHAPES.open(pathlib.Path(sys.argv[1]), 'train')\n"
        "print(len(source), source.decode(source[39]).image.sum())\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, stderr=-1, text=True
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][0].startswith("40 ")
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == ["1.0.0"]


def test_losing_the_race_to_prepare_keeps_the_first_data(
    small_shapes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tfds_builders.draw_scene

    def slow(seed: int) -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.setattr(tfds_builders, "draw_scene", real)
        tfds_datasets.prepare(tfds_builders.Shapes, tmp_path)  # the other process, quicker
        return real(seed)

    monkeypatch.setattr(tfds_builders, "draw_scene", slow)
    assert len(SHAPES.open(tmp_path, "train")) == 6
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == ["1.0.0"]


def test_rejects_unknown_splits_and_unusable_folders(small_shapes: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'trian'.*Did you mean 'train'"):
        SHAPES.open(tmp_path, "trian")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        SHAPES.open(tmp_path / "file", "train")
    with pytest.raises(DataError, match="pass --data DIR"):
        SHAPES.open(tmp_path / "file" / "below", "train")


def test_voc_is_downloaded_checked_and_prepared(
    site: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served, asked = site
    archive = served / tfds_builders.VOC_ARCHIVE
    make_tar(archive)
    set_md5(monkeypatch, archive)
    check_voc(tmp_path / "data", extract(archive, tmp_path / "plain"))
    assert asked == [f"/{tfds_builders.VOC_ARCHIVE}"]
    assert capsys.readouterr().out == ""


def test_mirror_is_used_if_the_first_site_fails(
    site: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, asked = site
    (served / "mirror").mkdir()
    archive = served / "mirror" / tfds_builders.VOC_ARCHIVE
    make_tar(archive)
    set_md5(monkeypatch, archive)
    check_voc(tmp_path / "data", extract(archive, tmp_path / "plain"))
    assert len(asked) == 2


def test_rejects_and_deletes_a_wrong_download_and_tries_again(
    site: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, asked = site
    archive = served / tfds_builders.VOC_ARCHIVE
    archive.write_bytes(b"an error page")
    with pytest.raises(DataError) as caught:
        VOC2012_TFDS.open(tmp_path / "data", "train")
    for part in ("the file's MD5 is", "404", "pass --data DIR", "VOCdevkit"):
        assert part in str(caught.value)
    make_tar(archive)
    set_md5(monkeypatch, archive)
    check_voc(tmp_path / "data", extract(archive, tmp_path / "plain"))
    assert len(asked) == 3


@pytest.mark.parametrize("layout", ["archive", "repacked", "devkit"])
def test_prepares_voc_from_local_files_without_a_network(
    layout: str, site: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    archive = root / tfds_builders.VOC_ARCHIVE
    make_tar(
        archive, "TrainVal/VOCdevkit/VOC2012/" if layout == "repacked" else "VOCdevkit/VOC2012/"
    )
    plain = extract(archive, tmp_path / "plain")
    if layout == "devkit":
        extract(archive, root)
        archive.unlink()
    check_voc(root, plain / "TrainVal" if layout == "repacked" else plain)
    assert site[1] == []


def test_error_of_a_missing_extracted_file_names_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / tfds_builders.VOC_ARCHIVE
    make_tar(archive)
    extract(archive, tmp_path)
    archive.unlink()
    for mask in tmp_path.glob("VOCdevkit/VOC2012/SegmentationClass/*"):
        mask.unlink()
    advice = rf"SegmentationClass.*does not exist .* or extract {tfds_builders.VOC_ARCHIVE} again"
    with pytest.raises(DataError, match=advice):
        VOC2012_TFDS.open(tmp_path, "train")


def test_rejects_truncated_or_foreign_local_archives(tmp_path: Path) -> None:
    archive = tmp_path / tfds_builders.VOC_ARCHIVE
    make_tar(archive)
    whole = archive.read_bytes()
    for contents in (whole[: len(whole) // 2], b"", b"no tar" * 500):
        archive.write_bytes(contents)
        with pytest.raises(DataError, match=tfds_builders.VOC_ARCHIVE):
            VOC2012_TFDS.open(tmp_path, "train")
    assert not list((tmp_path / "voc2012_segmentation").glob("*"))
