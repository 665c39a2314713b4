"""Which files, versions and weights a report depends on, and whether it still holds."""

import json
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import fcn_jax.models.resnet  # noqa: F401
from fcn_jax import cli, nn
from fcn_jax.pytorch import files
from fcn_jax.runtime import json_text
from fcn_jax.verify import Comparison, Report, Section, compare, evidence, html

torch = pytest.importorskip("torch")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package: `net` imports `parts`, but neither `other` nor `jax` matter."""
    folder = tmp_path / "my_port"
    folder.mkdir()
    texts = {
        "__init__.py": "",
        "net.py": "import jax\nfrom torch import nn\n\ndef run(x):\n    from . import parts\n\n"
        "class Net(nn.Module):\n    pass\n",
        "parts.py": "x = 1\n",
        "other.py": "x = 1\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import my_port.net
    import my_port.other
    import my_port.parts

    yield folder, my_port.net
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_port"]:
        del sys.modules[name]


def report_on(*networks, **fields):
    comparison = Comparison("conv", (4,), 1e-7, 2e-7, 1e-6, 3e-7)
    sections = [Section("outputs", 2.0, (comparison,))]
    sources = evidence.sources(*networks)
    return Report("net", "float32", sections=sections, sources=sources, **fields)


def test_digest_depends_on_names_types_shapes_and_values():
    tensors = {"a": np.zeros((2, 3), np.float32), "n": np.int64(3)}
    same = {"n": np.int64(3), "a": np.zeros((3, 2), np.float32).T}
    assert files.digest(tensors) == files.digest(same), "neither order nor memory layout counts"
    others = [
        {"b": tensors["a"], "n": tensors["n"]},
        {"a": tensors["a"].reshape(3, 2), "n": tensors["n"]},
        {"a": tensors["a"].astype(np.float64), "n": tensors["n"]},
        {"a": tensors["a"] + np.float32(1e-45), "n": tensors["n"]},
        {"a": tensors["a"], "n": np.int64(4)},
        {"a": tensors["a"]},
    ]
    assert len({files.digest(tensors), *map(files.digest, others)}) == 7


def test_sources_are_the_files_of_all_submodules_and_what_they_import(package):
    folder, net = package
    found = evidence.sources(net.Net())
    names = ("__init__.py", "net.py", "parts.py")
    assert found == {f"my_port/{name}": files.sha256(folder / name) for name in names}
    assert evidence.sources(net.run) == found, "a function is described by its module"
    assert evidence.sources(torch.nn.ReLU(), np.mean) == {}, "versions describe libraries"


def test_sources_of_layers_of_this_package():
    found = evidence.sources(nn.Conv(3, 4, 3, rngs=nnx.Rngs(0)))
    assert {"fcn_jax/nn/_conv.py", "fcn_jax/nn/_conv_cpu.py"} <= found.keys()
    assert all(name.startswith("fcn_jax/nn/") for name in found)
    more = evidence.sources(nn.Conv(3, 4, 3, rngs=nnx.Rngs(0)), also=["fcn_jax.models.resnet"])
    assert {"fcn_jax/models/resnet.py", "fcn_jax/pytorch/rules.py"} <= more.keys() - found.keys()
    assert "fcn_jax/models/fcn_skip.py" not in more


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A network of each framework whose layers and activation come from three other packages."""
    texts = {
        "their_eqx": "import equinox as eqx\n\nclass Layer(eqx.Module):\n"
        "    linear: eqx.nn.Linear\n\n"
        "    def __call__(self, x):\n        return self.linear(x)\n",
        "their_linen": "from flax import linen\n\nclass Layer(linen.Module):\n"
        "    @linen.compact\n"
        "    def __call__(self, x):\n        return linen.Dense(3, name='linear')(x)\n",
        "their_act": "def same(x):\n    return x\n",
        "their_unused": "",
        "their_nets": """
from collections.abc import Callable
import equinox as eqx
from flax import linen
import their_act, their_eqx, their_linen, their_unused

class Eqx(eqx.Module):
    layers: list
    act: Callable

    def __call__(self, x):
        return self.act(self.layers[0](x))

class Linen(linen.Module):
    act: Callable = their_act.same

    @linen.compact
    def __call__(self, x):
        return self.act(their_linen.Layer(name="layer")(x))
""",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import their_nets

    yield tmp_path, their_nets
    for name in texts:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("framework", ["eqx", "linen"])
def test_sources_include_layers_and_functions_of_other_packages(packages, framework):
    folder, nets = packages
    x = np.ones((2, 8), np.float32)
    if framework == "eqx":
        eqx = pytest.importorskip("equinox")
        linear = eqx.nn.Linear(8, 3, key=jax.random.key(0))
        network = nets.Eqx([nets.their_eqx.Layer(linear)], nets.their_act.same)
        names = {"weight": "layers.0.linear.weight", "bias": "layers.0.linear.bias"}
    else:
        network = (nets.Linen(), jax.eval_shape(nets.Linen().init, jax.random.key(0), x))
        names = {"weight": "layer.linear.kernel", "bias": "layer.linear.bias"}
    quick = {"train": False, "grad": False, "sensitive": False}
    report = compare(torch.nn.Linear(8, 3), network, x, state_dict_map=names, **quick)
    assert report.equal, str(report)
    used = {"their_nets.py", "their_act.py", f"their_{framework}.py"}
    assert set(report.sources) == used, "neither unused packages nor this test define it"
    assert evidence.differences(report.to_dict()) == []
    for name in sorted(used):
        text = (folder / name).read_text()
        (folder / name).write_text(f"{text}# changed\n")
        assert evidence.differences(report.to_dict()) == [f"{name} changed"]
        (folder / name).write_text(text)


def test_criterion_holds_the_numbers_that_decide():
    found = json.loads(json_text.dumps(evidence.criterion()))
    assert found["factors"]["layers"] == 2.0
    assert found["floor"] == {"float32": 2.0**-21, "bfloat16": 2.0**-9}
    assert found["inconclusive"] == 0.5
    assert found == evidence.criterion(), "JSON keeps every digit"


def test_report_holds_until_a_file_changes(package):
    folder, net = package
    report = report_on(net.Net()).to_dict()
    assert evidence.differences(report) == []
    (folder / "other.py").write_text("x = 2\n")
    assert evidence.differences(report) == []
    (folder / "parts.py").write_text("x = 2\n")
    assert evidence.differences(report) == ["my_port/parts.py changed"]
    (folder / "parts.py").unlink()
    assert evidence.differences(report) == ["my_port/parts.py is missing"]


def test_report_holds_for_its_versions_criterion_and_weights_only(package, tmp_path):
    _, net = package
    file = tmp_path / "net.pth"
    file.write_bytes(b"weights")
    weights = {"source": str(file), "sha256": files.sha256(file)}
    report = report_on(net.Net(), weights=weights)
    versions = dict(report.environment["versions"])
    report.environment["versions"].update(jax="0.0.1", optax="0.0.1", gone="3", python="3.0")
    report.criterion = {**report.criterion, "inconclusive": 0.7}
    file.write_bytes(b"other weights")
    assert evidence.differences(report.to_dict()) == [
        f"jax 0.0.1 -> {versions['jax']}",
        "gone 3 -> not installed",
        "the criterion changed (inconclusive)",
        f"weights {file} changed",
    ]
    file.unlink()
    report.settings = {"train_steps": 2}
    found = evidence.differences(report.to_dict())
    assert f"optax 0.0.1 -> {versions['optax']}" in found, "training depends on it"
    assert not any("weights" in line for line in found), "weights that are not here cannot differ"


def test_report_without_source_files_does_not_hold():
    assert evidence.differences(report_on().to_dict()) == ["it names no source files"]


def test_locates_a_module_without_a_package(tmp_path, monkeypatch):
    (tmp_path / "lonely_port.py").touch()
    assert evidence.locate("lonely_port.py") is None
    monkeypatch.syspath_prepend(tmp_path)
    assert evidence.locate("lonely_port.py") == tmp_path / "lonely_port.py"
    assert evidence.locate("no_such_package/net.py") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script-1.py").touch()
    assert evidence.locate("script-1.py").samefile(tmp_path / "script-1.py")


def test_check_says_whether_reports_hold(package, tmp_path, capsys):
    folder, net = package
    wrong = Section("outputs", 2.0, (Comparison("conv", (4,), 1.0, 2e-7, 1e-6, 1.0),))
    html.write(report_on(net.Net()), tmp_path / "right.json")
    failed = report_on(net.Net())
    failed.sections = [wrong]
    html.write(failed, tmp_path / "wrong.json")
    right = ["verify", "--check", str(tmp_path / "right.json")]
    assert cli.main(right) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'right.json'}: holds: EQUAL: net in float32 is the same function in JAX and "
        "PyTorch\n"
    )
    assert cli.main([*right, "--check", str(tmp_path / "wrong.json")]) == 1
    assert "wrong.json: holds: NOT EQUAL: net in float32: conv: error" in capsys.readouterr().out
    (folder / "net.py").write_text("x = 2\n")
    assert cli.main(right) == 1
    out = capsys.readouterr().out
    assert out == f"{tmp_path / 'right.json'}: no longer holds: my_port/net.py changed\n"


def test_check_names_all_files_that_are_no_reports(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / name for name in ("a.json", "b.json", "folder")]
    assert cli.main(["verify", *(x for path in paths for x in ("--check", str(path)))]) == 2
    error = capsys.readouterr().err
    assert "a.json: not a report of fcn-jax verify" in error
    assert "b.json: not a readable report of fcn-jax verify (No such file" in error
    assert "folder: neither a run" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--model", "resnet18"], ["--report", "r.json"]])
def test_check_compares_nothing(arguments, capsys):
    assert cli.main(["verify", "--check", "r.json", *arguments]) == 2
    assert "takes neither --model nor --report" in capsys.readouterr().err


def test_verify_needs_a_model_or_a_report(capsys):
    assert cli.main(["verify"]) == 2
    assert "(--model NAME), or a report (--check REPORT)" in capsys.readouterr().err
