"""Folders of data files: what is data, and what is not looked through."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from lightning_suite.datamodules.hf_datasets import load_folder_dataset
from lightning_suite.errors import SuiteError

ROW = json.dumps({"prompt": "1+1", "response": "2"}) + "\n"


def others(folder: Path, count: int, suffix: str = ".so") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}{suffix}").touch()


@pytest.mark.parametrize("name", ["a.jsonl", "below/train/a.json", "a.jsonl.gz"])
def test_rows_may_lie_below_beside_notes_and_compressed(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(ROW.encode()) if name.endswith(".gz") else ROW.encode())
    others(tmp_path / ".git", 1200)  # what datasets does not look at is not counted either
    assert load_folder_dataset(tmp_path, "rows")["train"].to_list() == [json.loads(ROW)]


def test_annotations_beside_images_are_no_reason_to_refuse(tmp_path: Path) -> None:
    for number in range(101):
        Image.new("L", (1, 1)).save(tmp_path / f"{number}.png")
    others(tmp_path, 2010, suffix=".box")
    assert len(load_folder_dataset(tmp_path)["train"]) == 101


@pytest.mark.parametrize(
    ("builder", "kind"), [("rows", ".jsonl, .ndjson"), ("imagefolder", "images"), ("text", "text")]
)
def test_a_disk_is_not_looked_through(tmp_path: Path, builder: str, kind: str) -> None:
    others(tmp_path / "bin", 1011)
    (tmp_path / "bin" / "a.jsonl").write_text(ROW)
    message = (
        rf"{tmp_path.name}: is no folder of data: \d of the first 1,01\d files in it are {kind}"
    )
    with pytest.raises(SuiteError, match=message):
        load_folder_dataset(tmp_path, builder)


@pytest.mark.parametrize("builder", ["rows", "imagefolder", "text"])
def test_a_folder_without_data_is_named(tmp_path: Path, builder: str) -> None:
    others(tmp_path, 3)
    with pytest.raises(SuiteError, match=rf"{tmp_path.name}: holds no data \("):
        load_folder_dataset(tmp_path, builder)


@pytest.mark.parametrize("builder", ["rows", "imagefolder", "text"])
def test_the_root_of_the_disk_is_refused(builder: str) -> None:
    with pytest.raises(SuiteError, match="/: is no folder of data: "):
        load_folder_dataset(Path("/"), builder)


def test_texts_may_have_no_suffix_but_programs_and_pipes_are_none(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear reader\n")
    assert load_folder_dataset(tmp_path, "text")["train"].to_list() == [{"text": "dear reader"}]
    others_only = tmp_path / "others"
    others_only.mkdir()
    (others_only / "program").write_bytes(b"\x7fELF\0\0")
    os.mkfifo(others_only / "pipe")
    with pytest.raises(SuiteError, match="others: holds no data"):
        load_folder_dataset(others_only, "text")
