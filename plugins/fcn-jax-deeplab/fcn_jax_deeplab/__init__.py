"""DeepLabv3 and DeepLabv3+ heads for fcn-jax, and the DeepLabv3 models of torchvision."""
