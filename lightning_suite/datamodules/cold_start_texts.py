"""What stands before the student: texts, names of KCs, descriptions; composed and tokenized."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_suite.datamodules.cold_start_sources import ResponseData
from lightning_suite.datamodules.cold_start_splits import Split
from lightning_suite.errors import SuiteError
from lightning_suite.given_paths import given_path
from lightning_suite.json_text import load_json

TextKind = Literal["raw", "kc_names", "diffused", "both"]


def compose_texts(
    data: ResponseData, kind: TextKind, system: str, described: Mapping[str, str]
) -> list[str]:
    """Return what is read before each student token, one text an exercise.

    Args:
        data: Exercises and KCs.
        kind: Of what it is made.
        system: The sentence before; empty for none.
        described: Description of each exercise, for ``diffused`` and ``both``.
    """
    names = {kc.id: kc.name for kc in data.kcs}
    texts = []
    for exercise in data.exercises:
        lines = [system] if system else []
        if kind != "diffused":
            lines.append(f"Exercise: {exercise.text}")
        if kind == "kc_names" and exercise.kcs:
            lines.append(f"It needs: {'; '.join(names[kc] for kc in exercise.kcs)}.")
        if kind in ("diffused", "both"):
            lines.append(described[exercise.id])
        texts.append("\n".join([*lines, "Student:"]))
    return texts


def compose_kc_texts(data: ResponseData, kind: TextKind, described: Mapping[str, str]) -> list[str]:
    """Return what is read of each KC: its name, its description, or both.

    Args:
        data: With KCs.
        kind: As for the exercises: ``diffused`` takes the description, ``both`` name and
            description, the others the name.
        described: Description of each KC; empty where there are none: names are taken then.
    """
    names = [kc.name for kc in data.kcs]
    if not described or kind not in ("diffused", "both"):
        return names
    texts = [described[kc.id] for kc in data.kcs]
    if kind == "diffused":
        return texts
    return [f"{name}\n{text}" for name, text in zip(names, texts, strict=True)]


def read_descriptions(file: str | Path, data: ResponseData, split: Split) -> dict[str, str]:
    """Read the exercises' descriptions that ``lightning-suite diffuse`` wrote.

    Args:
        file: JSON lines with ``kind`` (``exercise`` or ``kc``), ``id``, ``text`` and ``examples``,
            the ids of the exercises that the prompt showed; maybe ``of``, what was described.
        data: Whose exercises they describe.
        split: Whose test exercises no prompt may have shown.

    Raises:
        SuiteError: An exercise has no description, or that of another text, or a prompt showed an
            exercise of the test or of the validation: what was written about others would know
            its text.
    """
    described = _read(file, "exercise", data, split)
    missing = [e.id for e in data.exercises if not described.get(e.id)]
    if missing:
        raise SuiteError(
            f"descriptions: {file} has none of exercise {missing[0]!r} and {len(missing) - 1} "
            "others. Run lightning-suite diffuse on this data; it continues where it stopped."
        )
    return described


def read_kc_descriptions(file: str | Path, data: ResponseData, split: Split) -> dict[str, str]:
    """Read those of the KCs; the arguments are those of :func:`read_descriptions`.

    Returns:
        The description of each KC, or nothing where the file has none of any.

    Raises:
        SuiteError: Only some KCs have one, or a prompt showed what it must not.
    """
    described = _read(file, "kc", data, split)
    missing = [kc.id for kc in data.kcs if not described.get(kc.id)]
    if not missing:
        return described
    if len(missing) < len(data.kcs):  # some by name and some by description: not alike
        raise SuiteError(
            f"descriptions: {file} describes some KCs, and not {missing[0]!r}. Run "
            "lightning-suite diffuse on this data; it continues where it stopped."
        )
    return {}


def _read(file: str | Path, kind: str, data: ResponseData, split: Split) -> dict[str, str]:
    """Return the texts of a kind by id; rows of any kind are checked."""
    try:
        # not str.splitlines: texts may hold what that takes for the end of a line
        lines = given_path(file).read_bytes().split(b"\n")
        rows = [load_json(line) for line in lines if line.strip()]
    except OSError as err:
        raise SuiteError(f"descriptions: {file} cannot be read ({err.strerror}).") from err
    except ValueError as err:
        raise SuiteError(f"descriptions: {file} is not JSON lines: {err}") from err
    for number, row in enumerate(rows, 1):
        _check_description(row, f"descriptions: {file}, row {number}")
    cold: set[str] = set()
    if split.kind in ("exercise", "kc", "domain"):
        for name in ("val", "test"):
            part = split.parts.get(name, torch.zeros(0, dtype=torch.int64))
            cold |= {data.exercises[e].id for e in data.exercise[part].unique().tolist()}
    now = {e.id: e.text for e in data.exercises}
    if kind == "kc":
        now = {kc.id: kc.name for kc in data.kcs}
    described = {}
    for row in rows:
        leaked = cold & set(row.get("examples", ()))
        if leaked:
            raise SuiteError(
                f"leak: {file}: the description of {row['kind']} {row['id']!r} was written with "
                f"exercise {sorted(leaked)[0]!r} of the test or validation as an example. Run "
                "lightning-suite diffuse with this split."
            )
        if row["kind"] == kind:
            text = now.get(row["id"])
            if "of" in row and text is not None and row["of"] != text:
                raise SuiteError(
                    f"descriptions: {file} describes {kind} {row['id']!r} as it was: "
                    f"{row['of']!r}. Its text is {text!r} now. Run lightning-suite diffuse on this "
                    "data; only what has changed is written anew."
                )
            described[row["id"]] = row["text"]
    return described


def _check_description(row: Any, where: str) -> None:
    texts = ("kind", "id", "text")
    of = row.get("of", "") if isinstance(row, dict) else None
    examples = row.get("examples", []) if isinstance(row, dict) else None
    if (
        not isinstance(row, dict)
        or not all(isinstance(row.get(key), str) for key in texts)
        or not isinstance(of, str)
        or not isinstance(examples, list)
        or not all(isinstance(example, str) for example in examples)
    ):
        raise SuiteError(
            f"{where}: is no description: expected the texts {', '.join(texts)}, and examples, a "
            "list of ids. `lightning-suite diffuse` writes such files."
        )


def encode_texts(
    tokenizer: Any, ids: Sequence[str], texts: Sequence[str], max_length: int
) -> list[Tensor]:
    """Tokenize texts: int64, one tensor each.

    Raises:
        SuiteError: A text is longer than ``max_length`` tokens; its end is next to the student
            and must not be cut off.
    """
    encoded = [torch.tensor(row, dtype=torch.int64) for row in tokenizer(list(texts))["input_ids"]]
    for name, tokens in zip(ids, encoded, strict=True):
        if len(tokens) > max_length:
            raise SuiteError(
                f"exercise or KC {name!r}: its text has {len(tokens):,} tokens, more than "
                f"max_length {max_length:,}. Raise max_length or shorten the text."
            )
        if not len(tokens):
            raise SuiteError(f"exercise or KC {name!r}: its text has no tokens.")
    return encoded


def tokens_digest(tokens: Mapping[str, Tensor]) -> str:
    """Return what identifies the tokens of exercises, by their ids, in any order."""
    digest = hashlib.sha256()
    for name in sorted(tokens):
        line = f"{name}\0{' '.join(map(str, tokens[name].tolist()))}\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
