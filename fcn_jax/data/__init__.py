"""Datasets and the input pipeline: files -> `Source` -> decoded `Example`s -> augmented u8 batches.

datasets/         the built-in datasets, and the parts that datasets in folders share
images/           image files to arrays, one module for each format
labels/           class lists, label maps, palettes: the meaning of masks' stored values
decode.py         an image and its mask to an `Example`
value_range.py    images of more than 8 bits to 8 bits, or as stored
relabel.py        a source with the classes that a recipe changes
geometry.py       resize, crop and flip of an image and its mask
transforms.py     random resize, crop and flip, and the order of all random transforms, with
augment/          rotation, colors, blur, JPEG, cutout; a pipeline of Albumentations
pipeline.py       batches for training, and examples for evaluation
splits.py         a dataset's splits, opened and checked; uses
damage.py         records without damaged files
inspection.py     masks against the class list, with mask_checks.py and mask_cache.py
contents.py       the bytes and the name of an image or mask
threads.py        work on threads, with progress
"""
