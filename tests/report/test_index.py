"""The page over several runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from several_runs import rows
from test_page import EVIL, Page, assert_self_contained

from lightning_suite.errors import SuiteError
from lightning_suite.report.index import write_index
from lightning_suite.run_folder import RunFolder


def test_all_runs_are_listed_with_method_command_state_and_figures(runs: Path) -> None:
    path = write_index([runs], runs / "index.html")
    page = Page(path)
    assert ("h1", "runs") in page.headings
    assert page.sections() == ["Runs", "Side by side", "Curves", "Differing configuration"]
    table = rows(page, "Runs")
    assert [row[:3] + row[4:] for row in table] == [
        ["class", "LMCD", "test", "finished", "AUC 0.7"],
        ["fits/version_0", "", "fit", "finished", "val_loss 0.75"],
        ["fits/version_1", "", "fit", "finished", "val_loss 0.5"],
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row[3]) for row in table)
    assert_self_contained(page)


def test_whole_numbers_are_shown_as_such_where_nothing_was_scored_or_fired(tmp_path: Path) -> None:
    for name, table, row in (
        ("scores", "resofilter_status", {"status": "no_labels", "samples": 3}),
        ("edits", "scen_answers", {"prompt": "a", "fired": None}),
    ):
        folder = RunFolder(tmp_path / name)
        folder.add_table(table, [row], title=name)
        folder.write_record(command=["lightning-suite", "test"], seed=0, config="seed: 0")
    source = Page(write_index([tmp_path], tmp_path / "index.html")).source
    assert "scored samples 0" in source
    assert "questions answered by an edit 0" in source


def test_links_lead_to_the_pages_of_the_runs_wherever_the_index_is(runs: Path) -> None:
    for path in (runs / "index.html", runs.parent / "other/compare.html"):
        links = [
            str(attributes["href"])
            for tag, attributes in Page(write_index([runs], path)).tags
            if tag == "a" and not str(attributes["href"]).startswith("#")
        ]
        assert len(set(links)) == 3
        for link in links:
            assert (path.parent / link).resolve().name == "report.html"
            assert (path.parent / link).is_file()


def test_the_same_runs_give_the_same_page_and_are_shown_once(runs: Path) -> None:
    first = write_index([runs], runs / "index.html").read_bytes()
    again = write_index([runs, runs / "class"], runs / "other.html")
    assert write_index([runs], runs / "index.html").read_bytes() == first
    assert len(rows(Page(again), "Runs")) == 3


def test_nothing_that_a_run_says_becomes_markup(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / f"<b>{number}"
        RunFolder(folder).write_record(
            command=[EVIL, "fit"], seed=None, config=f"? '{EVIL}'\n: '{EVIL}{number}'"
        )
        (folder / "metrics.csv").write_text(
            'step,"<script>alert(1)</script>_loss"\n' + f"0,{number}\n1,2\n"
        )
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    assert_self_contained(page)
    assert page.count("img") == page.count("b") == 0
    assert "alert(1)</script>_loss" in page.text


def test_foreign_files_are_not_replaced(runs: Path) -> None:
    mine = runs.parent / "mine.html"
    mine.write_text("<html>my page</html>")
    with pytest.raises(SuiteError, match="was not made by lightning-suite"):
        write_index([runs], mine)
    with pytest.raises(SuiteError, match=r"ends in \.html"):
        write_index([runs], runs.parent / "index.py")
    (runs.parent / "empty").mkdir()
    with pytest.raises(SuiteError, match="no run in here"):
        write_index([runs.parent / "empty"], runs / "index.html")
    assert mine.read_text() == "<html>my page</html>"
