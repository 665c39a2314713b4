"""VGG-16 as a backbone for fcn-jax: the trunk of the first fully convolutional networks."""

from fcn_jax_vgg.vgg import VGG, VGG16, VGGOptions

__all__ = ["VGG", "VGG16", "VGGOptions"]
