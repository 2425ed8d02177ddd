from __future__ import annotations

import json
import math

import pytest

from lightning_suite.json_text import DEEPEST, load_json


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, null, "é"]}', "[]", "null", '"\\ud83d\\ude00"', "[" * 50 + "]" * 50]
)
def test_json_is_read_as_python_does(text: str) -> None:
    assert load_json(text) == load_json(text.encode()) == json.loads(text)


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert load_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_what_python_writes_beyond_the_standard_is_read() -> None:
    assert math.isnan(load_json("NaN"))


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 100_000])
@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}")])
def test_nesting_that_breaks_recursive_functions_is_refused(
    depth: int, open_: str, close: str
) -> None:
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        load_json(open_ * depth + "1" + close * depth)


def test_many_lists_are_not_deep_ones() -> None:
    assert len(load_json("[" + ",".join(["[[]]"] * 500) + "]")) == 500


@pytest.mark.parametrize("text", ['["\\ud800"]', '{"\\uDFFF": 1}', '{"a": ["\\ud83d"]}'])
def test_halves_of_characters_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="half a character"):
        load_json(text)


def test_other_encodings_are_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        load_json("é".encode("latin1"))
