"""Where instruction data come from, and how their rows are read as conversations with an id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_suite.datamodules.hf_datasets import (
    HUB_PREFIX,
    load_folder_dataset,
    load_hub_dataset,
)
from lightning_suite.datamodules.instruction_ids import given_ids, made_ids, unique_ids
from lightning_suite.datamodules.row_files import SUFFIXES, read_row_file
from lightning_suite.datamodules.word_problems import word_problems
from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.extras import import_extra
from lightning_suite.given_paths import given_path
from lightning_suite.language.prompts import Message

Row = dict[str, Any]

# Columns that mean the same, the first that is there is taken; (prompt, response).
COLUMN_PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
)
MESSAGES, INPUT = "messages", "input"
_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
_SHOWN = 5  # rows named in a message


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        prompt: Column of the prompt; None finds a usual pair by itself.
        response: Column of the answer.
        messages: Column of whole conversations, instead of the two.
        id: Column of the ids; None takes ``id`` or ``sample_id``, or else hashes the content. Of
            rows that ``select`` wrote it takes ``sample_id``.
    """

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Example:
    """One conversation that ends with the answer to be learnt.

    Attributes:
        id: From the data.
        messages: ``{"role": …, "content": …}``; the last one is the assistant's.
    """

    id: str
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> str:
        """What stands before the answer."""
        return "\n\n".join(message["content"] for message in self.messages[:-1])

    @property
    def response(self) -> str:
        """The answer."""
        return self.messages[-1]["content"]

    def answered(self, response: str) -> Example:
        """Return the same with another answer."""
        return Example(self.id, (*self.messages[:-1], {**self.messages[-1], "content": response}))


def read_rows(source: str | Sequence[str]) -> dict[str, list[Row]]:
    """Return the rows of every split of ``source`` as they are; ``"train"`` is always there.

    Args:
        source: See :class:`~lightning_suite.datamodules.instruction.InstructionDataModule`.

    Raises:
        SuiteError: There is no such source, or it cannot be read.
    """
    if not isinstance(source, str):
        return {"train": [row for path in source for row in _read_file(given_path(path))]}
    kind, _, rest = source.partition(":")
    path = given_path(source)
    if kind in GENERATORS and not path.exists():
        return {"train": GENERATORS[kind](source, rest)}
    if source.startswith(HUB_PREFIX):
        splits = load_hub_dataset(source)
    elif path.is_dir():
        splits = load_folder_dataset(path, "rows")
    else:
        return {"train": _read_file(path)}
    rows = {_SPLITS[name]: split.to_list() for name, split in splits.items() if name in _SPLITS}
    if "train" not in rows:
        raise SuiteError(f"{source}: has no split 'train'. It has: {', '.join(splits)}.")
    return rows


def check_source(source: str | Sequence[str]) -> None:
    """Refuse at once what is not there, without reading what is.

    Raises:
        SuiteError: As :func:`read_rows`.
    """
    for path in [source] if isinstance(source, str) else source:
        known = path.partition(":")[0] in GENERATORS or path.startswith(HUB_PREFIX)
        if not known and not given_path(path).exists():
            read_rows(path)  # says what is wrong with it


def read_examples(
    rows: Sequence[Row],
    columns: Columns = Columns(),
    *,
    where: str = "data",
    duplicate_ids: Literal["refuse", "number"] = "refuse",
) -> list[Example]:
    """Read rows as conversations.

    Args:
        rows: Of one split, at least one.
        columns: Which columns hold what.
        where: Name of the data, for messages.
        duplicate_ids: What to do with an id of the data that has been there: ``refuse`` the data,
            or ``number`` it (``id#2``). Equal rows of data without ids are numbered, with a
            warning that names them.

    Raises:
        SuiteError: Columns are missing, a row has no text, or given ids are not unique. Rows are
            counted from 1.
    """
    if not rows:
        raise SuiteError(f"{where}: has no rows.")
    read = _reader(rows[0], columns, where)
    conversations, unreadable = [], []
    for number, row in enumerate(rows, 1):
        try:
            conversations.append(read(row))
        except (KeyError, TypeError, ValueError) as err:
            unreadable.append((number, err))
    if unreadable:
        shown = "; ".join(f"row {number}: {_reason(err)}" for number, err in unreadable[:_SHOWN])
        raise SuiteError(
            f"{where}: {len(unreadable):,} of {len(rows):,} rows cannot be used. {shown}"
            f"{' …' if len(unreadable) > _SHOWN else '.'} Correct or remove them."
        )
    ids = given_ids(rows, columns.id, where)
    if ids is not None:
        unique = unique_ids(ids, where, duplicate_ids)
    else:
        unique = made_ids([content_hash(messages) for messages in conversations], where)
    return [
        Example(sample_id, messages)
        for sample_id, messages in zip(unique, conversations, strict=True)
    ]


def content_hash(messages: Sequence[Message]) -> str:
    """Return 16 hexadecimal digits that depend on roles and texts alone."""
    text = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _reader(first: Row, columns: Columns, where: str) -> Callable[[Row], tuple[Message, ...]]:
    """Return the function that turns a row into messages."""
    _check_columns(first, columns, where)
    if columns.messages is not None or (columns.prompt is None and MESSAGES in first):
        messages = columns.messages or MESSAGES
        return lambda row: _messages(row[messages])
    pair = (columns.prompt, columns.response)
    if None in pair:
        known = [
            (p, r)
            for p, r in COLUMN_PAIRS
            if p in first and r in first and columns.prompt in (None, p)
        ]
        if not known:
            usual = ", ".join(f"{p}/{r}" for p, r in COLUMN_PAIRS)
            raise SuiteError(
                f"{where}: found no prompt and response among the columns {', '.join(first)}. "
                f"Known are {usual} and {MESSAGES}; set prompt_column and response_column."
            )
        pair = known[0]
    prompt, response = pair
    # Alpaca's third column
    extra = INPUT if prompt == "instruction" and INPUT in first else None

    def read(row: Row) -> tuple[Message, ...]:
        text = _text(row, prompt)
        if extra is not None and row.get(extra):
            text = f"{text}\n\n{_text(row, extra)}"
        return (
            {"role": "user", "content": text},
            {"role": "assistant", "content": _text(row, response)},
        )

    return read


def _check_columns(first: Row, columns: Columns, where: str) -> None:
    given = {
        "prompt_column": columns.prompt,
        "response_column": columns.response,
        "messages_column": columns.messages,
        "id_column": columns.id,
    }
    for option, column in given.items():
        if column is not None and column not in first:
            raise SuiteError(
                f"{where}: {option} {column!r} does not exist.{did_you_mean(column, first)} "
                f"Columns: {', '.join(first)}."
            )


def _text(row: Mapping[str, Any], column: str | None) -> str:
    assert column is not None
    value = row[column]
    if value is None or isinstance(value, (Mapping, list)):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{column} is {kind}, expected text")
    return str(value)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages is not a list of {role, content}")
    read = []
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError("a message has no role or no content")
        read.append({"role": _text(message, "role"), "content": _text(message, "content")})
    if read[-1]["role"] != "assistant":
        raise ValueError(f"the last message is of {read[-1]['role']!r}, expected 'assistant'")
    return tuple(read)


def _reason(err: Exception) -> str:
    return f"it has no column {err}" if isinstance(err, KeyError) else str(err)


def _read_file(path: Path) -> list[Row]:
    if path.suffix not in SUFFIXES:
        raise SuiteError(
            f"{path}: is no source. A source is a .jsonl, .json or .parquet file, a list of them, "
            f"a folder written by save_to_disk, '{HUB_PREFIX}OWNER/NAME', or one of "
            f"{', '.join(GENERATORS)}."
        )
    return read_row_file(path)


def _word_problems(source: str, options: str) -> list[Row]:
    count, seed = _numbers(source, options, "word_problems:COUNT:SEED", (2000, 0))
    return list(word_problems(count, seed))


def _reasoning_gym(source: str, options: str) -> list[Row]:
    name, _, rest = options.partition(":")
    count, seed = _numbers(source, rest, "reasoning_gym:TASK:COUNT:SEED", (2000, 0))
    try:
        gym = import_extra("reasoning_gym", "llm")
    except SuiteError as err:
        raise SuiteError(
            f"source {source!r}: needs the package reasoning-gym: pip install reasoning-gym (one "
            "of its requirements is compiled and needs a C compiler). Without it: word_problems."
        ) from err
    try:
        items = gym.create_dataset(name, size=count, seed=seed)
    except ValueError as err:
        raise SuiteError(f"source {source!r}: reasoning-gym has no such task: {err}") from err
    return [
        {
            "id": f"{name}{seed}-{number}",
            "question": item["question"],
            # worked out where the task does so
            "answer": item["metadata"].get("answer_cot") or item["answer"],
        }
        for number, item in enumerate(items)
    ]


def _numbers(source: str, text: str, form: str, defaults: tuple[int, int]) -> tuple[int, int]:
    parts = text.split(":") if text else []
    if len(parts) > 2 or not all(part.isdecimal() for part in parts) or parts[:1] == ["0"]:
        raise SuiteError(f"source {source!r}: is not of the form {form}.")
    count, seed = (*map(int, parts), *defaults[len(parts) :])
    return count, seed


# Sources that make their rows up, from a seed.
GENERATORS = {"word_problems": _word_problems, "reasoning_gym": _reasoning_gym}
