"""What is timed: each task gives, for each contender, a call that does the work and waits for it, and an answer to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.networks import BASIC_DEPTHS, PlainFlax, in_torch
from fcn_jax import build_model, compiler_options
from fcn_jax.api import Preprocess
from fcn_jax.config import OptimConfig
from fcn_jax.infer.predictor import Predictor
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import Segmenter, describe
from fcn_jax.train import optim
from fcn_jax.train import step as train_step

Call = Callable[[], np.ndarray]
"""Does the work once, waits for it, and gives what it came to."""

RECIPE = OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        model: registered ResNet, under the `fcn32s` head.
        batch: images.
        size: height and width in pixels, multiples of 32.
        dtype: compute dtype, "float32" or "bfloat16" (in PyTorch autocast).
        num_classes: of the logits.
        device: PyTorch's, "cpu" or "cuda"; JAX takes its default backend.
    """

    model: str = "resnet18"
    batch: int = 4
    size: tuple[int, int] = (320, 480)
    dtype: str = "float32"
    num_classes: int = 21
    device: str = "cpu"

    def build(self) -> Segmenter:
        """The library's model, with drawn values."""
        return build_model(self.model, "fcn32s", self.num_classes, dtype=self.dtype, rngs=nnx.Rngs(0))

    def images(self) -> np.ndarray:
        """u8[N,H,W,3], drawn."""
        return np.random.default_rng(0).integers(0, 256, (self.batch, *self.size, 3), np.uint8)

    def labels(self) -> np.ndarray:
        """u8[N,H,W], drawn in blocks, a tenth of them void."""
        rng = np.random.default_rng(1)
        blocks = rng.integers(0, self.num_classes, (self.batch, self.size[0] // 16, self.size[1] // 16), np.uint8)
        blocks[rng.random(blocks.shape) < 0.1] = 255
        return blocks.repeat(16, 1).repeat(16, 2)


class _Torch:
    """PyTorch in one setting: where it runs, in which precision, and how it is waited for."""

    def __init__(self, setting: Setting, preprocess: Preprocess) -> None:
        self._setting = setting
        self.device = torch.device(setting.device)
        torch.backends.cudnn.benchmark = True
        self._scale = preprocess.scale / 255
        self._mean = torch.tensor(preprocess.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=self.device).view(1, 3, 1, 1)

    def autocast(self) -> Any:
        return torch.autocast(self._setting.device, torch.bfloat16, enabled=self._setting.dtype == "bfloat16")

    def put(self, images: np.ndarray) -> torch.Tensor:
        """u8[N,H,W,3] -> u8[N,3,H,W], which is channels_last as it lies."""
        return torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() * self._scale - self._mean) / self._std

    def wait(self) -> None:
        if self._setting.device == "cuda":
            torch.cuda.synchronize()

    def compiled(self, function: Any, *, inference: bool) -> Any:
        """torch.compile at its best: on GPUs every kernel is tuned; in inference weights are folded, as they are constants."""
        import torch._inductor.config as inductor

        inductor.freezing = inference
        torch._dynamo.reset()
        return torch.compile(function, mode="max-autotune" if self._setting.device == "cuda" else None, dynamic=False)


Contenders = Mapping[str, Callable[[], Call]]
"""How to set up each contender, by name; the first is the library."""


def contenders(task: str, setting: Setting) -> Contenders:
    """All that can run a task. Plain Flax has no bottleneck blocks here."""
    forms: dict[str, Callable[[], Call]] = {
        "fcn_jax": lambda: _JAX[task](setting),
        "torch eager": lambda: _TORCH[task](setting, False, False),
        "torch.compile": lambda: _TORCH[task](setting, True, False),
        "torch.compile, product head": lambda: _TORCH[task](setting, True, True),
    }
    if setting.model in BASIC_DEPTHS and task in _FLAX:
        forms["plain flax"] = lambda: _FLAX[task](setting)
    return forms


# ------------------------------------------------------------------------------------------------------------------------- inference


def _jax_logits(setting: Setting, model: nnx.Module, options: Mapping[str, str]) -> Call:
    model.eval()
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x), compiler_options=dict(options))
    preprocess = describe(setting.build().spec)[0].preprocess
    x = jax.block_until_ready(jax.jit(lambda images: normalize(images, preprocess))(setting.images()))
    return lambda: jax.block_until_ready(run(state, x))


def _jax_mask(setting: Setting, model: Segmenter) -> Call:
    run, images = Predictor(model).batch, setting.images()
    return lambda: run(images)


def _flax_mask(setting: Setting) -> Call:
    model = PlainFlax(setting.build())
    model.eval()
    graphdef, state = nnx.split(model)
    preprocess = describe(setting.build().spec)[0].preprocess
    run = jax.jit(lambda state, x: jnp.argmax(nnx.merge(graphdef, state)(normalize(x, preprocess)), -1).astype(jnp.uint8))
    images = setting.images()
    return lambda: np.asarray(run(state, images))


def _torch_inference(setting: Setting, compiled: bool, product: bool, *, mask: bool) -> Call:
    model = setting.build()
    side = _Torch(setting, describe(model.spec)[0].preprocess)
    network = in_torch(model, product=product).to(side.device).eval()

    def function(images: torch.Tensor) -> torch.Tensor:
        logits = network(side.normalized(images) if mask else images)
        return logits.argmax(1).to(torch.uint8) if mask else logits

    run = side.compiled(function, inference=True) if compiled else function
    images = setting.images()
    ready = side.normalized(side.put(images)).contiguous(memory_format=torch.channels_last)

    def call() -> np.ndarray:
        with torch.no_grad(), side.autocast():
            if mask:
                return run(side.put(images)).cpu().numpy()
            logits = run(ready)
            side.wait()
        return logits.permute(0, 2, 3, 1)

    return call


# -------------------------------------------------------------------------------------------------------------------------- training


def _jax_training(setting: Setting, model: nnx.Module, options: Mapping[str, str]) -> Call:
    preprocess = describe(setting.build().spec)[0].preprocess
    state, step = train_step.make(model, lambda params: optim.make(RECIPE, 1000, params), preprocess)
    step = jax.jit(step, donate_argnums=0, compiler_options=dict(options))
    batch = {"image": setting.images(), "mask": setting.labels()}

    def call() -> np.ndarray:
        nonlocal state
        state, metrics = step(state, batch)
        return np.asarray(metrics["loss"])

    return call


def _torch_training(setting: Setting, compiled: bool, product: bool) -> Call:
    model = setting.build()
    side = _Torch(setting, describe(model.spec)[0].preprocess)
    network = in_torch(model, product=product).to(side.device).train()
    optimizer = torch.optim.SGD(
        network.parameters(), RECIPE.lr, momentum=RECIPE.momentum, weight_decay=RECIPE.weight_decay, fused=True
    )
    images, labels = setting.images(), setting.labels()

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(network(side.normalized(images)), labels.long(), ignore_index=255)

    run = side.compiled(loss_of, inference=False) if compiled else loss_of

    def call() -> np.ndarray:
        optimizer.zero_grad(set_to_none=True)
        with side.autocast():
            loss = run(side.put(images), torch.from_numpy(labels).to(side.device))
        loss.backward()
        optimizer.step()
        return loss.detach().cpu().numpy()

    return call


_JAX: dict[str, Callable[[Setting], Call]] = {
    "logits": lambda setting: _jax_logits(setting, setting.build(), compiler_options()),
    "mask": lambda setting: _jax_mask(setting, setting.build()),
    "training": lambda setting: _jax_training(setting, setting.build(), compiler_options()),
}
_FLAX: dict[str, Callable[[Setting], Call]] = {
    "logits": lambda setting: _jax_logits(setting, PlainFlax(setting.build()), {}),
    "mask": _flax_mask,
    "training": lambda setting: _jax_training(setting, PlainFlax(setting.build()), {}),
}
_TORCH: dict[str, Callable[..., Call]] = {
    "logits": lambda setting, compiled, product: _torch_inference(setting, compiled, product, mask=False),
    "mask": lambda setting, compiled, product: _torch_inference(setting, compiled, product, mask=True),
    "training": _torch_training,
}

TASKS = tuple(_JAX)


def check_agreement(task: str, answers: Mapping[str, np.ndarray], dtype: str) -> None:
    """Raise `SystemExit` unless the contenders came to the same: a benchmark of two different computations says nothing."""
    (first, reference), *others = answers.items()
    tolerance = 1e-3 if dtype == "float32" else 5e-2
    for name, answer in others:
        one, other = np.asarray(reference, np.float32), np.asarray(answer, np.float32)
        off = float((one != other).mean() if task == "mask" else np.linalg.norm(one - other) / np.linalg.norm(one))
        if not off < tolerance:
            raise SystemExit(f"{task}: {name} and {first} disagree by {off:.1e}, more than {tolerance:g}")


def flops(task: str, setting: Setting) -> float:
    """Operations of the model itself, 2 for each multiply-add, as PyTorch counts them with the head as a product."""
    from torch.utils.flop_counter import FlopCounterMode

    network = in_torch(setting.build(), product=True)
    x = torch.zeros(1, 3, *setting.size)
    network.train(task == "training")
    with FlopCounterMode(display=False) as counter:
        out = network(x)
        if task == "training":
            out.sum().backward()
    return float(counter.get_total_flops()) * setting.batch
