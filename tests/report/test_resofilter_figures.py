"""What the page says about scores, also where there is little to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lightning_suite.report.page import write_report
from lightning_suite.report.resofilter_figures import (
    describe_scores,
    extreme_samples,
    layer_heatmap,
    sample_scores,
)
from lightning_suite.resofilter.selection import table_columns
from lightning_suite.run_folder import RunFolder

LAYERS = ("blocks.0.up", "blocks.1.up")


def table(n: int, *, constant: bool = False, **columns: Any) -> pa.Table:
    draw = np.random.default_rng(0)
    values = np.full(n, 3.0) if constant else draw.random(n)
    base = {
        "sample_id": [f"s{i}" for i in range(n)],
        "status": ["ok"] * n,
        "loss": draw.random(n),
        "n_tokens": list(range(n)),
        **{f"{layer}.grad_norm": values + k for k, layer in enumerate(LAYERS)},
    }
    return pa.table({k: v for k, v in {**base, **columns}.items() if v is not None})


def names(folder: Path) -> set[str]:
    return {artifact.name.removeprefix("resofilter_") for artifact in RunFolder(folder).index()}


EVERYTHING = {
    "status",
    "histogram",
    "layers",
    "against",
    "correlations",
    "overlap",
    "extremes",
}


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param(table(50), id="many"),
        pytest.param(table(1), id="one"),
        pytest.param(table(9, constant=True), id="all equal"),
        pytest.param(table(9, status=["ok"] * 7 + ["no_labels", "nonfinite"]), id="some unusable"),
    ],
)
def test_everything_is_drawn(tmp_path: Path, scores: pa.Table) -> None:
    describe_scores(RunFolder(tmp_path), scores)
    assert names(tmp_path) == EVERYTHING
    assert "Distribution of grad_norm over all samples" in write_report(tmp_path).read_text(
        encoding="utf-8"
    )


def test_without_a_usable_sample_only_the_statuses_are_told(tmp_path: Path) -> None:
    describe_scores(RunFolder(tmp_path), table(3, status=["no_labels"] * 3))
    assert names(tmp_path) == {"status"}


def test_vectors_alone_leave_the_baselines_to_show(tmp_path: Path) -> None:
    flat = pa.array(np.arange(20.0))
    sketches = {f"{layer}.grad_norm": None for layer in LAYERS}
    sketches["blocks.0.up.sketch"] = pa.FixedSizeListArray.from_arrays(flat, 4)
    describe_scores(RunFolder(tmp_path), table(5, **sketches))
    assert names(tmp_path) == EVERYTHING - {"layers"}


def test_a_score_is_the_mean_over_layers() -> None:
    columns = table_columns(table(5))
    scores = sample_scores(columns)
    assert list(scores) == ["grad_norm", "loss", "length"]
    np.testing.assert_allclose(scores["grad_norm"], columns["blocks.0.up.grad_norm"] + 0.5)


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        describe_scores(RunFolder(tmp_path / name), table(30))
    for path in sorted((tmp_path / "a" / "artifacts").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / "artifacts" / path.name).read_bytes()


def test_extremes_are_the_ends_with_their_text() -> None:
    columns = table_columns(table(100))
    values = np.arange(100.0)[::-1].copy()
    texts = {f"s{i}": (f"prompt {i}", "x" * 1000) for i in range(100)}
    rows = extreme_samples(columns, values, texts)
    assert [row["rank"] for row in rows] == [*range(1, 13), *range(89, 101)]
    assert rows[0]["id"] == "s99"
    assert rows[0]["prompt"] == "prompt 99"
    assert rows[0]["response"] == "x" * 400 + " …"
    assert rows[0]["from_median"] == -1.0


def test_of_a_thousand_layers_the_heat_map_shows_some_evenly() -> None:
    """All of them would make a bitmap of tens of thousands of rows, and are not to be read."""
    draw = np.random.default_rng(0)
    columns = {f"experts.{layer}.up.grad_norm": draw.random(4) for layer in range(1000)}
    axes = layer_heatmap(columns, "grad_norm").axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 60
    assert (labels[0], labels[-1]) == ("layer 0", "layer 999")
