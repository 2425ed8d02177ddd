from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lightning_suite.files import atomic_write, write_csv, write_json


def test_a_file_and_its_missing_parents_are_written(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "note.txt"
    with atomic_write(target) as file:
        file.write("µ\n")
    assert target.read_bytes() == "µ\n".encode()


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "note.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_write(target) as file:
            file.write("half of the n")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nobody_sees_the_file_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    with atomic_write(target, "wb") as file:
        file.write(b"\x00\xff")
        assert not target.exists()
    assert target.read_bytes() == b"\x00\xff"


def test_permissions_follow_the_umask_as_those_of_open_do(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "shared.txt") as file:
            file.write("")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "shared.txt").stat().st_mode) == 0o640


def test_json_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'


def test_csv_takes_its_header_from_the_first_row_or_from_the_caller(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x,y"}, {"a": 0.1}]
    write_csv(tmp_path / "x.csv", rows)
    assert (tmp_path / "x.csv").read_text() == 'a,b\n1,"x,y"\n0.1,\n'
    write_csv(tmp_path / "x.csv", iter(rows), columns=["b", "a"])
    assert (tmp_path / "x.csv").read_text() == 'b,a\n"x,y",1\n,0.1\n'
    write_csv(tmp_path / "x.csv", [], columns=["a"])
    assert (tmp_path / "x.csv").read_text() == "a\n"


def test_csv_refuses_a_row_with_an_unknown_column_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"a": 1}])
    with pytest.raises(ValueError, match="'b'"):
        write_csv(tmp_path / "x.csv", [{"a": 2}, {"a": 3, "b": 4}])
    assert (tmp_path / "x.csv").read_text() == "a\n1\n"
