"""The settings of a training run: typed, immutable, with defaults."""

from fcn_jax.config.augment import AUGMENT_TABLES
from fcn_jax.config.optim import OptimConfig, ParamGroup
from fcn_jax.config.parsing import (
    AUTO_SETTINGS,
    PLUGIN_NAMES,
    keys,
    parse,
    same_plugins,
    with_own_plugins,
)
from fcn_jax.config.sections import (
    AUTO_MODEL,
    Config,
    DataConfig,
    EarlyStoppingConfig,
    EvalConfig,
    InitConfig,
    LogConfig,
    LossConfig,
    MeshConfig,
    TrainConfig,
)
from fcn_jax.config.types import AUTO

__all__ = [
    "AUGMENT_TABLES",
    "AUTO",
    "AUTO_MODEL",
    "AUTO_SETTINGS",
    "PLUGIN_NAMES",
    "Config",
    "DataConfig",
    "EarlyStoppingConfig",
    "EvalConfig",
    "InitConfig",
    "LogConfig",
    "LossConfig",
    "MeshConfig",
    "OptimConfig",
    "ParamGroup",
    "TrainConfig",
    "keys",
    "parse",
    "same_plugins",
    "with_own_plugins",
]
