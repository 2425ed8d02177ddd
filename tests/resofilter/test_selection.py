"""Selection against brute force, and the published script word for word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.ranking import overlap, rank_correlations, ranks, spearman
from lightning_suite.resofilter.selection import (
    length_strata,
    score_column,
    select,
    select_from_table,
    table_columns,
)
from lightning_suite.resofilter.store import to_table

# few values, so that ties are common
SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=40)
KEEP = st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0])


@given(SCORES, KEEP)
def test_lowest_and_highest_drop_exactly_the_share(scores: list[float], keep: float) -> None:
    n_drop = len(scores) * (100 - round(100 * keep)) // 100
    values = np.array(scores)
    for order, sign in (("lowest", -1), ("highest", 1)):
        kept = select(values, keep, order=order)
        dropped = sorted(range(len(scores)), key=lambda i: (sign * scores[i], i))[:n_drop]
        assert kept.tolist() == sorted(set(range(len(scores))) - set(dropped))


@given(SCORES, KEEP)
def test_the_band_loses_both_ends_alike(scores: list[float], keep: float) -> None:
    kept = select(np.array(scores), keep, order="band").tolist()
    n_drop = len(scores) * (100 - round(100 * keep)) // 100
    assert len(kept) == len(scores) - n_drop
    middle = sorted(scores)[n_drop // 2 : len(scores) - (n_drop + 1) // 2]
    assert sorted(scores[i] for i in kept) == middle


def test_a_share_means_what_is_written() -> None:
    assert len(select(np.arange(10.0), 0.9)) == 9  # 10 · (1 - 0.9) is 0.99… in floats
    assert len(select(np.arange(1000.0), "0.001")) == 1


def test_random_is_seeded_and_of_the_same_size() -> None:
    scores = np.arange(100.0)
    one, again, other = (select(scores, 0.3, order="random", seed=s) for s in (1, 1, 2))
    assert one.tolist() == again.tolist() != other.tolist()
    assert len(one) == len(other) == 30


def test_what_has_no_score_is_never_kept() -> None:
    scores = np.array([np.nan, 1.0, 2.0, np.inf, 0.0])
    for order in ("lowest", "highest", "band", "random"):
        assert set(select(scores, 1.0, order=order).tolist()) == {1, 2, 4}
    with pytest.raises(SuiteError, match="no sample has a finite score"):
        select(np.array([np.nan]), 0.5)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), KEEP)
def test_strata_keep_their_proportions(strata: list[str], keep: float) -> None:
    scores = np.random.default_rng(0).permutation(len(strata)).astype(float)
    kept = select(scores, keep, strata=strata).tolist()
    assert len(kept) == len(select(scores, keep))
    for group in set(strata):
        members = [i for i, s in enumerate(strata) if s == group]
        left = [i for i in members if i in kept]
        assert abs(len(left) - keep * len(members)) < 1
        assert left == sorted(sorted(members, key=lambda i: scores[i])[: len(left)])


@pytest.mark.parametrize("keep", [0, -0.5, 1.1, "half"])
def test_a_share_out_of_range_is_refused(keep: Any) -> None:
    with pytest.raises(SuiteError, match="above 0 and up to 1"):
        select(np.arange(3.0), keep)


def test_lengths_are_grouped_by_quantiles() -> None:
    assert length_strata([5, 1, 9, 2, 8, 4], 3) == [1, 0, 2, 0, 2, 1]
    assert set(length_strata([7] * 10, 4)) == {0}


def table() -> dict[str, Any]:
    n = 6
    columns: dict[str, Any] = {
        "sample_id": [str(i) for i in range(n)],
        "status": ["ok", "ok", "no_labels", "truncated", "nonfinite", "ok"],
        "loss": torch.arange(6.0),
        "loss_without_prompt": torch.full((n,), 2.0),
        "n_tokens": [3, 1, 4, 1, 5, 9],
        "n_label_tokens": [2, 1, 0, 1, 4, 5],
    }
    for layer in range(4):
        for module in ("mlp.up_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{module}"
            start = 10.0**layer * (1 if module == "mlp.up_proj" else -1)
            columns[f"{name}.adam1_mean_abs"] = start * torch.arange(1.0, n + 1)
    columns["model.layers.0.mlp.up_proj.sketch"] = torch.zeros(n, 4)
    return columns


def writable(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(values) for name, values in table_columns(to_table(columns)).items()}


def test_a_score_is_the_mean_over_the_chosen_layers() -> None:
    columns = table_columns(to_table(table()))
    one = np.arange(1.0, 7)
    for layers, factor in (("last:3", 370.0), ("all", 277.75), ([0], 1.0), ("last:1", 1000.0)):
        found = score_column(columns, layers=layers, module="up_proj")
        np.testing.assert_allclose(found, factor * one)
    assert columns["model.layers.0.mlp.up_proj.sketch"].shape == (6, 4)


def test_baselines_come_from_the_samples_columns() -> None:
    columns = table_columns(to_table(table()))
    assert score_column(columns, "loss").tolist() == [0, 1, 2, 3, 4, 5]
    assert score_column(columns, "length").tolist() == [3, 1, 4, 1, 5, 9]
    np.testing.assert_allclose(score_column(columns, "ifd")[3], np.e)
    assert sorted(score_column(columns, "random", seed=3)) == list(range(6))
    del columns["loss_without_prompt"]
    with pytest.raises(SuiteError, match=r"ifd needs the column 'loss_without_prompt'.* --out"):
        score_column(columns, "ifd")


def test_what_cannot_be_scored_is_excluded_and_counted() -> None:
    columns = writable(table())
    columns["loss"][4] = np.nan
    found = select_from_table(columns, 0.5, module="up_proj")
    assert found.kept.tolist() == [0, 1]
    assert found.excluded == {"no_labels": 1, "nonfinite": 1}
    assert np.isnan(found.score[[2, 4]]).all()


def test_a_value_of_another_layer_that_is_not_finite_does_not_matter() -> None:
    columns = writable(table())
    columns["model.layers.0.mlp.up_proj.adam1_mean_abs"][4] = np.inf
    found = select_from_table(columns, 1, module="up_proj", layers="last:3")
    assert found.kept.tolist() == [0, 1, 3, 4, 5]
    assert found.excluded == {"no_labels": 1}
    found = select_from_table(columns, 1, module="up_proj", layers="all")
    assert found.excluded == {"no_labels": 1, "nonfinite": 1}
    columns["loss"][4] = np.nan
    found = select_from_table(columns, 1, by="random")
    assert found.excluded == {"no_labels": 1, "nonfinite": 1}, "nor is its gradient a number"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "adam1_mean_ab"}, "Did you mean 'adam1_mean_abs'"),
        ({"module": "gate_proj"}, "computed for no module that matches 'gate_proj'"),
        ({"layers": [7]}, "there is no layer 7"),
        ({"layers": "last:99"}, "asks for 99 layers, and there are 4"),
        ({"by": "perplexity"}, "perplexity needs the column 'perplexity'"),
    ],
)
def test_what_the_table_lacks_is_named(options: dict[str, Any], message: str) -> None:
    columns = table_columns(to_table(table()))
    with pytest.raises(SuiteError, match=message.replace("?", r"\?")):
        score_column(columns, **options)


def test_scores_outside_of_numbered_layers_are_asked_for_by_all() -> None:
    columns = table_columns(to_table({"sample_id": ["a"], "head.adam1_mean_abs": [1.0]}))
    with pytest.raises(SuiteError, match="modules outside of numbered layers: head. Say layers"):
        score_column(columns)
    assert score_column(columns, layers="all").tolist() == [1.0]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=2, max_size=30))
def test_ranks_and_correlations_are_scipy_s(values: list[float]) -> None:
    a = np.array(values)
    b = np.random.default_rng(len(values)).normal(size=len(values))
    assert ranks(a).tolist() == rankdata(a).tolist()
    if len(set(values)) > 1:
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    else:
        assert np.isnan(spearman(a, b))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0.0, "must be above 0 and up to 1, got 0.0"),
        (-0.5, "got -0.5"),
        (float("nan"), "got nan"),
        (50, "got 50. 50 percent is 0.5"),
        (1.5, r"got 1.5. 1.5 percent is 0.015"),
        ("half", "got 'half'"),
        ("1/0", "got '1/0'"),
        ("150%", "got '150%'.$"),
    ],
)
def test_a_share_that_is_none_is_refused(keep: float | str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        select(np.arange(4.0), keep)


def test_a_share_may_be_written_in_percent() -> None:
    assert select(np.arange(10.0), "90%").tolist() == select(np.arange(10.0), 0.9).tolist()


def test_correlations_leave_out_what_is_not_finite() -> None:
    scores = {"a": np.array([1, 2, 3, np.nan]), "b": np.array([3.0, 2, 1, 0])}
    found = rank_correlations(scores)
    assert found["a", "b"] == found["b", "a"] == -1
    assert found["a", "a"] == 1


def test_overlap_is_the_share_of_the_lowest_in_common() -> None:
    a, b = np.array([0.0, 1, 2, 3, np.nan]), np.array([3.0, 0, 1, 2, 0])
    assert overlap(a, b, 2) == 0.5
    assert overlap(a, b, 100) == 1
    assert overlap(a, a, 3) == 1
