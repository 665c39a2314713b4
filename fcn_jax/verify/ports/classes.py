"""Watches the calls of modules through their classes, for NNX and Equinox."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from fcn_jax.verify.ports.base import Watch


@contextlib.contextmanager
def watching(modules: Mapping[str, Any], watch: Watch | None) -> Iterator[None]:
    """Pass every call of a module to `watch`.

    Args:
        modules: the modules by path.
        watch: None does nothing.
    """
    if watch is None:
        yield
        return
    paths = {id(module): path for path, module in modules.items()}
    classes = {type(module) for module in modules.values()}
    own = {cls: cls.__dict__.get("__call__") for cls in classes}

    def wrapped(cls: Any) -> Any:
        original = cls.__call__

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A subclass may call its parent's method: that is a part of a call.
            if type(self) is not cls or id(self) not in paths:
                return original(self, *args, **kwargs)
            path = paths[id(self)]
            with watch.scope(path):
                output = original(self, *args, **kwargs)
            return watch.output(path, args, kwargs, output)

        return call

    # All before the first is set, because a class may inherit the method from another one of them.
    wrappers = {cls: wrapped(cls) for cls in classes}
    try:
        for cls, wrapper in wrappers.items():
            type.__setattr__(cls, "__call__", wrapper)
        yield
    finally:
        for cls in classes:
            if own[cls] is None:
                type.__delattr__(cls, "__call__")
            else:
                type.__setattr__(cls, "__call__", own[cls])
