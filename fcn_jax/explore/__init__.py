"""A look at a dataset before training: `fcn-jax data check` and `fcn-jax data browse`.

opening.py      from a recipe or a folder to the splits of a dataset
contents.py     one pass over a split: sizes, labels, digests and failures of all pairs
duplicates.py   images that occur several times
check.py        problems, warnings and suggestions; uses
suggestions.py  settings that fit the data
text.py         the result of a check as plain text
browse.py       a contact sheet: images, masks, and training images after augmentation
"""
