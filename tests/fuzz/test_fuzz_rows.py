"""Damaged files of rows, texts, images: read, or refused with their name."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import bytes_of, fuzz, json_of, read_or_refused, text_of
from hypothesis import given
from hypothesis import strategies as st

from lightning_suite.datamodules.edit_sources import read_edits, read_prompts
from lightning_suite.datamodules.hf_datasets import load_folder_dataset
from lightning_suite.datamodules.idx import read_idx
from lightning_suite.datamodules.instruction_sources import read_examples, read_rows
from lightning_suite.datamodules.text import read_documents
from lightning_suite.errors import SuiteError

# advice on misspelt columns and the like
pytestmark = pytest.mark.filterwarnings("ignore")

EDITS: list[list[dict[str, Any]]] = [
    [
        {
            "id": "a",
            "prompt": "Who?",
            "target": "Ann",
            "subject": "who",
            "aliases": ["w"],
            "paraphrases": ["Who is it?"],
            "rephrases": ["Who, then?"],
            "locality": [{"prompt": "Where?", "kind": "random", "answer": "here"}, "When?"],
        },
        {"prompt": "What?", "target": "Tea"},
    ],
    [{"src": "Who?", "alt": "Ann", "rephrase": "So who?", "loc": "nq question: x", "loc_ans": "y"}],
    [
        {
            "case_id": 3,
            "requested_rewrite": {
                "prompt": "{} is in",
                "subject": "Rome",
                "target_new": {"str": "Asia"},
                "target_true": {"str": "Europe"},
            },
            "paraphrase_prompts": ["Where is Rome?"],
            "neighborhood_prompts": ["Where is Oslo?"],
            "attribute_prompts": ["Where is Kobe?"],
        }
    ],
    [
        {
            "prompt": "Who?",
            "target_new": ["Ann"],
            "subject": "who",
            "portability": {"Subject_Aliasing": [{"prompt": "w?", "ground_truth": ["Ann"]}]},
            "locality": {"Relation_Specificity": [{"prompt": "x", "ground_truth": [["y"]]}]},
        }
    ],
    [{"update": "Who?", "ans": "Ann", "rephrase": "so?", "loc": "x", "loc_ans": "y"}],
    [{"Q": "Who?", "A": "Ann"}],
    [{"prompt": "Who?", "target": "Ann", "rephrase": ["w?"], "subject": "s"}],
]
INSTRUCTIONS: list[list[dict[str, Any]]] = [
    [
        {"id": "1", "prompt": "2 + 2?", "response": "4"},
        {"id": "2", "prompt": "1?", "response": "1"},
    ],
    [{"instruction": "Add", "input": "2 2", "output": "4"}],
    [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    [{"id": 7, "sample_id": "7#2", "selection_score": 0.5, "question": "a", "answer": "b"}],
]


@fuzz(60, 2500)
@given(st.sampled_from(EDITS).flatmap(lambda rows: json_of(rows, lines=True)))
def test_edits_as_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.jsonl").write_bytes(content)
    with read_or_refused("e.jsonl"):
        for edit in read_edits(str(tmp_path / "e.jsonl")):
            (edit.id + edit.prompt + edit.target).encode()


@fuzz(25, 700)
@given(st.sampled_from(EDITS).flatmap(json_of))
def test_edits_as_a_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.json").write_bytes(content)
    with read_or_refused("e.json"):
        read_edits([str(tmp_path / "e.json")], repeated="last")


@fuzz(50, 1500)
@given(st.sampled_from(INSTRUCTIONS).flatmap(lambda rows: json_of(rows, lines=True)))
def test_instructions(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.jsonl").write_bytes(content)
    source = str(tmp_path / "i.jsonl")
    with read_or_refused("i.jsonl"):
        for example in read_examples(read_rows(source)["train"], where=source):
            (example.id + example.prompt + example.response).encode()


def parquet() -> bytes:
    rows = [{"id": str(n), "prompt": f"{n}?", "response": "é", "x": [n, None]} for n in range(50)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")
    return file.getvalue()


@fuzz(50, 1500)
@given(bytes_of(parquet(), most=6))
def test_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.parquet").write_bytes(content)
    source = str(tmp_path / "p.parquet")
    with read_or_refused("p.parquet"):
        for example in read_examples(read_rows(source)["train"], where=source):
            (example.id + example.prompt + example.response).encode()


@fuzz(10, 200)
@given(bytes_of(b"Who?\nWhat is it?\n"))
def test_questions_and_texts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with read_or_refused("t.txt"):
        assert all("\n" not in prompt for prompt in read_prompts(str(path)))
    with read_or_refused("t.txt"):
        read_documents(str(path))


@fuzz(25, 500)
@given(bytes_of(bytes.fromhex("00000803 00000002 00000003 00000003") + bytes(18)), st.booleans())
def test_images_and_labels(tmp_path: Path, content: bytes, packed: bool) -> None:
    path = tmp_path / ("i.gz" if packed else "i")
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    for dimensions in (1, 3):
        with read_or_refused(path):
            read_idx(path, dimensions)


@fuzz(15, 300)
@given(bytes_of(gzip.compress(bytes.fromhex("00000801 00000002 0001"), mtime=0)))
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "l.gz").write_bytes(content)
    with read_or_refused("l.gz"):
        read_idx(tmp_path / "l.gz", 1)


STATE = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "a"}
INFO = {"features": {"text": {"dtype": "string", "_type": "Value"}}}


@fuzz(10, 200)
@given(json_of({"splits": ["train"]}), json_of(STATE), json_of(INFO), st.integers(0, 2))
def test_what_save_to_disk_has_written(
    tmp_path: Path, splits: bytes, state: bytes, info: bytes, which: int
) -> None:
    whole = [json.dumps(value).encode() for value in ({"splits": ["train"]}, STATE, INFO)]
    contents = [*whole[:which], (splits, state, info)[which], *whole[which + 1 :]]
    (tmp_path / "train").mkdir(exist_ok=True)
    table = pa.table({"text": ["a", "b"]})
    with pa.ipc.new_stream(str(tmp_path / "train/data-00000-of-00001.arrow"), table.schema) as out:
        out.write_table(table)
    names = ("dataset_dict.json", "train/state.json", "train/dataset_info.json")
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    with read_or_refused(tmp_path, *names):
        load_folder_dataset(tmp_path)


def test_a_file_that_a_data_set_names_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "train/state.json").write_text('{"_data_files": [{"filename": "../../x.arrow"}]}')
    with pytest.raises(SuiteError, match=r"state.json: '../../x.arrow' is not the name of a file"):
        load_folder_dataset(tmp_path)


def test_a_parquet_file_that_says_more_rows_than_it_can_have_is_refused(tmp_path: Path) -> None:
    content = parquet()
    # 50 rows stand in the footer as a zigzag number: 100; nine bytes make another number of it
    at = content.rindex(b"\x16\x64\x19")
    longer = content[: at + 1] + b"\xff" * 8 + b"\x3f" + content[at + 2 :]
    length = int.from_bytes(content[-8:-4], "little") + 8
    (tmp_path / "p.parquet").write_bytes(longer[:-8] + length.to_bytes(4, "little") + b"PAR1")
    with pytest.raises(
        SuiteError, match=r"p.parquet: is damaged: it says that it has [-\d,]+ rows"
    ):
        read_rows(str(tmp_path / "p.parquet"))


def test_halves_of_characters_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"prompt": "a", "target": "b"}\n{"prompt": "\\ud800"}\n')
    with pytest.raises(SuiteError, match=r"e.jsonl: line 2 .*holds half a character"):
        read_edits(str(tmp_path / "e.jsonl"))


@fuzz(10, 200)
@given(text_of("prompt,response\na,b\n"))
def test_an_unknown_form_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.csv").write_bytes(content)
    with pytest.raises(SuiteError, match="i.csv"):
        read_rows(str(tmp_path / "i.csv"))
