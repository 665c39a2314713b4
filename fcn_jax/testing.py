"""The plugin contract as a test suite, for authors of plugins of every kind.

    from fcn_jax.testing import check_backbone

    def test_my_backbone_meets_the_contract():
        check_backbone("my_backbone")

Each function builds the plugin, runs it, and compares the result with the descriptor. It raises an
`AssertionError` that names the broken promise and the difference. `options` can make a large
network smaller. If torch is installed, the network is also compared with its PyTorch reference.

Pytest has the same functions as the fixture `plugin_contract`, and the fixture `plugin_project` to
register the plugins of a project file. `fcn-jax plugins check NAME` runs them from a shell.
"""

from fcn_jax.plugins.testing.backbone import check_backbone
from fcn_jax.plugins.testing.contract import SIZES
from fcn_jax.plugins.testing.dataset import check_dataset
from fcn_jax.plugins.testing.head import check_head
from fcn_jax.plugins.testing.loss import check_loss
from fcn_jax.plugins.testing.model import check_model

__all__ = ["SIZES", "check_backbone", "check_dataset", "check_head", "check_loss", "check_model"]
