"""flaxmodels' ResNet-18 (Flax Linen) against torchvision's.

    pip install 'fcn-jax[torch]' flaxmodels==0.1.3
    python examples/ports/flaxmodels_resnet.py

flaxmodels names nothing (`BasicBlock_0.Conv_1`): its tensors are paired by the order of use.
"""

import flaxmodels
import jax
import numpy as np
import torch

from fcn_jax import verify
from fcn_jax.pytorch import import_torchvision
from fcn_jax.verify.randomize import randomize


def main() -> None:
    """Print the report."""
    images = np.random.default_rng(0).standard_normal((2, 65, 97, 3)).astype(np.float32)
    torch.manual_seed(0)
    reference = import_torchvision().models.resnet18()
    # Random weights without constant tensors; no download is needed to compare two functions.
    randomize(reference, 0, run=lambda net: net(torch.from_numpy(images).permute(0, 3, 1, 2)))
    port = flaxmodels.ResNet18(output="logits", pretrained=None, normalize=False)
    variables = jax.eval_shape(port.init, jax.random.key(0), images)
    print(verify.compare(reference, (port, variables), images, subject="flaxmodels ResNet-18"))


if __name__ == "__main__":
    main()
