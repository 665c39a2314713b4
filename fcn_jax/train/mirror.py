"""The records of a run next to its checkpoints, where `train.checkpoint_dir` names another place.

The text files of a run are local, because object stores cannot append to a file. Copies go to the
place of the checkpoints before each save and after each evaluation. A run whose local disk is gone
continues from them. Of several processes, the first one copies.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import jax

from fcn_jax.checkpoint import place

RECORDS = ("config.json", "versions.json", "parameters.json", "metrics.jsonl")


class Mirror:
    """The copies of a run's records.

    Attributes:
        store: the folder above the run's `checkpoints`: the run directory, or another place.
    """

    def __init__(self, run: Path, checkpoint_dir: str | None) -> None:
        """Store the places.

        Raises:
            ConfigError: `checkpoint_dir` is not a usable place.
        """
        self._run = run
        self.store = place.place(checkpoint_dir) if checkpoint_dir else run

    @property
    def home(self) -> Path:
        """The folder that holds the records: the run directory, if it holds any."""
        first, name = self._run / RECORDS[0], RECORDS[0]
        return self.store if not first.exists() and (self.store / name).exists() else self._run

    def fetch(self) -> None:
        """Copy the records to the run directory, unless it holds them.

        Raises:
            WriteError: they cannot be written.
        """
        if self.home is not self._run and jax.process_index() == 0:
            for name in reversed(RECORDS):  # `config.json` last: with it, the directory is a run
                with contextlib.suppress(FileNotFoundError):
                    place.copy(self.store / name, self._run / name)

    def push(self) -> None:
        """Copy the records to the place of the checkpoints.

        Raises:
            WriteError: they cannot be written.
        """
        if self.store is not self._run and jax.process_index() == 0:
            for name in RECORDS:
                place.copy(self._run / name, self.store / name)
