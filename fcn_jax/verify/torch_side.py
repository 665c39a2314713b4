"""PyTorch's side of a comparison: the float64 reference, and correct runs in the compared dtype."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_jax.errors import ConfigError, FcnJaxError, WeightsError
from fcn_jax.verify.outputs import by_name
from fcn_jax.verify.randomness import check_deterministic, silence, silent_functions
from fcn_jax.verify.types import Call

if TYPE_CHECKING:
    import torch


def import_torch() -> Any:
    """The package torch. Raises `WeightsError` if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            "a comparison with PyTorch needs torch; pip install 'fcn-jax[torch]'"
        ) from error
    return torch


@dataclasses.dataclass(frozen=True)
class Variant:
    """One correct way to run a network.

    Attributes:
        dtype: "float64", "float32" or "bfloat16" (autocast: parameters stay float32, as in JAX).
        onednn: use oneDNN's kernels instead of PyTorch's own.
        channels_last: use this memory layout.
        fused: round a sum and its bias together. XLA rounds both.
    """

    dtype: str
    onednn: bool = True
    channels_last: bool = False
    fused: bool = True


REFERENCE = Variant("float64")
"""The run that all errors are relative to."""


def variants(dtype: str) -> tuple[Variant, ...]:
    """The fused runs of a precision: each of PyTorch's kernels in each memory layout."""
    settings = itertools.product((True, False), (False, True))
    return tuple(Variant(dtype, onednn, channels_last) for onednn, channels_last in settings)


class TorchSide:
    """A network in every variant.

    Attributes:
        fused: the correct runs that round a sum and its bias together.
        variants: all correct runs. In bfloat16, one more rounds a sum before it adds the bias.
            Where the two nearly cancel, that is several times the error of the others. In gradients
            it is not used: units are far from kinks there, by large biases, and its errors would
            hide more than they explain.
    """

    def __init__(
        self, network: torch.nn.Module, dtype: str, call: Call, *, as_is: bool = False
    ) -> None:
        """Copy a network. The copies have no dropout or other known randomness.

        Args:
            network: any `torch.nn.Module`.
            dtype: compared precision, "float32" or "bfloat16".
            call: runs it.
            as_is: whether 4-D inputs keep their axes, instead of NHWC -> NCHW.
        """
        torch = import_torch()
        self.as_is = as_is
        self.fused = variants(dtype)
        unfused = Variant(dtype, fused=False)
        self.variants = (*self.fused, *[unfused] * (dtype == "bfloat16"))
        self.call = call
        check_device(network)
        try:
            plain = copy.deepcopy(network).float()
        except RuntimeError as error:
            raise ConfigError(
                f"the PyTorch module cannot be copied: {str(error).splitlines()[0]}; remove hooks "
                "that hold tensors, such as the old weight_norm"
            ) from error
        silence(plain)
        # oneDNN is a global switch, so three copies are enough.
        self._networks = {
            (True, False): copy.deepcopy(plain).double(),
            (False, False): plain,
            (False, True): copy.deepcopy(plain).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        }

    def network(self, variant: Variant) -> torch.nn.Module:
        """The copy of a variant. Variants of one layout share it, so undo all changes of a run."""
        return self._networks[variant.dtype == "float64", variant.channels_last]

    def tensor(self, value: np.ndarray, variant: Variant) -> torch.Tensor:
        """NHWC numpy -> NCHW tensor of the variant's dtype and layout.

        Integers keep their dtype, and arrays of other ranks their layout.
        """
        torch = import_torch()
        # A copy, because an in-place layer would write into the caller's array.
        return self._typed(torch.tensor(value if self.as_is else to_nchw(value)), variant)

    def _typed(self, x: torch.Tensor, variant: Variant) -> torch.Tensor:
        torch = import_torch()
        if not x.is_floating_point():
            return x
        x = x.to(getattr(torch, variant.dtype))
        if variant.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    @contextlib.contextmanager
    def kernels(self, variant: Variant) -> Iterator[None]:
        """Use a variant's kernels, forward and backward."""
        torch = import_torch()
        before = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = variant.onednn
        try:
            yield
        finally:
            torch.backends.mkldnn.enabled = before

    @contextlib.contextmanager
    def forward(self, variant: Variant) -> Iterator[None]:
        """Use all settings of a variant, for the forward pass and the loss only.

        PyTorch advises against autocast around the backward pass.
        """
        torch = import_torch()
        with (
            self.kernels(variant),
            silent_functions(),
            contextlib.nullcontext() if variant.fused else _separate_bias(),
            torch.autocast("cpu", torch.bfloat16, enabled=variant.dtype == "bfloat16"),
        ):
            yield

    def outputs(self, variant: Variant, inputs: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Run the network in its current mode; inputs are NHWC, outputs NCHW by name."""
        tensors = tuple(self.tensor(x, variant) for x in inputs)
        with self.forward(variant):
            return by_name(self.call(self.network(variant), tensors))

    def check_call(self, inputs: Sequence[np.ndarray]) -> None:
        """Raise `ConfigError` if the network cannot be called with the inputs."""
        tensors = tuple(self.tensor(x, REFERENCE) for x in inputs)
        with import_torch().no_grad(), self.forward(REFERENCE):
            call_checked(self.call, self.network(REFERENCE), tensors)

    def check_deterministic(self, inputs: Sequence[np.ndarray]) -> None:
        """Raise `ConfigError` if two runs in train mode differ; see `randomness`."""
        network = self.network(REFERENCE)
        tensors = tuple(self.tensor(x, REFERENCE) for x in inputs)
        check_deterministic(network, lambda *args: by_name(self.call(*args)), tensors)

    def layer(self, variant: Variant, name: str, x: np.ndarray) -> np.ndarray:
        """Run one submodule on an input; both have PyTorch's axes."""
        torch = import_torch()
        given = self._typed(torch.tensor(x), variant)
        with torch.no_grad(), self.forward(variant):
            layer = self.network(variant).get_submodule(name)
            return array(_first(_without_activation(layer)(given)))

    def layer_gradients(
        self, variant: Variant, name: str, x: np.ndarray, weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Gradients of the weighted sum of a submodule's output on an input.

        They are those with respect to the input, if it is a float, and to the parameters by name.
        """
        torch = import_torch()
        layer = self.network(variant).get_submodule(name)
        layer.zero_grad(set_to_none=True)
        given = self._typed(torch.tensor(x), variant).requires_grad_(x.dtype.kind == "f")
        with self.forward(variant):
            output = _first(layer(given.clone()))
        with self.kernels(variant):
            output.backward(torch.tensor(weights).to(output.dtype))
        parameters = {
            f"{name}.{own}": array(p.grad)
            for own, p in layer.named_parameters()
            if p.grad is not None
        }
        layer.zero_grad(set_to_none=True)
        by_input = {} if given.grad is None else {f"input of {name}": array(given.grad)}
        return {**by_input, **parameters}

    def watched(
        self, variant: Variant, inputs: Sequence[np.ndarray], names: Sequence[str]
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]]:
        """Run the network without gradients and record inputs and outputs of submodules.

        Returns:
            For every call of each submodule with a single tensor in and out, the inputs f32 and the
            outputs. Of several outputs the first counts.

        Raises:
            ConfigError: the network cannot be called with these inputs.
        """
        torch = import_torch()
        given: dict[str, list[np.ndarray | None]] = {}
        seen_in: dict[str, list[np.ndarray]] = {}
        seen_out: dict[str, list[np.ndarray]] = {}

        def before(name: str, layer: Any, args: tuple[Any, ...]) -> None:
            # Copied before the call, because in-place layers overwrite their input.
            single = len(args) == 1 and isinstance(args[0], torch.Tensor)
            x = _input(args[0]) if single else None
            given.setdefault(name, []).append(x)

        def after(name: str, layer: Any, args: tuple[Any, ...], output: Any) -> None:
            plain = _without_activation(layer)
            x, output = given[name].pop(), _first(output if plain is layer else plain(*args))
            if x is not None and isinstance(output, torch.Tensor):
                seen_in.setdefault(name, []).append(x)
                seen_out.setdefault(name, []).append(array(output))

        with contextlib.ExitStack() as hooks, torch.no_grad():
            for name in names:
                layer = self.network(variant).get_submodule(name)
                hooks.enter_context(layer.register_forward_pre_hook(partial(before, name)))
                hooks.enter_context(layer.register_forward_hook(partial(after, name)))
            hooks.enter_context(self.forward(variant))
            tensors = tuple(self.tensor(x, variant) for x in inputs)
            call_checked(self.call, self.network(variant), tensors)
        return seen_in, seen_out

    def networks(self) -> tuple[torch.nn.Module, ...]:
        """Every copy."""
        return tuple(self._networks.values())

    def train(self, mode: bool) -> None:
        """Put every copy into train or eval mode."""
        for network in self.networks():
            network.train(mode)


def _separate_bias() -> Any:
    """A mode in which convolutions and matrix products are rounded before the bias is added."""
    torch = import_torch()

    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[name-defined]
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            name = getattr(func, "__name__", "")
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            if not (name == "linear" or name.startswith("conv")) or bias is None:
                return func(*args, **kwargs)
            if len(args) > 2:
                args = (*args[:2], None, *args[3:])
            y = func(*args, **{**kwargs, "bias": None} if len(args) < 3 else kwargs)
            axes = 0 if name == "linear" else y.ndim - 2
            return y + bias.to(y.dtype).view(-1, *[1] * axes)

    return Mode()


def check_device(network: torch.nn.Module) -> None:
    """Raise `ConfigError` if a parameter is not on the CPU."""
    elsewhere = {p.device.type for p in network.parameters()} - {"cpu"}
    if elsewhere:
        raise ConfigError(
            f"the PyTorch module is on {', '.join(sorted(elsewhere))}; move it to the CPU"
        )


def tensors_of(inputs: Sequence[np.ndarray], *, as_is: bool) -> tuple[torch.Tensor, ...]:
    """Inputs as f32 tensors; images NHWC -> NCHW unless `as_is`. Integers keep their dtype."""
    torch = import_torch()
    found = (torch.tensor(x if as_is else to_nchw(x)) for x in inputs)
    return tuple(x.float() if x.is_floating_point() else x for x in found)


def call_checked(call: Call, module: Any, tensors: tuple[torch.Tensor, ...]) -> Any:
    """Call a module. Raises `ConfigError` if it cannot be called with these tensors."""
    try:
        return call(module, tensors)
    except FcnJaxError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the PyTorch module {type(module).__name__} cannot be called with tensors of shape "
            f"{shapes}: {reason}; pass other inputs, layout or call_torch"
        ) from error


def _without_activation(layer: torch.nn.Module) -> Any:
    """A layer in eval mode, and a normalization of timm without its activation.

    timm's `BatchNormAct2d` and its like are PyTorch's normalizations, followed by an activation,
    under the name of the normalization. A port has two layers; the block around them is compared
    with the activation.
    """
    norms = import_torch().nn.modules
    known = (norms.batchnorm._NormBase, norms.GroupNorm, norms.LayerNorm)
    if not isinstance(layer, known) or "act" not in dict(layer.named_children()):
        return layer
    plain: Any = next(c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn."))
    return partial(plain.forward, layer)


def _first(output: Any) -> Any:
    """The first output of a layer that returns several."""
    several = isinstance(output, list | tuple) and bool(output)
    return output[0] if several else output


def _input(tensor: torch.Tensor) -> np.ndarray:
    x = array(tensor)
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def array(tensor: torch.Tensor) -> np.ndarray:
    """A copy as numpy: float64 and integers keep their dtype, other floats become float32."""
    torch = import_torch()
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return np.array(tensor.numpy(), order="C")


def to_nchw(x: np.ndarray) -> np.ndarray:
    """NHWC -> NCHW; arrays of other ranks are unchanged."""
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def to_nhwc(x: np.ndarray) -> np.ndarray:
    """NCHW -> NHWC; arrays of other ranks are unchanged."""
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
