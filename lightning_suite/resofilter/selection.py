"""Decide which samples to keep, from a table of scores. Nothing here needs a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.resofilter.probe import NONFINITE, OK, TRUNCATED
from lightning_suite.resofilter.store import SAMPLE_COLUMNS
from lightning_suite.resofilter.targets import Layers, choose_layers, layer_number, matches

Array = NDArray[np.float64]
Order = Literal["lowest", "highest", "band", "random"]
USABLE = (OK, TRUNCATED)
# What can be asked for instead of a feature of the gradients.
_SCORE_AGAIN = (
    " Score again with without_prompt: true, into a new folder (score --out): one folder holds no "
    "scores of two ways."
)
BASELINES = ("random", "loss", "perplexity", "ifd", "length", "label_length")


@dataclass(frozen=True)
class Selection:
    """Which samples are kept.

    Attributes:
        kept: Rows of the table, in its order.
        score: The score of every row; NaN where there is none.
        excluded: Number of rows without a score, by status; they are never kept.
    """

    kept: NDArray[np.int64]
    score: Array
    excluded: dict[str, int]


def select(
    scores: Array,
    keep: float | str | Fraction,
    *,
    order: Order = "lowest",
    strata: Sequence[Any] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the indices of the samples to keep, ascending.

    ``int(N · (1 - keep))`` of the N samples with a finite score are dropped, exactly as written:
    ``keep`` 0.9 of 10 drops 1. Among equal scores the smaller index is dropped first.

    Args:
        scores: [N]; samples whose score is not finite are never kept and not counted.
        keep: Share to keep, above 0 and up to 1.
        order: Which to keep; ``band`` drops from both ends alike (the odd one from the top).
        strata: A group for every sample; each loses its own share, so that groups keep their
            proportions. Left-over drops go to the largest remainders.
        seed: For ``random``.

    Raises:
        SuiteError: ``keep`` is out of range, or no sample has a score.
    """
    there = np.flatnonzero(np.isfinite(scores))
    if len(there) == 0:
        raise SuiteError("select: no sample has a finite score.")
    share = 1 - exact_share(keep)
    if order == "random":
        scores = _shuffled(len(scores), seed)
    groups = [there] if strata is None else _groups(there, strata)
    dropped = [
        _drop(scores, group, count, order)
        for group, count in zip(groups, _shares(share, [len(g) for g in groups]), strict=True)
    ]
    return np.setdiff1d(there, np.concatenate(dropped))


def score_column(
    table: Mapping[str, Array],
    by: str = "adam1_mean_abs",
    *,
    layers: Layers = "last:3",
    module: str = "all",
    seed: int = 0,
) -> Array:
    """Return one score per sample: a feature's mean over layers, or a baseline.

    Args:
        table: Columns of a merged table, see :func:`table_columns`.
        by: A feature; or ``random``, ``loss``, ``perplexity``, ``length``, ``label_length``, or
            ``ifd`` (instruction-following difficulty as a ratio of perplexities,
            exp(loss - loss_without_prompt): Superfiltering, arXiv 2402.00530; Cherry LLM, arXiv
            2308.12032, has the ratio of the losses themselves, which orders otherwise).
        layers: Whose mean is taken, as in
            :func:`~lightning_suite.resofilter.targets.find_targets`, among the scored ones.
        module: Pattern for the modules' names.
        seed: For ``random``.

    Raises:
        SuiteError: The table lacks a column; the message says which there are.
    """
    if by in BASELINES:
        return _baseline(table, by, seed)
    names = [n for n in table if n not in SAMPLE_COLUMNS and n.rpartition(".")[2] == by]
    if not names:
        known = sorted({n.rpartition(".")[2] for n in table if n not in SAMPLE_COLUMNS})
        raise SuiteError(
            f"select: the scores have no feature {by!r}.{did_you_mean(by, [*known, *BASELINES])} "
            f"Features: {', '.join(known) or 'none'}; baselines: {', '.join(BASELINES)}."
        )
    modules = {name: name.rpartition(".")[0] for name in names}
    names = [name for name in names if matches(modules[name], module)]
    if not names:
        raise SuiteError(
            f"select: {by!r} was computed for no module that matches {module!r}; there are "
            f"{', '.join(modules.values())}."
        )
    chosen = choose_layers((layer_number(modules[name]) for name in names), layers)
    columns = [table[name] for name in names if layer_number(modules[name]) in chosen]
    if not columns:
        raise SuiteError(
            f"select: layers {layers!r}, and {by!r} was computed for modules outside of numbered "
            f"layers: {', '.join(modules[name] for name in names)}. Say layers: all."
        )
    return np.asarray(np.mean(columns, axis=0, dtype=np.float64))


def select_from_table(
    table: Mapping[str, Any],
    keep: float | str,
    *,
    by: str = "adam1_mean_abs",
    order: Order = "lowest",
    layers: Layers = "last:3",
    module: str = "all",
    strata: Sequence[Any] | None = None,
    seed: int = 0,
) -> Selection:
    """Select from a merged table; samples that could not be scored are excluded and counted.

    Args:
        table: Columns, with ``status``; see :func:`table_columns`.
        keep: As in :func:`select`.
        by: As in :func:`score_column`.
        order: As in :func:`select`.
        layers: As in :func:`score_column`.
        module: As in :func:`score_column`.
        strata: As in :func:`select`.
        seed: For ``random``.
    """
    score = score_column(table, by, layers=layers, module=module, seed=seed)
    score, excluded = usable_scores(table, score)
    return Selection(select(score, keep, order=order, strata=strata, seed=seed), score, excluded)


def usable_scores(table: Mapping[str, Any], score: Array) -> tuple[Array, dict[str, int]]:
    """Return the scores with NaN where a sample must not be kept, and how many, by status.

    ``nonfinite`` is said of a sample with any such value, be it in a layer that is not asked for:
    it can be kept where this score and its loss are finite.

    Args:
        table: Columns, with ``status``.
        score: As :func:`score_column` returns it.
    """
    status = np.asarray(table["status"])
    usable = np.isin(status, USABLE)
    usable |= (status == NONFINITE) & np.isfinite(table.get("loss", np.zeros(len(status))))
    score = np.where(usable, score, np.nan)
    gone = status[~np.isfinite(score)].tolist()
    return score, {str(s): gone.count(s) for s in dict.fromkeys(gone)}


def length_strata(lengths: Sequence[int] | NDArray[Any], groups: int) -> list[int]:
    """Return a group from 0 to ``groups - 1`` for every sample, by quantiles of its length.

    Equal lengths are always in the same group, so there may be fewer groups.
    """
    values = np.asarray(lengths, dtype=np.float64)
    edges = np.quantile(values, np.arange(1, groups) / groups)
    return [int(i) for i in np.searchsorted(edges, values, side="left")]


def table_columns(table: Any) -> dict[str, Any]:
    """Return a ``pyarrow.Table`` of scores as numpy arrays by name; sketches as [N, k]."""
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if hasattr(column.type, "list_size"):
            flat = column.flatten().to_numpy(zero_copy_only=False)
            columns[name] = flat.reshape(-1, column.type.list_size)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def _baseline(table: Mapping[str, Array], by: str, seed: int) -> Array:
    if by == "random":
        return _shuffled(len(next(iter(table.values()))), seed)
    needed = {
        "length": ["n_tokens"],
        "label_length": ["n_label_tokens"],
        "ifd": ["loss", "loss_without_prompt"],
    }.get(by, [by])
    if missing := [name for name in needed if name not in table]:
        raise SuiteError(
            f"select: {by} needs the column {missing[0]!r}, which the scores do not have."
            + (_SCORE_AGAIN if by == "ifd" else "")
        )
    if by == "ifd":
        return np.asarray(np.exp(table["loss"] - table["loss_without_prompt"]))
    return np.asarray(table[needed[0]], dtype=np.float64)


def _shuffled(n: int, seed: int) -> Array:
    if seed < 0:
        raise SuiteError(f"select: seed is {seed}, and it must be 0 or more.")
    return np.random.default_rng(seed).permutation(n).astype(np.float64)


def _drop(scores: Array, group: NDArray[np.int64], count: int, order: Order) -> NDArray[np.int64]:
    # stable: among equals the smaller index comes, and goes, first
    rising = group[np.argsort(scores[group], kind="stable")]
    falling = group[np.argsort(-scores[group], kind="stable")]
    if order in ("lowest", "random"):
        return falling[:count]
    if order == "highest":
        return rising[:count]
    if order == "band":
        top = falling[: (count + 1) // 2]
        rest = rising[~np.isin(rising, top)]
        return np.concatenate([top, rest[: count // 2]])
    raise SuiteError(f"select: order {order!r} is not lowest, highest, band or random.")


def _groups(there: NDArray[np.int64], strata: Sequence[Any]) -> list[NDArray[np.int64]]:
    members: dict[Any, list[int]] = {}
    for index in there.tolist():
        members.setdefault(strata[index], []).append(index)
    return [np.array(indices, dtype=np.int64) for indices in members.values()]


def _shares(share: Fraction, sizes: Sequence[int]) -> list[int]:
    """Split ``int(share · ΣN)`` over groups in proportion, largest remainders first."""
    exact = [share * size for size in sizes]
    counts = [math.floor(value) for value in exact]
    left = math.floor(share * sum(sizes)) - sum(counts)
    by_remainder = sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])
    for index in by_remainder[:left]:
        counts[index] += 1
    return counts


def exact_share(share: float | str | Fraction, *, lowest_allowed: bool = False) -> Fraction:
    """Return the number as written: 0.9 and ``"90%"`` are nine tenths, not the float below it.

    Raises:
        SuiteError: It is no share.
    """
    text = str(share)
    try:
        value = Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if not (0 <= value < 1 if lowest_allowed else 0 < value <= 1):
        allowed = "0 or more and below 1" if lowest_allowed else "above 0 and up to 1"
        meant = ""
        if 1 < value <= 100 and not text.endswith("%"):
            meant = f" {float(value):g} percent is {float(value / 100):g}."
        raise SuiteError(f"select: a share must be {allowed}, got {share!r}.{meant}")
    return value
