"""Datasets and the input pipeline: files -> `Source` -> decoded `Example`s -> augmented u8 batches."""
