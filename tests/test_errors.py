from __future__ import annotations

import pytest

from lightning_suite.errors import MissingExtraError, SuiteError, did_you_mean


def test_an_error_of_the_suite_is_a_value_error() -> None:
    assert issubclass(SuiteError, ValueError)


def test_a_missing_extra_is_also_an_import_error() -> None:
    assert issubclass(MissingExtraError, SuiteError)
    assert issubclass(MissingExtraError, ImportError)


@pytest.mark.parametrize(
    ("word", "hint"),
    [("depht_mup", " Did you mean 'depth_mup'?"), ("completp", " Did you mean 'completep'?")],
)
def test_a_typo_is_answered_with_the_closest_word(word: str, hint: str) -> None:
    assert did_you_mean(word, ("sp", "mup", "depth_mup", "completep")) == hint


def test_a_word_like_none_of_the_known_gets_no_hint() -> None:
    assert did_you_mean("zzz", iter(["sp", "mup"])) == ""
    assert did_you_mean("sp", []) == ""
