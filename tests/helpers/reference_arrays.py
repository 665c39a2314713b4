"""Write PyTorch's arrays for tests without it: `python -m tests.helpers.reference_arrays DIR`."""

import sys
from pathlib import Path

import numpy as np

NETWORKS = {
    "resnet18": {"backbone": "resnet18", "num_classes": 5},
    "resnet50_os8": {"backbone": "resnet50", "num_classes": 3, "output_stride": 8},
}
"""Name of the folder -> arguments of `ModelSpec`."""

SIZES = ((64, 96), (65, 97))


def write(directory: Path) -> None:
    """Write a folder for each network.

    A folder has weights.safetensors with torchvision's names and, for each size, a file with the
    input and the logits in eval mode.
    """
    import torch

    from fcn_jax.api import ModelSpec
    from fcn_jax.pytorch import files
    from fcn_jax.verify.randomize import randomize
    from fcn_jax.verify.reference import build_reference

    for name, settings in NETWORKS.items():
        torch.manual_seed(0)
        network = build_reference(ModelSpec(**settings)).eval()
        randomize(network, seed=0)
        files.write(
            directory / name / "weights.safetensors",
            {k: v.numpy() for k, v in network.state_dict().items()},
        )
        for height, width in SIZES:
            image = (
                np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
            )
            with torch.no_grad():
                logits = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))[
                    "out"
                ].numpy()
            np.savez(
                directory / name / f"{height}x{width}.npz",
                image=image,
                logits=logits.transpose(0, 2, 3, 1),
            )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
