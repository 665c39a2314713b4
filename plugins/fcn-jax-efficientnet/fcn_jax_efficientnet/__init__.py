"""EfficientNet-Lite and EfficientNet as backbones for fcn-jax."""
