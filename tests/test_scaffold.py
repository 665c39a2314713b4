"""`fcn-jax plugins new`: what it writes passes its own tests at once, and a bad name leaves nothing behind."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from fcn_jax import cli, registry, scaffold
from fcn_jax.errors import ConfigError, WriteError

sys.path.insert(0, str(Path(__file__).parent))
import installing

KINDS = sorted(scaffold.WHAT)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_distribution_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
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
    assert project["entry-points"] == {f"fcn_jax.{kind}s": {"blue_whale": f"fcn_jax_blue_whale.{kind}:BLUE_WHALE"}}
    for path in files(folder):
        assert "your" not in (folder / path).read_text().lower().replace("by your own", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_its_own_tests_at_once(tmp_path: Path, kind: str) -> None:
    project = scaffold.write("blue_whale", kind, tmp_path / "project")
    site = tmp_path / "site"
    installing.install(site, project, scratch=tmp_path / "scratch")
    listed = installing.run(["fcn_jax", "plugins", "list"], site).stdout
    assert f"{kind}s" in next(line for line in listed.splitlines() if "blue_whale" in line)
    done = installing.run(["pytest", "-q", "-p", "no:cacheprovider", str(project)], site, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_the_command_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "new", "whale", "-o", str(tmp_path / "deep" / "whale")]) == 0
    assert f"pip install -e {tmp_path}/deep/whale" in capsys.readouterr().out
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
def test_a_malformed_name_is_told_with_one_that_would_do(tmp_path: Path, name: str, proposal: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' cannot be a plugin's name: .*such as '{proposal}"):
        scaffold.write(name, "backbone", tmp_path / "project")
    assert not list(tmp_path.iterdir())


def test_a_taken_name_is_told_with_its_owner(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a backbone named 'resnet18' is registered already, by fcn-jax; take another name"):
        scaffold.write("resnet18", "backbone", tmp_path / "project")
    with pytest.raises(ConfigError, match="a data set named 'folder' is registered already"):
        scaffold.write("folder", "dataset", tmp_path / "project")
    with pytest.raises(ConfigError, match="a distribution fcn-jax-tiny is installed already"):
        scaffold.write("tiny", "head", tmp_path / "project")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    assert cli.main(["plugins", "new", "whale", "-o", str(tmp_path / "mine")]) == 2
    assert "mine exists; name a folder that is still to be made" in capsys.readouterr().err
    assert files(tmp_path) == {"mine/notes"}


def test_nothing_is_left_of_a_distribution_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("arguments", [["new"], ["new", "whale", "--head", "--dataset"], ["list", "--timeout", "0"], []])
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["plugins", *arguments])
    assert caught.value.code == 2
    assert "usage: fcn-jax plugins" in capsys.readouterr().err


def test_every_kind_of_template_is_a_kind_of_plugin() -> None:
    assert {f"{kind}s" for kind in KINDS} < set(registry.KINDS)
