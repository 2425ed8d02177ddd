"""Several runs' curves in the same axes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from several_runs import fit, rows
from test_page import Page

from lightning_suite.report.index import write_index


def test_shared_curves_are_drawn_in_the_same_axes_with_one_key_for_all(runs: Path) -> None:
    page = Page(write_index([runs], runs / "index.html"))
    assert [text for tag, text in page.headings if tag == "h3"][:2] == ["val_loss", "lr-SGD"]
    label = "val_loss over steps, of fits/version_0, fits/version_1"
    assert any(attributes.get("aria-label") == label for _, attributes in page.tags)
    key = re.search(r'<ul class="legend">(.*?)</ul>', page.source, re.S)
    assert key is not None
    assert re.findall(r"([\w/]+)</li>", key[1]) == ["fits/version_0", "fits/version_1"]
    for color in re.findall(r'stroke="(#\w+)"', key[1]):
        assert page.source.count(f"stroke: {color}") >= 2  # in each panel


def test_more_runs_than_one_can_tell_apart_are_cut_and_say_so(tmp_path: Path) -> None:
    for number in range(26):
        fit(tmp_path / f"run_{number}", 0.1, [float(number), 1.0])
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    assert "The last 24 of 26 runs with curves are drawn." in page.text
    key = re.search(r'<ul class="legend">(.*?)</ul>', page.source, re.S)
    assert key is not None
    looks = re.findall(r"<path ([^>]*)/>", key[1])
    assert len(set(looks)) == len(looks) == 24
    assert [row[0] for row in rows(page, "Runs")][-1] == "run_25"


def test_without_matplotlib_the_tables_are_there(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(write_index([runs], runs / "index.html"))
    assert "pip install 'lightning-suite[report]'" in page.text
    assert len(rows(page, "Metrics side by side")) == 2
