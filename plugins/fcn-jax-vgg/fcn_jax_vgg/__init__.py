"""VGG as a backbone for fcn-jax, and the first fully convolutional networks, which stood on it."""

from fcn_jax_vgg.paper import FCN8S_ATONCE_VGG16, FCN8S_VGG16, FCN16S_VGG16, FCN32S_VGG16
from fcn_jax_vgg.vgg import (
    VGG,
    VGG11,
    VGG11_BN,
    VGG13,
    VGG13_BN,
    VGG16,
    VGG16_BN,
    VGG16_CAFFE,
    VGG19,
    VGG19_BN,
    Architecture,
    VGGOptions,
)

__all__ = [
    "FCN8S_ATONCE_VGG16",
    "FCN8S_VGG16",
    "FCN16S_VGG16",
    "FCN32S_VGG16",
    "VGG",
    "VGG11",
    "VGG11_BN",
    "VGG13",
    "VGG13_BN",
    "VGG16",
    "VGG16_BN",
    "VGG16_CAFFE",
    "VGG19",
    "VGG19_BN",
    "Architecture",
    "VGGOptions",
]
