"""JAX's side of a comparison: the jitted network as it is used, watched from within, or one layer at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.verify.torch_side import by_name, to_nchw

Call = Callable[[Any, tuple[Any, ...]], Any]
"""(module, its inputs) -> an array, or arrays by name."""


def blank(build: Callable[[], Any]) -> Any:
    """A module without its initial values, which are about to be replaced and take long to draw; random streams start at 0."""
    module = nnx.eval_shape(build)
    for _, leaf in nnx.to_flat_state(nnx.state(module, nnx.RngState)):
        shape = leaf.get_value()
        is_key = jnp.issubdtype(shape.dtype, jax.dtypes.prng_key)
        leaf.set_value(jax.random.key(0) if is_key else jnp.zeros(shape.shape, shape.dtype))
    return module


def submodules(module: nnx.Module) -> dict[str, nnx.Module]:
    """Every submodule that can be called, by dotted path; the module itself is not among them."""
    found = {".".join(map(str, path)): child for path, child in nnx.iter_modules(module) if path}
    return {path: child for path, child in found.items() if callable(child)}


@contextlib.contextmanager
def _watching(module: nnx.Module, note: Callable[[str, Any], None]) -> Iterator[None]:
    """Tell `note` the path and the output of every call of a submodule that takes and gives a single array."""
    paths = {id(child): path for path, child in submodules(module).items()}
    classes = {type(child) for child in submodules(module).values()}
    # Resolved first: a class may inherit the method from another one among them.
    originals: dict[type, Any] = {cls: cls.__call__ for cls in classes}
    own = {cls: cls.__dict__.get("__call__") for cls in classes}

    def wrapped(cls: type, original: Any) -> Any:
        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(self, *args, **kwargs)
            if (
                type(self)
                is cls  # otherwise it is a part of a call: a subclass' own way to its parent's
                and id(self) in paths
                and len(args) == 1
                and not kwargs
                and isinstance(args[0], jax.Array)
                and isinstance(output, jax.Array)
            ):
                note(paths[id(self)], output)
            return output

        return call

    try:
        for cls in classes:
            setattr(cls, "__call__", wrapped(cls, originals[cls]))  # noqa: B010  (mypy refuses to assign a method)
        yield
    finally:
        for cls in classes:
            if own[cls] is None:
                delattr(cls, "__call__")
            else:
                setattr(cls, "__call__", own[cls])  # noqa: B010


def precise() -> Any:
    """Matrix products in full float32: TF32 on GPUs and bfloat16 on TPUs make a correct port look wrong at 1e-2."""
    return jax.default_matmul_precision("highest")


def watched(
    module: nnx.Module, call: Call, inputs: Sequence[np.ndarray], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    """Run a module, jitted as a whole, and note what comes out of submodules.

    Returns:
        The outputs by name, and the outputs of every call of each submodule that took and gave a
        single array; in PyTorch's layout.
    """
    graphdef, state = nnx.split(module)

    @jax.jit
    def run(state: Any, inputs: tuple[Any, ...]) -> Any:
        network = nnx.merge(graphdef, state, copy=True)
        seen: dict[str, list[Any]] = {}

        def note(path: str, output: Any) -> None:
            if path in names:
                seen.setdefault(path, []).append(output)

        with _watching(network, note), folding(False):  # each layer by itself
            outputs = by_name(call(network, inputs))
        return outputs, seen

    with precise():
        outputs, seen = run(state, tuple(inputs))
    return arrays(outputs), {
        path: [array(value) for value in values] for path, values in seen.items()
    }


def outputs(module: nnx.Module, call: Call, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Run a module, jitted, in the mode it is in; outputs by name in PyTorch's layout."""
    graphdef, state = nnx.split(module)
    run = jax.jit(
        lambda state, inputs: by_name(call(nnx.merge(graphdef, state, copy=True), inputs))
    )
    with precise():
        return arrays(run(state, tuple(inputs)))


def layer_runner() -> Callable[[nnx.Module, np.ndarray], np.ndarray]:
    """A function that runs one submodule on an input of its own, giving PyTorch's layout; it compiles layers alike once.

    It is made anew for every comparison, since it would not notice that a layer's code had changed.
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
    """Loss of the outputs and a target, and its gradient by every parameter, jitted as in training: (loss, state of gradients)."""
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
    """Dropout switched off in both modes, and as it was at the end."""
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
    """To numpy in PyTorch's layout; bfloat16 is widened."""
    wide = np.asarray(value)
    return to_nchw(
        wide.astype(np.float32)
        if wide.dtype.itemsize < 4 and wide.dtype.kind not in "iub"
        else wide
    )


def arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`array` for each."""
    return {name: array(value) for name, value in values.items()}
