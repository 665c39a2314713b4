"""`fcn-jax plugins new`: its output passes its own tests; a bad name leaves no files."""

from __future__ import annotations

import ast
import functools
import importlib.util
import keyword
import sys
import tempfile
import tomllib
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_jax import cli
from fcn_jax.errors import ConfigError, WriteError
from fcn_jax.models.resnet import RESNET18
from fcn_jax.plugins import registry, scaffold
from fcn_jax.plugins.entry import plural
from fcn_jax.plugins.scaffold import KINDS
from fcn_jax.plugins.testing import contract
from fcn_jax.plugins.testing.subject import Network, Subject
from fcn_jax.plugins.testing.torch_bridge import check_tables
from fcn_jax.testing import check_dataset, check_loss
from tests.helpers import installing

TEMPLATES = Path(scaffold.__file__).parent / "templates"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_writes_a_complete_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = scaffold.write("blue_whale", kind)
    assert folder == Path("fcn-jax-blue-whale")
    assert files(folder) == {
        "README.md",
        "pyproject.toml",
        "src/fcn_jax_blue_whale/__init__.py",
        f"src/fcn_jax_blue_whale/{kind}.py",
        "src/fcn_jax_blue_whale/py.typed",
        f"tests/test_{kind}.py",
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "fcn-jax-blue-whale"
    assert project["entry-points"] == {
        f"fcn_jax.{plural(kind)}": {"blue_whale": f"fcn_jax_blue_whale.{kind}:BLUE_WHALE"}
    }
    for path in files(folder):
        assert "your" not in (folder / path).read_text().lower().replace("with your own", "")


# Names that mean something to Python, to the templates, or to what the templates import.
HARD = [
    *(word for word in keyword.kwlist if word.islower()),
    *(
        "stage",
        "head",
        "backbone",
        "dataset",
        "classes",
        "image_suffixes",
        "options",
        "features",
        "no",
        "config_error",
        "any",
        "net",
    ),
    *(
        "yourname",
        "yourkind",
        "your_kind",
        "fcn_jax_yourname",
        "table",
        "torch_bridge",
        "feature_spec",
        "mapping",
        "source",
    ),
    *(
        "jax",
        "jnp",
        "numpy",
        "torch",
        "flax",
        "nnx",
        "nn",
        "dataclasses",
        "pathlib",
        "directory",
        "typing",
        "int",
        "x",
    ),
]


def imports(tree: ast.Module) -> list[str]:
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]


def bound(tree: ast.Module) -> list[str]:
    """The names that a module binds, including classes inside functions; repeated if repeated."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names += [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ClassDef):
            names.append(node.name)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [ast.unparse(target) for target in node.targets]
    return names


@given(
    name=st.one_of(
        st.sampled_from(HARD),
        # File systems refuse longer names than 255 bytes.
        st.from_regex(scaffold._NAME, fullmatch=True).filter(lambda name: len(name) < 100),
    ),
    kind=st.sampled_from(KINDS),
)
@settings(max_examples=60)
@pytest.mark.slow
def test_code_compiles_and_binds_nothing_twice_for_any_name(name: str, kind: str) -> None:
    nothing = mock.patch.object(registry, "default", return_value=registry.Registry([]))
    with tempfile.TemporaryDirectory() as scratch, nothing:
        try:
            project = scaffold.write(name, kind, Path(scratch) / "project")
        except ConfigError as error:
            assume("already installed" not in str(error))
            assert name in ("true", "false", "inf", "nan")
            return
        package = f"fcn_jax_{name}"
        table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        assert table["name"] == f"fcn-jax-{name.replace('_', '-')}"
        assert table["entry-points"] == {
            f"fcn_jax.{plural(kind)}": {name: f"{package}.{kind}:{name.upper()}"}
        }
        template = ast.parse(
            (TEMPLATES / kind / "src" / "fcn_jax_yourname" / f"{kind}.py").read_text()
        )
        for path in project.rglob("*.py"):
            tree = ast.parse(path.read_text())
            compile(tree, str(path), "exec")
            assert len(set(bound(tree))) == len(bound(tree)), bound(tree)
            if path.parent.name == package and path.name != "__init__.py":
                assert imports(tree) == imports(template)
                assert name.upper() in bound(tree)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in KINDS
        for name in ("classes", "head", "stage", "yourkind", "class", "jax", "image_suffixes")
    ],
)
def test_plugin_of_a_hard_name_meets_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """Checks only shapes and tables, and the dataset on two images, to be fast."""
    project = scaffold.write(name, kind, tmp_path / "project")
    file = project / "src" / f"fcn_jax_{name}" / f"{kind}.py"
    found = importlib.util.spec_from_file_location(f"written_{kind}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, found.name, module)
    found.loader.exec_module(module)
    descriptor = getattr(module, name.upper())
    assert descriptor.name == name
    if kind == "dataset":
        for part in ("images", "masks"):
            (project / part).mkdir()
            Image.fromarray(np.zeros((4, 6), np.uint8)).save(project / part / "0.png")
        for split in ("train", "val"):
            (project / f"{split}.txt").write_text("0\n")
        check_dataset(descriptor, project)
        return
    if kind == "loss":
        check_loss(descriptor)
        return
    subject = Subject(name)
    options = contract.check_descriptor(subject, descriptor, None)
    if kind == "backbone":
        specs = descriptor.features(options, 16)
        settings = {"output_stride": 16}
        inputs = [jax.ShapeDtypeStruct((1, 33, 47, 3), np.float32)]
        expected = contract.feature_shapes(specs, 1, (33, 47))
        build = functools.partial(descriptor.build, options, output_stride=16)
        network = Network(subject, build, lambda module, inputs: module(*inputs))
    else:
        specs = RESNET18.features(RESNET18.options(), 32)
        selected = [spec for spec in specs if spec.name in descriptor.select(options, specs)]
        settings = {"features": selected, "num_classes": 3}
        shapes = contract.feature_shapes(selected, 1, (33, 47))
        inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes.values()]
        expected = {"logits": (1, 33, 47, 3)}
        build = functools.partial(descriptor.build, options, **settings)
        network = Network(
            subject,
            build,
            lambda module, inputs: {
                "logits": module(dict(zip(shapes, inputs, strict=True)), out_hw=(33, 47))
            },
        )
    contract.check_shapes(network, inputs, expected, np.float32)
    check_tables(network, descriptor.torch, options)
    if importlib.util.find_spec("torch"):
        assert descriptor.torch.reference(options=options, **settings).state_dict()


@pytest.mark.parametrize("name", ["true", "false", "inf", "nan"])
def test_rejects_a_name_that_is_a_value_in_a_recipe(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=f"'{name}' is not a valid name of a plugin: .*sets the value .*; use another name",
    ):
        scaffold.write(name, "backbone", tmp_path / "project")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_written_plugin_passes_its_own_tests(tmp_path: Path, kind: str) -> None:
    project = scaffold.write("blue_whale", kind, tmp_path / "project")
    site = tmp_path / "site"
    installing.install(site, project, scratch=tmp_path / "scratch")
    listed = installing.run(["fcn_jax", "plugins", "list"], site).stdout
    assert plural(kind) in next(line for line in listed.splitlines() if "blue_whale" in line)
    done = installing.run(["pytest", "-q", "-p", "no:cacheprovider", str(project)], site, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_command_prints_the_next_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "new", "whale", "-o", str(tmp_path / "deep" / "whale")]) == 0
    assert f"pip install -e '{tmp_path}/deep/whale[test]'" in capsys.readouterr().out
    assert (tmp_path / "deep" / "whale" / "src" / "fcn_jax_whale" / "backbone.py").is_file()


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("My-Net", "my_net"),
        ("MyNet", "my_net"),
        ("fcn-jax-whale", "whale"),
        ("3net", "net"),
        ("net_", "net"),
        ("a/b", "a_b"),
        ("", "mynet"),
        ("Größe", "gr"),
    ],
)
def test_rejects_a_malformed_name_and_proposes_a_valid_one(
    tmp_path: Path, name: str, proposal: str
) -> None:
    with pytest.raises(
        ConfigError, match=f"'{name}' is not a valid name of a plugin: .*such as '{proposal}"
    ):
        scaffold.write(name, "backbone", tmp_path / "project")
    assert not list(tmp_path.iterdir())


def test_rejects_a_taken_name_and_names_its_owner(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match="a backbone named 'resnet18' is already registered, by fcn-jax; use another name",
    ):
        scaffold.write("resnet18", "backbone", tmp_path / "project")
    with pytest.raises(ConfigError, match="a dataset named 'folder' is already registered"):
        scaffold.write("folder", "dataset", tmp_path / "project")
    with pytest.raises(ConfigError, match="a distribution fcn-jax-tiny is already installed"):
        scaffold.write("tiny", "head", tmp_path / "project")
    assert not list(tmp_path.iterdir())


def test_does_not_change_an_existing_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    assert cli.main(["plugins", "new", "whale", "-o", str(tmp_path / "mine")]) == 2
    assert "mine exists; name a new folder" in capsys.readouterr().err
    assert files(tmp_path) == {"mine/notes"}


@pytest.mark.parametrize("output", [".", "..", "/", "file/new", "dangling"])
def test_rejects_an_output_where_no_folder_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert cli.main(["plugins", "new", "whale", "-o", output]) == 2
    assert f"{output}: cannot be written (" in capsys.readouterr().err
    assert files(tmp_path) == {"file"}
    assert not (tmp_path / "nowhere").exists()


def test_leaves_nothing_if_a_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write_text(path: Path, text: str, **settings: object) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        path.write_bytes(text.encode())

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(WriteError, match="No space left on device"):
        scaffold.write("whale", "backbone", tmp_path / "project")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["new"], ["new", "whale", "--head", "--dataset"], ["list", "--timeout", "0"], []]
)
def test_rejects_invalid_arguments(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["plugins", *arguments])
    assert caught.value.code == 2
    assert "usage: fcn-jax plugins" in capsys.readouterr().err


def test_templates_are_of_known_kinds() -> None:
    assert {plural(kind) for kind in KINDS} < set(registry.KINDS)
