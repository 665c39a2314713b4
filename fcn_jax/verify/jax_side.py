"""JAX's side of a comparison: the jitted network, its layers' outputs, or one layer at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.verify.torch_side import by_name, to_nchw
from fcn_jax.verify.types import Call


def blank(build: Callable[[], Any]) -> Any:
    """A module without initial values, which take long to draw; random streams start at 0."""
    module = nnx.eval_shape(build)
    for _, leaf in nnx.to_flat_state(nnx.state(module, nnx.RngState)):
        shape = leaf.get_value()
        is_key = jnp.issubdtype(shape.dtype, jax.dtypes.prng_key)
        leaf.set_value(jax.random.key(0) if is_key else jnp.zeros(shape.shape, shape.dtype))
    return module


def submodules(module: nnx.Module) -> dict[str, nnx.Module]:
    """Every submodule that can be called, by dotted path, without the module itself."""
    found = {".".join(map(str, path)): child for path, child in nnx.iter_modules(module) if path}
    return {path: child for path, child in found.items() if callable(child)}


@contextlib.contextmanager
def _watching(module: nnx.Module, note: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `note(path, output)` after each call of a submodule with a single array in and out."""
    paths = {id(child): path for path, child in submodules(module).items()}
    classes = {type(child) for child in submodules(module).values()}
    own = {cls: cls.__dict__.get("__call__") for cls in classes}

    def wrapped(cls: Any) -> Any:
        original = cls.__call__

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(self, *args, **kwargs)
            # A subclass may call its parent's method: that is a part of a call.
            if (
                type(self) is cls
                and id(self) in paths
                and len(args) == 1
                and not kwargs
                and isinstance(args[0], jax.Array)
                and isinstance(output, jax.Array)
            ):
                note(paths[id(self)], output)
            return output

        return call

    # All before the first is set, because a class may inherit the method from another one of them.
    wrappers = {cls: wrapped(cls) for cls in classes}
    try:
        for cls, wrapper in wrappers.items():
            # mypy rejects an assignment to a method.
            setattr(cls, "__call__", wrapper)  # noqa: B010
        yield
    finally:
        for cls in classes:
            if own[cls] is None:
                delattr(cls, "__call__")
            else:
                setattr(cls, "__call__", own[cls])  # noqa: B010


def precise() -> Any:
    """Matrix products in full float32. TF32 on GPUs and bfloat16 on TPUs cause errors of 1e-2."""
    return jax.default_matmul_precision("highest")


def watched(
    module: nnx.Module, call: Call, inputs: Sequence[np.ndarray], names: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """Run a module, jitted as a whole, and record the outputs of submodules.

    Returns:
        The outputs of every call of each submodule with a single array in and out, in PyTorch's
        layout.
    """
    graphdef, state = nnx.split(module)

    @jax.jit
    def run(state: Any, inputs: tuple[Any, ...]) -> Any:
        network = nnx.merge(graphdef, state, copy=True)
        seen: dict[str, list[Any]] = {}

        def note(path: str, output: Any) -> None:
            if path in names:
                seen.setdefault(path, []).append(output)

        with _watching(network, note), folding(False):  # keeps every layer's output
            return call(network, inputs), seen

    with precise():
        _, seen = run(state, tuple(inputs))
    return {path: [array(value) for value in values] for path, values in seen.items()}


def outputs(module: nnx.Module, call: Call, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Run a module, jitted, in its current mode; outputs by name in PyTorch's layout."""
    graphdef, state = nnx.split(module)
    run = jax.jit(
        lambda state, inputs: by_name(call(nnx.merge(graphdef, state, copy=True), inputs))
    )
    with precise():
        found = run(state, tuple(inputs))
    return {name: array(value) for name, value in found.items()}


def layer_runner() -> Callable[[nnx.Module, np.ndarray], np.ndarray]:
    """A function that runs one submodule on an input and returns PyTorch's layout.

    Equal layers are compiled once. Every comparison needs a new function, because the compiled
    programs would not notice a change of a layer's code.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def run(graphdef: Any, state: Any, x: jax.Array) -> Any:
        return nnx.merge(graphdef, state, copy=True)(x)

    def layer(module: nnx.Module, x: np.ndarray) -> np.ndarray:
        with precise():
            return array(run(*nnx.split(module), x))

    return layer


def gradients(
    module: nnx.Module,
    call: Call,
    inputs: Sequence[np.ndarray],
    loss: Callable[[dict[str, Any], Any], jax.Array],
    target: Any,
) -> tuple[float, Any]:
    """The loss and its gradient with respect to every parameter, jitted as in training."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    @jax.jit
    def run(params: Any, rest: Any, inputs: tuple[Any, ...], target: Any) -> Any:
        def loss_of(params: Any) -> jax.Array:
            return loss(by_name(call(nnx.merge(graphdef, params, rest, copy=True), inputs)), target)

        return jax.value_and_grad(loss_of)(params)

    with precise():
        value, grads = run(params, rest, tuple(inputs), target)
    return float(value), grads


@contextlib.contextmanager
def without_dropout(module: nnx.Module) -> Iterator[None]:
    """Disable dropout in both modes, and restore it at the end."""
    layers = [child for child in submodules(module).values() if isinstance(child, nnx.Dropout)]
    rates = [layer.rate for layer in layers]
    for layer in layers:
        layer.rate = 0.0
    try:
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.rate = rate


def array(value: Any) -> np.ndarray:
    """Convert to numpy in PyTorch's layout; bfloat16 becomes float32."""
    wide = np.asarray(value)
    if wide.dtype.itemsize < 4 and wide.dtype.kind not in "iub":
        wide = wide.astype(np.float32)
    return to_nchw(wide)
