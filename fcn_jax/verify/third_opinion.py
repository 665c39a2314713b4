"""A third opinion: the PyTorch module, run by XLA through torchax.

A wrong port differs from PyTorch where torchax does not. Where both differ alike, the cause is the
arithmetic of XLA. torchax is optional.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fcn_jax.runtime.versions import package_versions
from fcn_jax.verify.criterion import ReferenceErrors, Section
from fcn_jax.verify.outputs import by_name
from fcn_jax.verify.torch_side import TorchSide, import_torch


@dataclasses.dataclass
class ThirdOpinion:
    """Errors of the PyTorch module run by torchax.

    Attributes:
        version: of torchax; "" if it is not installed.
        errors: title of a section -> tensor -> relative L2 error against PyTorch in float64.
        skipped: why there are no errors; "" if there are.
    """

    version: str = ""
    errors: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    skipped: str = ""

    def at_worst(self, section: Section) -> str:
        """The error at JAX's worst tensor of a section, as text; "" if there is none."""
        error = self.errors.get(section.title, {}).get(section.worst.name if section.worst else "")
        return "" if error is None else f"{error:.1e}"

    def __str__(self) -> str:
        """One line."""
        if self.skipped:
            return f"torchax: skipped, because {self.skipped}"
        return (
            f"torchax {self.version} runs the PyTorch module by XLA: an error of JAX far above its "
            "error is a fault of the port, one like it is XLA's arithmetic"
        )

    def ask(
        self,
        title: str,
        side: TorchSide,
        inputs: Sequence[np.ndarray],
        reference: Mapping[str, np.ndarray],
    ) -> None:
        """Add the errors of a network's outputs, or the reason why there are none.

        Nothing happens after the first reason.

        Args:
            title: the section's title.
            side: PyTorch's side, in eval mode.
            inputs: the inputs of both sides.
            reference: outputs of PyTorch in float64 by name.
        """
        if self.skipped:
            return
        variant = side.variants[0]
        if variant.dtype != "float32":
            self.skipped = "it is asked in float32 only"
            return
        self.version = package_versions(["torchax"])["torchax"] or ""
        try:
            torchax = _import()
        except Exception as error:  # AttributeError on releases of torch that it does not know
            installed = f"torchax {self.version}" if self.version else "torchax"
            self.skipped = f"{installed} cannot be imported ({_line(error)})"
            return
        try:
            found = _outputs(torchax, side, inputs)
        except Exception as error:  # whatever an operator raises that torchax lacks
            self.skipped = f"torchax {self.version} cannot run this network ({_line(error)})"
            return
        errors = ReferenceErrors(dict(reference), variant.dtype).compare(found, 1.0)
        self.errors[title] = {c.name: c.error for c in errors if not c.fault}


def _import() -> Any:
    torch = import_torch()
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        import torchax
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)  # the import of torchax turns it off
    return torchax


def _outputs(torchax: Any, side: TorchSide, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    torch, variant = import_torch(), side.variants[0]

    class Called(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(side.network(variant))

        def forward(self, *tensors: Any) -> dict[str, Any]:
            return by_name(side.call(self.network, tensors))

    state, run = torchax.extract_jax(Called().eval())
    with jax.default_matmul_precision("highest"):
        found = jax.jit(run)(state, tuple(side.tensor(x, variant).numpy() for x in inputs))
    return {name: np.asarray(value) for name, value in found.items()}


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
