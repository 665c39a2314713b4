"""The contract as a pytest fixture, which an installed fcn-jax offers to every test suite.

    def test_my_backbone_keeps_its_promises(plugin_contract):
        plugin_contract.check_backbone("my_backbone", {"width": 8})

Pytest imports this module in every run, so it imports nothing but pytest: `fcn_jax.testing` loads jax when the first check is asked for.
"""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def plugin_contract() -> ModuleType:
    """`fcn_jax.testing`: `check_backbone`, `check_head`, `check_model` and `check_dataset`, each of which raises on a broken promise."""
    from fcn_jax import testing

    return testing
