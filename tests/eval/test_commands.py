"""`fcn-jax eval` and `fcn-jax predict` with protocols and metrics."""

import contextlib
import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax import checkpoint, cli
from fcn_jax.api import ModelSpec
from fcn_jax.config import parse
from fcn_jax.data.datasets.shapes import SHAPES_CLASSES
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import Sliding
from fcn_jax.models.build import build
from tests.helpers import scenes


@pytest.fixture(scope="module")
def run(tiny_plugin, tmp_path_factory):
    """A run with one checkpoint; its recipe evaluates on sliding windows of 32x48."""
    folder = tmp_path_factory.mktemp("project")
    data = scenes.write_scenes(folder / "data", train=1, val=2)
    spec = ModelSpec("tiny", "fcn32s", len(SHAPES_CLASSES), backbone_options={"width": 4})
    network = build(spec, rngs=nnx.Rngs(0))
    kernel = network.head.transpose_conv.kernel
    kernel[...] = np.random.default_rng(0).standard_normal(kernel[...].shape, np.float32)
    checkpoint.save_model(
        folder / "run" / "checkpoints" / "1",
        checkpoint.make_spec(spec, SHAPES_CLASSES),
        checkpoint.arrays(network),
    )
    table = {
        "data": {"dataset": "folder", "root": str(data), "crop_size": [32, 48]},
        "eval": {"protocol": "sliding"},
    }
    (folder / "run" / "config.json").write_text(parse(table).to_json())
    return folder / "run"


@pytest.fixture
def scored(run, capsys):
    """Arguments of `eval` -> the JSON result."""

    def evaluate(*arguments):
        capsys.readouterr()
        assert cli.main(["eval", str(run), "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return evaluate


def test_eval_takes_protocols_and_metrics(scored):
    assert scored()["protocol"]["name"] == "sliding"
    table = scored("--window", "16x24", "--overlap", "0.25", "--blend", "uniform")
    assert table["protocol"] == {
        "name": "sliding",
        "window": [16, 24],
        "overlap": 0.25,
        "blend": "uniform",
        "average": "probabilities",
        "flip": False,
    }
    table = scored("--scales", "0.5,1", "--no-flip", "--metrics", "ece,boundary_iou")
    assert table["protocol"] == {"name": "multiscale", "scales": [0.5, 1.0], "flip": False}
    assert {"ece", "boundary_iou"} <= set(table)
    table = scored("--protocol", "resize", "--size", "32x32", "--labels", "resized")
    assert table["protocol"]["labels"] == "resized"
    assert table["pixels_scored"] + table["pixels_ignored"] == 2 * 32 * 32
    table = scored("--protocol", "d2l", "--crop", "32x32", "--drop-last", "1", "--seed", "3")
    assert table["protocol"] == {"name": "d2l", "crop": [32, 32], "drop_last": 1, "seed": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "slide"], "no evaluation protocol 'slide'. Did you mean 'sliding'?"),
        (["--overlap", "1"], "protocol sliding: overlap is 1.0: expected at least 0 and below 1"),
        (["--metrics", "ecee"], "no metric 'ecee'. Did you mean 'ece'?"),
        (
            ["--protocol", "native", "--flip"],
            "protocol native has no setting 'flip', which belongs",
        ),
        (["--scales", "1,two"], "invalid list '1,two', expected numbers with commas"),
        (["--window", "16"], "invalid size '16', expected HEIGHTxWIDTH"),
    ],
)
def test_eval_reports_mistakes_in_one_line(run, capsys, arguments, message):
    with pytest.raises(SystemExit) if "invalid" in message else contextlib.nullcontext():
        assert cli.main(["eval", str(run), *arguments]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert message in line


def test_predict_takes_protocols(run, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")

    def predicted(*arguments):
        out = tmp_path / "_".join(["out", *arguments]).replace("--", "")
        assert (
            cli.main(["predict", str(run), str(tmp_path / "a.png"), "-o", str(out), *arguments])
            == 0
        )
        return np.asarray(Image.open(out / "a.png"))

    model, _ = checkpoint.load_model(run)
    masks = {
        window: Predictor(model, protocol=Sliding(window))(image) for window in ((32, 48), (16, 16))
    }
    assert not np.array_equal(*masks.values())
    np.testing.assert_array_equal(predicted(), masks[32, 48])  # by the recipe
    np.testing.assert_array_equal(predicted("--window", "16x16"), masks[16, 16])
    native = predicted("--protocol", "native")
    np.testing.assert_array_equal(native, Predictor(model)(image))
    capsys.readouterr()
    assert cli.main(["predict", str(run), str(tmp_path / "a.png"), "--protocol", "d2l"]) == 2
    assert "protocol d2l scores random crops; choose another one" in capsys.readouterr().err
