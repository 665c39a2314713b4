"""Which sets of images are padded, and how."""

import numpy as np
from PIL import Image

from fcn_jax.eval import padding


def write_images(folder, sizes, **options):
    paths = [folder / f"{number}.jpg" for number in range(len(sizes))]
    for path, (height, width) in zip(paths, sizes, strict=True):
        Image.new("RGB", (width, height)).save(path, **options)
    return paths


def test_few_sizes_stay_exact(tmp_path):
    sizes = [(40, 50 + number % padding.MAX_PROGRAMS) for number in range(20)]
    assert padding.choose_multiple(write_images(tmp_path, sizes)) == (1, "")


def test_many_sizes_are_padded_with_one_line_that_counts_programs(tmp_path):
    # 60 to 68 pixels: one or two multiples of 64.
    paths = write_images(tmp_path, [(40, 60 + n) for n in range(padding.MAX_PROGRAMS + 1)])
    assert padding.choose_multiple(paths) == (
        64,
        "9 image sizes: padded to multiples of 64 pixels, so that 2 programs are compiled",
    )
    assert padding.choose_multiple(path.read_bytes() for path in paths)[0] == 64
    assert padding.choose_multiple(paths, exact=True) == (1, "")
    seen: list[int] = []
    padding.choose_multiple(paths, progress=seen.append)
    assert seen == list(range(1, 10))


def test_multiple_grows_until_few_programs_remain(tmp_path):
    # 20 sizes in 10 multiples of 64, and 5 of 128.
    paths = write_images(tmp_path, [(40, 32 * (n + 1)) for n in range(20)])
    assert padding.choose_multiple(paths) == (
        128,
        "20 image sizes: padded to multiples of 128 pixels, so that 5 programs are compiled",
    )


def test_largest_multiple_is_used_if_all_leave_many_programs(tmp_path):
    paths = write_images(tmp_path, [(1, 512 * (n + 1)) for n in range(9)])
    multiple, note = padding.choose_multiple(paths)
    assert multiple == 512
    assert note.endswith("so that 9 programs are compiled")


def test_sizes_in_one_multiple_need_one_program(tmp_path):
    paths = write_images(tmp_path, [(40, 10 + number) for number in range(9)])
    assert padding.choose_multiple(paths)[1].endswith("so that 1 program is compiled")


def test_unreadable_files_are_skipped(tmp_path):
    paths = write_images(tmp_path, [(40, 10 + number) for number in range(8)])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    broken = [tmp_path / "text.jpg", tmp_path / "empty.jpg", tmp_path / "missing.jpg", b"", b"x"]
    assert padding.choose_multiple([*paths, *broken]) == (1, "")


def test_pad_repeats_the_last_row_and_column():
    images = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(
        padding.pad(images, 4)[0, ..., 0],
        [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]],
    )
    assert padding.pad(images, 1) is images
    assert padding.pad(images[:, :, :2], 2).shape == (1, 2, 2, 1)
