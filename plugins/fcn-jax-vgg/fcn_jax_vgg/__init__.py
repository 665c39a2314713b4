"""VGG backbones for fcn-jax, and the first fully convolutional networks, which used them."""
