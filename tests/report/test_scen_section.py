"""What the page makes of an evaluation of edits: numbers, figures and answers, as far as known."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from lightning_suite.report.page import write_report
from lightning_suite.report.scen_figures import (
    OUTCOMES,
    curve_figure,
    draw_edits,
    gate_figure,
    margin_figure,
)
from lightning_suite.run_folder import RunFolder
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.evaluation import ScoredPrompt, checkpoints_up_to
from lightning_suite.scen.evaluation_tables import OUTCOMES as WRITTEN
from lightning_suite.scen.evaluation_tables import write_answers, write_evaluation

EDITS = [Edit(f"e{n}", f"What is {n}?", f"new {n}", subject=str(n)) for n in range(30)]


def scored(system: str, *, gated: bool, edits: Iterable[Edit] = EDITS) -> list[ScoredPrompt]:
    """Every third rephrase is missed, nothing else goes wrong."""
    rows = []
    edits = list(edits)
    for count in checkpoints_up_to(len(edits)):
        for number, edit in enumerate(edits[:count]):
            for kind in ("edit", "rephrase", "random", "<b>mine</b>"):
                local = kind not in ("edit", "rephrase")
                missed = kind == "rephrase" and number % 3 == 0
                fired = not local and not missed
                gate = ("quiet" if local else "right" if fired else "missed") if gated else ""
                rows.append(
                    ScoredPrompt(
                        system=system,
                        edits=count,
                        edit_id=edit.id,
                        kind=kind,
                        prompt=edit.prompt,
                        target="" if local else edit.target,
                        before="the old answer <i>",
                        after=edit.target if fired else "the old answer <i>",
                        correct=int(local or fired),
                        finished=1,
                        fired=edit.id if fired and gated else "",
                        nearest=edit.id if gated else "",
                        score=0.5 if gated else None,
                        margin=(0.1 if fired else -0.2 + number / 100) if gated else None,
                        gate=gate,
                    )
                )
    return rows


def page_of(folder: Path, rows: list[ScoredPrompt], edits: list[Edit] = EDITS) -> str:
    write_evaluation(RunFolder(folder), rows, edits)
    return write_report(folder).read_text(encoding="utf-8")


def titles(page: str) -> list[str]:
    return re.findall(r"<h3>([^<]*)</h3>", page)


def test_an_evaluation_is_shown_as_numbers_figures_and_answers(tmp_path: Path) -> None:
    page = page_of(tmp_path, scored("scen", gated=True) + scored("no_edit", gated=False))
    assert titles(page)[:4] == [
        "As the edits grow in number",
        "What the gate decided",
        "Margins of scen",
        "Before and after",
    ]
    tiles = re.findall(r"<dt>(\w+)</dt><dd>([\d.]+)<small>([^<]*)", page)
    assert tiles == [
        ("reliability", "1", "scen, 30 edits"),
        ("generality", "0.6667", "scen, 30 edits"),
        ("locality", "1", "scen, 30 edits"),
    ]
    # 30 edits and 20 of their 30 rephrases reached an edit, and none of 60 other prompts
    decided = re.findall(r"<dt>questions answered by an edit</dt><dd>([^<]*)<small>([^<]*)", page)
    assert decided == [("50 of 120", "the base model answered the rest")]
    assert page.count("<svg") == 3
    assert "the old answer &lt;i&gt;" in page
    assert "<b>mine</b>" not in page
    assert "<i>" not in page


def test_of_questions_that_were_asked_the_edits_that_fired_are_counted(tmp_path: Path) -> None:
    answers = [
        {"prompt": f"What is {n}?", "before": "?", "answer": "!", "fired": fired}
        for n, fired in enumerate(["e1", "e1", "e2", None])
    ]
    write_answers(RunFolder(tmp_path), answers)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    decided = re.findall(r"<dt>questions answered by an edit</dt><dd>([^<]*)<small>([^<]*)", page)
    assert decided == [("3 of 4", "2 different edits fired; the base model answered the rest")]


def test_a_system_without_a_gate_has_no_figures_of_one(tmp_path: Path) -> None:
    page = page_of(tmp_path, scored("fine_tune", gated=False))
    assert titles(page)[:2] == ["As the edits grow in number", "Before and after"]
    assert "answered by an edit" not in page


def test_dollar_signs_in_names_of_systems_and_kinds_are_no_formulas(tmp_path: Path) -> None:
    kinds = {"random": "costs $5_ or $6^", "<b>mine</b>": r"$\frac$"}
    rows = [
        replace(row, system=system, kind=kinds.get(row.kind, row.kind))
        for system in ("ours $x_$", r"theirs $\bad$")
        for row in scored(system, gated=True)
    ]
    page = page_of(tmp_path, rows)
    assert "Not shown" not in page
    assert "What the gate decided" in titles(page)


def test_one_edit_is_enough(tmp_path: Path) -> None:
    page = page_of(tmp_path, scored("scen", gated=True, edits=EDITS[:1]), EDITS[:1])
    assert page.count("<svg") == 3
    assert "Not shown" not in page


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, scored("scen", gated=True))
    assert write_report(tmp_path).read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scen_curve", "system,edits\nscen,1\n", "has no column &#x27;metric&#x27;"),
        ("scen_gate", None, "no such file"),
        (
            "scen_summary",
            "system,edits,reliability,generality,locality\ns,x,1,1,1\n",
            "row 2, column .*: expected a count, found .*x",
        ),
    ],
)
def test_a_damaged_table_is_named_and_keeps_nothing_else_from_the_page(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    page_of(tmp_path, scored("scen", gated=True))
    path = tmp_path / "artifacts" / f"{name}.csv"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.search(f"Not shown: .*{message}", page)
    assert "Before and after" in titles(page)


def test_every_outcome_that_is_written_can_be_drawn() -> None:
    assert set(OUTCOMES) == set(WRITTEN)


def test_curves_are_one_line_a_system_and_metric_in_order_of_the_edits() -> None:
    rows = [
        {"system": "a", "edits": str(n), "metric": "reliability", "kind": "", "value": str(1 / n)}
        for n in (30, 1, 3)
    ]
    (axes,) = curve_figure(rows).axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [1, 3, 30]
    assert list(line.get_ydata()) == [1, 1 / 3, 1 / 30]
    assert axes.get_xscale() == "log"


def test_bars_of_the_gate_are_shares_that_add_up_to_all() -> None:
    counts = {"right": "3", "wrong": "1", "missed": "0", "false_fire": "0", "quiet": "0"}
    (axes,) = gate_figure([{"system": "s", "kind": "edit", **counts}]).axes
    widths = {bar.get_label(): bar.patches[0].get_width() for bar in axes.containers}
    assert widths == {
        "right edit": 0.75,
        "rightly none": 0.0,
        "missed": 0.0,
        "wrong edit": 0.25,
        "false fire": 0.0,
    }


def test_prompts_without_a_margin_are_left_out(tmp_path: Path) -> None:
    rows = scored("scen", gated=True)
    for kind, margin in (("random", None), ("<b>mine</b>", -math.inf)):
        rows = [replace(row, margin=margin) if row.kind == kind else row for row in rows]
    write_evaluation(RunFolder(tmp_path), rows, EDITS)
    table = {"scen_prompts": tmp_path / "artifacts" / "scen_prompts.csv"}
    (drawing,) = draw_edits(table)
    assert drawing.title == "Margins of scen"
    none = [replace(row, margin=None) for row in rows]
    write_evaluation(RunFolder(tmp_path), none, EDITS)
    assert draw_edits(table) == []


def test_bars_of_margins_count_the_prompts_on_their_side_of_the_threshold() -> None:
    rows = [
        {"kind": "edit", "margin": margin, "gate": gate}
        for margin, gate in (("0.1", "right"), ("0.2", "right"), ("-0.3", "missed"))
    ]
    (axes,) = margin_figure(rows).axes
    assert axes.get_ylabel() == "edit (3)"
    counts: Counter[tuple[str, bool]] = Counter()
    for bar in axes.patches:
        counts[to_hex(bar.get_facecolor()), bar.get_x() >= -1e-9] += int(bar.get_height())
    assert +counts == {(OUTCOMES["right"][1], True): 2, (OUTCOMES["missed"][1], False): 1}


def test_equal_lines_of_several_systems_are_all_in_sight() -> None:
    """All of them often keep everything: the lower lines are drawn wider."""
    rows = [
        {"system": system, "edits": str(n), "metric": "locality", "kind": "", "value": value}
        for system, value in (("scen", "1.0"), ("other", "0.5"), ("third", "1.0"))
        for n in (1, 10)
    ]
    widths = [line.get_linewidth() for line in curve_figure(rows).axes[0].lines]
    assert widths == [3.6, 1.8, 1.8]
