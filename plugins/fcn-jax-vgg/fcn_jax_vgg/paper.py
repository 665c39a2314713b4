"""FCN-32s, FCN-16s and FCN-8s on VGG-16 as their authors published them.

Long, Shelhamer and Darrell 2015, arXiv:1411.4038; github.com/shelhamer/fcn.berkeleyvision.org, in
Caffe. In PyTorch, their weights are distributed as state dicts of the reimplementation
github.com/wkentaro/pytorch-fcn, whose names are the key format "pytorch-fcn".
"""

from __future__ import annotations

import functools
from typing import Any

from fcn_jax.api import Model, ModelSpec

# Depth and channels of the five blocks of VGG-16.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def _torch_reference(
    skips: int, at_once: bool, num_classes: int, aux: bool = False, width: int = 4096
) -> Any:
    """The network in plain PyTorch, with the structure and names of pytorch-fcn and random weights.

    The crops are the numbers of the authors' networks, independent of feature specs. `skips` is 0
    for FCN-32s, 1 for FCN-16s and 2 for FCN-8s; with `at_once` the skips' features are scaled
    down; `width` is that of fc6 and fc7. There is no auxiliary head, so `aux` is not used.
    """
    import torch

    def conv(in_channels: int, out_channels: int, size: int, padding: int = 0) -> torch.nn.Conv2d:
        layer = torch.nn.Conv2d(in_channels, out_channels, size, padding=padding)
        # With PyTorch's default, activations would vanish.
        torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return layer

    def upsampling(factor: int, padding: int = 0) -> torch.nn.ConvTranspose2d:
        layer = torch.nn.ConvTranspose2d(
            num_classes, num_classes, 2 * factor, stride=factor, padding=padding, bias=False
        )
        ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
        diagonal = torch.eye(num_classes)[:, :, None, None]
        layer.weight.data.copy_(diagonal * ramp[:, None] * ramp)
        return layer.requires_grad_(False)

    layers: dict[str, torch.nn.Module] = {"dropout": torch.nn.Dropout2d()}
    in_channels = 3
    for block, (depth, channels) in enumerate(_BLOCKS, start=1):
        for i in range(1, depth + 1):
            padding = 100 if block == i == 1 else 1
            layers[f"conv{block}_{i}"] = conv(in_channels, channels, 3, padding)
            in_channels = channels
    layers["fc6"] = conv(512, width, 7)
    layers["fc7"] = conv(width, width, 1)
    layers["score_fr"] = conv(width, num_classes, 1)
    if skips == 0:
        # The padding is 16 of the crop of 19, as in our head, so that the layers can be compared.
        layers["upscore"] = upsampling(32, padding=16)
    if skips >= 1:
        layers["score_pool4"] = conv(512, num_classes, 1)
        layers["upscore2"] = upsampling(2)
    if skips == 1:
        layers["upscore16"] = upsampling(16)
    if skips == 2:
        layers["score_pool3"] = conv(256, num_classes, 1)
        layers["upscore_pool4"] = upsampling(2)
        layers["upscore8"] = upsampling(8)

    def crop(y: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
        return y[:, :, start : start + like.shape[2], start : start + like.shape[3]]

    class Reference(torch.nn.ModuleDict):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            pools, h = [], x
            for block, (depth, _) in enumerate(_BLOCKS, start=1):
                for i in range(1, depth + 1):
                    h = torch.relu(self[f"conv{block}_{i}"](h))
                h = torch.nn.functional.max_pool2d(h, 2, ceil_mode=True)
                pools.append(h)
            h = self["dropout"](torch.relu(self["fc6"](h)))
            h = self["dropout"](torch.relu(self["fc7"](h)))
            h = self["score_fr"](h)
            if skips == 0:
                return {"out": crop(self["upscore"](h), 19 - 16, x)}
            h = self["upscore2"](h)
            pool4 = pools[3] * (0.01 if at_once else 1)
            h = h + crop(self["score_pool4"](pool4), 5, h)
            if skips == 1:
                return {"out": crop(self["upscore16"](h), 27, x)}
            h = self["upscore_pool4"](h)
            pool3 = pools[2] * (0.0001 if at_once else 1)
            h = h + crop(self["score_pool3"](pool3), 9, h)
            return {"out": crop(self["upscore8"](h), 31, x)}

    return Reference(layers)


def _model(name: str, head: str, skips: int, summary: str = "", at_once: bool = False) -> Model:
    options = {"upsampling": "fixed"} | ({"at_once": True} if at_once else {})
    return Model(
        name=name,
        summary=f"The paper's FCN-{32 >> skips}s on VGG-16, 21 classes; {summary}",
        reference="Long et al. 2015, arXiv:1411.4038; shelhamer/fcn.berkeleyvision.org; "
        "wkentaro/pytorch-fcn",
        spec=ModelSpec("vgg16_caffe", head, 21, head_options=options),
        reference_model=functools.partial(_torch_reference, skips, at_once),
        key_format="pytorch-fcn",
    )


# The scores are the authors', on the 736 images of seg11valid, which are not among the 8,498 of SBD
# that they trained on.
FCN32S_VGG16 = _model("fcn32s_vgg16", "fcn32s", 0, "published mIoU 63.6 on VOC 2011")
FCN16S_VGG16 = _model("fcn16s_vgg16", "fcn16s", 1, "published mIoU 65.0 on VOC 2011")
FCN8S_VGG16 = _model("fcn8s_vgg16", "fcn8s", 2, "published mIoU 65.5 on VOC 2011")
FCN8S_ATONCE_VGG16 = _model("fcn8s_atonce_vgg16", "fcn8s", 2, "trained at once", at_once=True)
