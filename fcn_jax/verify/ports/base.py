"""What a comparison needs of a JAX network, independent of its framework."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import inspect
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fcn_jax.verify.tags import tag

_TRAIN = ("train", "training", "is_training")
_EVAL = ("deterministic", "inference", "use_running_average", "eval")

Leaves = Mapping[str, Any]
"""Parameters and buffers by dotted path."""


@dataclasses.dataclass(frozen=True)
class Called:
    """One call of a layer.

    Attributes:
        shape: of its input, as the layer sees it. Inside of `jax.vmap` it has no batch axis.
        out_shape: of its output.
        args: further positional arguments: no arrays; keys as `RandomKey`.
        kwargs: the same by name.
    """

    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


class Watch:
    """Tags the outputs of layers while a network is traced.

    Attributes:
        calls: the calls of each layer, by path; filled while the network is traced.
    """

    def __init__(self, paths: Collection[str]) -> None:
        """Watch the layers of these paths."""
        self._paths = frozenset(paths)
        self.calls: dict[str, list[Called]] = {}

    def scope(self, path: str) -> Any:
        """A context around the call of a layer, such as a name for what is traced in it."""
        return contextlib.nullcontext()

    def output(
        self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """The output of a call, tagged if it and the first argument are single arrays.

        Of a tuple or list the first element counts.
        """
        others = tuple(map(_without_key, args[1:]))
        named = tuple((name, _without_key(x)) for name, x in kwargs.items())
        if (
            path not in self._paths
            or not args
            or not isinstance(args[0], jax.Array)
            or not _is_static((others, named))
        ):
            return output
        several = isinstance(output, list | tuple) and bool(output)
        first = output[0] if several else output
        if not isinstance(first, jax.Array):
            return output
        calls = self.calls.setdefault(path, [])
        calls.append(Called(args[0].shape, first.shape, others, named))
        tagged = tag(first, path)
        if not several:
            return tagged
        rest = (tagged, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


class RandomKey(NamedTuple):
    """Stands for a key among the arguments of a layer. Dropout is off, so any key will do."""

    typed: bool


def _without_key(argument: Any) -> Any:
    if not isinstance(argument, jax.Array):
        return argument
    if jnp.issubdtype(argument.dtype, jax.dtypes.prng_key):
        return RandomKey(True) if argument.shape == () else argument
    is_raw = argument.dtype == jnp.uint32 and argument.shape == (2,)
    return RandomKey(False) if is_raw else argument


def _is_static(arguments: Any) -> bool:
    """Whether arguments can be part of a compiled program's key."""
    if any(isinstance(x, jax.Array) for x in jax.tree.leaves(arguments)):
        return False
    try:
        hash(arguments)
    except TypeError:
        return False
    return True


def arguments(
    args: Sequence[Any], kwargs: Sequence[tuple[str, Any]]
) -> tuple[list[Any], dict[str, Any]]:
    """The further arguments of a call as the layer takes them."""

    def given(argument: Any) -> Any:
        if not isinstance(argument, RandomKey):
            return argument
        return jax.random.key(0) if argument.typed else jax.random.PRNGKey(0)

    return [given(x) for x in args], {name: given(x) for name, x in kwargs}


def mode_arguments(function: Any, train: bool) -> dict[str, bool]:
    """The keyword argument by which a function is put into train or eval mode, if it has one."""
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    arguments = {name: train for name in _TRAIN if name in names}
    return arguments or {name: not train for name in _EVAL if name in names}


class Layer(NamedTuple):
    """A layer that can run alone.

    Attributes:
        static: equal for layers that have the same program.
        values: its arrays.
    """

    static: Hashable
    values: Any


class Port(abc.ABC):
    """A JAX network with its values.

    Attributes:
        name: for the report.
        channels_last: whether images are [N, H, W, C].
        precision: of matrix products and convolutions, as for `jax.default_matmul_precision`. Less
            than "highest" is TF32 on GPUs and bfloat16 on TPUs, with errors of 1e-3 to 1e-2.
        layers: paths of its layers and blocks; a block comes before its layers.
        parameters: paths of the leaves that are trained.
        silenced: layers whose own dropout, as inside of attention, is off in a comparison.
        flipped: paths of transposed convolutions of the framework's own class whose kernels are
            mirrored images of PyTorch's. Of Linen, they are known once the network has run.
    """

    name: str
    channels_last: bool = True
    precision: str = "highest"
    layers: tuple[str, ...] = ()
    parameters: frozenset[str]
    silenced: tuple[str, ...] = ()
    flipped: frozenset[str] = frozenset()

    @property
    @abc.abstractmethod
    def leaves(self) -> dict[str, Any]:
        """All parameters and buffers by path: arrays, or shapes before the first `load`."""

    @property
    @abc.abstractmethod
    def parts(self) -> list[Any]:
        """The modules and functions that define the network; of Linen, those that have run."""

    @abc.abstractmethod
    def load(self, leaves: Leaves) -> None:
        """Replace the values of leaves."""

    @abc.abstractmethod
    def run(
        self, leaves: Leaves, inputs: tuple[Any, ...], *, train: bool = False, watch: Watch | None
    ) -> tuple[Any, dict[str, Any]]:
        """Run the network without side effects; it can be traced.

        Returns:
            The outputs, and in train mode the buffers after the call by path.
        """

    def layer(self, path: str, called: Called, *, train: bool = False) -> Layer | None:
        """The layer as it was called, to run alone; None if the framework cannot do that."""
        return None

    def run_layer(self, static: Any, values: Any, x: jax.Array) -> Any:
        """Run `layer(...)` on an input; it can be traced."""
        raise NotImplementedError

    @contextlib.contextmanager
    def reseeded(self, seed: int) -> Iterator[bool]:
        """Set the network's own random streams for a while; False if it has none."""
        yield False

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Disable dropout in both modes for a while."""
        yield
