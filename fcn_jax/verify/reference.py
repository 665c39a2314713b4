"""The PyTorch reference of a model, assembled from the references of its parts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcn_jax.errors import ConfigError, listing
from fcn_jax.models.segmenter import covering_size
from fcn_jax.models.spec import resolve
from fcn_jax.plugins.api import Backbone, FeatureSpec, Head, ModelSpec
from fcn_jax.verify.torch_side import import_torch

if TYPE_CHECKING:
    import torch


def build_reference(spec: ModelSpec) -> torch.nn.Module:
    """Build the PyTorch network that a spec's model is a port of, with new initial values.

    Its submodules are `backbone`, `classifier` and, with an auxiliary head, `aux_classifier`. Its
    state dict has the keys of the format "torchvision". It is called with images [N,3,H,W] and
    returns logits [N,K,H,W] as "out" and, with an auxiliary head, "aux".

    Raises:
        ConfigError: the spec is invalid, or a part has no PyTorch reference.
        WeightsError: torch or torchvision is not installed.
    """
    torch = import_torch()
    model = resolve(spec)
    backbone = _reference(model.backbone, options=model.options, output_stride=model.output_stride)
    heads = {
        output: _reference(
            head.descriptor,
            options=head.options,
            features=head.features,
            num_classes=spec.num_classes,
        )
        for output, head in model.heads.items()
    }

    class Reference(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.classifier = heads["out"]
            if "aux" in heads:
                self.aux_classifier = heads["aux"]

        def forward(self, x: Any) -> dict[str, Any]:
            height, width = x.shape[-2:]
            deepest = model.features[-1]
            rows, cols = (covering_size(size, deepest, spec.backbone) for size in (height, width))
            x = torch.nn.functional.pad(x, (0, cols - width, 0, rows - height))
            features = torch_features(self.backbone, x, model.features)
            outputs = {}
            for output, head in model.heads.items():
                module = self.classifier if output == "out" else self.aux_classifier
                taken = [features[feature.name] for feature in head.features]
                outputs[output] = head_logits(module, taken, (rows, cols))[..., :height, :width]
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
        raise ConfigError(f"{kind} '{part.name}' has no PyTorch reference to compare it with")
    return part.torch.reference(**settings)


def torch_features(
    network: torch.nn.Module, images: torch.Tensor, specs: Sequence[FeatureSpec]
) -> dict[str, torch.Tensor]:
    """Features of a reference backbone.

    They are the mapping that it returns, or the outputs of its submodules of the features' names.

    Raises:
        ConfigError: features are missing in both.
    """
    modules = dict(network.named_modules(remove_duplicate=False))  # one may have several names
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
            f"the PyTorch reference lacks features {listing(missing)}; it must return the features "
            "by name, or have a submodule of each feature's name"
        )
    return {spec.name: features[spec.name] for spec in specs}
