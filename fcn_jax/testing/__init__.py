"""The plugin contract as a test suite, for whoever writes a backbone, a head, a whole model or a data set.

    from fcn_jax.testing import check_backbone

    def test_my_backbone_keeps_its_promises():
        check_backbone("my_backbone")

Each function builds the plugin, runs it, and holds what comes out against what the descriptor says. It returns nothing, or raises
an `AssertionError` that says which promise is broken and by what. `options` can make a large network smaller. With torch
installed, the network is also compared with its PyTorch reference: a backbone's must return its features by name when it is called
with NCHW images, or have a submodule of each feature's name; a head's is called with the features it selected, in order.

Under pytest the fixture `plugin_contract` offers the same functions, and `plugin_project` registers what a project file says, installed
or not; `fcn-jax plugins check NAME` runs them from a shell. The modules are imported when a name is first used: pytest loads the
fixtures' module in every run on a machine where fcn-jax is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_jax.testing.backbone import check_backbone
    from fcn_jax.testing.contract import SIZES
    from fcn_jax.testing.dataset import check_dataset
    from fcn_jax.testing.head import check_head
    from fcn_jax.testing.model import check_model

_HOMES = {
    "SIZES": "fcn_jax.testing.contract",
    "check_backbone": "fcn_jax.testing.backbone",
    "check_dataset": "fcn_jax.testing.dataset",
    "check_head": "fcn_jax.testing.head",
    "check_model": "fcn_jax.testing.model",
}

__all__ = ["SIZES", "check_backbone", "check_dataset", "check_head", "check_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fcn_jax.testing' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
