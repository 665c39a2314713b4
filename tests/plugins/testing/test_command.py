"""`fcn-jax plugins check`, and the fixtures of the pytest plugin."""

import re
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

from fcn_jax import cli
from fcn_jax.plugins import registry
from fcn_jax.plugins.testing.command import check_plugin
from fcn_jax.testing import check_backbone
from tests.plugins.testing.test_dataset import write_folder


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A function that registers modules, given by name, with a backbone PLUGIN each."""

    def register(**modules):
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        lines = [f"{name} = {name}:PLUGIN" for name in modules]
        (info / "entry_points.txt").write_text("\n".join(["[fcn_jax.backbones]", *lines]) + "\n")
        for name, code in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(tmp_path)
        found, _ = registry.read_metadata(metadata.distributions(path=[str(tmp_path)]))
        plugins = registry.Registry(found)
        monkeypatch.setattr(registry, "default", lambda: plugins)

    yield register
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None)]:
        if Path(sys.modules[name].__file__).parent == tmp_path:
            del sys.modules[name]


NET = """
    from flax import nnx
    from fcn_jax import nn
    from fcn_jax.api import Backbone, FeatureSpec, ceil_size

    class Net(nnx.Module):
        def __init__(self, options, *, output_stride, **settings):
            self.conv = nn.Conv(3, 4, 3, stride=2, padding=1, **settings)

        def __call__(self, x):
            return {{"only": self.conv(x)}}

    PLUGIN = Backbone(
        name="{name}",
        summary="one convolution",
        output_strides=(2,),
        features=lambda options, stride: (FeatureSpec("only", {channels}, 2, ceil_size(2)),),
        build=Net,
    )
"""


@pytest.mark.slow
def test_prints_whether_promises_are_kept(registered, capsys):
    registered(
        honest_net=NET.format(name="honest_net", channels=4),
        lying_net=NET.format(name="lying_net", channels=5),
    )
    assert cli.main(["plugins", "check", "mine:honest_net"]) == 0
    shown = capsys.readouterr().out
    assert "backbone 'honest_net' of mine 1.0 (honest_net:PLUGIN)" in shown
    assert re.search(r"import       \d\.\d{3} s in addition to fcn_jax, \d+ modules", shown)
    assert "2.1; this fcn-jax has 2.1" in shown
    assert "every promise is kept" in shown
    assert cli.main(["plugins", "check", "lying_net"]) == 1
    shown = capsys.readouterr()
    assert "BROKEN  contract     backbone 'lying_net' at output stride 2: for an input" in shown.out
    assert " s  backbone 'lying_net' at output stride 2: features" in shown.err


@pytest.mark.slow
def test_kind_selects_among_plugins_of_one_name(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path, "train", "val")
    model = registry.Entry("models", "folder", "acme", "1", "nowhere:FOLDER")
    plugins = registry.Registry([registry.default().find("datasets", "folder"), model])
    monkeypatch.setattr(registry, "default", lambda: plugins)
    assert cli.main(["plugins", "check", "folder", "--data", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert (
        "'folder' names plugins of several kinds, and --data applies to one of them: add "
        "--kind model or --kind dataset" in shown.err
    )
    assert not shown.out
    assert (
        cli.main(["plugins", "check", "folder", "--kind", "dataset", "--data", str(tmp_path)]) == 0
    )
    assert "every promise is kept" in capsys.readouterr().out
    assert cli.main(["plugins", "check", "folder", "--kind", "head"]) == 2
    assert "no head is named 'folder'" in capsys.readouterr().err
    assert cli.main(["plugins", "check", "folder", "--kind", "model"]) == 1
    assert "No module named 'nowhere'" in capsys.readouterr().out


@pytest.mark.slow
def test_checks_the_given_splits_of_a_dataset(tmp_path, capsys):
    write_folder(tmp_path, "train", "test", "extra")
    command = ["plugins", "check", "folder", "--data", str(tmp_path)]
    assert cli.main(command) == 2
    shown = capsys.readouterr().err
    assert "has no split 'val'. Available: extra, test, train." in shown
    assert shown.rstrip().endswith("Without --split, train and val are checked")
    assert cli.main([*command, "--split", "train", "--split", "test"]) == 0
    assert cli.main([*command, "--split", "nowhere"]) == 2
    assert "has no split 'nowhere'. Available: extra, test, train." in capsys.readouterr().err


@pytest.mark.slow
def test_reports_an_import_that_is_heavy_or_fails_or_hangs(registered, capsys, tmp_path):
    (tmp_path / "torch.py").write_text("")
    registered(
        heavy_net="import torch\n" + textwrap.dedent(NET.format(name="heavy_net", channels=4)),
        broken_net="1 / 0",
        slow_net="import time; time.sleep(600)",
    )
    assert cli.main(["plugins", "check", "broken_net"]) == 1
    assert (
        "BROKEN  import       backbone 'broken_net' of mine 1.0 (broken_net:PLUGIN) cannot be"
        in capsys.readouterr().out
    )
    assert cli.main(["plugins", "check", "slow_net", "--timeout", "2"]) == 1
    assert "BROKEN  import       timed out after 2 s at import" in capsys.readouterr().out
    heavy = next(check_plugin(registry.default().find("backbones", "heavy_net")))
    assert str(heavy).startswith("  BROKEN  import")
    assert heavy.detail.endswith(
        "; it imports torch: import them inside the functions that need them"
    )


def test_names_the_line_of_the_plugin_that_fails(registered, capsys):
    code = textwrap.dedent(NET.format(name="odd_net", channels=4)).replace("stride=2", "stride=two")
    registered(odd_net=code)
    assert cli.main(["plugins", "check", "odd_net"]) == 1
    shown = capsys.readouterr().out
    assert (
        "it cannot be built or run: NameError: name 'two' is not defined (odd_net.py, line" in shown
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["resnet81"],
            "no backbone, head, model, dataset or loss is named 'resnet81'. Did you mean "
            "'resnet18'",
        ),
        (["resnet18", "--set", "depth=3"], "unknown key 'depth'"),
        (["resnet18", "--data", "x"], "--data is for a dataset"),
        (["resnet18", "--split", "val"], "--split is for a dataset"),
        (["no-such-nets:resnet18"], "no-such-nets is not installed: pip install no-such-nets"),
        (
            ["fcn32s_resnet18", "--set", "width=3"],
            "--set is for the options of a backbone, head or loss",
        ),
        (["folder", "--data", "nowhere"], "does not exist"),
    ],
)
def test_exits_with_2_for_bad_input(arguments, complaint, capsys):
    assert cli.main(["plugins", "check", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_fixture_has_the_checks(plugin_contract):
    assert plugin_contract.check_backbone is check_backbone
    assert {"check_backbone", "check_dataset", "check_head", "check_model"} <= set(
        plugin_contract.__all__
    )


@pytest.mark.parametrize("name", ["fcn-jax-tiny", "FCN_Jax.tiny"])
def test_fixture_registers_a_project_file(plugin_project, tmp_path, name):
    groups = (
        '[project.entry-points."fcn_jax.heads"]\nnew_head = "mine:HEAD"\n'
        '[project.entry-points.other]\nx = "y"\n'
    )
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "7"\n{groups}')
    assert "tiny" in registry.default().names("backbones"), (
        "the installed copy, which the project file replaces"
    )
    plugins = plugin_project(tmp_path / "pyproject.toml")
    assert registry.default() is plugins
    assert plugins.find("heads", "new_head") == registry.Entry(
        "heads", "new_head", name, "7", "mine:HEAD"
    )
    assert "resnet18" in plugins.names("backbones")
    assert "tiny" not in plugins.names("backbones")


def test_pytest_plugin_imports_nothing_heavy(tmp_path):
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_it():\n"
        "    assert 'fcn_jax.plugins.testing.pytest_plugin' in sys.modules\n"
        "    assert not {'jax', 'flax', 'numpy', 'torch', 'pydantic'} & set(sys.modules)\n"
    )
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        "-p",
        "no:jaxtyping",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
