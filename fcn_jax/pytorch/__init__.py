"""PyTorch's side: tables of names and layouts, weight files, and reference networks.

Plugins import these names from here; importing them needs neither torch nor JAX.
"""

from fcn_jax.pytorch.reference import import_torchvision, segmentation_reference
from fcn_jax.pytorch.rules import (
    Drop,
    Op,
    Rule,
    Table,
    batch_norm,
    conv,
    conv_norm,
    conv_transpose,
    drop,
    group_norm,
    layer_norm,
    layer_scale,
    linear,
    linear_as_conv,
)

__all__ = [
    "Drop",
    "Op",
    "Rule",
    "Table",
    "batch_norm",
    "conv",
    "conv_norm",
    "conv_transpose",
    "drop",
    "group_norm",
    "import_torchvision",
    "layer_norm",
    "layer_scale",
    "linear",
    "linear_as_conv",
    "segmentation_reference",
]
