"""The settings of a training run: typed, immutable, with defaults."""

from fcn_jax.config.parsing import PLUGIN_NAMES, keys, parse, same_plugins, with_own_plugins
from fcn_jax.config.sections import (
    Config,
    DataConfig,
    EarlyStoppingConfig,
    EvalConfig,
    InitConfig,
    LossConfig,
    OptimConfig,
    ParamGroup,
    TrainConfig,
)

__all__ = [
    "PLUGIN_NAMES",
    "Config",
    "DataConfig",
    "EarlyStoppingConfig",
    "EvalConfig",
    "InitConfig",
    "LossConfig",
    "OptimConfig",
    "ParamGroup",
    "TrainConfig",
    "keys",
    "parse",
    "same_plugins",
    "with_own_plugins",
]
