from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import pytest

from lightning_suite.files import atomic_write, temporary_folder, write_csv, write_json


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


def test_csv_is_written_as_its_rows_are_made(tmp_path: Path) -> None:
    class Row(dict[str, int]):
        """Can be watched, one by one."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    alive: WeakSet[Row] = WeakSet()
    most = 0

    def rows() -> Iterator[Row]:
        nonlocal most
        for number in range(50):
            row = Row(a=number)
            alive.add(row)
            most = max(most, len(alive))
            yield row

    write_csv(tmp_path / "x.csv", rows())
    assert (tmp_path / "x.csv").read_text() == "a\n" + "".join(f"{n}\n" for n in range(50))
    assert most <= 4


def test_csv_refuses_a_row_with_an_unknown_column_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"a": 1}])
    with pytest.raises(ValueError, match="'b'"):
        write_csv(tmp_path / "x.csv", [{"a": 2}, {"a": 3, "b": 4}])
    assert (tmp_path / "x.csv").read_text() == "a\n1\n"


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_suite.files import atomic_write, temporary_folder

with temporary_folder(Path(sys.argv[1], "model")) as folder:
    (folder / "half").write_text("of it")
    with atomic_write(Path(sys.argv[1], "note.txt")) as file:
        file.write("half of the n")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_goes_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("old")
    (tmp_path / ".mine.partial").write_text("of somebody else")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "note.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 4, "the test has no meaning otherwise"
    with atomic_write(tmp_path / "other.txt") as file:
        file.write("new")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".mine.partial", "note.txt", "other.txt"]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as first, temporary_folder(tmp_path / "f") as folder:
        with atomic_write(tmp_path / "a.txt") as second:
            second.write("second")
        assert folder.exists()
        first.write("first")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_was_renamed_stays(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("x")
        folder.rename(tmp_path / "f")
    assert (tmp_path / "f" / "x").read_text() == "x"
