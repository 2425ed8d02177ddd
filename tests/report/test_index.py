"""The page over several runs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from test_page import EVIL, Page, assert_self_contained

from lightning_suite.errors import SuiteError
from lightning_suite.report.index import write_index
from lightning_suite.report.page import write_report
from lightning_suite.run_folder import RunFolder

CONFIG = """\
trainer:
  max_epochs: 2
  callbacks:
  - class_path: lightning_suite.callbacks.{callback}
    init_args:
      every_n_steps: 5
model:
  class_path: my.Net
  init_args:
    lr: {lr}
"""


def fit(folder: Path, lr: float, losses: list[float], callback: str = "A") -> Path:
    """A folder as `fit` leaves it."""
    RunFolder(folder).write_record(
        command=["lightning-suite", "fit", "-c", "my.yaml"],
        seed=0,
        config=CONFIG.format(lr=lr, callback=callback),
    )
    rows = [f"{step},{loss},{lr}" for step, loss in enumerate(losses)]
    (folder / "metrics.csv").write_text("\n".join(["step,val_loss,lr-SGD", *rows, ""]))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two fits and a diagnosis."""
    root = tmp_path / "runs"
    fit(root / "fits/lightning_logs/version_0", 0.1, [3.0, 0.5, 0.75])
    fit(root / "fits/lightning_logs/version_1", 0.2, [2.0, 1.0, 0.5])
    folder = RunFolder(root / "class")
    folder.add_table("lmcd_scores", [{"system": "lmcd", "auc": 0.7}], title="Scores")
    folder.write_record(command=["lightning-suite", "test"], seed=0, config="seed: 0")
    return root


def rows(page: Page, label: str) -> list[list[str]]:
    """The cells of the table in the region of this name."""
    _, _, rest = page.source.partition(f'aria-label="{label}"')
    assert rest, f"no table {label}"
    body = rest.partition("<tbody>")[2].partition("</tbody>")[0]
    found = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in found]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in cells]


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


def test_pages_are_written_where_they_are_missing_or_older_than_the_run(runs: Path) -> None:
    fresh = write_report(runs / "class")
    stale = write_report(runs / "fits/lightning_logs/version_0")
    for page in (fresh, stale):
        page.write_text("by hand")
    os.utime(stale, (0, 0))
    write_index([runs], runs / "index.html")
    assert fresh.read_text() == "by hand"
    assert stale.read_text() != "by hand"
    assert (runs / "fits/lightning_logs/version_1/report.html").is_file()


def test_shared_metrics_stand_side_by_side_with_the_best_marked(runs: Path) -> None:
    page = Page(write_index([runs], runs / "index.html"))
    assert rows(page, "Metrics side by side") == [
        ["fits/version_0", "0.75", "0.5"],  # last and lowest
        ["fits/version_1", "0.5", "0.5"],
    ]
    assert '<td class="number best" data-value="0.5">0.5</td>' in page.source
    assert page.source.count("number best") == 1  # where all are equal, none is best


def test_what_reads_the_same_as_the_best_has_its_mark(tmp_path: Path) -> None:
    for run, loss in enumerate([0.68914604, 0.68914592, 1.25]):
        fit(tmp_path / f"version_{run}", 0.1 * (run + 1), [2.0, loss])
    source = Page(write_index([tmp_path], tmp_path / "index.html")).source
    assert source.count(">0.6891</td>") == source.count("number best") == 2


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


def test_only_differing_keys_of_like_runs_are_shown(runs: Path) -> None:
    fit(runs / "third", 0.1, [1.0], callback="B")
    page = Page(write_index([runs], runs / "index.html"))
    assert rows(page, "Configuration: Of fit · Net") == [
        ["trainer.callbacks.A", "yes", "yes", "—"],  # its arguments would say no more
        ["model.lr", "0.1", "0.2", "0.1"],
        ["trainer.callbacks.B", "—", "—", "yes"],
    ]
    assert "Of test" not in page.text  # a single run differs from nothing


def test_metrics_can_be_chosen_and_a_typo_is_named(runs: Path) -> None:
    page = Page(write_index([runs], runs / "index.html", ["lr-*", "AUC"]))
    assert rows(page, "Metrics side by side") == [
        ["class", "0.7", ""],
        ["fits/version_0", "", "0.1"],
        ["fits/version_1", "", "0.2"],
    ]
    assert [text for tag, text in page.headings if tag == "h3"][:1] == ["lr-SGD"]
    with pytest.raises(SuiteError, match=r"no run has the metric 'val_los'. Did you mean 'val_l"):
        write_index([runs], runs / "index.html", ["val_los"])


def test_the_same_runs_give_the_same_page_and_are_shown_once(runs: Path) -> None:
    first = write_index([runs], runs / "index.html").read_bytes()
    again = write_index([runs, runs / "class"], runs / "other.html")
    assert write_index([runs], runs / "index.html").read_bytes() == first
    assert len(rows(Page(again), "Runs")) == 3


def test_a_damaged_run_is_named_and_the_others_are_shown(runs: Path) -> None:
    (runs / "class/run.json").write_text("{")
    page = Page(write_index([runs], runs / "index.html"))
    assert "class/run.json: not readable as JSON" in page.text
    assert [row[4] for row in rows(page, "Runs")] == ["cannot be read", "finished", "finished"]


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
