"""Ranks of scores and how well two scores agree."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ranks(values: Array) -> Array:
    """Return ranks from 1, equal values sharing the mean of theirs: [N] -> [N]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def spearman(a: Array, b: Array) -> float:
    """Return the rank correlation of two scores over the samples where both are finite.

    NaN if fewer than two are left or one score is constant.
    """
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2:
        return float("nan")
    x, y = ranks(a[both]), ranks(b[both])
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def rank_correlations(scores: Mapping[str, Array]) -> dict[tuple[str, str], float]:
    """Return :func:`spearman` of every two scores, both ways round."""
    return {(a, b): spearman(scores[a], scores[b]) for a in scores for b in scores}


def overlap(a: Array, b: Array, k: int) -> float:
    """Return the share of the ``k`` samples with the lowest ``a`` that are among those of ``b``.

    Ties go to the smaller index. Samples where either is not finite are left out first.
    """
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    k = min(k, len(a))
    if k == 0:
        return float("nan")
    lowest = [set(np.argsort(values, kind="stable")[:k].tolist()) for values in (a, b)]
    return len(lowest[0] & lowest[1]) / k
