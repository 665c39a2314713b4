"""Vision transformers, DINOv2 and DINOv3 as backbones for fcn-jax."""
