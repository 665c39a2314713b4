"""equimo's ConvNeXt and vision transformer (Equinox) against timm's.

    pip install 'fcn-jax[torch]' equimo==1.1.0 timm
    python examples/ports/equimo_networks.py

Both are built with fewer channels and layers than the published ones, which changes nothing in the
function that is compared. The second run of each corrects what the first one finds.
"""

import equimo.models.convnext
import equimo.models.vit
import jax
import numpy as np
import torch

from fcn_jax import verify
from fcn_jax.pytorch import import_torchvision
from fcn_jax.verify.randomize import randomize

import_torchvision()
import timm  # noqa: E402

KEY = jax.random.key(0)


def convnext(**settings):
    """Run a comparison of ConvNeXt."""
    torch.manual_seed(0)
    reference = timm.models.ConvNeXt(depths=(1, 2, 1, 1), dims=(16, 32, 64, 128), num_classes=10)
    randomize(reference, 0)
    port = equimo.models.convnext.ConvNeXt(
        depths=[1, 2, 1, 1], dims=[16, 32, 64, 128], num_classes=10, key=KEY, **settings
    )
    images = np.random.default_rng(0).standard_normal((2, 65, 97, 3)).astype(np.float32)
    return verify.compare(reference, port, images, subject="equimo ConvNeXt")


def vit(**settings):
    """Run a comparison of the vision transformer."""
    torch.manual_seed(0)
    reference = timm.models.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=10
    )
    randomize(reference, 0)
    torch.nn.init.normal_(reference.cls_token)  # timm draws it of order 1e-6
    settings = {"reg_tokens": 0, "global_pool": "token", "num_classes": 10, **settings}
    port = equimo.models.vit.VisionTransformer(64, 3, 48, 16, 3, [2], key=KEY, **settings)
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    return verify.compare(reference, port, images, subject="equimo ViT")


def main() -> None:
    """Print the reports: with equimo's defaults, then corrected."""
    for run, corrected in (
        (convnext, {"act_layer": "exactgelu"}),
        (vit, {"act_layer": "exactgelu", "eps": 1e-6}),
    ):
        print(run(), "\n")
        print("corrected by", corrected)
        print(run(**corrected), "\n")


if __name__ == "__main__":
    main()
