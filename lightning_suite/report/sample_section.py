"""What a training's per-sample gradients were: their distribution and the most extreme samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.report.layout import Section, notice, prose
from lightning_suite.report.runs import Run
from lightning_suite.report.scen_figures import Drawing
from lightning_suite.report.style import CATEGORICAL, INK, figure_style
from lightning_suite.report.svg import inline_svg
from lightning_suite.report.tables import html_table
from lightning_suite.report.text import escape, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Per-sample gradients"
_FOLDER = "gradient_features"  # of a run, where the callback is given no other
_SHARDS = "shards/rank*.parquet"
_MOST_BYTES = 200_000_000  # of shards that a page is made of
_LETTERS = 40


def sample_sections(run: Run) -> list[Section]:
    """What the rows of ``GradientFeatureCallback`` show; nothing where the run has none.

    Args:
        run: Whose folder has them in ``gradient_features``.
    """
    folders = [home / _FOLDER for home in (run.folder, run.logs)]
    folder = next((f for f in folders if any(f.glob(_SHARDS))), None)
    if folder is None:
        return []
    # not above: pages of other runs need not wait for torch
    from lightning_suite.resofilter.selection import table_columns  # noqa: PLC0415
    from lightning_suite.resofilter.store import merge_shards  # noqa: PLC0415

    try:
        if sum(path.stat().st_size for path in folder.glob(_SHARDS)) > _MOST_BYTES:
            raise SuiteError(
                f"{folder} has more rows than a page is made of; read them by "
                "lightning_suite.resofilter.store.merge_shards"
            )
        cards = _cards(table_columns(merge_shards(folder)))
    except (SuiteError, ValueError, KeyError, OSError) as err:
        cards = [notice(f"Not shown: {err}")]
    return [Section(TITLE, "\n".join(cards))] if cards else []


def _cards(columns: Mapping[str, Any]) -> list[str]:
    from lightning_suite.report.resofilter_figures import (  # noqa: PLC0415
        extreme_samples,
        sample_scores,
    )
    from lightning_suite.resofilter.selection import USABLE  # noqa: PLC0415

    usable = np.isin(columns["status"], USABLE)
    columns = {name: values[usable] for name, values in columns.items()}
    scores = sample_scores(columns)
    name, values = next(iter(scores.items()), ("", np.zeros(0)))
    finite = np.isfinite(values)
    if not finite.any():
        return []
    columns, values = {key: column[finite] for key, column in columns.items()}, values[finite]
    rows = extreme_samples(columns, values, {})
    if "step" in columns:
        order = np.argsort(values, kind="stable")
        for row in rows:
            row["step"] = int(columns["step"][order[row["rank"] - 1]])
    many = f"{len(values):,} rows of {len(set(columns['sample_id'].tolist())):,} samples"
    drawing = Drawing(
        "sample-gradients",
        f"Distribution of {shortened(name, _LETTERS)}",
        f"{many}, one a sample and recorded batch, each with the weights of its step. Dashed: the "
        "median. The first and last bar hold what is beyond the 0.1 % and 99.9 % quantiles.",
        _histogram(name, values),
    )
    svg = inline_svg(drawing.svg, prefix=f"{drawing.name}-", label=drawing.title)
    table = html_table(
        list(rows[0]), [[str(cell) for cell in row.values()] for row in rows], label="Extremes"
    )
    caption = f"Lowest and highest {name}; from_median is in interquartile ranges."
    return [
        f'<figure class="card"><figcaption><h3>{escape(drawing.title)}</h3>'
        f'<p>{prose(drawing.caption)}</p></figcaption><div class="plot">{svg}</div></figure>',
        '<figure class="card"><figcaption><h3>The most extreme rows</h3>'
        f"<p>{prose(caption)}</p></figcaption>{table}</figure>",
    ]


def _histogram(name: str, values: NDArray[np.float64]) -> Figure:
    low, high = np.percentile(values, [0.1, 99.9])
    count = int(np.clip(2 * np.sqrt(len(values)), 8, 60))
    bins = np.linspace(low, high if high > low else low + 1, count + 1)
    with figure_style():
        figure: Figure = import_extra("matplotlib.figure", "report").Figure(figsize=(7.0, 3.0))
        axes = figure.subplots()
        axes.hist(np.clip(values, bins[0], bins[-1]), bins.tolist(), color=CATEGORICAL[0])
        axes.axvline(float(np.median(values)), color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xlabel(shortened(name, _LETTERS))
        axes.set_ylabel("rows")
    return figure
