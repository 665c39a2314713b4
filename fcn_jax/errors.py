"""The errors a user can meet. Each is one clear message: what is wrong, where, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FcnJaxError(Exception):
    """Base of every error that is the input's fault, not the library's; the command line prints it as one line."""


class ConfigError(FcnJaxError):
    """A recipe, option or argument is wrong: an unknown key or name, a value out of range."""


class PluginError(FcnJaxError):
    """A plugin is missing, broken, claimed twice, or was built for another version of the contract."""


class WeightsError(FcnJaxError):
    """A weights file cannot be read, or its tensors do not fit the model."""


class DataError(FcnJaxError):
    """A dataset, image or mask is missing, unreadable or inconsistent."""


class DamagedError(DataError):
    """The contents of an image or mask file are truncated or corrupt, so that its pixels cannot be trusted."""


class CheckpointError(FcnJaxError):
    """A run or checkpoint directory is missing, incomplete, or of another model."""


class WriteError(FcnJaxError):
    """A file or folder cannot be written."""


class TrainingError(FcnJaxError):
    """Training cannot go on, such as on a loss that is not finite."""


def did_you_mean(name: str, available: Iterable[str]) -> str:
    """Say what exists: the nearest name first, then the list.

    Args:
        name: what was asked for.
        available: the names that would have been right.

    Returns:
        A sentence to end an error message with, such as `Did you mean 'resnet18'? Available:
        resnet18, vgg16.`
    """
    names = sorted(available)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    nearest = f"Did you mean '{close[0]}'? " if close else ""
    return f"{nearest}Available: {', '.join(names) if names else 'none'}."


def listing(items: Iterable[str], limit: int = 12) -> str:
    """Join names for a message, eliding all past `limit` of them with their count."""
    names = list(items)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
