"""JAX's side of a comparison: the jitted network, its layers' outputs, or one layer at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.errors import ConfigError, listing
from fcn_jax.verify.outputs import by_name
from fcn_jax.verify.ports import Called, Port, Watch
from fcn_jax.verify.tags import collect
from fcn_jax.verify.torch_side import to_nchw


def blank(build: Callable[[], Any]) -> Any:
    """A module without initial values, which take long to draw; random streams start at 0."""
    module = nnx.eval_shape(build)
    for _, leaf in nnx.to_flat_state(nnx.state(module, nnx.RngState)):
        shape = leaf.get_value()
        is_key = jnp.issubdtype(shape.dtype, jax.dtypes.prng_key)
        leaf.set_value(jax.random.key(0) if is_key else jnp.zeros(shape.shape, shape.dtype))
    return module


def precise(port: Port) -> Any:
    """Matrix products and convolutions in the port's precision."""
    return jax.default_matmul_precision(port.precision)


def placed(port: Port, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Inputs whose images are [N, H, W, C], with the axes that the port takes."""
    return tuple(inputs) if port.channels_last else tuple(map(to_nchw, inputs))


class WatchedCall(NamedTuple):
    """A call of a layer and its output, with JAX's axes."""

    called: Called
    output: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input, with the axes over which `jax.vmap` maps the call."""
        return self.output.shape[: self.mapped] + self.called.shape

    @property
    def mapped(self) -> int:
        """Number of axes over which `jax.vmap` maps the call."""
        return self.output.ndim - len(self.called.out_shape)


def watched(
    port: Port, inputs: Sequence[np.ndarray], names: Sequence[str]
) -> dict[str, list[WatchedCall]]:
    """Run a network in eval mode, jitted as a whole, and record every call of layers by path.

    Calls whose input or output is not a single array are left out, and those in `lax.scan`. Values
    that a plain function names itself are always recorded.
    """
    watch = Watch(names)
    run = collect(lambda leaves, inputs: port.run(leaves, inputs, watch=watch)[0])
    with precise(port):
        _, seen = jax.jit(run)(port.leaves, placed(port, inputs))
    found = {}
    for path, values in seen.items():
        arrays = [array(value) for value in values]
        calls = watch.calls.get(path) or [Called(x.shape, x.shape) for x in arrays]
        # A call in a loop is noted once when it is traced, but has no output.
        if len(calls) == len(arrays):
            found[path] = list(map(WatchedCall, calls, arrays))
    return found


def outputs(
    port: Port, inputs: Sequence[np.ndarray], *, train: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run a network, jitted; outputs by name, and the buffers after the call in train mode."""

    @jax.jit
    def run(leaves: Any, inputs: tuple[Any, ...]) -> Any:
        found, updates = port.run(leaves, inputs, train=train, watch=None)
        return by_name(found), updates

    with precise(port):
        found, updates = run(port.leaves, placed(port, inputs))
    return _arrays(found), _arrays(updates)


def check_deterministic(port: Port, inputs: Sequence[np.ndarray], *, train: bool) -> list[str]:
    """Remarks about random numbers. Dropout is off.

    A network with random streams of its own runs twice, with other seeds.

    Args:
        port: JAX's side.
        inputs: NHWC.
        train: whether to look at the train mode, too.

    Raises:
        ConfigError: the outputs differ, or the network cannot be traced in train mode.
    """
    notes = []
    for training in (False, True) if train else (False,):
        mode = "train" if training else "eval"

        def run(leaves: Any, inputs: Any, training: bool = training) -> Any:
            return by_name(port.run(leaves, inputs, train=training, watch=None)[0])

        try:
            traced = jax.make_jaxpr(run)(port.leaves, placed(port, inputs))
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"{port.name} cannot be run in {mode} mode: {reason}; set rates of dropout in "
                "attention to 0, or pass train=False and grad=False"
            ) from error
        if "random_bits" not in str(traced):
            continue
        runs = []
        for seed in (0, 1):
            with port.reseeded(seed) as has_streams:
                if has_streams:
                    runs.append(outputs(port, inputs, train=training)[0])
        if not runs:
            notes.append(f"JAX's side draws random numbers in {mode} mode, from a fixed key")
        elif changed := [
            name for name in runs[0] if not np.array_equal(runs[0][name], runs[1][name])
        ]:
            raise ConfigError(
                f"{port.name} is random in {mode} mode: {listing(changed, 3)} differ between two "
                "runs with other seeds, although dropout is off; no two libraries draw the same "
                "random numbers, so switch the noise off"
            )
    return notes


def layer_runner(port: Port) -> Callable[[str, WatchedCall, np.ndarray], np.ndarray | None]:
    """A function that runs one layer on an input, both with JAX's axes.

    It returns None if the framework cannot run the layer alone. Equal layers are compiled once.
    Every comparison needs a new function, because the compiled programs would not notice a change
    of a layer's code.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(static: Any, mapped: int, values: Any, x: jax.Array) -> Any:
        def call(x: jax.Array) -> Any:
            output = port.run_layer(static, values, x)
            return output[0] if isinstance(output, list | tuple) else output

        for _ in range(mapped):
            call = jax.vmap(call)
        return call(x)

    def layer(path: str, call: WatchedCall, x: np.ndarray) -> np.ndarray | None:
        found = port.layer(path, call.called)
        if found is None:
            return None
        with precise(port):
            return array(run(found.static, call.mapped, found.values, x))

    return layer


def layer_gradient_runner(port: Port) -> Callable[..., Any]:
    """A function that runs one layer in train mode, or differentiates it.

    (path, call, input, weights of the output) -> the output if there are no weights; otherwise the
    gradients of the weighted sum of the output with respect to the input, None if that is no
    float, and to the layer's parameters by path. It returns None if the framework cannot run the
    layer alone.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(static: Any, mapped: int, values: Any, x: jax.Array, weights: Any) -> Any:
        leaves, structure = jax.tree.flatten(values)
        trained = {i: leaf for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf, jnp.floating)}

        def call(trained: Mapping[int, Any], x: jax.Array) -> Any:
            changed = {**dict(enumerate(leaves)), **trained}
            given = jax.tree.unflatten(structure, list(changed.values()))

            def layer(x: jax.Array) -> Any:
                output = port.run_layer(static, given, x)
                return output[0] if isinstance(output, list | tuple) else output

            for _ in range(mapped):
                layer = jax.vmap(layer)
            return layer(x)

        if weights is None:
            return call(trained, x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            y, back = jax.vjp(lambda trained: call(trained, x), trained)
            return None, *back(weights.astype(y.dtype))
        y, back = jax.vjp(call, trained, x)
        grads, grad = back(weights.astype(y.dtype))
        return grad, grads

    def layer(path: str, call: WatchedCall, x: np.ndarray, weights: np.ndarray | None) -> Any:
        found = port.layer(path, call.called, train=True)
        if found is None:
            return None
        with precise(port):
            results = run(found.static, call.mapped, found.values, x, weights)
        if weights is None:
            return array(results)
        grad, grads = results
        names = {id(leaf): name for name, leaf in port.leaves.items() if name in port.parameters}
        leaves = jax.tree.leaves(found.values)
        named = {i: names[id(leaf)] for i, leaf in enumerate(leaves) if id(leaf) in names}
        return grad, {named[i]: value for i, value in grads.items() if i in named}

    return layer


def gradients(
    port: Port,
    inputs: Sequence[np.ndarray],
    loss: Callable[[dict[str, Any], Any], jax.Array],
    target: Any,
) -> tuple[float, dict[str, Any]]:
    """The loss and its gradient with respect to every parameter, jitted, in train mode."""
    leaves = port.leaves
    trained = {path: leaf for path, leaf in leaves.items() if path in port.parameters}
    rest = {path: leaf for path, leaf in leaves.items() if path not in port.parameters}

    @jax.jit
    def run(trained: Any, rest: Any, inputs: tuple[Any, ...], target: Any) -> Any:
        def loss_of(trained: Mapping[str, Any]) -> jax.Array:
            found, _ = port.run({**trained, **rest}, inputs, train=True, watch=None)
            return loss(by_name(found), target)

        return jax.value_and_grad(loss_of)(trained)

    with precise(port):
        value, grads = run(trained, rest, placed(port, inputs), target)
    return float(value), grads


def array(value: Any) -> np.ndarray:
    """Convert to numpy; bfloat16 becomes float32."""
    wide = np.asarray(value)
    return (
        wide.astype(np.float32)
        if wide.dtype.itemsize < 4 and wide.dtype.kind not in "iub"
        else wide
    )


def _arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: array(value) for name, value in values.items()}
