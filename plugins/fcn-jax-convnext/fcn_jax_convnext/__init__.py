"""ConvNeXt and ConvNeXt V2 as backbones for fcn-jax."""
