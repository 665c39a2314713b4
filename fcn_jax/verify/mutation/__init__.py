"""Planted faults: which of them `verify` would have caught."""

from fcn_jax.verify.mutation.score import MutationScore, Outcome, Progress, add_mutation, score

__all__ = ["MutationScore", "Outcome", "Progress", "add_mutation", "score"]
