"""The packages of fcn_jax import one another in one direction only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcn_jax

ROOT = Path(__file__).parents[1]

ORDER = (
    "errors",
    "runtime",
    "nn",
    "pytorch",
    "plugins",
    "config",
    "recipes",
    "models",
    "checkpoint",
    "data",
    "convert",
    "pretrained",
    "eval",
    "train",
    "plan",
    "explore",
    "report",
    "verify",
    "plugins.testing",
    "plugins.scaffold",
    "cli",
    "__main__",
)
"""A package may import only those before it. Imports inside functions count, too."""

FACADES = ("fcn_jax", "fcn_jax.api")
"""Public modules that only re-export. Modules of the package do not import them."""

SAME = {"testing": "plugins.testing"}
"""A facade that belongs to a package."""


def package_of(module: str) -> str:
    """The longest entry of `ORDER` that contains a module."""
    name = module.removeprefix("fcn_jax.")
    name = SAME.get(name.split(".")[0], name)
    return max(
        (entry for entry in ORDER if f"{name}.".startswith(f"{entry}.")), key=len, default=name
    )


def imports(source: str) -> Iterator[tuple[int, str]]:
    """The line and the full name of each module of fcn_jax that a file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names = [node.args[0].value]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "fcn_jax")


def modules() -> dict[str, Path]:
    """All modules of the package by name, except its facades and the templates of new plugins."""
    found = {}
    for path in sorted((ROOT / "fcn_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if "templates" not in parts and name not in FACADES:
            found[name] = path
    return found


def test_every_module_has_a_place_in_the_order():
    assert {package_of(name) for name in modules()} == set(ORDER)


def test_packages_import_only_those_before_them():
    wrong = []
    for name, path in modules().items():
        own = package_of(name)
        for line, imported in imports(path.read_text()):
            other = package_of(imported)
            if other != own and other in ORDER and ORDER.index(other) > ORDER.index(own):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {own} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_the_public_facades():
    wrong = []
    for path in modules().values():
        for line, imported in imports(path.read_text()):
            head, _, last = imported.rpartition(".")
            public = head == "fcn_jax" and last in fcn_jax.__all__
            if public or imported in FACADES or head == "fcn_jax.api":
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {imported}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import fcn_jax.nn", ["fcn_jax.nn"]),
        ("from fcn_jax import nn, errors", ["fcn_jax.nn", "fcn_jax.errors"]),
        ("def f():\n    from fcn_jax.cli import main", ["fcn_jax.cli.main"]),
        ("importlib.import_module('fcn_jax.eval')", ["fcn_jax.eval"]),
        ("import jax, fcn_jax_vgg.paper, fcn_jax_vgg.vgg", []),
    ],
)
def test_finds_imports_in_every_form(code, expected):
    assert [name for _, name in imports(code)] == expected


def test_subpackages_of_plugins_have_their_own_place():
    assert package_of("fcn_jax.plugins.testing.heads") == "plugins.testing"
    assert package_of("fcn_jax.plugins.registry.Registry") == "plugins"
    assert package_of("fcn_jax.evaluation") == "evaluation"


def test_plugins_use_only_the_public_api():
    public = ("api", "errors", "nn", "pytorch", "testing")
    wrong = []
    for path in sorted((ROOT / "plugins").glob("*/fcn_jax_*/**/*.py")):
        for line, imported in imports(path.read_text()):
            if imported.split(".")[1] not in public:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_the_package_is_imported_without_jax():
    code = (
        "import sys, fcn_jax; heavy = {'jax', 'flax', 'numpy', 'typing', 'importlib.metadata'};"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; before = set(sys.modules); {code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    for name in fcn_jax.__all__:
        assert getattr(fcn_jax, name) is not None
    assert dir(fcn_jax) == sorted(fcn_jax.__all__)
    with pytest.raises(AttributeError, match="'fcn_jax' has no attribute 'resnet'"):
        _ = fcn_jax.resnet


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "fcn_jax" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == fcn_jax._MODULES
