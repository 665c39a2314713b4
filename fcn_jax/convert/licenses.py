"""Acceptance of licenses that restrict what published weights may be used for."""

from __future__ import annotations

import os

from fcn_jax.errors import WeightsError
from fcn_jax.plugins.api import Weights

VARIABLE = "FCN_JAX_ACCEPT_LICENSE"
"""Environment variable with the accepted licenses, separated by commas."""


def accept(license: str) -> None:
    """Accept a license in this process and in those that it starts."""
    os.environ[VARIABLE] = ",".join(filter(None, [os.environ.get(VARIABLE), license]))


def require_accepted(weights: Weights) -> None:
    """Raise `WeightsError` if the weights are restricted and nobody accepted their license."""
    accepted = {name.strip().lower() for name in os.environ.get(VARIABLE, "").split(",")}
    if weights.restricted and weights.license.lower() not in accepted:
        raise WeightsError(
            f"{weights.url}: these weights have the license {weights.license}: "
            f"{weights.restricted}; if you accept it, give --accept-license {weights.license}, or "
            f"set {VARIABLE}={weights.license}; other weights may have no such restriction"
        )
