"""The PyTorch original of a whole model: torchvision's trunk and the head's plain torch module, put together as the segmenter does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcn_jax.errors import ConfigError, listing
from fcn_jax.models.segmenter import ModelSpec, describe, enough, plan_heads
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Backbone, FeatureSpec, Head
from fcn_jax.verify.torch_side import import_torch

if TYPE_CHECKING:
    import torch


def build_reference(spec: ModelSpec) -> torch.nn.Module:
    """The PyTorch network that a spec's model is a port of, put together from the parts' originals, freshly initialized.

    Its submodules are `backbone`, `classifier` and, with an auxiliary head, `aux_classifier`, and
    its state dict has the "torchvision" scheme's names. Called with images [N,3,H,W] it gives
    logits [N,K,H,W] as "out" and perhaps "aux", as torchvision's models do.

    Raises:
        ConfigError: the backbone or the head has no PyTorch reference.
        WeightsError: torch or torchvision is not installed.
    """
    torch = import_torch()
    backbone, plans = describe(spec).backbone, plan_heads(spec)
    options = registry.options(backbone, spec.backbone_options)
    stride = spec.output_stride or backbone.output_strides[0]
    specs = backbone.features(options, stride)
    trunk = _reference(backbone, options=options, output_stride=stride)
    heads = {
        name: _reference(
            plan.head, options=plan.options, features=plan.features, num_classes=spec.num_classes
        )
        for name, plan in plans.items()
    }

    class Reference(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = trunk
            self.classifier = heads["out"]
            if "aux" in heads:
                self.aux_classifier = heads["aux"]

        def forward(self, x: Any) -> dict[str, Any]:
            height, width = x.shape[-2:]
            rows, cols = (enough(size, specs[-1], spec.backbone) for size in (height, width))
            features = torch_features(
                self.backbone,
                torch.nn.functional.pad(x, (0, cols - width, 0, rows - height)),
                specs,
            )
            outputs = {}
            for name, plan in plans.items():
                head = self.classifier if name == "out" else self.aux_classifier
                taken = [features[spec.name] for spec in plan.features]
                outputs[name] = head_logits(head, taken, (rows, cols))[..., :height, :width]
            return outputs

    return Reference()


def head_logits(
    head: torch.nn.Module, features: Sequence[torch.Tensor], size: tuple[int, int]
) -> torch.Tensor:
    """Logits f[N,K,*size] of a reference head.

    A head whose `forward` has an argument `out_hw` receives the size. Outputs smaller than that
    are resized bilinearly, as in torchvision's models; larger ones are cropped at the bottom and
    right.
    """
    torch = import_torch()
    takes_size = "out_hw" in inspect.signature(head.forward).parameters
    logits: Any = head(*features, **({"out_hw": size} if takes_size else {}))
    if logits.shape[2] < size[0] or logits.shape[3] < size[1]:
        logits = torch.nn.functional.interpolate(
            logits, size=size, mode="bilinear", align_corners=False
        )
    return logits[..., : size[0], : size[1]]


def _reference(part: Backbone | Head, **settings: Any) -> Any:
    if part.torch is None or part.torch.reference is None:
        kind = "backbone" if isinstance(part, Backbone) else "head"
        raise ConfigError(
            f"{kind} '{part.name}' declares no PyTorch reference, so there is nothing to compare it with"
        )
    return part.torch.reference(**settings)


def torch_features(
    network: torch.nn.Module, images: torch.Tensor, specs: Sequence[FeatureSpec]
) -> dict[str, torch.Tensor]:
    """A reference backbone's features: what it returns, or the outputs of its submodules of the features' names.

    Raises:
        ConfigError: it shows neither.
    """
    modules = dict(network.named_modules())
    features: dict[str, Any] = {}
    handles = [
        modules[spec.name].register_forward_hook(
            lambda _, __, output, name=spec.name: features.update({name: output})
        )
        for spec in specs
        if spec.name in modules
    ]
    try:
        returned = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(returned, Mapping):
        features = dict(returned)
    missing = [spec.name for spec in specs if spec.name not in features]
    if missing:
        raise ConfigError(
            f"the PyTorch reference shows no {listing(missing)}; it must return the features by name, or have a submodule of each "
            "feature's name"
        )
    return {spec.name: features[spec.name] for spec in specs}


def randomise_batch_norm(network: torch.nn.Module, seed: int) -> None:
    """Give a fresh network statistics, scales and shifts that are not 0 and 1, which a mix-up would leave unnoticed. In place."""
    torch = import_torch()
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for value, low, high in (
                    (layer.weight, 0.5, 1.5),
                    (layer.bias, -0.5, 0.5),
                    (layer.running_mean, -0.5, 0.5),
                    (layer.running_var, 0.5, 1.5),
                ):
                    if value is not None:
                        value.uniform_(low, high, generator=generator)
