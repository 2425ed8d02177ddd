"""Means of features over the samples of a training since they were last logged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_suite.resofilter.probe import Rows
from lightning_suite.resofilter.recorder import FeatureRecorder


class RunningMeans:
    """Means of features over samples, and their largest values, between two logs.

    Args:
        recorder: Whose features; those with one number a sample are counted.
    """

    def __init__(self, recorder: FeatureRecorder) -> None:
        names = [feature.name for feature in recorder.features]
        self._columns = {
            name: [f"{target.name}.{name}" for target in recorder.targets] for name in names
        }
        self._sums: dict[str, tuple[float, int, float]] = {}

    def add(self, rows: Rows) -> None:
        """Add a batch."""
        for name, columns in self._columns.items():
            if any(rows[column].ndim > 1 for column in columns):
                continue
            values = torch.stack([rows[column] for column in columns]).mean(0)
            values = values[values.isfinite()]
            total, count, largest = self._sums.get(name, (0.0, 0, -math.inf))
            if len(values):
                total, largest = total + float(values.sum()), max(largest, float(values.max()))
            self._sums[name] = (total, count + len(values), largest)

    def pop(self) -> tuple[Tensor, Tensor]:
        """Return (sum, number) [F, 2] and the largest values [F], to be reduced over ranks."""
        rows, self._sums = list(self._sums.items()), {}
        self._names = [name for name, _ in rows]
        wide = torch.float32  # the default has 16 bits in true half precision
        sums = torch.tensor([[total, count] for _, (total, count, _) in rows], dtype=wide)
        return sums, torch.tensor([largest for _, (_, _, largest) in rows], dtype=wide)

    def summary(self, sums: Tensor, largest: Tensor) -> dict[str, float]:
        """Return what :meth:`pop` gave as metrics."""
        found: dict[str, float] = {}
        for name, (total, count), top in zip(
            self._names, sums.tolist(), largest.tolist(), strict=True
        ):
            if count:
                found |= {name: total / count, f"{name}_max": top, "samples": count}
        return found
