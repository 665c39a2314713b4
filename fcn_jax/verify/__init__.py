"""Proof that a port computes the same function as its PyTorch reference."""

from fcn_jax.verify.criterion import Comparison, Section
from fcn_jax.verify.model import verify_model
from fcn_jax.verify.modules import compare
from fcn_jax.verify.report import Report
from fcn_jax.verify.runs import ADAMW, ADAMW_EMA, SGD

__all__ = [
    "ADAMW",
    "ADAMW_EMA",
    "SGD",
    "Comparison",
    "Report",
    "Section",
    "compare",
    "verify_model",
]
