"""A run with GradientFeatureCallback shows its rows: how they are spread and which are extreme."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lightning_suite.report import sample_section
from lightning_suite.report.page import write_report
from lightning_suite.resofilter.store import to_table, write_table

NORMS = torch.arange(1.0, 41.0)


def recorded(folder: Path) -> Path:
    """A run as the callback leaves it: 20 samples in two batches each, one without labels."""
    rows = {
        "sample_id": [f"s{n % 20:02}" for n in range(40)],
        "status": ["no_labels", *["ok"] * 39],
        "step": [n // 4 for n in range(40)],
        "batch": [n // 4 for n in range(40)],
        "layers.0.down.grad_norm": NORMS,
        "layers.1.down.grad_norm": 3 * NORMS,
    }
    shard = folder / "gradient_features/shards/rank0-000000.parquet"
    shard.parent.mkdir(parents=True)
    write_table(to_table(rows), shard)
    lines = [f"{step},{step / 10},{step / 5}" for step in range(1, 5)]
    text = "\n".join(["step,train_loss,resofilter/grad_norm", *lines, ""])
    (folder / "metrics.csv").write_text(text)
    return folder


def test_the_page_has_distribution_and_extremes_under_a_heading_in_words(tmp_path: Path) -> None:
    page = write_report(recorded(tmp_path)).read_text(encoding="utf-8")
    assert page.count("Per-sample gradients") >= 2  # the section, and the curves of the means
    assert ">resofilter<" not in page
    assert "Distribution of grad_norm" in page
    assert "39 rows of 20 samples" in page  # the one without labels has no gradient
    table = page.partition('aria-label="Extremes"')[2].partition("</table>")[0]
    found = re.findall(r"<td[^>]*>(s\d\d)</td>", table)
    assert (found[0], found[-1]) == ("s01", "s19")
    assert len(found) == 24
    assert "80.0" in table  # the mean of the two layers


def test_a_run_without_rows_has_no_such_section(tmp_path: Path) -> None:
    recorded(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/metrics.csv").write_text("step,train_loss\n1,2\n2,1\n")
    assert "Per-sample" not in write_report(tmp_path / "b").read_text(encoding="utf-8")


def test_damaged_and_huge_shards_are_said_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = recorded(tmp_path)
    monkeypatch.setattr(sample_section, "_MOST_BYTES", 10)
    assert "more rows than a page" in write_report(folder).read_text(encoding="utf-8")
    monkeypatch.undo()
    (folder / "gradient_features/shards/rank0-000000.parquet").write_bytes(b"cut")
    assert "rank0-000000.parquet" in write_report(folder).read_text(encoding="utf-8")
