"""Losses of logits and labels, and their weighted sum."""

from fcn_jax.train.losses.softmax import cross_entropy
from fcn_jax.train.losses.terms import Losses, build, default_losses, segmentation_loss, select

__all__ = ["Losses", "build", "cross_entropy", "default_losses", "segmentation_loss", "select"]
