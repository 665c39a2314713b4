"""Swin transformers as backbones for fcn-jax."""
