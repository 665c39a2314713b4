"""Checks of the shapes in annotations."""

import inspect
from types import ModuleType

import pytest
from beartype import beartype
from jaxtyping import jaxtyped


def check_annotations(patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Check the jaxtyping annotations of public functions and layers at each call."""
    checked = jaxtyped(typechecker=beartype)
    for module in modules:
        for name in getattr(module, "__all__", None) or vars(module):
            value = getattr(module, name)
            if name.startswith("_") or not getattr(value, "__module__", "").startswith(
                module.__name__
            ):
                continue
            if inspect.isfunction(value):
                patch.setattr(module, name, checked(value))
            elif inspect.isclass(value) and "__call__" in vars(value):
                patch.setattr(value, "__call__", checked(vars(value)["__call__"]))
