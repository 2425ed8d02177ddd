"""What a sweep of learning rates has found: tables, figures, and a sentence about each rule."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning_suite.cli.parsing import count
from lightning_suite.depth_mup.lr_optimum import SPREAD, DepthOptimum, Drift, Interval
from lightning_suite.depth_mup.lr_transfer import RunResult
from lightning_suite.errors import MissingExtraError
from lightning_suite.extras import import_extra
from lightning_suite.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SECTION = "LR transfer"
_RULES: dict[str, str] = {
    "sp": "standard parametrisation",
    "mup": "muP, for width alone",
    "depth_mup": "depth-muP",
    "nfd": "depth-muP with the depth-aware correction",
    "completep": "CompleteP",
}
# In octaves and in ratios of losses: far above float64's rounding, far below anything of interest.
_NOISE = 1e-9


def save_results(
    folder: RunFolder,
    results: Sequence[RunResult],
    optima: Sequence[DepthOptimum],
    drifts: Sequence[Drift],
) -> None:
    """Write the tables and, where matplotlib is installed, the figures of a sweep."""
    try:
        for name, figure, title, caption in _figures(results, optima):
            folder.add_figure(name, figure, title=title, caption=caption, section=_SECTION)
    except MissingExtraError as err:
        print(f"No figures: {err}", file=sys.stderr)
    folder.add_table(
        "lr_transfer_drift",
        [drift_row(drift) for drift in drifts],
        title="How far the best learning rate moves",
        caption="Octaves of the base learning rate. Regret: loss at the base depth's best rate "
        f"over the best loss, minus 1, in this sample. {SPREAD}",
        section=_SECTION,
        columns=None if drifts else ["rule"],
    )
    folder.add_table(
        "lr_transfer_optima",
        [optimum_row(optimum) for optimum in optima],
        title="Best learning rate at every depth",
        caption="The vertex of the parabola through the best grid point and its neighbours, in "
        f"log2 rate and log loss; the grid point itself where a neighbour diverged. {SPREAD}",
        section=_SECTION,
    )
    folder.add_table(
        "lr_transfer_runs",
        [
            {**asdict(r), "diverged_at": "" if r.diverged_at is None else r.diverged_at}
            for r in results
        ],
        title="All runs",
        caption="Training loss over the last steps of every run; inf where it diverged.",
        section=_SECTION,
    )


def optimum_row(optimum: DepthOptimum) -> dict[str, Any]:
    """Return the table row of one optimum."""
    return {
        "rule": optimum.rule,
        "depth": optimum.depth,
        **_columns("best_log2_lr", optimum.log2_lr),
        "grid_log2_lr": optimum.grid_log2_lr,
        "edge": optimum.edge,
        "train_loss": _rounded(optimum.loss),
        "val_accuracy": _rounded(optimum.val_accuracy),
        "train_loss_at_base_lr": _rounded(optimum.kept_loss),
        **_columns("regret", optimum.regret),
    }


def drift_row(drift: Drift) -> dict[str, Any]:
    """Return the table row of one rule's drift."""
    return {
        "rule": drift.rule,
        **_columns("octaves_per_doubling", drift.per_doubling),
        **_columns("octaves_in_total", drift.total),
        "from_depth": drift.depths[0],
        "to_depth": drift.depths[1],
        "largest_regret": _rounded(drift.largest_regret),
        "at_edge_of_grid": drift.edge,
    }


def finding(drift: Drift) -> str:
    """Say in one sentence how far the best rate of one rule moved."""
    if math.isnan(drift.total.value):
        return f"Under {drift.rule} every run diverged at some depth: extend the rates downwards."
    kept = "in this sample, keeping the base depth's rate"
    if math.isinf(drift.largest_regret):
        cost = f"{kept} diverges at some depth"
    elif drift.largest_regret > 1:
        cost = f"{kept} ends at up to {1 + drift.largest_regret:.1f} times the best loss"
    else:
        cost = f"{kept} ends at most {drift.largest_regret:.0%} above the best loss"
    edge = " (some optimum lies at the edge of the grid: extend it)" if drift.edge else ""
    moved, low, high = (_signed(v) for v in (drift.total.value, drift.total.low, drift.total.high))
    spread = "range" if drift.seeds <= 3 else "bootstrap interval"  # as `bootstrap` says
    over = f"{spread} over {count(drift.seeds, 'seed')} {low} to {high}" if drift.seeds > 1 else ""
    return (
        f"Under {drift.rule} the best rate moved by {moved} octaves from depth {drift.depths[0]} "
        f"to {drift.depths[1]} ({over or 'one seed'}); {cost}{edge}."
    )


def _signed(octaves: float) -> str:
    return f"{round(octaves, 1) + 0.0:+.1f}"  # + 0.0: no minus sign before a zero


def format_optima(optima: Sequence[DepthOptimum]) -> str:
    """Return the optima as a table to print: one row a rule, one column a depth."""
    depths = sorted({o.depth for o in optima})
    rows = [["best log2 lr / loss", *(f"L={d}" for d in depths)]]
    for rule in dict.fromkeys(o.rule for o in optima):
        own = {o.depth: o for o in optima if o.rule == rule}
        rows.append([rule, *(_cell(own[d]) for d in depths)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    note = "(< or >: at the lower or upper edge of the grid)" if any(o.edge for o in optima) else ""
    return "\n".join([*(line.rstrip() for line in lines), *filter(None, [note])])


def _cell(optimum: DepthOptimum) -> str:
    if math.isnan(optimum.log2_lr.value):
        return "diverged"
    mark = {"": "", "low": "<", "high": ">"}[optimum.edge]
    return f"{mark}{optimum.log2_lr.value:.2f} / {optimum.loss:.4f}"


def _figures(
    results: Sequence[RunResult], optima: Sequence[DepthOptimum]
) -> Iterator[tuple[str, Figure, str, str]]:
    plt = import_extra("matplotlib.pyplot", "report")
    from lightning_suite.report import lr_transfer_figure as figures  # noqa: PLC0415

    for name, figure, title, caption in (
        (
            "lr_transfer",
            figures.draw_loss_curves(results, optima),
            "Loss against learning rate",
            "One line a depth; band: range over seeds; large marker: the best rate of the grid "
            "(hollow: at its edge); grey line: that of the first depth. The optimum that console, "
            "tables and the other figure give lies between grid points: the vertex of a parabola "
            "through three of them. Lines end where a run "
            f"diverges. {_meanings(results)}",
        ),
        (
            "lr_transfer_optimum",
            figures.draw_optimum_over_depth(optima),
            "Best learning rate against depth",
            "Left: the optimum (the vertex, not the grid point) with its bootstrap interval over "
            "seeds. Right: what is lost in this sample by keeping the base depth's best rate; a "
            "cross stands where that diverges. "
            f"{SPREAD}",
        ),
    ):
        yield name, figure, title, caption
        plt.close(figure)


def _meanings(results: Sequence[RunResult]) -> str:
    """Say what the rules' names stand for: the page may be the first that one sees of them."""
    rules = dict.fromkeys(result.rule.partition(":")[0] for result in results)
    return f"Rules: {'; '.join(f'`{rule}` is {_RULES[rule]}' for rule in rules)}."


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {
        name: _without_noise(interval.value),
        f"{name}_low": _without_noise(interval.low),
        f"{name}_high": _without_noise(interval.high),
    }


def _without_noise(value: float) -> float:
    """Round, and let what only rounding keeps from zero be zero."""
    return 0.0 if abs(value) < _NOISE else _rounded(value)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
