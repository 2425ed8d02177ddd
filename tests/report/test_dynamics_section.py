"""The table of feature dynamics has its figure: a curve over depth for each of some steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_suite.report.dynamics_section import dynamics_cards, dynamics_figure
from lightning_suite.report.page import write_report
from lightning_suite.run_folder import RunFolder

Rows = list[dict[str, str]]


def measured(steps: range, blocks: int = 6, first: bool = True) -> Rows:
    """Updates that grow with the step and the block; at step 0 nothing has changed."""
    return [
        {
            "step": str(step),
            "block": str(block),
            "t": repr(block / blocks),
            "first_update": repr(0.01 * step * block) if first else "nan",
            "last_update": repr(0.02 * step),
        }
        for step in steps
        for block in range(1, blocks + 1)
    ]


def test_each_step_has_a_line_over_the_depth_of_its_blocks() -> None:
    figure = dynamics_figure(measured(range(0, 30, 10)))
    assert figure is not None
    first, last = figure.axes
    assert [line.get_label() for line in first.lines] == ["step 10", "step 20"]  # 0: no change
    t, values = first.lines[1].get_data()
    assert t == pytest.approx([block / 6 for block in range(1, 7)])
    assert values == pytest.approx([0.2 * block for block in range(1, 7)])
    assert last.lines[0].get_ydata() == pytest.approx([0.2] * 6)


def test_of_many_steps_some_are_drawn_the_last_among_them() -> None:
    figure = dynamics_figure(measured(range(1, 100)))
    assert figure is not None
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert len(labels) == 6
    assert (labels[0], labels[-1]) == ("step 1", "step 99")


def test_blocks_of_one_matrix_have_one_panel_and_the_start_alone_has_none() -> None:
    figure = dynamics_figure(measured(range(1, 3), first=False))
    assert figure is not None
    assert len(figure.axes) == 1
    assert dynamics_figure(measured(range(1))) is None
    assert dynamics_figure([]) is None


def test_the_page_of_a_run_draws_it_above_the_table(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rows = measured(range(0, 30, 10))
    folder.add_table("feature_dynamics", rows, title="By block", section="Feature dynamics")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.index("What each block has learnt") < page.index("By block")
    assert "<svg" in page


def test_a_damaged_table_is_named() -> None:
    assert dynamics_cards({}) == []
    (said,) = dynamics_cards({"feature_dynamics": Path("nowhere.csv")})
    assert "nowhere.csv: no such file" in said
