"""The tasks in PyTorch: eager or compiled, with a transposed convolution or a product as head."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.jax_tasks import Start
from benchmarks.networks import torch_network
from benchmarks.setting import RECIPE, Setting
from fcn_jax.pytorch.reference import import_torchvision


class Network:
    """A PyTorch network with its device, precision and preprocessing."""

    def __init__(self, setting: Setting, *, compiled: bool, product: bool, inference: bool) -> None:
        """Build the network in channels_last, with the parameters of the library's model.

        Args:
            setting: model, inputs and device.
            compiled: use torch.compile with its fastest options: kernels are tuned on GPUs, and
                inference folds the weights as constants.
            product: compute the head as a matrix product.
            inference: use eval mode.
        """
        model = setting.build()
        preprocess = setting.preprocess
        self.setting = setting
        self.deepest = model.features[-1]
        self.device = torch.device(setting.device)
        network = torch_network(setting, model, product=product)
        self.network: Any = network.to(self.device).train(not inference)
        self._compiled, self._inference = compiled, inference
        torch.backends.cudnn.benchmark = True
        self._scale, self._reverse = preprocess.scale / 255, preprocess.channel_order == "bgr"
        self._mean = torch.tensor(preprocess.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=self.device).view(1, 3, 1, 1)

    def prepared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function if this network is to be compiled."""
        if not self._compiled:
            return function
        import torch._inductor.config as inductor

        inductor.freezing = self._inference
        torch._dynamo.reset()
        return torch.compile(
            function,
            mode=self.setting.torch_mode if self.setting.device == "cuda" else None,
            dynamic=False,
        )

    def autocast(self) -> Any:
        """Return a context with the precision of the setting."""
        return torch.autocast(
            self.setting.device, torch.bfloat16, enabled=self.setting.dtype == "bfloat16"
        )

    def put(self, images: np.ndarray) -> torch.Tensor:
        """Move [N,H,W,C] to the device as [N,C,H,W], which is channels_last in memory."""
        return torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize u8[N,3,H,W] to f32[N,3,H,W]."""
        images = images.flip(1) if self._reverse else images
        return (images.float() * self._scale - self._mean) / self._std

    def ready(self) -> torch.Tensor:
        """Return the normalized images of the setting."""
        return self.normalized(self.put(self.setting.images())).contiguous(
            memory_format=torch.channels_last
        )

    def labels(self, labels: np.ndarray) -> torch.Tensor:
        """Move labels to the device."""
        return torch.from_numpy(labels).to(self.device)


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def on_host(result: torch.Tensor | np.ndarray) -> np.ndarray:
    """Convert a result to an array; bfloat16 becomes float32, because numpy has no bfloat16."""
    return result if isinstance(result, np.ndarray) else result.float().cpu().numpy()


def _entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, labels.long(), ignore_index=255)


def _inference(setting: Setting, compiled: bool, product: bool, *, mask: bool) -> Start:
    model = Network(setting, compiled=compiled, product=product, inference=True)

    def function(images: torch.Tensor) -> torch.Tensor:
        logits = model.network(model.normalized(images) if mask else images)
        return logits.argmax(1).to(torch.uint8) if mask else logits

    run, images, ready = model.prepared(function), setting.images(), model.ready()

    def call() -> torch.Tensor | np.ndarray:
        with torch.no_grad(), model.autocast():
            if mask:
                return run(model.put(images)).cpu().numpy()
            return run(ready).permute(0, 2, 3, 1)

    return call


def _gradients(
    model: Network, loss: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> Start:
    """Compute the loss of a part and its gradients by its parameters and its first input."""
    run = model.prepared(loss)
    first = inputs[0].detach().requires_grad_()

    def call() -> torch.Tensor:
        model.network.zero_grad(set_to_none=True)
        first.grad = None
        with model.autocast():
            value = run(first, *inputs[1:])
        value.backward()
        return value.detach()

    return call


def _head(setting: Setting, compiled: bool, product: bool) -> Start:
    model = Network(setting, compiled=compiled, product=product, inference=False)
    head = model.network[-2:]
    features = model.put(setting.features(model.deepest.channels, model.deepest.stride))
    return _gradients(
        model,
        lambda x, labels: _entropy(head(x), labels),
        (features, model.labels(setting.labels())),
    )


def _backbone(setting: Setting, compiled: bool, product: bool) -> Start:
    model = Network(setting, compiled=compiled, product=product, inference=False)
    backbone = model.network[:-2]
    return _gradients(model, lambda x: backbone(x).float().square().mean(), (model.ready(),))


class Trainer:
    """A network and its optimizer."""

    def __init__(self, setting: Setting, compiled: bool, product: bool) -> None:
        """Build the network and its optimizer."""
        self.model = model = Network(setting, compiled=compiled, product=product, inference=False)
        self._optimizer = torch.optim.SGD(
            model.network.parameters(),
            RECIPE.lr,
            momentum=RECIPE.momentum,
            weight_decay=RECIPE.weight_decay,
            fused=True,
        )
        self._loss = model.prepared(
            lambda images, labels: _entropy(model.network(model.normalized(images)), labels)
        )

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take one step; returns the loss, which stays on the device."""
        self._optimizer.zero_grad(set_to_none=True)
        with self.model.autocast():
            loss = self._loss(images, labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach().clone()  # the next step of a CUDA graph overwrites it


def _training(setting: Setting, compiled: bool, product: bool) -> Start:
    trainer = Trainer(setting, compiled, product)
    images, labels = trainer.model.put(setting.images()), trainer.model.labels(setting.labels())
    return lambda: trainer.step(images, labels)


class _Folder(torch.utils.data.Dataset):
    """Images and masks with torchvision's transforms, as in its reference training script."""

    def __init__(self, setting: Setting) -> None:
        """List the files."""
        self._images, self._masks = (
            sorted((Path(setting.data) / part / "train").iterdir()) for part in ("images", "masks")
        )
        self._setting = setting

    @functools.cached_property
    def _transform(self) -> Any:
        """Created on first use, because each process of the loader must import torchvision."""
        import_torchvision()
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        return v2.Compose(
            [
                v2.ToImage(),
                v2.ScaleJitter(target_size=self._setting.pictures, scale_range=self._setting.scale),
                v2.RandomCrop(
                    self._setting.size, pad_if_needed=True, fill={tv_tensors.Mask: 255, "others": 0}
                ),
                v2.RandomHorizontalFlip(0.5),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        transform = self._transform
        from PIL import Image
        from torchvision import tv_tensors

        with Image.open(self._images[index]) as image, Image.open(self._masks[index]) as mask:
            return transform(image.convert("RGB"), tv_tensors.Mask(np.array(mask)))  # type: ignore[no-any-return]


def _loader(setting: Setting) -> Any:
    return torch.utils.data.DataLoader(
        _Folder(setting),
        setting.batch,
        shuffle=True,
        drop_last=True,
        num_workers=torch.get_num_threads(),
        persistent_workers=True,
    )


def _pipeline(setting: Setting) -> Start:
    loader = _loader(setting)
    return lambda: np.stack([images[0, :, 0, 0].numpy() for images, _ in loader])


def _epoch(setting: Setting, compiled: bool, product: bool) -> Start:
    trainer, loader = Trainer(setting, compiled, product), _loader(setting)
    model = trainer.model

    def call() -> np.ndarray:
        losses = [
            trainer.step(
                images.to(model.device).contiguous(memory_format=torch.channels_last),
                masks.squeeze(1).to(model.device),
            )
            for images, masks in loader
        ]
        return torch.stack(losses).cpu().numpy()

    return call


TASKS: dict[str, Callable[[Setting, bool, bool], Start]] = {
    "head": _head,
    "trunk": _backbone,
    "logits": lambda setting, compiled, product: _inference(setting, compiled, product, mask=False),
    "mask": lambda setting, compiled, product: _inference(setting, compiled, product, mask=True),
    "training": _training,
    "pipeline": lambda setting, compiled, product: _pipeline(setting),
    "photographs": lambda setting, compiled, product: _pipeline(setting),
    "epoch": _epoch,
}
