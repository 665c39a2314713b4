"""The plugin contract as a test suite, for whoever writes a backbone, a head, a whole model or a dataset.

    from fcn_jax.testing import check_backbone

    def test_my_backbone_keeps_its_promises():
        check_backbone("my_backbone")

Each function builds the plugin, runs it, and holds what comes out against what the descriptor says.
It returns nothing, or raises an `AssertionError` that says which promise is broken and by what.
`options` can make a large network smaller. With torch installed, the network is also compared with
its PyTorch reference: a backbone's must return its features by name when it is called with NCHW
images, or have a submodule of each feature's name; a head's is called with the features it
selected, in order.

Under pytest the fixture `plugin_contract` offers the same functions, and `plugin_project` registers
what a project file says, installed or not; `fcn-jax plugins check NAME` runs them from a shell.
"""

from fcn_jax.plugins.testing.backbone import check_backbone
from fcn_jax.plugins.testing.contract import SIZES
from fcn_jax.plugins.testing.dataset import check_dataset
from fcn_jax.plugins.testing.head import check_head
from fcn_jax.plugins.testing.model import check_model

__all__ = ["SIZES", "check_backbone", "check_dataset", "check_head", "check_model"]
