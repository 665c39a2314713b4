"""VGG backbones for fcn-jax, and the first fully convolutional networks, which used them."""

from fcn_jax_vgg.paper import FCN8S_ATONCE_VGG16, FCN8S_VGG16, FCN16S_VGG16, FCN32S_VGG16
from fcn_jax_vgg.vgg import (
    VGG11,
    VGG11_BN,
    VGG13,
    VGG13_BN,
    VGG16,
    VGG16_BN,
    VGG16_CAFFE,
    VGG19,
    VGG19_BN,
)

__all__ = [
    "FCN8S_ATONCE_VGG16",
    "FCN8S_VGG16",
    "FCN16S_VGG16",
    "FCN32S_VGG16",
    "VGG11",
    "VGG11_BN",
    "VGG13",
    "VGG13_BN",
    "VGG16",
    "VGG16_BN",
    "VGG16_CAFFE",
    "VGG19",
    "VGG19_BN",
]
