"""Tensors that one side holds as one and the other in parts, such as query, key and value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax.pytorch.rules import Op
from fcn_jax.verify.ports.base import Called, Layer, Leaves, Port, Watch


class PartsPort(Port):
    """Another port, whose leaves are joined or split as PyTorch's tensors are.

    Joined and split leaves have PyTorch's axes. Parts follow each other along the first one.
    """

    def __init__(
        self,
        port: Port,
        *,
        joined: Mapping[str, Mapping[str, Op]],
        split: Mapping[str, tuple[Op, Sequence[str]]],
    ) -> None:
        """Wrap a port.

        Args:
            port: the network.
            joined: new path -> the paths that make it up, in order, and how each is converted.
            split: path -> how it is converted, and the new paths of its equal parts, in order.
        """
        self._port, self._joined, self._split = port, joined, split
        self.name, self.layers, self.silenced = port.name, port.layers, port.silenced
        parts = {part: path for path, ones in joined.items() for part in ones}
        pieces = {path: names for path, (_, names) in split.items()}
        self.parameters = frozenset(
            name for path in port.parameters for name in pieces.get(path, (parts.get(path, path),))
        )

    @property
    def channels_last(self) -> bool:
        """See `Port`."""
        return self._port.channels_last

    @channels_last.setter
    def channels_last(self, value: bool) -> None:
        self._port.channels_last = value

    @property
    def flipped(self) -> frozenset[str]:  # type: ignore[override]
        """See `Port`."""
        return self._port.flipped

    @property
    def leaves(self) -> dict[str, Any]:
        """See `Port`."""
        leaves = self._port.leaves
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves.values()):
            return dict(jax.eval_shape(self._outside, leaves))
        return self._outside(leaves)

    @property
    def parts(self) -> list[Any]:
        """See `Port`."""
        return self._port.parts

    def _outside(self, leaves: Leaves) -> dict[str, Any]:
        parts = {part for ones in self._joined.values() for part in ones}
        found = {
            path: x for path, x in leaves.items() if path not in parts and path not in self._split
        }
        for path, ones in self._joined.items():
            found[path] = jnp.concatenate([op.to_torch(leaves[x]) for x, op in ones.items()])
        for path, (op, names) in self._split.items():
            pieces = jnp.split(jnp.asarray(op.to_torch(leaves[path])), len(names))
            found.update(zip(names, pieces, strict=True))
        return found

    def _inside(self, leaves: Leaves) -> dict[str, Any]:
        pieces = {name for _, names in self._split.values() for name in names}
        found = {
            path: x for path, x in leaves.items() if path not in pieces and path not in self._joined
        }
        for path, ones in self._joined.items():
            parts: Any = jnp.split(jnp.asarray(leaves[path]), len(ones))
            found.update({x: op.to_jax(y) for (x, op), y in zip(ones.items(), parts, strict=True)})
        for path, (op, names) in self._split.items():
            whole: Any = jnp.concatenate([leaves[name] for name in names])
            found[path] = op.to_jax(whole)
        return found

    def load(self, leaves: Leaves) -> None:
        """See `Port`."""
        self._port.load(self._inside(leaves))

    def run(
        self, leaves: Leaves, inputs: tuple[Any, ...], *, train: bool = False, watch: Watch | None
    ) -> tuple[Any, dict[str, Any]]:
        """See `Port`."""
        return self._port.run(self._inside(leaves), inputs, train=train, watch=watch)

    def layer(self, path: str, called: Called, *, train: bool = False) -> Layer | None:
        """See `Port`."""
        return self._port.layer(path, called, train=train)

    def run_layer(self, static: Any, values: Any, x: jax.Array) -> Any:
        """See `Port`."""
        return self._port.run_layer(static, values, x)

    @contextlib.contextmanager
    def reseeded(self, seed: int) -> Iterator[bool]:
        """See `Port`."""
        with self._port.reseeded(seed) as has_streams:
            yield has_streams

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """See `Port`."""
        with self._port.without_dropout():
            yield
