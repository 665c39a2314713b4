"""Benchmarks that time parts of the library: that it is the work which the library does."""

import importlib
from pathlib import Path

import numpy as np

from fcn_jax.api import Example, Record


class Whole:
    """One image, and what was asked of it."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Record("0", b"", b"")

    def decode(self, record):
        self.asked.append("whole")
        return Example("0", np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8))


class Resizing(Whole):
    """Decodes at other sizes too."""

    def decode_resized(self, record, factor):
        self.asked.append(round(factor, 3))
        return Example("0", np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))


def test_the_hosts_work_is_timed_as_the_pipeline_does_it(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # benchmarks are not installed
    benchmark = importlib.import_module("benchmarks.input")
    for source, asked in ((Whole(), "whole"), (Resizing(), 0.5)):
        stages = benchmark.measure(source, (4, 4), (0.5, 0.5), rounds=2)
        assert tuple(stages) == benchmark.STAGES
        assert source.asked == [asked] * 2
