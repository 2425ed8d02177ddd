from __future__ import annotations

from pathlib import Path

import pytest

from lightning_suite.errors import SuiteError
from lightning_suite.report.tables import breakable, html_table, read_table, short_number


def test_long_tables_are_cut_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n" + "".join(f"{n}\n" for n in range(1000)))
    header, rows, total = read_table(path, most=3)
    assert (header, rows, total) == (["a"], [["0"], ["1"], ["2"]], 1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3\n", r"t\.csv, row 3: 1 cells, but the header has 2"),
        (b'a,b\n1,"2" x\n', r"t\.csv: not readable as CSV"),
        (b"a\n\xff\n", r"t\.csv: not readable as CSV"),
        (None, r"t\.csv: no such file"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(SuiteError, match=message):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("12345678", "12345678"),
        ("-3", "-3"),
        ("0.123456", "0.1235"),
        ("1e-05", "1e-05"),
        ("123456.7", "1.235e+05"),
        ("nan", "nan"),
        ("-inf", "-inf"),
    ],
)
def test_numbers_are_rounded_for_reading(text: str, short: str) -> None:
    assert short_number(text) == short


def test_numeric_columns_keep_the_full_value_for_sorting_and_as_tooltip() -> None:
    table = html_table(["rule", "x"], [["sp", "0.123456"], ["mup", ""]], label="L")
    assert '<td class="number" data-value="0.123456" title="0.123456">0.1235</td>' in table
    assert '<th scope="col" aria-sort="none" class="number">' in table
    assert "<td>sp</td>" in table
    assert '<td class="number"></td>' in table


def test_cells_know_their_column_where_a_row_may_become_a_block() -> None:
    """On a phone where the texts are long, on paper where the columns are many."""
    texts = html_table(["id", "prompt"], [["a", "x" * 40], ["b", "short"]], label="L")
    assert '<table class="texts">' in texts
    assert '<td data-label="id">a</td>' in texts
    assert '<td data-label="prompt">short</td>' in texts
    many = html_table([f"c{n}" for n in range(11)], [["1"] * 11], label="L")
    assert '<table class="many">' in many
    assert '<td class="number" data-label="c10" data-value="1">1</td>' in many
    assert "data-label" not in html_table(["id", "n"], [["a", "1"]], label="L")


def test_only_a_long_table_scrolls_in_a_box_of_its_own_and_is_cut_on_paper() -> None:
    def table(rows: int) -> str:
        return html_table(["n"], [[str(n)] for n in range(rows)], label="L")

    assert '<div class="scroll" ' in table(15)
    assert '<div class="scroll tall" ' in table(16)
    assert "Printed" not in table(40)
    assert "Printed: the first 40 of 41 rows." in table(41)
    first = html_table(["n"], [["1"]] * 500, label="L", total=2219)
    assert "Printed: the first 40 of 2,219 rows." in first


def test_a_long_heading_may_take_two_lines() -> None:
    table = html_table(["octaves_per_doubling_low", "depth"], [], label="L")
    assert ">octaves_per_<wbr>doubling_low</button>" in table
    assert ">depth</button>" in table


def test_one_word_makes_a_column_text() -> None:
    table = html_table(["x", "y"], [["0.123456", ""], ["n/a", ""]], label="L")
    assert "number" not in table
    assert "<td>0.123456</td>" in table


def test_everything_is_escaped() -> None:
    table = html_table(['<b a="1">'], [["<script>"]], label='"><i>')
    assert "<script>" not in table
    assert "<b " not in table
    assert "<i>" not in table
    assert "&lt;script&gt;" in table


def test_a_cell_may_hold_a_long_prompt_and_is_shown_in_part(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"prompt\n{'word ' * 50_000}\n", encoding="utf-8")
    header, rows, _ = read_table(tmp_path / "t.csv")
    assert len(rows[0][0]) == 250_000
    html = html_table(header, rows, label="T")
    assert "(250,000 characters)" in html
    assert len(html) < 5_000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a/b.c", "a/b.c"),
        ("model.layers_0/weight", "model.<wbr>layers_<wbr>0/<wbr>weight"),
        ("What is 3/4 x 5/8, and and/or?", "What is 3/4 x 5/8, and and/or?"),
        (
            "see https://a.example/b/c, please",
            "see https:/<wbr>/<wbr>a.example/<wbr>b/<wbr>c, please",
        ),
    ],
)
def test_long_names_break_at_their_marks_and_fractions_in_a_sentence_do_not(
    text: str, shown: str
) -> None:
    assert breakable(text) == shown
