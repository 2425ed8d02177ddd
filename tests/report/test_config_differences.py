"""What differs between the configurations of runs of one command."""

from __future__ import annotations

from pathlib import Path

import pytest
from several_runs import fit, rows
from test_page import Page

from lightning_suite.report.index import write_index


def test_only_differing_keys_of_like_runs_are_shown(runs: Path) -> None:
    fit(runs / "third", 0.1, [1.0], callback="B")
    page = Page(write_index([runs], runs / "index.html"))
    assert rows(page, "Configuration: Of fit · Net") == [
        ["trainer.callbacks.A", "yes", "yes", "—"],  # its arguments would say no more
        ["model.lr", "0.1", "0.2", "0.1"],
        ["trainer.callbacks.B", "—", "—", "yes"],
    ]
    assert "Of test" not in page.text  # a single run differs from nothing


def test_of_many_runs_each_has_a_row_with_the_link_to_its_page(tmp_path: Path) -> None:
    for number in range(9):
        fit(tmp_path / f"run_{number}", float(number), [1.0])
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    assert rows(page, "Configuration: Of fit · Net") == [[f"run_{n}", f"{n}.0"] for n in range(9)]
    _, _, table = page.source.partition('aria-label="Configuration')
    assert '<a href="run_8/report.html">' in table


def test_values_that_differ_in_their_last_digits_are_seen_to_differ(tmp_path: Path) -> None:
    for name, lr in (("a", 0.1234561), ("b", 0.1234562)):
        fit(tmp_path / name, lr, [1.0])
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    (row,) = rows(page, "Configuration: Of fit · Net")
    assert row == ["model.lr", "0.1234561", "0.1234562"]


PLAIN = "trainer:\n  callbacks: {callbacks}\nmodel:\n  lr: 0.1\n"
SUITE = """
  - class_path: lightning_suite.DepthMuPLRCallback
    init_args: {base_depth: 4}
  - class_path: lightning_suite.FeatureDynamicsMonitor
"""


def of_another_program(folder: Path, callbacks: str) -> None:
    """A folder as a LightningCLI that knows nothing of this package leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(PLAIN.format(callbacks=callbacks))
    (folder / "metrics.csv").write_text("step,val_loss\n0,1.0\n1,0.5\n")


@pytest.mark.parametrize("none", ["null", "[]"])
def test_callbacks_that_only_one_run_has_are_named(tmp_path: Path, none: str) -> None:
    """They are the whole difference; that the other's list is empty says it less well."""
    of_another_program(tmp_path / "plain", none)
    of_another_program(tmp_path / "suite", SUITE)
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    assert rows(page, "Configuration: Of other runs") == [
        ["trainer.callbacks.DepthMuPLRCallback", "—", "yes"],
        ["trainer.callbacks.FeatureDynamicsMonitor", "—", "yes"],
    ]
    _, _, table = page.source.partition('aria-label="Runs"')
    header = table.partition("</thead>")[0]
    assert "main figures" in header
    assert not [word for word in ("command", "state") if word in header]


def test_a_list_that_is_empty_in_one_run_and_absent_in_another_still_differs(
    tmp_path: Path,
) -> None:
    of_another_program(tmp_path / "plain", "null")
    of_another_program(tmp_path / "other", "[]")
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    assert rows(page, "Configuration: Of other runs") == [["trainer.callbacks", "[]", "null"]]
