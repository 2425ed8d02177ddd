"""Damaged folders of answers, in every format, and damaged descriptions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cold_start_folders import (
    write_educdm,
    write_edustudio,
    write_inscd,
    write_lmcd,
    write_plain,
    write_xes3g5m,
)
from damage import bytes_of, fuzz, json_of, read_or_refused, text_of
from hypothesis import given
from hypothesis import strategies as st

from lightning_suite.datamodules.cold_start_formats import read_source
from lightning_suite.datamodules.cold_start_sources import check_responses
from lightning_suite.datamodules.cold_start_splits import make_split
from lightning_suite.datamodules.cold_start_texts import read_descriptions
from lightning_suite.lmcd.diffusion import DescriptionCache

WRITERS: dict[str, Any] = {
    "plain": write_plain,
    "lmcd": write_lmcd,
    "educdm": write_educdm,
    "edustudio": write_edustudio,
    "inscd": write_inscd,
    "xes3g5m": write_xes3g5m,
}


@pytest.mark.parametrize("format", WRITERS)
@fuzz(20, 450)
@given(st.data(), st.booleans())
def test_folders(tmp_path: Path, format: str, data: st.DataObject, told: bool) -> None:
    folder = tmp_path / "class"
    shutil.rmtree(folder, ignore_errors=True)
    WRITERS[format](folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    text = file.read_text(encoding="utf-8")
    damage = json_of(json.loads(text)) if file.suffix == ".json" else text_of(text)
    if data.draw(st.integers(0, 9)):
        file.write_bytes(data.draw(damage))
    else:  # not there, or a folder in its place
        file.unlink()
        if told:
            file.mkdir()
    with read_or_refused(folder, "answers", *(path.name for path in files)):
        read = check_responses(
            *read_source(str(folder), format if told else "auto"), repeats="last"
        )
        make_split(read, "random", folds=2, fold=0, val_fraction=0.1, seed=0)


ROWS = [
    {"kind": "exercise", "id": f"e{n}", "text": f"It is {n}.", "examples": ["e9"]}
    for n in range(10)
]
CACHE = [{"key": f"k{n}", "kind": "kc", "id": "add", "text": "to add"} for n in range(3)]


@fuzz(40, 700)
@given(json_of(ROWS, lines=True))
def test_descriptions(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(content)
    if not (tmp_path / "class").exists():
        write_plain(tmp_path / "class")
    read = check_responses(*read_source(str(tmp_path / "class")))
    split = make_split(read, "exercise", folds=5, fold=0, val_fraction=0.1, seed=0)
    with read_or_refused(file):
        assert all(text.encode() for text in read_descriptions(file, read, split).values())


@fuzz(25, 400)
@given(st.one_of(json_of(CACHE, lines=True), bytes_of(json.dumps(CACHE[0]).encode() + b"\n")))
def test_the_cache_of_descriptions(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "d.cache.jsonl"
    file.write_bytes(content)
    with read_or_refused(file):
        cache = DescriptionCache(file)
        assert isinstance(cache.get("k0"), (str, type(None)))


def test_a_text_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    write_plain(tmp_path / "class")
    read = check_responses(*read_source(str(tmp_path / "class")))
    split = make_split(read, "random", folds=2, fold=0, val_fraction=0.1, seed=0)
    rows = [{**row, "text": "one\u2028two\x85three"} for row in ROWS]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "d.jsonl").write_text("\n".join(lines), encoding="utf-8")
    read_texts = read_descriptions(tmp_path / "d.jsonl", read, split)
    assert set(read_texts.values()) == {"one\u2028two\x85three"}
