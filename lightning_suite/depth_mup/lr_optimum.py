"""Where the best learning rate lies, how far it moves with depth, and what it costs not to follow.

All losses are means over seeds. The optimum of a curve is the vertex of the parabola through the
best grid point and its two neighbours, in (log2 of the rate, log of the loss). Where a neighbour
is missing or diverged there is no parabola, and the grid point itself is taken. Intervals are
percentile bootstraps over seeds: the same resample of seeds is used at all depths, since a seed's
runs share their data order there. With few seeds all resamples are enumerated. They show how far
the seeds agree, and cover much less than a 95 % confidence interval: see :func:`bootstrap`.

A regret is that of this sample, and larger than the true one: the lowest of several noisy means is
too low, and the largest regret takes a maximum over depths on top of that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_suite.depth_mup.lr_transfer import RunResult
from lightning_suite.errors import SuiteError

Edge = Literal["", "low", "high"]
Array = NDArray[np.float64]

# For captions; the numbers are those of `bootstrap`.
SPREAD = (
    "Intervals are percentile bootstraps over seeds: the spread of the seeds, and no 95 % "
    "confidence interval (for a mean they cover about 75 % with 3 seeds, 84 % with 5, 90 % with "
    "10)."
)

_MAX_RESAMPLES = 10_000
_SMALLEST_LOSS = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval over seeds; for its coverage see `bootstrap`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class DepthOptimum:
    """The best learning rate of one rule at one depth.

    Attributes:
        rule: Label of the rule.
        depth: L.
        log2_lr: Optimal log2 rate, by the parabola.
        grid_log2_lr: Best rate of the grid.
        loss: Mean training loss there.
        val_accuracy: Mean validation accuracy there.
        edge: ``"low"`` or ``"high"`` where the grid ends at the optimum, so that the true one may
            lie outside; else empty.
        kept_loss: Mean training loss at the base depth's best rate; ``inf`` if it diverges.
        regret: ``kept_loss / loss - 1``: what keeping the base depth's rate costs in this sample.
        seed_log2_lrs: Optimum of every seed on its own.
    """

    rule: str
    depth: int
    log2_lr: Interval
    grid_log2_lr: float
    loss: float
    val_accuracy: float
    edge: Edge
    kept_loss: float
    regret: Interval
    seed_log2_lrs: tuple[float, ...]


@dataclass(frozen=True)
class Drift:
    """How the best rate of one rule moves with depth.

    Attributes:
        rule: Label of the rule.
        per_doubling: Slope of the optimal log2 rate against log2 L, in octaves a doubling.
        total: Optimal log2 rate at the largest depth minus that at the smallest.
        depths: Smallest and largest depth.
        edge: Whether some optimum lies at the edge of the grid.
        largest_regret: Largest loss ratio - 1 over depths for keeping the base depth's rate, in
            this sample; noise makes it larger than it truly is.
        seeds: How many seeds the intervals are over.
    """

    rule: str
    per_doubling: Interval
    total: Interval
    depths: tuple[int, int]
    edge: bool
    largest_regret: float
    seeds: int


def parabola_vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """Return where the parabola through three points is lowest; ``y[1]`` is the lowest of ``y``.

    Args:
        x: Three ascending numbers.
        y: Values there; equal values make a flat curve, whose middle is returned.
    """
    left, right = x[1] - x[0], x[2] - x[1]
    down, up = (y[0] - y[1]) / left, (y[2] - y[1]) / right
    if down + up == 0:
        return float(x[1])
    # the slope is -down in the middle of the left interval, and up in the middle of the right one
    start, end = x[1] - left / 2, x[1] + right / 2
    return float(start + (end - start) * down / (down + up))


def best_log2_lr(log2_lrs: Array, losses: Array) -> tuple[float, int, Edge]:
    """Return the optimum of one curve, the index of its best grid point, and the grid's edge.

    Args:
        log2_lrs: Ascending ``[K]``.
        losses: ``[K]``; ``inf`` where training diverged.

    Returns:
        NaN and -1 if every run diverged.
    """
    if not np.isfinite(losses).any():
        return math.nan, -1, ""
    best = int(np.argmin(losses))
    if best in (0, len(losses) - 1):
        return float(log2_lrs[best]), best, "low" if best == 0 else "high"
    around = slice(best - 1, best + 2)
    y = np.log(np.maximum(losses[around], _SMALLEST_LOSS))
    if not np.isfinite(y).all():
        return float(log2_lrs[best]), best, ""
    return parabola_vertex(log2_lrs[around].tolist(), y.tolist()), best, ""


def edge_of_grid(results: Sequence[RunResult]) -> Edge:
    """Return at which edge of the trained rates the best one lies, for one rule and depth."""
    log2_lrs, losses = _curves(results)
    return best_log2_lr(log2_lrs, losses.mean(axis=1))[2]


def resamples(seeds: int, rng_seed: int = 0) -> NDArray[np.int64]:
    """Return bootstrap resamples of ``seeds`` seeds as indices ``[B, seeds]``.

    All of them where they are at most 10,000, else so many random ones.
    """
    if seeds**seeds <= _MAX_RESAMPLES:
        return np.array(list(itertools.product(range(seeds), repeat=seeds)), dtype=np.int64)
    return np.random.default_rng(rng_seed).integers(seeds, size=(_MAX_RESAMPLES, seeds))


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], seeds: int, level: float = 0.95
) -> Interval:
    """Return ``statistic`` of all seeds with its percentile interval over resamples of seeds.

    With few seeds read it as their spread: it is too narrow for its level. Up to 3 seeds it is
    the whole range over all resamples. How often the interval of level 0.95 holds the true mean
    of independent normal seeds (4000 simulated samples for each number of seeds):

    ======== ==== ==== ==== ==== ==== ==== ====
    seeds    2    3    4    5    8    10   20
    coverage 0.51 0.75 0.80 0.84 0.89 0.90 0.93
    ======== ==== ==== ==== ==== ==== ==== ====

    Args:
        statistic: Maps indices of seeds to a number.
        seeds: Number of seeds.
        level: Share of the resamples inside the interval.
    """
    estimate = statistic(np.arange(seeds))
    values = np.array([statistic(indices) for indices in resamples(seeds)])
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(estimate, math.nan, math.nan)
    # "lower"/"higher": an infinite regret must not be interpolated into NaN
    low = np.quantile(values, (1 - level) / 2, method="lower")
    high = np.quantile(values, (1 + level) / 2, method="higher")
    return Interval(estimate, float(low), float(high))


def analyse(
    results: Sequence[RunResult], base_depth: int
) -> tuple[list[DepthOptimum], list[Drift]]:
    """Return the optimum at every rule and depth, and its drift for every rule.

    Args:
        results: All runs of a sweep.
        base_depth: L0; if it was not swept, the smallest depth stands for it in the regret.

    Raises:
        SuiteError: A seed is missing somewhere, so that means would compare different seeds.
    """
    optima: list[DepthOptimum] = []
    drifts: list[Drift] = []
    for rule in dict.fromkeys(r.rule for r in results):
        own = [r for r in results if r.rule == rule]
        depths = sorted({r.depth for r in own})
        tables = {d: _curves([r for r in own if r.depth == d]) for d in depths}
        base = base_depth if base_depth in tables else depths[0]
        of_rule = [_optimum(rule, d, base, tables, own) for d in depths]
        optima += of_rule
        if len(depths) > 1:
            drifts.append(_drift(of_rule, tables))
    return optima, drifts


Tables = dict[int, tuple[Array, Array]]


def _optimum(
    rule: str, depth: int, base: int, tables: Tables, runs: Sequence[RunResult]
) -> DepthOptimum:
    lrs, losses = tables[depth]
    base_lrs, base_losses = tables[base]
    seeds = losses.shape[1]
    log2_lr, best, edge = best_log2_lr(lrs, losses.mean(axis=1))
    kept_at = int(best_log2_lr(base_lrs, base_losses.mean(axis=1))[1])

    def kept(indices: NDArray[np.int64]) -> float:
        """Loss at the base depth's best rate."""
        at = np.flatnonzero(lrs == base_lrs[kept_at])
        return float(losses[at[0], indices].mean()) if kept_at >= 0 and len(at) else math.nan

    def regret(indices: NDArray[np.int64]) -> float:
        lowest = float(losses[:, indices].mean(axis=1).min())
        return kept(indices) / max(lowest, _SMALLEST_LOSS) - 1 if best >= 0 else math.nan

    at_best = [r for r in runs if r.depth == depth and best >= 0 and r.log2_lr == lrs[best]]
    interval = bootstrap(lambda i: best_log2_lr(lrs, losses[:, i].mean(axis=1))[0], seeds)
    return DepthOptimum(
        rule,
        depth,
        Interval(log2_lr, interval.low, interval.high),
        float(lrs[best]) if best >= 0 else math.nan,
        float(losses[best].mean()) if best >= 0 else math.inf,
        float(np.mean([r.val_accuracy for r in at_best])) if at_best else 0.0,
        edge,
        kept(np.arange(seeds)),
        bootstrap(regret, seeds),
        tuple(best_log2_lr(lrs, losses[:, s])[0] for s in range(seeds)),
    )


def _drift(optima: Sequence[DepthOptimum], tables: Tables) -> Drift:
    depths = [o.depth for o in optima]
    seeds = min(losses.shape[1] for _, losses in tables.values())

    def optimum(depth: int, indices: NDArray[np.int64]) -> float:
        lrs, losses = tables[depth]
        return best_log2_lr(lrs, losses[:, indices].mean(axis=1))[0]

    def slope(indices: NDArray[np.int64]) -> float:
        x = np.log2(depths)
        y = np.array([optimum(d, indices) for d in depths])
        ok = ~np.isnan(y)
        return float(np.polyfit(x[ok], y[ok], 1)[0]) if ok.sum() > 1 else math.nan

    def total(indices: NDArray[np.int64]) -> float:
        return optimum(depths[-1], indices) - optimum(depths[0], indices)

    return Drift(
        optima[0].rule,
        bootstrap(slope, seeds),
        bootstrap(total, seeds),
        (depths[0], depths[-1]),
        any(o.edge for o in optima),
        max(o.regret.value for o in optima),
        seeds,
    )


def _curves(results: Sequence[RunResult]) -> tuple[Array, Array]:
    """Return log2 rates ``[K]`` and training losses ``[K, seeds]`` of one rule and depth."""
    log2_lrs = sorted({r.log2_lr for r in results})
    seeds = sorted({r.seed for r in results})
    by_point = {(r.log2_lr, r.seed): r.train_loss for r in results}
    missing = [(lr, s) for lr in log2_lrs for s in seeds if (lr, s) not in by_point]
    if missing:
        raise SuiteError(
            f"{results[0].rule}, depth {results[0].depth}: {len(missing)} run(s) are missing, the "
            f"first at log2 lr {missing[0][0]:g}, seed {missing[0][1]}. Continue the sweep first."
        )
    table = [[by_point[lr, seed] for seed in seeds] for lr in log2_lrs]
    return np.array(log2_lrs), np.array(table)
