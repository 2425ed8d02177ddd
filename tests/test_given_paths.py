"""What users write as paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_suite.errors import SuiteError
from lightning_suite.given_paths import given_path, meant_file


def test_home_is_opened_and_nothing_needs_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert given_path("~/rows.jsonl") == Path("/home/me/rows.jsonl")
    assert given_path("no/such file") == Path("no/such file")


@pytest.mark.parametrize("text", ["a" * 300, "~nobody-of-that-name/rows"])
def test_what_no_file_can_be_called_is_named(text: str) -> None:
    with pytest.raises(SuiteError, match=f"'{text[:80]}.*cannot be the name of a file"):
        given_path(text)


def test_a_file_beside_the_one_that_is_not_there_may_be_meant(tmp_path: Path) -> None:
    for name in ("best.ckpt", "pets.ckpt", "quests.txt"):
        (tmp_path / name).touch()
    best = str(tmp_path / "best.ckpt")
    assert meant_file(tmp_path / "bst.ckpt") == f" Did you mean {best!r}?"
    assert meant_file(str(tmp_path / "bst.ckpt"), but=[best]) == ""
    assert meant_file(best) == ""  # it is there
    assert meant_file(tmp_path / "nope.ckpt") == ""  # no more alike than their suffix
    assert meant_file(tmp_path / "nothing like these") == ""
    assert meant_file(tmp_path / "no folder" / "best.ckpt") == ""
