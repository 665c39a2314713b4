"""A page about training runs: curves, scores, pictures, settings, time."""

from fcn_jax.report.page import write

__all__ = ["write"]
