"""Read the folders that other cognitive-diagnosis projects write.

Ids and answers are taken as they stand there. Most of these formats have no texts: put
``texts.json`` (exercise id to text) and ``kcs.json`` (KC id to name) beside their files; a KC
without a name there is called by its id.

========== ====================================================================================
lmcd       ``*.csv`` with ``UserId``, ``QuestionId``, ``IsCorrect``, ``Kc``; JSON of texts
educdm     ``*.csv`` with ``user_id``, ``item_id``, ``score``; ``item.csv`` with ``item_id``,
           ``knowledge_code``
edustudio  ``NAME.inter.csv`` (``stu_id:token``, ``exer_id:token``, ``label:float``);
           ``NAME.exer.csv`` (``exer_id:token``, ``cpt_seq:token_seq``, maybe ``content:…``)
inscd      ``TotalData.csv`` (student, exercise, correct) and ``q.csv`` (a row an exercise),
           both without header
xes3g5m    ``question_level/*.csv`` (sequences) and ``metadata/{questions,kc_routes_map}.json``
========== ====================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_suite.datamodules.cold_start_packaged import PREFIX, read_packaged
from lightning_suite.datamodules.cold_start_sources import (
    KC,
    PLAIN,
    Answer,
    Exercise,
    missing_files,
    read_plain,
    split_ids,
)
from lightning_suite.datamodules.csv_rows import read_csv
from lightning_suite.errors import SuiteError
from lightning_suite.given_paths import given_path
from lightning_suite.json_text import load_json

Read = tuple[Iterable[Answer], list[Exercise], list[KC]]
TEXTS, KC_NAMES = "texts.json", "kcs.json"
_LONGEST_HEADER = 2**16  # characters


def read_source(source: str, format: str = "auto") -> Read:
    """Read any source, unchecked.

    Args:
        source: A folder, or ``package:pydataset/NAME``.
        format: A key of ``FORMATS``, or ``auto``: told by the files that are there.

    Raises:
        SuiteError: There is no such folder, or it holds none of the formats.
    """
    if source.startswith(PREFIX):
        return read_packaged(source.removeprefix(PREFIX))
    folder = given_path(source)
    if not folder.is_dir():
        raise SuiteError(
            f"source {source!r}: there is no such folder. Give a folder, or {PREFIX}VerbAgg."
        )
    if format == "auto":
        format = _detect(folder)
    return FORMATS[format](folder)


def _detect(folder: Path) -> str:
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as err:
        raise SuiteError(f"{folder}: cannot be read ({err.strerror}).") from err
    if set(PLAIN[:2]) <= names:
        return "plain"
    if (folder / "question_level").is_dir():
        return "xes3g5m"
    if {"TotalData.csv", "q.csv"} <= names:
        return "inscd"
    if any(name.endswith(".inter.csv") for name in names):
        return "edustudio"
    if "item.csv" in names:
        return "educdm"
    if any(name.endswith(".csv") and _has(folder / name, "QuestionId") for name in names):
        return "lmcd"
    if names & set(PLAIN):
        raise SuiteError(missing_files(folder, [name for name in PLAIN[:2] if name not in names]))
    raise SuiteError(
        f"{folder}: holds none of the known formats ({', '.join(FORMATS)}). For the plain one, "
        f"{missing_files(folder, PLAIN)}"
    )


def _has(file: Path, column: str) -> bool:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as handle:
            return column in handle.readline(_LONGEST_HEADER)
    except OSError as err:
        raise SuiteError(f"{file}: cannot be read ({err.strerror}).") from err


def _lmcd(folder: Path) -> Read:
    columns = ("UserId", "QuestionId", "IsCorrect", "Kc")
    files = [file for file in sorted(folder.glob("*.csv")) if _has(file, "QuestionId")]
    rows = [row for file in files for row in read_csv(file, columns)]
    answers = [Answer(r["UserId"], r["QuestionId"], r["IsCorrect"], where) for where, r in rows]
    kcs: dict[str, tuple[str, ...]] = {}
    for _, row in rows:  # an exercise may come with one of its KCs a row
        kcs[row["QuestionId"]] = kcs.get(row["QuestionId"], ()) + _list(row["Kc"])
    jsons = sorted(file for file in folder.glob("*.json") if file.name != KC_NAMES)
    if len(jsons) != 1:
        raise SuiteError(
            f"{folder}: expected one JSON file of texts (exercise id to text), found "
            f"{', '.join(file.name for file in jsons) or 'none'}. Name it {TEXTS}."
        )
    return _assemble(folder, answers, kcs, _texts(jsons[0]))


def _educdm(folder: Path) -> Read:
    kcs = {
        row["item_id"]: _list(row["knowledge_code"])
        for _, row in read_csv(folder / "item.csv", ("item_id", "knowledge_code"))
    }
    files = [file for file in sorted(folder.glob("*.csv")) if _has(file, "score")]
    answers = [
        Answer(row["user_id"], row["item_id"], row["score"], where)
        for file in files
        for where, row in read_csv(file, ("user_id", "item_id", "score"))
    ]
    return _assemble(folder, answers, kcs, _texts(folder / TEXTS))


def _edustudio(folder: Path) -> Read:
    found = sorted(folder.glob("*.inter.csv"))
    if len(found) != 1:
        raise SuiteError(
            f"{folder}: expected one data set, one file NAME.inter.csv; found "
            f"{', '.join(file.name for file in found) or 'none'}. Give each a folder of its own, "
            "or join the answers in one file."
        )
    inter = found[0]
    exer = inter.with_name(inter.name.replace(".inter.csv", ".exer.csv"))
    columns = ("stu_id:token", "exer_id:token", "label:float")
    answers = [
        Answer(row[columns[0]], row[columns[1]], row[columns[2]], where)
        for where, row in read_csv(inter, columns)
    ]
    rows = [row for _, row in read_csv(exer, ("exer_id:token", "cpt_seq:token_seq"))]
    content = next((key for key in rows[0] if key.startswith("content:")), None) if rows else None
    if content:
        texts = {row["exer_id:token"]: row[content] for row in rows}
    else:
        texts = _texts(folder / TEXTS)
    kcs = {row["exer_id:token"]: _list(row["cpt_seq:token_seq"]) for row in rows}
    return _assemble(folder, answers, kcs, texts)


def _inscd(folder: Path) -> Read:
    names = ("student", "exercise", "correct")
    answers = [
        Answer(_whole(row["student"]), _whole(row["exercise"]), row["correct"], where)
        for where, row in read_csv(folder / "TotalData.csv", names, names)
    ]
    return _assemble(folder, answers, _q_matrix(folder / "q.csv"), _texts(folder / TEXTS))


def _q_matrix(file: Path) -> dict[str, tuple[str, ...]]:
    try:
        matrix = file.read_text(encoding="utf-8-sig").split()
        return {
            str(exercise): tuple(str(k) for k, cell in enumerate(row.split(",")) if float(cell))
            for exercise, row in enumerate(matrix)
        }
    except OSError as err:
        raise SuiteError(f"{file}: cannot be read ({err.strerror}).") from err
    except ValueError as err:
        raise SuiteError(f"{file}: expected rows of 0 and 1, separated by commas: {err}.") from err


def _xes3g5m(folder: Path) -> Read:
    file = folder / "metadata" / "questions.json"
    questions = _json(file)
    names = _json(folder / "metadata" / "kc_routes_map.json")
    by_name = {str(name).strip(): str(key) for key, name in names.items()}
    kcs: dict[str, tuple[str, ...]] = {}
    exercises = []
    for key, question in questions.items():
        _check_question(question, f"{file}: question {key!r}")
        # the leaves of the routes, as the data's own files of sequences use them
        routes = [[part.strip() for part in r.split("----")] for r in question["kc_routes"]]
        kcs[key] = tuple(dict.fromkeys(by_name[r[-1]] for r in routes if r[-1] in by_name))
        options = question.get("options") or {}
        text = " ".join(
            [str(question["content"]), *(f"{name}. {option}" for name, option in options.items())]
        )
        exercises.append(Exercise(str(key), text.strip(), kcs[key], "metadata/questions.json"))
    used = sorted({kc for of_exercise in kcs.values() for kc in of_exercise}, key=str)
    table = [KC(kc, str(names[kc]), "", "", "metadata/kc_routes_map.json") for kc in used]
    files = sorted((folder / "question_level").glob("*quelevel.csv"))
    return (answer for file in files for answer in _sequences(file)), exercises, table


def _sequences(file: Path) -> Iterator[Answer]:
    for where, row in read_csv(file, ("uid", "questions", "responses")):
        questions, responses = row["questions"].split(","), row["responses"].split(",")
        if len(questions) != len(responses):
            raise SuiteError(
                f"{where}: {len(questions)} questions and {len(responses)} responses; expected as "
                "many."
            )
        for question, response in zip(questions, responses, strict=True):
            if response != "-1":  # the sequences are padded
                yield Answer(row["uid"], question, response, where)


def _check_question(question: Any, where: str) -> None:
    fits = isinstance(question, dict)
    routes = question.get("kc_routes") if fits else None
    if not (
        fits
        and "content" in question
        and isinstance(routes, list)
        and all(isinstance(route, str) for route in routes)
        and isinstance(question.get("options") or {}, dict)
    ):
        raise SuiteError(
            f"{where}: expected an object with content, kc_routes (a list of texts) and options "
            "(an object)."
        )


FORMATS: dict[str, Callable[[Path], Read]] = {
    "plain": read_plain,
    "lmcd": _lmcd,
    "educdm": _educdm,
    "edustudio": _edustudio,
    "inscd": _inscd,
    "xes3g5m": _xes3g5m,
}


def _assemble(
    folder: Path, answers: list[Answer], kcs: dict[str, tuple[str, ...]], texts: dict[str, str]
) -> Read:
    """Give exercises their texts and KCs their names; an exercise without text stays empty."""
    known = dict.fromkeys([*kcs, *(answer.exercise for answer in answers)])
    exercises = [
        Exercise(key, texts.get(key, ""), tuple(dict.fromkeys(kcs.get(key, ()))), str(folder))
        for key in known
    ]
    names = _texts(folder / KC_NAMES) if (folder / KC_NAMES).is_file() else {}
    used = sorted({kc for exercise in exercises for kc in exercise.kcs})
    return answers, exercises, [KC(kc, names.get(kc, kc), where=str(folder)) for kc in used]


def _list(cell: str) -> tuple[str, ...]:
    """Read ``[93, 7]``, ``"a","b"``, ``3,5`` or ``3;5``."""
    return split_ids(re.sub(r"[\[\]'\"]", "", cell).replace(",", ";"))


def _whole(cell: str) -> str:
    """Read ``12.0`` as ``12``: arrays of floats are written like that."""
    return cell.removesuffix(".0")


def _texts(file: Path) -> dict[str, str]:
    return {str(key): str(text) for key, text in _json(file).items()}


def _json(file: Path) -> dict[str, Any]:
    try:
        values = load_json(file.read_bytes())
    except OSError as err:
        raise SuiteError(f"{file}: cannot be read ({err.strerror}). It has the texts.") from err
    except ValueError as err:
        raise SuiteError(f"{file}: is not JSON: {err}") from err
    if not isinstance(values, dict):
        raise SuiteError(f"{file}: expected an object of ids and texts.")
    return values
