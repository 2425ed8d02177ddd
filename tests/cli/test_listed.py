"""An option that is a list is the same from the command line and from a config."""

from __future__ import annotations

import pytest

from lightning_suite.cli.listed import listed, whole_numbers
from lightning_suite.errors import SuiteError


def test_commas_and_lists_are_the_same() -> None:
    assert listed("sp, nfd:0.25") == listed(["sp", "nfd:0.25"]) == ["sp", "nfd:0.25"]
    assert listed(",") == listed([]) == []


def test_whole_numbers_are_numbers_of_any_form() -> None:
    assert whole_numbers("depths", "2,8") == whole_numbers("depths", [2, 8]) == (2, 8)
    assert whole_numbers("depths", 4) == (4,)


@pytest.mark.parametrize("value", ["2,deep", "2.5", ["x"]])
def test_anything_else_is_named(value: str) -> None:
    with pytest.raises(SuiteError, match=r"^depths: .* is not a list of whole numbers\. Write"):
        whole_numbers("depths", value)
