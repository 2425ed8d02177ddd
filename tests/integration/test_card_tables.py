"""Tables of measured figures in README and cards: made from results, and checked by lint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import card_tables
import lmcd_card
import measured_tables
import readme_table
import resofilter_card
import scen_card

sys.path.pop(0)

CARD = """Before.
<!-- table: one -->
old
<!-- end of table -->
Between.
<!-- table: two -->
<!-- end of table -->
"""


def one() -> str:
    return card_tables.markdown(("a", "b"), [("1", "2"), ("3", "")])


def test_each_table_is_written_between_its_markers_and_nothing_else_is() -> None:
    assert card_tables.fill(CARD, {"one": one, "two": lambda: "new\n"}) == CARD.replace(
        "old", "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 |  |"
    ).replace("two -->\n", "two -->\nnew\n")


def test_a_table_too_few_or_too_many_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"has the tables \['one', 'two'\], and should have"):
        card_tables.fill(CARD, {"one": one})


def test_checking_tells_what_is_out_of_date_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_tables, "ROOT", tmp_path)
    file, tables = tmp_path / "card.md", {"one": one, "two": str}
    file.write_text(CARD)
    assert card_tables.main("card.md", tables, ["--check"]) == 1
    assert file.read_text() == CARD
    assert card_tables.main("card.md", tables, []) == 0
    assert card_tables.main("card.md", tables, ["--check"]) == 0
    with pytest.raises(SystemExit, match="card.md: it has the tables"):
        card_tables.main("card.md", {}, [])


@pytest.mark.parametrize(
    "script", [lmcd_card, readme_table, resofilter_card, scen_card], ids=lambda s: s.__name__
)
def test_what_is_written_is_up_to_date(script: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--check"])
    assert script.main() == 0, "run it without --check"  # type: ignore[attr-defined]


def speed_row(task: str, way: str, ratio: float, **more: float) -> dict[str, object]:
    spread = {"ratio_min": ratio - 0.1, "ratio": ratio, "ratio_max": ratio + 0.1}
    return {"task": task, "way": way, **spread, **more}


def test_a_peer_that_did_not_run_leaves_its_cell_or_its_column_out() -> None:
    result = {
        "model": "llama",
        "parameters": 6_000_000,
        "machine": "one GPU",
        "load_average": [0.2, 3.6],
        "versions": {"torch": "2.0"},
        "rows": [
            speed_row("default", "limit", 1, peak_mib=3.2),
            speed_row("default", "ours", 1.25, peak_mib=4.0),
            speed_row("default", "opacus", 1.5),
            speed_row("norms, every linear layer", "ours", 2),
        ],
    }
    lines = measured_tables.resofilter_speed(result).splitlines()
    assert lines[0] == "| time over one bare pass, 6 M parameters | ours | opacus |"
    assert lines[2].endswith("(the method) | **1.25 [1.15, 1.35]** | 1.50 |")
    assert lines[5].endswith("`grad_norm`, every linear layer | **2.00 [1.90, 2.10]** | – |")
    assert lines[-1] == (
        "`benchmarks/resofilter_speed.py --model llama`: one GPU, 1 thread, torch 2.0, load 0 to 4"
    )
    memory = measured_tables.resofilter_memory(result).splitlines()
    assert memory[0] == "| MiB over what the process held | the bare pass | ours |"
    assert memory[2].endswith("(the method) | 3 | 4 |")
