"""MobileNetV2 and MobileNetV3 backbones for fcn-jax, and LR-ASPP, the head designed for them."""
