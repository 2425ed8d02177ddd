"""The figure of a coordinate check can be read, of one rule as of several."""

from __future__ import annotations

from io import BytesIO

import pytest

from lightning_suite.depth_mup.coord_check import CHECKED, fit_slopes
from lightning_suite.report.coord_check_figure import coord_check_figure
from lightning_suite.run_folder import save_svg


@pytest.mark.parametrize("rules", [("depth_mup",), ("depth_mup", "nfd", "completep")])
def test_labels_are_plain_text_and_every_panel_has_room(rules: tuple[str, ...]) -> None:
    """A panel that shrinks to nothing is a warning of matplotlib's, and so an error here."""
    rows = [
        {"axis": "depth", "rule": rule, "size": size, "seed": 0, "step": step, "loss": 1.0}
        | dict.fromkeys(CHECKED, step * 3e-4 / size**0.5)
        for rule in rules
        for size in (2, 4, 8)
        for step in (1, 2, 3)
    ]
    figure = coord_check_figure(rows, fit_slopes(rows), "depth")
    save_svg(figure, BytesIO())
    for panel in figure.axes:
        assert panel.get_position().width > 0.2
    labels = [
        label.get_text() for panel in figure.axes for label in panel.get_yticklabels(which="both")
    ]
    assert any(labels)
    assert not any("$" in label for label in labels)
