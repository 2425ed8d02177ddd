"""Names and texts of others, as a page and a figure can hold them."""

from __future__ import annotations

import pytest

from lightning_suite.report.text import escape, relative_link, shortened, visible


@pytest.mark.parametrize("sign", ["\x00", "\x1b", "\x7f", "\x85", "\u202e", "\ud83d", "\uffff"])
def test_a_sign_without_a_shape_is_written_as_its_escape(sign: str) -> None:
    assert visible(f"a{sign}b") == f"a{sign.encode('unicode_escape').decode()}b"


@pytest.mark.parametrize("text", ["two\nlines\tand a tab", "漢字 👩‍👧 é", "עברית\u200f!"])
def test_what_a_reader_sees_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_markup_is_escaped_also_in_attributes() -> None:
    assert escape("\"'<&>") == "&quot;&#x27;&lt;&amp;&gt;"


def test_of_a_long_name_both_ends_are_seen() -> None:
    name = "model.layers.0.mlp.up_proj"
    assert shortened(name, 15) == "model.l…up_proj"
    assert shortened(name, 100) == name
    assert len(shortened("x" * 10_000, 40)) == 40


def test_a_name_is_one_line() -> None:
    assert shortened("one\n two\x00", 40) == r"one two\x00"


@pytest.mark.parametrize(("name", "shown"), [("", "—"), (" \n", "—"), ("_own", " _own")])
def test_no_name_is_one_that_a_legend_passes_over(name: str, shown: str) -> None:
    assert shortened(name, 40) == shown


def test_a_link_has_the_bytes_of_the_file_name() -> None:
    assert relative_link("a b/\udcff#?.csv") == "a%20b/%FF%23%3F.csv"
    assert relative_link("javascript:alert(1)") == "javascript%3Aalert%281%29"
