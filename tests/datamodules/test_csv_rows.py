"""CSV files as spreadsheets write them: other separators are read, other encodings are named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from cold_start_folders import write_plain

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.datamodules.csv_rows import read_csv
from lightning_suite.errors import SuiteError


def rows(path: Path, text: str | bytes, *columns: str) -> list[dict[str, str]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row for _, row in read_csv(path, columns or ("a", "b"))]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_says_what_separates_the_columns(tmp_path: Path, separator: str) -> None:
    text = f'\ufeffa{separator}b\r\n1{separator}"x{separator}y"\r\n'
    assert rows(tmp_path / "t.csv", text) == [{"a": "1", "b": f"x{separator}y"}]


def test_a_whole_class_may_come_from_a_german_spreadsheet(tmp_path: Path) -> None:
    """Skills, which are separated by semicolons, are in quotes there."""
    folders = write_plain(tmp_path / "plain"), write_plain(tmp_path / "german")
    for file in folders[1].glob("*.csv"):
        with file.open(newline="") as handle:
            cells = list(csv.reader(handle))
        with file.open("w", newline="") as handle:
            csv.writer(handle, delimiter=";").writerows(cells)
    plain, german = (ColdStartDataModule(str(folder), tokenizer="bytes") for folder in folders)
    for data in (plain, german):
        data.setup("fit")
    assert german.manifest == plain.manifest
    assert german.texts == plain.texts
    assert german.data.q_matrix.equal(plain.data.q_matrix)


def test_semicolons_outside_quotes_are_named_with_the_row(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"row 1: 3 cells, and 2 columns.*has semicolons in doub"):
        rows(tmp_path / "t.csv", "a;b\n1;2;3\n")


def test_a_name_that_is_wrong_behind_another_separator_is_told_with_it(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no column 'b'. It has: a, c.$"):
        rows(tmp_path / "t.csv", "a;c\n1;2\n")
    with pytest.raises(SuiteError, match=r"no column 'a'.*separated by semicolons.*with commas"):
        rows(tmp_path / "t.csv", "x;y\n1;2\n")


def test_latin_1_is_named_with_the_line_and_what_to_do(tmp_path: Path) -> None:
    text = "a,b\nx,y\nüber,z\n".encode("latin-1")
    with pytest.raises(SuiteError, match=r"t.csv: line 3 is not UTF-8: byte 0xfc. Save it as UTF"):
        rows(tmp_path / "t.csv", text)
