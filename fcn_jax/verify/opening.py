"""Weights with which few units of a network are near a kink, for gradients in bfloat16.

A bfloat16 value has two to three digits, so one unit in a hundred falls on the wrong side of its
ReLU's zero. The gradients of PyTorch's own bfloat16 run of a ResNet-18 are therefore wrong by 40 %,
and a comparison with them proves little. If each channel's mean is three standard deviations from
the zero, one unit in a thousand is on the other side at all, and the same gradients are wrong by
2 %. That the units also work near zero is shown by the comparisons of layers and outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fcn_jax.verify.kink_watch import watch
from fcn_jax.verify.torch_side import import_torch

if TYPE_CHECKING:
    import torch

DISTANCE = 3.0
"""Distance from a kink to the mean of a channel, in standard deviations of its values."""

ROUNDING = 2.0**-5
"""Further distance, as a share of the channel's largest value before the move: a channel with few
values, such as one of a pooled feature, may have a small deviation and large rounding errors."""

_LINEAR_ABOVE = ("hardswish",)


def open_units(network: torch.nn.Module, run: Callable[[], Any]) -> None:
    """Move biases so that the mean of each channel is far from the kink of its function.

    Between two kinks, as of ReLU6, the mean is moved to their middle, unless the function is linear
    above the second, as hard swish is. Channels without a bias stay.

    Args:
        network: in float64 and train mode; only its biases change.
        run: runs it.
    """
    torch = import_torch()

    def visit(operation: Any) -> Any:
        layer = operation.layer(kernel=False)
        if not operation.points or layer is None or layer.bias is None:
            return None
        values = operation.by_channel(operation.x, layer)
        first, last = min(operation.points), max(operation.points)
        if first == last or operation.name.startswith(_LINEAR_ABOVE):
            wanted = last + DISTANCE * values.std(1) + ROUNDING * values.abs().amax(1)
        else:
            wanted = torch.full_like(values[:, 0], (first + last) / 2)
        moved = (layer.bias.data + wanted - values.mean(1)).float().to(values.dtype)
        shift = moved - layer.bias.data
        layer.bias.data.copy_(moved)
        shape = [1] * operation.x.ndim
        shape[layer.axis] = len(shift)
        return shift.view(shape)

    buffers = {name: value.clone() for name, value in network.named_buffers()}
    with torch.no_grad(), watch(network, visit):
        run()
    network.load_state_dict(buffers, strict=False)
