"""Plugins of a third party, installed separately, work by name in every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import installing

FIXTURES = Path(__file__).parents[1] / "fixtures"

RECIPE = """
[model]
backbone = "acme_net"
head = "acme_score"
backbone_options = { width = 8 }

[data]
dataset = "acme_pairs"
batch_size = 4
crop_size = [32, 32]

[optim]
lr = 0.05

[loss.acme_brier]
scale = 2.0

[loss.cross_entropy]

[train]
epochs = 4
num_visualizations = 1
"""

Command = Callable[..., str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    projects = [FIXTURES / name for name in ("stranger", "broken_import", "broken_promise")]
    installing.install(folder, *projects, scratch=tmp_path_factory.mktemp("scratch"))
    return folder


@pytest.fixture
def fcn_jax(site: Path, tmp_path: Path) -> Command:
    """A function that runs a command in an empty folder and returns its output."""

    def run(*arguments: str, status: int = 0) -> str:
        done = installing.run(["fcn_jax", *arguments], site, tmp_path)
        shown = done.stdout + done.stderr
        assert done.returncode == status, shown
        assert "Traceback" not in shown
        return shown

    return run


def write_pairs(root: Path) -> None:
    """Write nine images of 40x56 pixels whose right part is a wall."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(9):
        labels = np.zeros((40, 56), np.uint8)
        labels[:, 16 + 2 * number :] = 1
        image = rng.integers(0, 60, (40, 56, 3), np.uint8) + 150 * labels[..., None]
        Image.fromarray(image.astype(np.uint8)).save(root / f"{number}.image.png")
        Image.fromarray(labels).save(root / f"{number}.labels.png")


@pytest.mark.slow
def test_lists_a_foreign_plugin_next_to_broken_ones(fcn_jax: Command) -> None:
    shown = fcn_jax("plugins", "list", "--check", status=1)
    states = {line.split()[1]: line for line in shown.splitlines() if len(line.split()) > 1}
    for name in ("acme_net", "acme_score", "acme_small", "acme_pairs", "acme_brier"):
        assert states[name].endswith("acme-segmentation 3.2  ok")
    assert "broken-import 0.1  BROKEN: " in states["broken_net"]
    assert "No module named 'a_package_that_nobody_has'" in states["broken_net"]
    # The fault of this plugin is found when its network runs.
    assert states["lying_net"].endswith("broken-promise 0.1  ok")
    assert states["resnet18"].endswith("  ok")


@pytest.mark.slow
def test_foreign_plugin_meets_the_contract_and_a_wrong_one_does_not(
    fcn_jax: Command, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "pairs")
    for name, more in (
        ("acme_net", ()),
        ("acme_score", ()),
        ("acme_small", ()),
        ("acme_brier", ("--set", "scale=0.5")),
        ("acme_pairs", ("--data", "pairs")),
    ):
        assert "every promise is kept" in fcn_jax("plugins", "check", name, *more)
    shown = fcn_jax("plugins", "check", "lying_net", status=1)
    assert "backbone 'lying_net' of broken-promise 0.1" in shown
    assert (
        "for an input of (1, 64, 64, 3), 'only' has shape (1, 32, 32, 8); "
        "promised is (1, 32, 32, 16)" in shown
    )
    assert "No module named" in fcn_jax("plugins", "check", "broken_net", status=1)


@pytest.mark.slow
def test_trains_evaluates_predicts_and_converts_a_foreign_plugin_by_name(
    fcn_jax: Command, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "pairs")
    (tmp_path / "acme.toml").write_text(RECIPE)
    fcn_jax("train", "acme.toml", "--data", "pairs", "--workdir", "run")
    assert "wall" in fcn_jax("eval", "run")
    fcn_jax("predict", "run", "pairs/8.image.png", "-o", "masks")
    assert Image.open(tmp_path / "masks" / "8.image.png").size == (56, 40)
    fcn_jax("export", "run", "-o", "acme.safetensors")
    assert "acme.safetensors" in fcn_jax(
        "convert", "acme.safetensors", "--model", "acme_small", "-o", "again"
    )
    fcn_jax("predict", "again", "pairs/8.image.png", "-o", "more")
    first, second = (
        np.asarray(Image.open(tmp_path / name / "8.image.png")) for name in ("masks", "more")
    )
    assert np.array_equal(first, second)
    for backbone, complaint in (
        (
            "broken_net",
            "backbone 'broken_net' of broken-import 0.1 (broken_import:NET) cannot be loaded",
        ),
        (
            "lying_net",
            "backbone 'lying_net' of broken-promise 0.1 (broken_promise:NET) breaks its promise",
        ),
        ("acme_mesh", "Did you mean 'acme_net'"),
    ):
        with_it = ["--set", f"model.backbone={backbone}", "--set", "model.backbone_options={}"]
        assert complaint in fcn_jax(
            "train", "acme.toml", "--data", "pairs", "--workdir", backbone, *with_it, status=2
        )


@pytest.mark.slow
@pytest.mark.needs_torch
def test_verifies_a_foreign_plugin_by_name(fcn_jax: Command) -> None:
    assert "EQUAL" in fcn_jax(
        "verify", "--model", "acme_small", "--size", "65x97", "--grad", "--train-steps", "2"
    )
