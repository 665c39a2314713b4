"""The plugin contract, as plugins import it.

It is defined in `fcn_jax.plugins.api` and `fcn_jax.plugins.features`, and sources of datasets in
`fcn_jax.data.source`.
"""

from fcn_jax.data.source import Source
from fcn_jax.plugins.api import (
    API_VERSION,
    IGNORE_INDEX,
    Backbone,
    Classes,
    Dataset,
    Example,
    FeatureSpec,
    Head,
    Loss,
    LossContext,
    MeanLoss,
    Model,
    ModelSpec,
    NoOptions,
    Preprocess,
    Record,
    TorchBridge,
    Weights,
    ceil_size,
    floor_size,
)
from fcn_jax.plugins.features import by_stride

__all__ = [
    "API_VERSION",
    "IGNORE_INDEX",
    "Backbone",
    "Classes",
    "Dataset",
    "Example",
    "FeatureSpec",
    "Head",
    "Loss",
    "LossContext",
    "MeanLoss",
    "Model",
    "ModelSpec",
    "NoOptions",
    "Preprocess",
    "Record",
    "Source",
    "TorchBridge",
    "Weights",
    "by_stride",
    "ceil_size",
    "floor_size",
]
