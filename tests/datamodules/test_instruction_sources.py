"""Rows of any common form become conversations with unique ids, or a message that names the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_suite.datamodules.instruction_sources import Columns, read_examples, read_rows
from lightning_suite.errors import SuiteError

pyarrow = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")

ROWS = [{"id": f"r{n}", "prompt": f"p{n}", "response": f"é{n}"} for n in range(5)]


def read(row: dict[str, Any], **columns: Any) -> tuple[str, str]:
    (example,) = read_examples([row], Columns(**columns))
    return example.prompt, example.response


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    return str(path)


# --- files ----------------------------------------------------------------------------------------


def write(kind: str, folder: Path) -> str:
    if kind == "jsonl":
        return jsonl(folder / "d.jsonl", ROWS)
    if kind == "json":
        (folder / "d.json").write_text(json.dumps(ROWS))
        return str(folder / "d.json")
    if kind == "parquet":
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "d.parquet")
        return str(folder / "d.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return str(folder / "saved")


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved"])
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    assert read_rows(write(kind, tmp_path)) == {"train": ROWS}


def test_several_files_follow_each_other(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / "a.jsonl", ROWS[:2]), jsonl(tmp_path / "b.jsonl", ROWS[2:])]
    assert read_rows(files) == {"train": ROWS}


def test_a_saved_set_keeps_its_splits(tmp_path: Path) -> None:
    parts = {"train": ROWS[:3], "validation": ROWS[3:4], "test": ROWS[4:]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    ).save_to_disk(tmp_path)
    assert read_rows(str(tmp_path)) == {"train": ROWS[:3], "val": ROWS[3:4], "test": ROWS[4:]}


@pytest.fixture
def two_configs(tmp_path: Path) -> str:
    """A data set as it lies on the Hub, with a card that names two configurations."""
    folder = tmp_path / "sums"
    folder.mkdir()
    card = ["---", "configs:"]
    for number, config in enumerate(("main", "socratic")):
        jsonl(folder / f"{config}.jsonl", ROWS[number : number + 2])
        card += [f"- config_name: {config}", f"  data_files: {config}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return f"hub:{folder}"


def test_a_configuration_of_a_hub_set_is_named(two_configs: str) -> None:
    assert read_rows(f"{two_configs}:socratic") == {"train": ROWS[1:3]}


def test_a_hub_set_with_several_says_which_there_are(two_configs: str) -> None:
    with pytest.raises(SuiteError, match=r"(?s)main.*socratic.*hub:OWNER/NAME:CONFIG"):
        read_rows(two_configs)
    with pytest.raises(SuiteError, match="typo"):
        read_rows(f"{two_configs}:typo")


def test_a_generator_takes_a_number_and_a_seed() -> None:
    (few, more, others) = (
        read_rows(f"word_problems{options}")["train"] for options in (":5", ":9", ":5:1")
    )
    assert more[:5] == few != others
    assert len(read_rows("word_problems")["train"]) == 2000


def test_reasoning_gym_gives_worked_answers() -> None:
    pytest.importorskip("reasoning_gym", reason="pip install reasoning-gym (needs a C compiler)")
    rows = read_rows("reasoning_gym:gsm_symbolic:3:1")["train"]
    assert [row["id"] for row in rows] == ["gsm_symbolic1-0", "gsm_symbolic1-1", "gsm_symbolic1-2"]
    assert all("####" in row["answer"] for row in rows)
    with pytest.raises(SuiteError, match="reasoning-gym has no such task"):
        read_rows("reasoning_gym:gsm_symbolik")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'{"a": 1}\n\n{"a": }\n', r"d.jsonl: line 3 is not JSON: .* at column 7"),
        ("d.jsonl", b'{"a": 1}\n[1]\n', "d.jsonl: row 2 is no object with named columns"),
        ("d.jsonl", b'{"a": "\xe9"}\n', "d.jsonl: line 1 is not UTF-8: byte 0xe9"),
        ("d.json", b'{"a": 1}', "d.json: holds no list of rows"),
        ("d.json", b'[\n{"a" 1}]', "d.json: line 2 is not JSON"),
        ("d.parquet", b"no parquet", "d.parquet: is no Parquet file"),
        ("d.csv", b"a,b", r"d.csv: is no source. A source is a .jsonl, .json or .parquet file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SuiteError, match=message):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jsonl", "none.jsonl: cannot be read .No such file"),
        ("none.parquet", "none.parquet: cannot be read .No such file"),
        ("word_problem", "word_problem: is no source. .* or one of word_problems, reasoning_gym"),
        ("word_problems:many", "is not of the form word_problems:COUNT:SEED"),
        ("word_problems:0", "is not of the form word_problems:COUNT:SEED"),
        ("word_problems:1:2:3", "is not of the form word_problems:COUNT:SEED"),
    ],
)
def test_a_source_that_is_not_there_is_named(source: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        read_rows(source)


# --- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "p", "response": "r"}, "p"),
        ({"prompt": "p", "completion": "r", "score": 1.0}, "p"),
        ({"instruction": "p", "input": "i", "output": "r"}, "p\n\ni"),
        ({"instruction": "p", "input": "", "output": "r"}, "p"),
        ({"question": "p", "answer": "r"}, "p"),
        (
            {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]},
            "p",
        ),
    ],
)
def test_usual_columns_are_found(row: dict[str, Any], prompt: str) -> None:
    assert read(row) == (prompt, "r")


def test_other_columns_are_named_by_the_user() -> None:
    row = {"q": "p", "a": 4, "question": "x", "answer": "y"}
    assert read(row, prompt="q", response="a") == ("p", "4")
    talk = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]
    assert read({"talk": talk, **row}, messages="talk") == ("u", "v")


def test_unknown_columns_are_listed() -> None:
    with pytest.raises(
        SuiteError,
        match="found no prompt and response among the columns a, b. Known are prompt/response, .*"
        "set prompt_column and response_column",
    ):
        read({"a": "", "b": ""})
    with pytest.raises(
        SuiteError, match="prompt_column 'promt' does not exist. Did you mean 'prompt'"
    ):
        read(ROWS[0], prompt="promt", response="response")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "response": None}, "1 of 2 rows cannot be used. row 2: response is null"),
        ({"prompt": "p"}, "row 2: it has no column 'response'"),
        ({"prompt": ["p"], "response": ""}, "row 2: prompt is a list, expected text"),
    ],
)
def test_rows_without_text_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        read_examples([{"prompt": "p", "response": "r"}, row])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"row 1: messages is not a list of {role, content}"),
        ("hi", r"row 1: messages is not a list of {role, content}"),
        ([{"role": "user"}], "row 1: a message has no role or no content"),
        ([{"role": "user", "content": "x"}], "last message is of 'user', expected 'assistant'"),
    ],
)
def test_conversations_must_end_with_an_answer(messages: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        read({"messages": messages})


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(SuiteError, match="data: has no rows"):
        read_examples([])


# --- ids ------------------------------------------------------------------------------------------


def ids(rows: list[dict[str, Any]], **options: Any) -> list[str]:
    return [example.id for example in read_examples(rows, **options)]


def test_ids_come_from_the_data() -> None:
    assert ids(ROWS) == ["r0", "r1", "r2", "r3", "r4"]
    selected = [{"sample_id": 7, "score": 0.5, "prompt": "p", "response": "r"}]
    assert ids(selected) == ["7"]
    assert ids(ROWS, columns=Columns(id="prompt")) == ["p0", "p1", "p2", "p3", "p4"]


def test_without_an_id_the_content_is_hashed_whatever_its_place_or_form() -> None:
    bare = [{"prompt": row["prompt"], "response": row["response"]} for row in ROWS]
    hashed = ids(bare)
    assert len(set(hashed)) == 5
    assert ids(bare[::-1]) == hashed[::-1]
    renamed = [{"question": r["prompt"], "answer": r["response"], "score": 1} for r in bare]
    assert ids(renamed) == hashed


def test_duplicates_are_refused_with_their_rows() -> None:
    with pytest.raises(
        SuiteError,
        match="1 id is not unique: 'r0' in rows 1, 6. .*--data.init_args.duplicate_ids number",
    ):
        ids([*ROWS, ROWS[0]])


def test_or_numbered_without_taking_a_name_that_is_there() -> None:
    rows = [{**ROWS[0], "id": name} for name in ("a", "a", "a#2", "b", "a")]
    assert ids(rows, duplicate_ids="number") == ["a", "a#3", "a#2", "b", "a#4"]


def test_equal_rows_without_ids_are_numbered_and_named_in_one_warning() -> None:
    """Real sets have duplicates, and who gave no ids has made no mistake in them."""
    bare = [{"prompt": row["prompt"], "response": row["response"]} for row in ROWS]
    hashed = ids(bare)
    with pytest.warns(UserWarning, match=r"3 of 8 rows repeat an earlier one") as seen:
        numbered = ids([*bare, bare[1], bare[0], bare[1]])
    assert numbered == [*hashed, f"{hashed[1]}#2", f"{hashed[0]}#2", f"{hashed[1]}#3"]
    (said,) = (str(warning.message) for warning in seen)
    assert "(rows 1, 7; rows 2, 6, 8)" in said
    # an id depends on the equal rows before it alone: more rows move no other's
    with pytest.warns(UserWarning, match="1 of 4"):
        assert ids([bare[4], bare[1], bare[3], bare[1]])[1::2] == [hashed[1], f"{hashed[1]}#2"]


def test_rows_that_select_wrote_are_known_by_the_id_of_their_scores() -> None:
    rows = [{**ROWS[0], "id": "a", "sample_id": name} for name in ("a", "a#2")]
    with pytest.raises(SuiteError, match="1 id is not unique"):
        ids(rows)
    assert ids([{**row, "selection_score": 0.5} for row in rows]) == ["a", "a#2"]


def test_a_row_without_an_id_is_named() -> None:
    with pytest.raises(SuiteError, match="1 row has no 'id', the first is row 2"):
        ids([ROWS[0], {**ROWS[1], "id": None}])
