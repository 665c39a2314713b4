"""Errors for users. Each message says what is wrong, where, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FcnJaxError(Exception):
    """Base of all errors that the input causes. The command line prints them as one line."""


class ConfigError(FcnJaxError):
    """A setting, option or argument is wrong: an unknown name, or a value out of range."""


class PluginError(FcnJaxError):
    """A plugin is missing, broken, ambiguous, or made for another version of the contract."""


class WeightsError(FcnJaxError):
    """A weights file cannot be read, or its tensors do not fit the model."""


class DataError(FcnJaxError):
    """A dataset, image or mask is missing, unreadable or inconsistent."""


class DamagedError(DataError):
    """The contents of an image or mask file are truncated or corrupt."""


class SizeMismatchError(DataError):
    """An image and its mask differ in size."""


class UnknownSplitError(DataError):
    """A dataset has no split of this name.

    Attributes:
        available: the names of its splits.
    """

    def __init__(self, message: str, available: Iterable[str] = ()) -> None:
        """Take the message and the names of the splits that exist."""
        super().__init__(message)
        self.available = tuple(available)


class CheckpointError(FcnJaxError):
    """A run or checkpoint is missing, incomplete, or of another model."""


class WriteError(FcnJaxError):
    """A file or folder cannot be written."""


class TrainingError(FcnJaxError):
    """Training cannot continue, for example because the loss is not finite."""


def did_you_mean(name: str, available: Iterable[str]) -> str:
    """Return a hint for an unknown name: the nearest known one, then all of them.

    Args:
        name: the unknown name.
        available: the known names.

    Returns:
        End of an error message, such as `Did you mean 'resnet18'? Available: resnet18, vgg16.`
    """
    names = sorted(available)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    nearest = f"Did you mean '{close[0]}'? " if close else ""
    return f"{nearest}Available: {', '.join(names) if names else 'none'}."


def listing(items: Iterable[str], limit: int = 12, separator: str = ", ") -> str:
    """Join names for a message; names after the first `limit` are only counted."""
    names = list(items)
    shown = separator.join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
