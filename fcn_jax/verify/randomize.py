"""Initial values of a PyTorch reference in which every tensor matters.

New networks start with tensors that hide faults: BatchNorm's ones and zeros, layer scales of 1e-6,
zero biases, copied layers, bilinear kernels. Two of them can be swapped, or one transposed, without
any change of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fcn_jax.verify.torch_side import import_torch

if TYPE_CHECKING:
    import torch

NOISE = 0.5
"""Noise on structured tensors and on copies, in units of their root mean square."""

LARGE_EVERY = 8
"""One of so many channels of a normalization has a scale from 2 to 3, so that some values pass 6,
and a ReLU is not a ReLU6."""

LEAST_BIAS = 0.1
"""Smallest root mean square of a layer's biases, in units of that of its products."""

_SAMPLE = 4096


def randomize(network: torch.nn.Module, seed: int, run: Callable[[Any], Any] | None = None) -> None:
    """Draw all values that would hide a fault, in place.

    A parameter or float buffer whose elements are all alike is drawn: from -0.5 to 0.5 if it is
    zero, else from 0.5 to 1.5. Biases are drawn from 0 to 1: with as many negative ones, a network
    of 152 layers multiplies rounding errors by 40 more, since more units are at the edge of their
    ReLU. One of eight scales of a normalization is drawn from 2 to 3.
    Constant weights of linear layers and convolutions are drawn as PyTorch draws new ones.
    Parameters that equal another one of the same shape, and those with few distinct values
    (bilinear kernels, identities), get noise. Integer buffers, and float buffers that are computed
    (tables of coordinates), keep their values. Tied tensors stay tied.

    Args:
        network: any module on the CPU.
        seed: random seed; the caller's random state does not change.
        run: calls the network on typical inputs. If given, values keep their size from layer to
            layer in eval mode; otherwise they may grow with depth until biases do not matter, or
            fade until nothing else does. The statistics of BatchNorm are drawn around those of its
            inputs: from half to one and a half of the variance, with a mean that is off by up to
            half a standard deviation. Kernels are scaled such that the root mean square of their
            outputs is from 1.5 to 3, and biases such that theirs is at least a tenth of that:
            for a large kernel, PyTorch draws them a thousand times smaller.
    """
    torch = import_torch()
    generator = torch.Generator().manual_seed(seed)
    seen: dict[Any, list[Any]] = {}
    with torch.no_grad():
        for module, name, value in _tensors(network):
            is_buffer = not isinstance(value, torch.nn.Parameter)
            if _constant(value):
                _draw(module, name, value, generator)
            elif is_buffer:
                continue
            elif _few_distinct(value) or any(
                torch.equal(value, other) for other in seen.get(_key(value), ())
            ):
                rms = value.double().square().mean().sqrt().item()
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
                value.add_((NOISE * rms * noise).to(value.dtype))
            seen.setdefault(_key(value), []).append(value)
        if run is not None:
            _fit(network, generator, run)


def _tensors(network: torch.nn.Module) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Module, name in it and value of each float tensor of the state dict, each storage once."""
    known: set[int] = set()
    for module in network.modules():
        tensors = {
            **dict(module.named_parameters(recurse=False)),
            **{
                name: buffer
                for name, buffer in module.named_buffers(recurse=False)
                if name not in module._non_persistent_buffers_set
            },
        }
        for name, value in tensors.items():
            pointer = value.data_ptr()
            if value.is_floating_point() and value.numel() and pointer not in known:
                known.add(pointer)
                yield module, name, value


def _constant(value: torch.Tensor) -> bool:
    first = value.flatten()[0]
    return bool((value == first).all())


def _draw(module: Any, name: str, value: torch.Tensor, generator: torch.Generator) -> None:
    """Draw a tensor whose elements are all alike."""
    torch = import_torch()
    layers = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    if isinstance(module, layers) and name == "weight" and value.numel() > 1:
        torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
        return
    first = value.flatten()[0].item()
    if first == 0:
        low = 0.0 if name == "bias" else -0.5
        value.uniform_(low, low + 1, generator=generator)
        return
    value.uniform_(0.5, 1.5, generator=generator)
    is_scale = first == 1 and value.ndim == 1 and name == "weight"
    if is_scale and value.numel() >= LARGE_EVERY:
        order = torch.randperm(value.numel(), generator=generator)
        large = order[: value.numel() // LARGE_EVERY]
        value[large] = torch.empty(len(large), dtype=value.dtype).uniform_(
            2, 3, generator=generator
        )


def _sample(value: torch.Tensor) -> torch.Tensor:
    flat = value.flatten()
    return flat[:: max(1, len(flat) // _SAMPLE)]


def _key(value: torch.Tensor) -> tuple[Any, bytes]:
    return tuple(value.shape), _sample(value).double().numpy().tobytes()


def _few_distinct(value: torch.Tensor) -> bool:
    sample = _sample(value)
    return 2 * len(sample.unique()) <= len(sample)


def _fit(network: torch.nn.Module, generator: torch.Generator, run: Callable[[Any], Any]) -> None:
    """Adapt statistics and kernels to the values that reach them."""
    torch = import_torch()

    def statistics(layer: Any, args: tuple[Any, ...]) -> None:
        if layer.running_mean is None or layer.training:
            return
        x = args[0].transpose(0, 1).flatten(1).double()
        # Of a single value, there is no variance.
        variance = torch.maximum(x.var(1, unbiased=False), 0.05 * x.square().mean(1) + 1e-6)
        low_high = torch.rand(2, len(x), generator=generator, dtype=torch.float64)
        mean = x.mean(1) + (low_high[0] - 0.5) * variance.sqrt()
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance * (low_high[1] + 0.5))

    def scale(layer: Any, args: tuple[Any, ...], output: Any) -> Any:
        bias = 0.0
        if layer.bias is not None:
            linear = isinstance(layer, torch.nn.Linear)
            bias = layer.bias.view(-1, *[1] * (0 if linear else output.ndim - 2))
        product = output - bias
        rms = max(float(product.square().mean().sqrt()), 1e-12)
        factor = min(max(rms, 1.5), 3.0) / rms
        layer.weight.mul_(factor)
        if layer.bias is not None:  # `bias` is a view of it
            size = max(float(layer.bias.square().mean().sqrt()), 1e-12)
            layer.bias.mul_(max(1.0, LEAST_BIAS * factor * rms / size))
        return product * factor + bias

    training = {module: module.training for module in network.modules()}
    handles = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            handles.append(layer.register_forward_pre_hook(statistics))
        elif isinstance(layer, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
            handles.append(layer.register_forward_hook(scale))
    network.eval()
    try:
        if handles:
            run(network)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
