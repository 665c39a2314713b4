"""Networks written with Equinox."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax

from fcn_jax.verify.ports.base import Called, Layer, Leaves, Port, Watch, arguments
from fcn_jax.verify.ports.classes import watching
from fcn_jax.verify.types import Call


class EquinoxPort(Port):
    """An `equinox.Module` that is called with a single example, as is usual in Equinox.

    Networks with `equinox.nn.State` need a `call` that passes it; updates of the state are not
    compared.
    """

    channels_last = False

    def __init__(self, module: eqx.Module, call: Call | None = None) -> None:
        """Wrap a module.

        Args:
            module: the network.
            call: (module, inputs) -> outputs; `jax.vmap(module)(*inputs)` if None.
        """
        self.name = type(module).__name__
        self._module = module
        self._call = call or (lambda module, inputs: jax.vmap(module)(*inputs))
        self.layers = tuple(_submodules(module))
        self.parameters = frozenset(self.leaves)
        self.flipped = frozenset(
            path
            for path, part in _submodules(module).items()
            if isinstance(part, eqx.nn.ConvTranspose)
        )

    @property
    def leaves(self) -> dict[str, Any]:
        """See `Port`."""
        found = jax.tree_util.tree_leaves_with_path(eqx.filter(self._module, eqx.is_inexact_array))
        return {_name(path): leaf for path, leaf in found}

    @property
    def parts(self) -> list[Any]:
        """See `Port`."""
        found: list[Any] = []

        def visit(part: Any) -> None:
            if isinstance(part, eqx.Module) or callable(part):
                found.append(part)
            for child in jax.tree.leaves(part, is_leaf=lambda x: x is not part):
                if child is not part:
                    visit(child)

        visit(self._module)
        return found

    def load(self, leaves: Leaves) -> None:
        """See `Port`."""
        self._module = _filled(self._module, leaves)

    def run(
        self, leaves: Leaves, inputs: tuple[Any, ...], *, train: bool = False, watch: Watch | None
    ) -> tuple[Any, dict[str, Any]]:
        """See `Port`."""
        network = _in_mode(_filled(self._module, leaves), train)
        with watching(_submodules(network), watch):
            return self._call(network, inputs), {}

    def layer(self, path: str, called: Called, *, train: bool = False) -> Layer | None:
        """See `Port`."""
        module = _in_mode(_submodules(self._module)[path], train)
        values, rest = eqx.partition(module, eqx.is_array)
        return Layer((_Static(rest), called.args, called.kwargs), values)

    def run_layer(self, static: Any, values: Any, x: jax.Array) -> Any:
        """See `Port`."""
        rest, *others = static
        args, kwargs = arguments(*others)
        return eqx.combine(values, rest.tree)(x, *args, **kwargs)


class _Static:
    """The static part of a module, compared by its contents."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        leaves, structure = jax.tree.flatten(tree)
        self._key = (tuple(leaves), structure)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and bool(self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key[1])


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _filled(module: Any, leaves: Leaves) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves.get(_name(path), leaf), module
    )


def _in_mode(module: Any, train: bool) -> Any:
    """The module in train or eval mode, in both without dropout."""

    def is_dropout(part: Any) -> bool:
        return isinstance(part, eqx.nn.Dropout)

    module = eqx.nn.inference_mode(module, not train)
    return jax.tree.map(
        lambda part: eqx.nn.inference_mode(part) if is_dropout(part) else part,
        module,
        is_leaf=is_dropout,
    )


def _submodules(module: Any) -> dict[str, Any]:
    """Every submodule that can be called, by dotted path, without the module itself."""
    found: dict[str, Any] = {}

    def visit(part: Any, path: tuple[Any, ...]) -> None:
        if path and isinstance(part, eqx.Module) and callable(part):
            found[_name(path)] = part
        # One level of the tree, because only the part itself is no leaf.
        children = jax.tree_util.tree_leaves_with_path(part, is_leaf=lambda x: x is not part)
        for key, child in children:
            if child is not part:
                visit(child, (*path, *key))

    visit(module, ())
    return found
