"""Means of features over the samples of a training since they were last logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_suite.resofilter.probe import Rows
from lightning_suite.resofilter.recorder import FeatureRecorder

# Of a feature: the sum over samples, how many they are, and the largest value.
_NOTHING = (0.0, 0.0, -math.inf)


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
        self._sums = dict.fromkeys(names, _NOTHING)

    def add(self, rows: Rows) -> None:
        """Add a batch."""
        for name, columns in self._columns.items():
            if any(rows[column].ndim > 1 for column in columns):
                continue
            values = torch.stack([rows[column] for column in columns]).mean(0)
            values = values[values.isfinite()]
            if len(values):
                total, count, largest = self._sums[name]
                total, largest = total + float(values.sum()), max(largest, float(values.max()))
                self._sums[name] = (total, count + len(values), largest)

    def pop(self) -> tuple[Tensor, Tensor]:
        """Return (sum, number) [F, 2] and the largest values [F], to be reduced over ranks."""
        rows, self._sums = list(self._sums.values()), dict.fromkeys(self._columns, _NOTHING)
        wide = torch.float32  # the default has 16 bits in true half precision
        sums = torch.tensor([[total, count] for total, count, _ in rows], dtype=wide)
        return sums, torch.tensor([largest for _, _, largest in rows], dtype=wide)

    def summary(self, sums: Tensor, largest: Tensor) -> dict[str, float]:
        """Return what :meth:`pop` gave as metrics."""
        found: dict[str, float] = {}
        for name, (total, count), top in zip(
            self._columns, sums.tolist(), largest.tolist(), strict=True
        ):
            if count:
                found |= {name: total / count, f"{name}_max": top, "samples": count}
        return found

    def state(self) -> list[list[float]]:
        """Return what was added since the last log, for a checkpoint: three numbers a feature."""
        return [list(sums) for sums in self._sums.values()]

    def restore(self, tables: Iterable[Sequence[Sequence[float]]]) -> None:
        """Go on from a checkpoint.

        Args:
            tables: :meth:`state` of ranks of the run that is continued; they are added up.
        """
        for table in tables:
            for name, (total, count, largest) in zip(self._columns, table, strict=True):
                before = self._sums[name]
                self._sums[name] = before[0] + total, before[1] + count, max(before[2], largest)
