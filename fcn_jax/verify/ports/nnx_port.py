"""Networks written with Flax NNX."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from fcn_jax.models.names import leaves, named
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.verify.ports.base import Called, Layer, Leaves, Port, Watch, arguments
from fcn_jax.verify.ports.classes import watching
from fcn_jax.verify.types import Call


class NnxPort(Port):
    """An `nnx.Module`. Its values may be shapes, as `nnx.eval_shape` makes them."""

    def __init__(self, module: nnx.Module, call: Call | None = None) -> None:
        """Wrap a module.

        Args:
            module: gets the weights and is left in eval mode.
            call: (module, inputs) -> array, or arrays by name; calls the module if None.
        """
        self.module = module
        self.name = type(module).__name__
        self._call = call or (lambda module, inputs: module(*inputs))
        self.layers = tuple(_submodules(module))
        trained = nnx.state(module, nnx.Param)
        self.parameters = frozenset(named(trained))
        self.silenced = tuple(path for path, _ in _attentions(module))
        self.flipped = frozenset(
            path
            for path, layer in _submodules(module).items()
            if isinstance(layer, nnx.ConvTranspose) and not layer.transpose_kernel
        )

    @property
    def leaves(self) -> dict[str, Any]:
        """See `Port`."""
        return {path: leaf.get_value() for path, leaf in leaves(self.module).items()}

    @property
    def parts(self) -> list[Any]:
        """See `Port`."""
        return [child for _, child in nnx.iter_modules(self.module)]

    def load(self, leaves_: Leaves) -> None:
        """See `Port`."""
        targets = leaves(self.module)
        for path, value in leaves_.items():
            targets[path].set_value(value)

    def run(
        self, leaves_: Leaves, inputs: tuple[Any, ...], *, train: bool = False, watch: Watch | None
    ) -> tuple[Any, dict[str, Any]]:
        """See `Port`."""
        graphdef, state = nnx.split(self.module)
        network = nnx.merge(graphdef, state, copy=True)
        targets = leaves(network)
        for path, value in leaves_.items():
            targets[path].set_value(value)
        network.train() if train else network.eval()
        # Folding would hide the outputs of layers.
        unfolded = contextlib.nullcontext() if watch is None else folding(False)
        with watching(_submodules(network), watch), unfolded:
            outputs = self._call(network, inputs)
        buffers = leaves(network) if train else {}
        updates = {
            path: leaf.get_value() for path, leaf in buffers.items() if path not in self.parameters
        }
        return outputs, updates

    def layer(self, path: str, called: Called, *, train: bool = False) -> Layer | None:
        """See `Port`."""
        module = _submodules(self.module)[path]
        module.train() if train else module.eval()
        graphdef, state = nnx.split(module)
        module.eval()
        return Layer((graphdef, called.args, called.kwargs), state)

    def run_layer(self, static: Any, values: Any, x: jax.Array) -> Any:
        """See `Port`."""
        graphdef, *others = static
        args, kwargs = arguments(*others)
        return nnx.merge(graphdef, values, copy=True)(x, *args, **kwargs)

    @contextlib.contextmanager
    def reseeded(self, seed: int) -> Iterator[bool]:
        """See `Port`."""
        keys = [key for _, key in nnx.to_flat_state(nnx.state(self.module, nnx.RngKey))]
        saved = [key.get_value() for key in keys]
        for number, key in enumerate(keys):
            drawn = jax.random.fold_in(jax.random.key(seed), number)
            typed = jax.numpy.issubdtype(saved[number].dtype, jax.dtypes.prng_key)
            key.set_value(drawn if typed else jax.random.key_data(drawn))
        try:
            yield bool(keys)
        finally:
            for key, value in zip(keys, saved, strict=True):
                key.set_value(value)

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """See `Port`."""
        self.module.eval()
        layers = [m for m in _submodules(self.module).values() if isinstance(m, nnx.Dropout)]
        rates: list[tuple[Any, str, float]] = [(layer, "rate", layer.rate) for layer in layers]
        rates += [(m, "dropout_rate", m.dropout_rate) for _, m in _attentions(self.module)]
        for layer, name, _ in rates:
            setattr(layer, name, 0.0)
        try:
            yield
        finally:
            for layer, name, rate in rates:
                setattr(layer, name, rate)


def _attentions(module: nnx.Module) -> list[tuple[str, nnx.MultiHeadAttention]]:
    """Attention with dropout of its own, by dotted path."""
    return [
        (".".join(map(str, path)), child)
        for path, child in nnx.iter_modules(module)
        if isinstance(child, nnx.MultiHeadAttention) and child.dropout_rate > 0
    ]


def _submodules(module: nnx.Module) -> dict[str, nnx.Module]:
    """Every submodule that can be called, by dotted path, without the module itself."""
    found = {".".join(map(str, path)): child for path, child in nnx.iter_modules(module) if path}
    return {path: child for path, child in found.items() if callable(child)}
