"""Randomness of a PyTorch module in train mode: switch it off, or say where it is.

No two libraries draw the same random numbers, so random layers are compared without them.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fcn_jax.errors import ConfigError
from fcn_jax.verify.types import Call

if TYPE_CHECKING:
    import torch

_CLASSES = re.compile(r"drop|stochastic", re.IGNORECASE)
"""Classes whose rate is set to 0: Dropout2d, StochasticDepth, DropPath, DropBlock, PatchDropout."""

_RATES = ("p", "prob", "drop_prob", "drop_rate", "rate")

_FUNCTIONS = re.compile(r"(feature_|alpha_|feature_alpha_)?dropout([123]d)?")


def silence(network: torch.nn.Module) -> None:
    """Set the rates of dropout, stochastic depth and drop path to 0, in place."""
    import torch

    for module in network.modules():
        if isinstance(module, (torch.nn.MultiheadAttention, torch.nn.RNNBase)):
            module.dropout = 0.0
        if _CLASSES.search(type(module).__name__):
            for name in _RATES:
                if isinstance(vars(module).get(name), (int, float)):
                    setattr(module, name, 0.0)


def silent_functions() -> Any:
    """A mode in which the dropout functions of `torch.nn.functional` return their input."""
    import torch

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            name = getattr(func, "__name__", "").rstrip("_")
            if _FUNCTIONS.fullmatch(name):
                return args[0] if args else kwargs["input"]
            if "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
            elif name == "scaled_dot_product_attention" and len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            return func(*args, **kwargs)

    return Mode()


def check_deterministic(network: torch.nn.Module, call: Call, inputs: Sequence[Any]) -> None:
    """Run a module twice in train mode, without gradients, and compare the outputs.

    The module's mode, parameters and buffers are restored.

    Args:
        network: in float64.
        call: runs it, and returns its outputs by name.
        inputs: its inputs; small ones are enough.

    Raises:
        ConfigError: the outputs differ. The message names the module and the function.
    """
    import torch

    state = {name: value.clone() for name, value in network.state_dict().items()}
    training = {module: module.training for module in network.modules()}
    runs: list[list[_Call]] = []
    results = []
    network.train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for _ in range(2):
                recorder = _Recorder(network)
                with recorder.hooks(), silent_functions(), recorder.mode():
                    # A copy, because an in-place layer would write into the caller's.
                    outputs = call(network, tuple(x.clone() for x in inputs))
                results.append([_digest(y) for y in outputs.values()])
                runs.append(recorder.calls)
                network.load_state_dict(state)
    finally:
        for module, mode in training.items():
            module.training = mode
    if not any(itertools.starmap(_differ, zip(*results, strict=True))):
        return
    pairs = zip(*runs, strict=False)
    first = next((a for a, b in pairs if a[:2] != b[:2] or _differ(a.digest, b.digest)), None)
    place = f", first in '{first.function}' of {first.module}" if first else ""
    raise ConfigError(
        f"the PyTorch module is random in train mode: two runs on one input differ{place}. A port "
        "cannot be compared with it. Set the rate of that layer to 0, or use torch.nn.Dropout, "
        "which is switched off"
    )


class _Call(NamedTuple):
    """A function that was called, the calling module, and a digest of the result."""

    function: str
    module: str
    digest: tuple[float, float]


def _digest(result: torch.Tensor) -> tuple[float, float]:
    """Sum, and sum of the absolute values."""
    wide = result.detach().double()
    return float(wide.sum()), float(wide.abs().sum())


def _differ(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two digests differ by more than rounding."""
    return any(abs(x - y) > 1e-9 * max(a[1], b[1]) for x, y in zip(a, b, strict=True))


class _Recorder:
    """Records the function calls of a network."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.calls: list[_Call] = []
        self._names = {id(module): name for name, module in network.named_modules()}
        self._stack: list[torch.nn.Module] = []

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Keep track of the module that is running."""
        from torch.nn.modules import module as hooks

        before = hooks.register_module_forward_pre_hook(lambda m, _: self._stack.append(m))

        def leave(*_: Any) -> None:
            self._stack.pop()

        after = hooks.register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _module(self) -> str:
        if not self._stack:
            return "the call of the module"
        module = self._stack[-1]
        return f"{self._names.get(id(module)) or 'the module itself'} ({type(module).__name__})"

    def mode(self) -> Any:
        """The mode that records."""
        import torch

        calls, module = self.calls, self._module

        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(
                self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
            ) -> Any:
                result = func(*args, **(kwargs or {}))
                name = getattr(func, "__name__", str(func))
                if isinstance(result, torch.Tensor) and "empty" not in name:
                    calls.append(_Call(name, module(), _digest(result)))
                return result

        return Mode()
