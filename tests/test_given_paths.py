"""What users write as paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_suite.errors import SuiteError
from lightning_suite.given_paths import given_path


def test_home_is_opened_and_nothing_needs_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert given_path("~/rows.jsonl") == Path("/home/me/rows.jsonl")
    assert given_path("no/such file") == Path("no/such file")


@pytest.mark.parametrize("text", ["a" * 300, "~nobody-of-that-name/rows"])
def test_what_no_file_can_be_called_is_named(text: str) -> None:
    with pytest.raises(SuiteError, match=f"'{text[:80]}.*cannot be the name of a file"):
        given_path(text)
