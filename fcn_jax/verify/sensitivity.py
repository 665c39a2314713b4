"""How far the outputs of a network move if a tensor is moved, in float64 on PyTorch's side.

A comparison of outputs proves nothing about a tensor that does not matter. Its sensitivity is the
relative L2 change of the outputs per relative change of the tensor: if each element of t moves at
random by a small share e of the tensor's root mean square, the outputs y move by e S |y| with

    S = rms(t) |J|_F / |y|,   J = dy / dt.

For a normal random v, the mean of |J^T v|^2 is |J|_F^2, so that backward passes from a few random v
measure the sensitivities of all tensors at once. Statistics of BatchNorm count as tensors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_jax.verify.criterion import FACTORS, FLOOR, Comparison, Section
from fcn_jax.verify.torch_side import REFERENCE, TorchSide, import_torch

if TYPE_CHECKING:
    import torch

    from fcn_jax.verify.report import Report
    from fcn_jax.verify.types import Pair

MARGIN = {"float32": 100.0, "bfloat16": 1.0}
"""A tensor is proven if moving it by its own size moves the outputs by so many times the limit of
JAX's error, by compute dtype. Two tensors of a kind differ by about their own size, two channels of
one by less. bfloat16 has only two digits, so that no such margin is possible; the tensor must be
seen at all."""

PROBES = 2
"""Number of backward passes. For a tensor of one element, a single one may be small by chance."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of one tensor.

    Attributes:
        name: in PyTorch's state dict.
        value: relative change of the outputs per relative change of the tensor.
        reason: why the comparison proves nothing about the tensor; "" if it does.
    """

    name: str
    value: float
    reason: str = ""


def add_sensitivity(
    report: Report, pair: Pair, inputs: Sequence[np.ndarray], outputs: Sequence[Section]
) -> None:
    """Measure which tensors matter on (small) inputs, in eval mode.

    Args:
        report: gets the result.
        pair: both sides.
        inputs: the networks' inputs, NHWC.
        outputs: the comparison of the outputs.
    """
    compared = [comparison for section in outputs for comparison in section.comparisons]
    floor = floor_of(compared, pair.dtype)
    names = set(pair.table.names(pair.port.leaves).values())
    try:
        report.sensitivity = measure(pair.torch, inputs, names, floor)
    except RuntimeError as error:  # PyTorch has no such derivative
        report.notes.append(f"sensitivities are not measured: {str(error).splitlines()[0]}")


def floor_of(outputs: Sequence[Comparison], dtype: str) -> float:
    """Smallest sensitivity of a proven tensor, from the comparison of the outputs."""
    least = FACTORS["outputs"] * FLOOR["float32"] * MARGIN["float32"]
    limits = [c.limit for c in outputs if not c.fault]
    return max([least, *(MARGIN[dtype] * limit for limit in limits)])


def measure(
    side: TorchSide, inputs: Sequence[np.ndarray], names: Collection[str], floor: float
) -> tuple[Sensitivity, ...]:
    """Measure the sensitivity of tensors of the reference, in eval mode.

    Args:
        side: PyTorch's side in eval mode.
        inputs: the network's inputs, NHWC; small ones are enough.
        names: names of tensors in the state dict; integers are left out.
        floor: smallest sensitivity of a proven tensor.
    """
    network = side.network(REFERENCE)
    state = network.state_dict(keep_vars=True)
    tensors = {n: state[n] for n in state if n in names and state[n].is_floating_point()}
    values = _values(side, inputs, tensors)
    faults = _ambiguous(tensors)
    return tuple(
        Sensitivity(name, values[name], faults.get(name) or _weak(values[name], floor))
        for name in tensors
    )


def _weak(value: float, floor: float) -> str:
    return "" if value >= floor else f"the outputs hardly depend on it (below {floor:.0e})"


def _values(
    side: TorchSide, inputs: Sequence[np.ndarray], tensors: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    torch = import_torch()
    frozen = [tensor for tensor in tensors.values() if not tensor.requires_grad]
    generator = torch.Generator().manual_seed(0)
    squares = dict.fromkeys(tensors, 0.0)
    for tensor in frozen:
        tensor.requires_grad_(True)
    try:
        with _differentiable_statistics():
            outputs = [y for y in side.outputs(REFERENCE, inputs).values() if y.requires_grad]
        for _ in range(PROBES if outputs else 0):
            probe = [
                torch.randn(y.shape, generator=generator, dtype=y.dtype)
                / max(float(y.detach().norm()), 1e-300)
                for y in outputs
            ]
            grads = torch.autograd.grad(
                outputs, list(tensors.values()), probe, retain_graph=True, allow_unused=True
            )
            for name, grad in zip(tensors, grads, strict=True):
                if grad is not None:
                    squares[name] += float(grad.square().sum()) / PROBES
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)
    rms = {name: float(t.detach().square().mean().sqrt()) for name, t in tensors.items()}
    return {name: rms[name] * math.sqrt(square) for name, square in squares.items()}


def _differentiable_statistics() -> Any:
    """A mode in which BatchNorm has gradients with respect to its running statistics."""
    torch = import_torch()
    batch_norm = torch.nn.functional.batch_norm

    def in_steps(
        x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, *_: Any, **settings: Any
    ) -> Any:
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = (var + settings.get("eps", 1e-5)).rsqrt()
        y = (x - mean.view(shape)) * (scale if weight is None else scale * weight).view(shape)
        return y if bias is None else y + bias.view(shape)

    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[name-defined]
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is batch_norm and not kwargs.get("training") and len(args) < 6:
                return in_steps(*args, **kwargs)
            return func(*args, **kwargs)

    return Mode()


def _ambiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of tensors that could be permuted or swapped unseen, and the reason."""
    faults: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().flatten()
        if len(flat) > 1 and bool((flat == flat[0]).all()):
            faults[name] = f"all its elements are {float(flat[0]):g}"
            continue
        role = name.rpartition(".")[2]
        key = (role, tuple(tensor.shape), hash(flat.numpy().tobytes()))
        other = first.setdefault(key, name)
        if tensors[other].data_ptr() != tensor.data_ptr():
            faults[name] = f"it equals {other}"
            faults.setdefault(other, f"it equals {name}")
    return faults
