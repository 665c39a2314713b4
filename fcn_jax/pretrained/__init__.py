"""Portable models: load them by directory or hub id, save them, and publish them.

Example:
    model = fcn_jax.from_pretrained("ORGANIZATION/NAME")
    fcn_jax.save_pretrained("runs/camvid", "camvid-resnet18", license="mit")
    fcn_jax.push_to_hub("camvid-resnet18", "ORGANIZATION/NAME")
"""

from fcn_jax.pretrained.load import from_pretrained
from fcn_jax.pretrained.save import push_to_hub, save_pretrained

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
