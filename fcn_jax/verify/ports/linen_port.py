"""Networks written with Flax Linen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen
from flax.traverse_util import flatten_dict, unflatten_dict

from fcn_jax.verify.ports.base import (
    Called,
    Layer,
    Leaves,
    Port,
    Watch,
    arguments,
    mode_arguments,
)
from fcn_jax.verify.types import Call


class LinenPort(Port):
    """A `flax.linen.Module` and its variables.

    Paths have no collection's name: `params/Conv_0/kernel` is `Conv_0.kernel`. If the module's
    `__call__` has an argument `train` (or `training`, `deterministic`, ...), it is set.
    """

    def __init__(
        self, module: linen.Module, variables: Mapping[str, Any], call: Call | None = None
    ) -> None:
        """Wrap a module.

        Args:
            module: unbound.
            variables: as `module.init` returns them, or its parameters alone.
            call: (function of the inputs alone, inputs) -> outputs; calls it if None.
        """
        self.name = type(module).__name__
        self._module, self._call = module, call
        if "params" not in variables:
            variables = {"params": variables}
        flat = flatten_dict(jax.tree.map(lambda x: x, dict(variables)))
        paths: dict[str, list[tuple[str, ...]]] = {}
        for key in flat:
            paths.setdefault(".".join(key[1:]), []).append(key)
        self._keys = {
            ".".join(key if len(keys) > 1 else key[1:]): key
            for keys in paths.values()
            for key in keys
        }
        self._leaves = {path: flat[key] for path, key in self._keys.items()}
        self.parameters = frozenset(p for p, key in self._keys.items() if key[0] == "params")
        prefixes = (key[1:end] for key in flat for end in range(2, len(key)))
        self.layers = tuple(dict.fromkeys(".".join(prefix) for prefix in prefixes))
        self._modules: dict[str, linen.Module] = {}
        self._run = {type(module): module}

    @property
    def leaves(self) -> dict[str, Any]:
        """See `Port`."""
        return dict(self._leaves)

    @property
    def parts(self) -> list[Any]:
        """See `Port`."""
        return list(self._run.values())

    def load(self, leaves: Leaves) -> None:
        """See `Port`."""
        self._leaves = {path: leaves.get(path, leaf) for path, leaf in self._leaves.items()}

    def _variables(self, leaves: Leaves) -> dict[str, Any]:
        return unflatten_dict({self._keys[path]: leaf for path, leaf in leaves.items()})

    def run(
        self, leaves: Leaves, inputs: tuple[Any, ...], *, train: bool = False, watch: Watch | None
    ) -> tuple[Any, dict[str, Any]]:
        """See `Port`."""
        variables = self._variables(leaves)
        buffers = [collection for collection in variables if collection != "params"]
        mode: Any = mode_arguments(type(self._module).__call__, train)
        changed: dict[str, Any] = {}

        def bound(*inputs: Any) -> Any:
            outputs, found = self._module.apply(
                variables, *inputs, mutable=buffers if train else [], **mode
            )
            changed.update(found)
            return outputs

        def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            self._run.setdefault(type(context.module), context.module)
            if context.method_name != "__call__":
                return function(*args, **kwargs)
            if isinstance(context.module, linen.Dropout):
                return args[0]
            path = ".".join(context.module.path)
            if _mirrors(context.module):
                self.flipped |= {path}
            if watch is None or not path:
                return function(*args, **kwargs)
            with watch.scope(path):
                output = function(*args, **kwargs)
            self._modules[path] = context.module.clone(
                parent=None, _deep_clone=True, _reset_names=True, name=None
            )
            return watch.output(path, args, kwargs, output)

        with linen.intercept_methods(intercept):
            outputs = self._call(bound, inputs) if self._call else bound(*inputs)
        updated = flatten_dict(dict(changed))
        names = {key: path for path, key in self._keys.items()}
        return outputs, {names[key]: value for key, value in updated.items() if key in names}

    def layer(self, path: str, called: Called, *, train: bool = False) -> Layer | None:
        """See `Port`. The mode is an attribute of the modules, so a layer keeps that of its run."""
        if path not in self._modules or (train and self._has_statistics(path)):
            return None
        steps = tuple(path.split("."))
        own = {
            (key[0], *key[1 + len(steps) :]): self._leaves[name]
            for name, key in self._keys.items()
            if key[1 : 1 + len(steps)] == steps
        }
        static = (_Static(self._modules[path]), called.args, called.kwargs)
        return Layer(static, unflatten_dict(own))

    def _has_statistics(self, path: str) -> bool:
        steps = tuple(path.split("."))
        return any(
            key[0] != "params" and key[1 : 1 + len(steps)] == steps for key in self._keys.values()
        )

    def run_layer(self, static: Any, values: Any, x: jax.Array) -> Any:
        """See `Port`."""
        module, *others = static
        args, kwargs = arguments(*others)
        return module.module.apply(values, x, *args, **kwargs)


class _Static:
    """A module, compared by its attributes, which may have no hash, such as a configuration."""

    def __init__(self, module: linen.Module) -> None:
        self.module = module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and bool(self.module == other.module)

    def __hash__(self) -> int:
        return hash(type(self.module))


def _mirrors(module: linen.Module) -> bool:
    return isinstance(module, linen.ConvTranspose) and not module.transpose_kernel
