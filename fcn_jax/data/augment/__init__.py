"""The random transforms of `fcn_jax.data.transforms.Augment` on top of resize, crop and flip.

Functions of arrays and fixed parameters, and functions that draw the parameters.

rotation.py       a crop that is rotated about its center
class_crop.py     where to crop, so that no class covers most of it
colors.py         color jitter as in torchvision, photometric distortion as in mmsegmentation
effects.py        Gaussian blur, JPEG compression, cutout
channels.py       OpenCV's functions for any number of channels
albumentations_pipeline.py  a serialized pipeline of Albumentations
"""
