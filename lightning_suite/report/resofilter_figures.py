"""The tables and figures of a folder of scores: how they are spread, and what agrees with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_suite.extras import import_extra
from lightning_suite.report.style import CATEGORICAL, INK, figure_style
from lightning_suite.report.text import shortened
from lightning_suite.resofilter.ranking import overlap, rank_correlations
from lightning_suite.resofilter.selection import USABLE, score_column, table_columns
from lightning_suite.resofilter.store import SAMPLE_COLUMNS
from lightning_suite.resofilter.targets import layer_number
from lightning_suite.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
SECTION = "Scores of the samples"
_PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
_POINTS = 4000  # of a scatter plot; more are drawn as a sample of them
_EXTREMES = 12
_SHOWN = 400  # characters of a prompt or answer
_LETTERS = 40  # of a name in a figure
_LAYERS = 60  # rows of the heat map; a model of experts has thousands
_BASELINES = ("loss", "length", "label_length", "ifd")


def describe_scores(
    folder: RunFolder, table: Any, texts: Mapping[str, tuple[str, str]] | None = None
) -> None:
    """Write what can be said about scores into their folder.

    Args:
        folder: Of the scores.
        table: The merged scores, a ``pyarrow.Table``.
        texts: Prompt and answer by sample id, for the most extreme samples.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = table_columns(table)
    usable = np.isin(columns["status"], USABLE)
    counts = [
        {"status": status, "samples": int((columns["status"] == status).sum())}
        for status in dict.fromkeys(columns["status"].tolist())
    ]
    folder.add_table(
        "resofilter_status",
        counts,
        title="What became of the samples",
        caption="Samples that are ok or truncated can be kept; nonfinite ones only by a score that "
        "is a number. Of an empty answer nothing but the template was scored.",
        section=SECTION,
    )
    columns = {name: values[usable] for name, values in columns.items()}
    scores = sample_scores(columns)
    if not usable.any() or not scores:
        return
    main, values = next(iter(scores.items()))
    lowest = np.argsort(np.argsort(values, kind="stable")) < (len(values) + 1) // 2
    add_histogram(folder, main, values, lowest, "is the lowest half")
    if main not in _BASELINES:
        layers = len(_layer_columns(columns, main))
        _add(
            folder,
            "layers",
            layer_heatmap(columns, main),
            f"Percentiles of {main} in each watched layer",
            "Each row is a watched layer, each cell one percentile of the samples' values there, "
            "in units of the layer's own interquartile range from its median."
            + (f" {_LAYERS} of {layers:,} layers, evenly." if layers > _LAYERS else ""),
        )
    _add(
        folder,
        "against",
        score_against(main, values, columns),
        f"{main} against length and loss",
        "Each point is a sample. A score that only repeats length or loss is no news.",
    )
    _add(
        folder,
        "correlations",
        correlation_figure(scores),
        "Rank correlations",
        "Spearman's, among the features (mean over the watched layers) and simple baselines.",
    )
    kept = max(1, len(values) // 2)
    _add(
        folder,
        "overlap",
        overlap_figure(scores, kept),
        f"Overlap of the lowest {kept:,}",
        "Share of the samples in the lowest half by the row's score that are in the lowest half "
        "by the column's; two scores that know nothing of each other share half.",
    )
    folder.add_table(
        "resofilter_extremes",
        extreme_samples(columns, values, texts or {}),
        title="The most extreme samples",
        caption=f"Lowest and highest {main}; from_median is in interquartile ranges.",
        section=SECTION,
    )


def sample_scores(columns: Mapping[str, Any]) -> dict[str, Array]:
    """Return one score per sample for each feature with one number a layer, and the baselines."""
    names = dict.fromkeys(
        name.rpartition(".")[2]
        for name, values in columns.items()
        if name not in SAMPLE_COLUMNS and values.ndim == 1
    )
    scores = {name: score_column(columns, name, layers="all") for name in names}
    has = {
        "loss": "loss" in columns,
        "length": "n_tokens" in columns,
        "label_length": "n_label_tokens" in columns,
        "ifd": "loss_without_prompt" in columns,
    }
    scores |= {name: score_column(columns, name) for name in _BASELINES if has[name]}
    return scores


def add_histogram(
    folder: RunFolder, name: str, values: Array, kept: NDArray[np.bool_], verb: str = "is kept"
) -> None:
    """Add the histogram of a score to a folder; replaces the one before.

    Args:
        folder: Of the scores.
        name: Of the score.
        values: [N].
        kept: Which samples are kept: [N].
        verb: What blue means.
    """
    _add(
        folder,
        "histogram",
        score_histogram(name, values, kept),
        f"Distribution of {name} over all samples",
        f"Blue {verb}; dashed lines are where that begins and ends. The first and last bar hold "
        "what is beyond the 0.1 % and 99.9 % quantiles.",
    )


def score_histogram(name: str, values: Array, kept: NDArray[np.bool_]) -> Figure:
    """Draw how a score is spread, and which part is kept; see :func:`add_histogram`."""
    finite = np.isfinite(values)
    values, kept = values[finite], kept[finite]
    low, high = np.percentile(values, [0.1, 99.9])
    count = int(np.clip(2 * np.sqrt(len(values)), 8, 60))
    bins = np.linspace(low, high if high > low else low + 1, count + 1)
    inside = np.clip(values, bins[0], bins[-1])
    with figure_style():
        figure = _figure(7.0, 3.4)
        axes = figure.subplots()
        axes.hist(
            [inside[kept], inside[~kept]],
            bins.tolist(),
            stacked=True,
            label=["kept", "dropped"],
            color=[CATEGORICAL[0], CATEGORICAL[4]],
        )
        for cut in (values[kept].min(), values[kept].max()):
            if bins[0] < cut < bins[-1]:
                axes.axvline(cut, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xlabel(shortened(name, _LETTERS))
        axes.set_ylabel("samples")
        axes.legend()
    return figure


def layer_heatmap(columns: Mapping[str, Any], feature: str) -> Figure:
    """Draw percentiles of a feature for every layer, in each layer's own units."""
    names = _layer_columns(columns, feature)
    names = [names[place] for place in _evenly(len(names))]
    rows = np.stack([np.nanpercentile(columns[name], _PERCENTILES) for name in names])
    low, middle, high = (rows[:, [_PERCENTILES.index(p)]] for p in (25, 50, 75))
    units = (rows - middle) / np.where(high > low, high - low, 1)
    labels = [name.rpartition(".")[0] for name in names]
    numbers = {layer_number(label) for label in labels}
    if len(numbers) == len(labels) and None not in numbers:
        labels = [f"layer {layer_number(label)}" for label in labels]
    with figure_style():
        figure = _figure(7.0, 1.2 + 0.3 * len(labels))
        axes = figure.subplots()
        axes.grid(visible=False)
        image = axes.imshow(units, aspect="auto", cmap="coolwarm", vmin=-3, vmax=3)
        axes.set_xticks(range(len(_PERCENTILES)), [f"{p}" for p in _PERCENTILES])
        axes.set_yticks(range(len(labels)), [shortened(label, _LETTERS) for label in labels])
        axes.set_xlabel("percentile of the samples")
        bar = figure.colorbar(image, ax=axes)
        bar.set_label("from the median, in IQR")
    return figure


def _layer_columns(columns: Mapping[str, Any], feature: str) -> list[str]:
    return [n for n in columns if n not in SAMPLE_COLUMNS and n.rpartition(".")[2] == feature]


def _evenly(layers: int) -> list[int]:
    """Return the layers that the heat map shows: all, or as many as a reader can."""
    chosen = np.linspace(0, layers - 1, min(layers, _LAYERS)).round()
    return [int(place) for place in np.unique(chosen)]


def score_against(name: str, values: Array, columns: Mapping[str, Any]) -> Figure:
    """Draw a score against length and loss, as far as the table has them."""
    others = {
        "tokens": columns.get("n_tokens"),
        "label tokens": columns.get("n_label_tokens"),
        "loss (nats per label token)": columns.get("loss"),
    }
    there = {label: other for label, other in others.items() if other is not None}
    some = np.random.default_rng(0).permutation(len(values))[:_POINTS]
    with figure_style():
        figure = _figure(3.2 * len(there) + 0.6, 3.2)
        panels = np.atleast_1d(figure.subplots(1, len(there), sharey=True))
        for panel, (label, other) in zip(panels, there.items(), strict=True):
            panel.plot(
                other[some],
                values[some],
                "o",
                markersize=4 if len(some) < 500 else 2,
                alpha=0.6,
                color=CATEGORICAL[0],
            )
            panel.set_xlabel(label)
        panels[0].set_ylabel(shortened(name, _LETTERS))
    return figure


def correlation_figure(scores: Mapping[str, Array]) -> Figure:
    """Draw the rank correlations of every two scores."""
    values = rank_correlations(scores)
    names = list(scores)
    return _matrix(names, [[values[a, b] for b in names] for a in names], low=-1)


def overlap_figure(scores: Mapping[str, Array], k: int) -> Figure:
    """Draw how many of the ``k`` lowest samples two scores share."""
    names = list(scores)
    return _matrix(names, [[overlap(scores[a], scores[b], k) for b in names] for a in names], low=0)


def extreme_samples(
    columns: Mapping[str, Any], values: Array, texts: Mapping[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the samples with the lowest and highest scores, lowest first, with their text."""
    order = [int(i) for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
    low, middle, high = np.percentile(values[order], [25, 50, 75])
    chosen = dict.fromkeys([*order[:_EXTREMES], *order[-_EXTREMES:]])
    rows = []
    for index in chosen:
        sample_id = str(columns["sample_id"][index])
        row: dict[str, Any] = {"rank": order.index(index) + 1, "id": sample_id}
        row["score"] = repr(float(values[index]))
        row["from_median"] = round(float((values[index] - middle) / ((high - low) or 1)), 2)
        for name in ("loss", "n_tokens"):
            if name in columns:
                row[name] = columns[name][index].item()
        if texts:
            prompt, response = texts.get(sample_id, ("", ""))
            row |= {"prompt": _short(prompt), "response": _short(response)}
        rows.append(row)
    return rows


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _matrix(names: Sequence[str], values: Sequence[Sequence[float]], *, low: float) -> Figure:
    with figure_style():
        figure = _figure(1.8 + 0.8 * len(names), 1.2 + 0.55 * len(names))
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.imshow(values, cmap="coolwarm", vmin=low, vmax=1, aspect="auto")
        labels = [shortened(name, _LETTERS) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), labels)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                # the cell, not the page's theme, is behind the number
                dark = abs((value - low) / (1 - low) - 0.5) > 0.35
                axes.annotate(
                    f"{value:.2f}",
                    (j, i),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="#ffffff" if dark else "#101010",
                )
    return figure


def _figure(width: float, height: float) -> Figure:
    figure: Figure = import_extra("matplotlib.figure", "report").Figure(figsize=(width, height))
    return figure


def _add(folder: RunFolder, name: str, figure: Figure, title: str, caption: str) -> None:
    folder.add_figure(f"resofilter_{name}", figure, title=title, caption=caption, section=SECTION)
