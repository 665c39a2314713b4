"""The built-in datasets, and the parts that datasets in folders share."""
