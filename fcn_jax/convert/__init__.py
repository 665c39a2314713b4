"""PyTorch weights in and out, from one two-way table per module."""
