"""Heads that are usual on transformers, for fcn-jax: UPerNet, SegFormer's, and a linear one."""
