"""Edits of every known form are read; what is wrong with a file is said with row and field."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_suite.datamodules.edit_formats import EDIT_FORMATS, prompt_hash
from lightning_suite.datamodules.edit_sources import read_edits, read_prompts
from lightning_suite.errors import SuiteError
from lightning_suite.scen.edits import Edit, LocalityPrompt


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def read_one(folder: Path, row: dict[str, Any], **options: Any) -> Edit:
    (edit,) = read_edits(jsonl(folder / "d.jsonl", row), **options)
    return edit


# --- forms ---------------------------------------------------------------------------------------

HASH = "a hash of the prompt"

# Rows as the data sets have them (shortened), and what they mean.
ROWS: dict[str, tuple[dict[str, Any], Edit]] = {
    "plain": (
        {
            "id": 7,
            "prompt": " Who runs it? ",
            "target": "Ada",
            "subject": "it",
            "aliases": ["the firm", "It Inc."],
            "paraphrases": ["Its head?"],
            "rephrases": ["Who leads it?", "", "Who leads it?"],
            "locality": [{"prompt": "Where?", "kind": "same_subject", "answer": "there"}, "When?"],
            "source": "handbook",
        },
        Edit(
            "7",
            "Who runs it?",
            "Ada",
            "it",
            ("Its head?",),
            ("Who leads it?",),
            (LocalityPrompt("Where?", "same_subject", "there"), LocalityPrompt("When?")),
            aliases=("the firm", "It Inc."),
        ),
    ),
    "zsre": (
        {
            "subject": "Watts Humphrey",
            "src": "What university did Watts Humphrey attend?",
            "pred": "Trinity College",
            "rephrase": "What university did Watts Humphrey take part in?",
            "alt": "University of Michigan",
            "answers": ["Illinois Institute of Technology"],
            "loc": "nq question: who played desmond doss father in hacksaw ridge",
            "loc_ans": "Hugo Weaving",
            "cond": "Trinity College >> University of Michigan || What university …",
        },
        Edit(
            HASH,
            "What university did Watts Humphrey attend?",
            "University of Michigan",
            "Watts Humphrey",
            rephrases=("What university did Watts Humphrey take part in?",),
            locality=(
                LocalityPrompt(
                    "who played desmond doss father in hacksaw ridge", "random", "Hugo Weaving"
                ),
            ),
        ),
    ),
    "counterfact": (
        {
            "case_id": 0,
            "pararel_idx": 2796,
            "requested_rewrite": {
                "prompt": "The mother tongue of {} is",
                "relation_id": "P103",
                "target_new": {"str": "English", "id": "Q1860"},
                "target_true": {"str": "French", "id": "Q150"},
                "subject": "Danielle Darrieux",
            },
            "paraphrase_prompts": ["Danielle Darrieux, a native"],
            "neighborhood_prompts": ["The native language of Montesquieu is"],
            "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
            "generation_prompts": ["Danielle Darrieux's mother tongue is"],
        },
        Edit(
            "0",
            "The mother tongue of Danielle Darrieux is",
            "English",
            "Danielle Darrieux",
            rephrases=("Danielle Darrieux, a native",),
            locality=(
                LocalityPrompt("The native language of Montesquieu is", "neighborhood", "French"),
                LocalityPrompt("J.R.R. Tolkien is a native speaker of", "same_object", "English"),
            ),
        ),
    ),
    "knowedit": (
        {
            "subject": "Leo Arons",
            "prompt": "The place of death of Leo Arons is",
            "target_new": "Berlin",
            "portability": {
                "Reasoning": [{"prompt": "Its mayor is", "ground_truth": [["Kai Wegner"]]}],
                "Subject_Aliasing": [
                    {
                        "prompt": "The place of death of Martin Leo Arons is",
                        "ground_truth": [["Berlin", "DE-BE"]],
                    }
                ],
            },
            "locality": {
                "Relation_Specificity": [
                    {
                        "prompt": "The name of the father of Leo Arons is",
                        "ground_truth": [["Albert Arons"]],
                    }
                ],
                "Forgetfulness": [{"prompt": "Not Berlin, but", "ground_truth": "Bonn"}],
            },
        },
        Edit(
            HASH,
            "The place of death of Leo Arons is",
            "Berlin",
            "Leo Arons",
            rephrases=("The place of death of Martin Leo Arons is",),
            locality=(
                LocalityPrompt(
                    "The name of the father of Leo Arons is", "same_subject", "Albert Arons"
                ),
                LocalityPrompt("Not Berlin, but", "forgetfulness", "Bonn"),
            ),
        ),
    ),
    "knowedit_wikibio": (
        {
            "text": "This is a passage about X.",
            "labels": "He was born.",
            "concept": "X",
            "locality": {
                "Relation_Specificity": [{"prompt": "X works in", "ground_truth": ["medicine"]}]
            },
        },
        Edit(
            HASH,
            "This is a passage about X.",
            "He was born.",
            "X",
            locality=(LocalityPrompt("X works in", "same_subject", "medicine"),),
        ),
    ),
    "wikibigedit": (
        {
            "tag": "update",
            "subject": "Nora",
            "update": "What is the sport of Nora?",
            "ans": "handball",
            "rephrase": "Which sport does Nora play?",
            "personas": "Hey mate, what's Nora's sport?",
            "loc": "What is the sport of Ole?",
            "loc_ans": "chess",
            "mhop": None,
            "mhop_ans": math.nan,
        },
        Edit(
            HASH,
            "What is the sport of Nora?",
            "handball",
            "Nora",
            rephrases=("Which sport does Nora play?", "Hey mate, what's Nora's sport?"),
            locality=(LocalityPrompt("What is the sport of Ole?", "unchanged", "chess"),),
        ),
    ),
    "qaedit": (
        {
            "id": 6786,
            "source": "TQA",
            "prompt": "In which mountains does the Loire river rise?",
            "target": "Cevennes Mountains",
            "subject": "Loire river",
            "rephrase": "What is the mountain range where the Loire River originates?",
            "locality": [{"loc": "who has the most world cup wins", "loc_ans": "Brazil"}],
        },
        Edit(
            "6786",
            "In which mountains does the Loire river rise?",
            "Cevennes Mountains",
            "Loire river",
            rephrases=("What is the mountain range where the Loire River originates?",),
            locality=(LocalityPrompt("who has the most world cup wins", "random", "Brazil"),),
        ),
    ),
    "scen": (
        {"Q": "Who?", "A": "Ada", "rephrases": ["a", "b", "c", "d"], "history": ["Ben"]},
        Edit(HASH, "Who?", "Ada", rephrases=("a", "b", "c")),
    ),
}


@pytest.mark.parametrize("form", ROWS)
def test_a_row_is_read_and_its_form_found_by_the_columns(form: str, tmp_path: Path) -> None:
    row, expected = ROWS[form]
    if expected.id == HASH:
        expected = replace(expected, id=prompt_hash(expected.prompt))
    edit = read_one(tmp_path, row)
    assert edit == expected
    assert read_one(tmp_path, row, format=form) == edit


def test_every_known_form_is_tested() -> None:
    assert set(ROWS) == set(EDIT_FORMATS)


def test_without_an_id_it_depends_on_the_prompt_alone(tmp_path: Path) -> None:
    first, other, longer = (
        read_one(tmp_path, {"prompt": prompt, "target": target})
        for prompt, target in (("a", "x"), ("a", "y"), ("b", "x"))
    )
    assert first.id == other.id != longer.id


def test_only_plain_rows_give_the_method_paraphrases(tmp_path: Path) -> None:
    for form, (row, _) in ROWS.items():
        assert bool(read_one(tmp_path, row).paraphrases) == (form == "plain")


def test_rephrases_by_another_name_of_the_subject_are_taken_on_request(tmp_path: Path) -> None:
    row = {"prompt": "p", "target": "t", "rephrases": ["r"], "alias_rephrases": ["s"]}
    assert read_one(tmp_path, row).rephrases == ("r",)
    assert read_one(tmp_path, row, aliases=True).rephrases == ("r", "s")


def test_rows_of_zsre_without_a_new_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    row = ROWS["zsre"][0]
    source = jsonl(tmp_path / "d.jsonl", row, {**row, "src": "other", "alt": ""})
    with pytest.warns(UserWarning, match="1 of 2 rows have no new answer"):
        assert len(read_edits(source)) == 1
    with pytest.raises(SuiteError, match="none of its 1 rows has a new answer"):
        read_edits(jsonl(tmp_path / "d.jsonl", {**row, "alt": ""}))


def test_a_misspelt_column_that_must_be_there_is_named_with_what_was_meant(
    tmp_path: Path,
) -> None:
    source = jsonl(tmp_path / "d.jsonl", {"prompt": "p", "taget": "t", "subject": "s"})
    with pytest.raises(
        SuiteError, match=r"Column 'taget': did you mean 'target'\? Expected plain: prompt, target;"
    ):
        read_edits(source)
    with pytest.raises(SuiteError, match=r"Column 'updte': did you mean 'update'\?"):
        read_edits(jsonl(tmp_path / "d.jsonl", {"updte": "p", "ans": "t"}), format="wikibigedit")
    with pytest.raises(SuiteError, match=r"no known form of an edit\. Expected plain"):
        read_edits(jsonl(tmp_path / "d.jsonl", {"x": "p", "y": "t"}))


def test_a_misspelt_column_is_named(tmp_path: Path) -> None:
    row = {"prompt": "p", "target": "t", "paraphrase": ["q"]}
    with pytest.warns(UserWarning, match="'paraphrase' is not read. Did you mean 'paraphrases'"):
        read_one(tmp_path, row)


# --- files ---------------------------------------------------------------------------------------


def test_json_and_several_files_and_a_saved_set_give_the_same(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"p{n}", "target": "t", "locality": ["l"]} for n in range(4)]
    expected = read_edits(jsonl(tmp_path / "all.jsonl", *rows))
    assert [edit.prompt for edit in expected] == ["p0", "p1", "p2", "p3"]
    (tmp_path / "all.json").write_text(json.dumps(rows))
    parts = [jsonl(tmp_path / f"{n}.jsonl", *part) for n, part in enumerate((rows[:3], rows[3:]))]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for source in (str(tmp_path / "all.json"), parts, str(tmp_path / "saved")):
        assert read_edits(source) == expected


def test_one_split_of_several_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_list([{"prompt": name, "target": "t"}])
        for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    with pytest.raises(SuiteError, match="has the splits train, test. Name one: set split"):
        read_edits(str(tmp_path))
    assert read_edits(str(tmp_path), split="test")[0].prompt == "test"
    with pytest.raises(SuiteError, match="split='tset' is not known. Did you mean 'test'"):
        read_edits(str(tmp_path), split="tset")


def test_a_configuration_of_a_hub_set_is_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    jsonl(tmp_path / "facts.jsonl", {"prompt": "p", "target": "t"})
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: facts\n  data_files: facts.jsonl\n---\n"
    )
    assert read_edits(f"hub:{tmp_path}:facts")[0].prompt == "p"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "p", "target": "t"}\n{"prompt": "q", "tar', "line 2 is not JSON"),
        (b'{"prompt": "\xe9", "target": "t"}', "line 1 is not UTF-8: byte 0xe9. Convert it"),
        (b"[1]", "row 1 is no object"),
        (b"\n\n", "has no rows"),
        (b"[" * 200_000, "line 1 cannot be read as JSON"),
        (b"9" * 5000, "line 1 cannot be read as JSON"),
    ],
)
def test_a_broken_file_is_refused_by_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(SuiteError, match=f"d.jsonl: .*{message}"):
        read_edits(str(tmp_path / "d.jsonl"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", r"missing.jsonl: cannot be read \(No such file"),
        ("edits.csv", "edits.csv: is no source of edits. A source is a .jsonl"),
        ("counterfact", "Did you mean 'counterfacts'"),
    ],
)
def test_an_unknown_source_says_what_is_one(source: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        read_edits(source)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SuiteError, match="format='counterfakt' .* Did you mean 'counterfact'"):
        read_edits("counterfacts", "counterfakt")


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "target": " "}, "row 2: target is empty"),
        ({"prompt": "", "target": "t"}, "row 2: prompt is empty"),
        ({"prompt": "p"}, "row 2: no target"),
        ({"prompt": "p", "target": None}, "row 2: target is null"),
        ({"prompt": "p", "target": ["t"]}, "row 2: target is a list, expected text"),
        ({"prompt": "p", "target": True}, "row 2: target is true or false, expected text"),
        ({"prompt": "p", "target": 0.5}, "row 2: target is a fraction, expected text"),
        (
            {"prompt": "p", "target": "t", "rephrases": [{}]},
            "row 2: rephrases is an object, expected text",
        ),
        (
            {"prompt": "p", "target": "t", "locality": "l"},
            "row 2: locality is a str, expected a list",
        ),
        (
            {"prompt": "p", "target": "t", "locality": [{"answer": "a"}]},
            r"row 2: no locality\[0\].prompt",
        ),
        (
            {"prompt": "p", "target": "t", "locality": ["l", 3]},
            r"row 2: locality\[1\] is a int, expected an object",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_row(row: dict, message: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", {"prompt": "fine", "target": "t"}, row)
    with pytest.raises(SuiteError, match=f"1 of 2 rows cannot be used. {message}"):
        read_edits(source)


def test_nested_fields_are_named_with_their_path(tmp_path: Path) -> None:
    row = {"requested_rewrite": {"prompt": "{} is", "subject": "x", "target_new": "t"}}
    with pytest.raises(SuiteError, match=r"requested_rewrite.target_new is a str, expected an obj"):
        read_one(tmp_path, row)


REWRITE = ROWS["counterfact"][0]["requested_rewrite"]


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("counterfact", {"requested_rewrite": None}, "requested_rewrite"),
        (
            "counterfact",
            {"requested_rewrite": {**REWRITE, "prompt": "The mother tongue is"}},
            r"requested_rewrite.prompt has no \{\}",
        ),
        (
            "counterfact",
            {"requested_rewrite": {**REWRITE, "target_new": {"id": "Q1860"}}},
            "requested_rewrite.target_new.str",
        ),
        ("counterfact", {"neighborhood_prompts": [7, {}]}, r"neighborhood_prompts\[0\] is a int"),
        ("zsre", {"src": ""}, "src is empty"),
        ("zsre", {"alt": None}, "alt is null"),
        ("zsre", {"alt": ["Michigan"]}, "alt is a list, expected text"),
        ("zsre", {"rephrase": {"text": "?"}}, "rephrase is an object"),
        ("scen", {"Q": " "}, "Q is empty"),
        ("scen", {"A": ["Ada"]}, "A is a list, expected text"),
        ("scen", {"rephrases": [["a"], 3.5]}, "rephrases"),
    ],
)
def test_a_wrong_field_of_a_published_form_is_named_with_file_and_row(
    form: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = ROWS[form][0]
    source = jsonl(tmp_path / "published.jsonl", good, {**good, **change})
    with pytest.raises(SuiteError, match=rf"published\.jsonl.*row 2: .*{message}"):
        read_edits(source, format=form)


def test_unknown_columns_are_answered_with_the_known_forms(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        read_one(tmp_path, {"promt": "p", "target": "t"})
    assert "row 1 has the columns promt, target" in str(caught.value)
    assert "Column 'promt': did you mean 'prompt'?" in str(caught.value)
    assert "plain: prompt, target" in str(caught.value)


def test_a_whole_number_is_a_good_answer(tmp_path: Path) -> None:
    assert read_one(tmp_path, {"prompt": "When?", "target": 1994}).target == "1994"


# --- the file as a whole -------------------------------------------------------------------------


def rows_of(*pairs: tuple[str, str], **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "target": target, **more} for prompt, target in pairs]


def test_conflicting_edits_are_refused_or_the_last_one_counts(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", *rows_of(("a b", "x"), ("c", "y"), ("A  b", "z")))
    with pytest.raises(SuiteError, match="rows 1, 3 give 'a b' different answers: 'x', 'z'"):
        read_edits(source)
    edits = read_edits(source, repeated="last")
    assert [(edit.prompt, edit.target) for edit in edits] == [("c", "y"), ("A  b", "z")]


def test_the_same_edit_twice_is_refused_too(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", *rows_of(("a", "x"), ("a", "x")))
    with pytest.raises(SuiteError, match="1 prompt is .* rows 1, 2 have the same prompt, 'a'"):
        read_edits(source)


def test_an_id_names_one_edit(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", *rows_of(("a", "x"), ("b", "y"), id="e"))
    for repeated in ("refuse", "last"):
        with pytest.raises(SuiteError, match="1 id is not unique: 'e' in rows 1, 2"):
            read_edits(source, repeated=repeated)


# --- prompts -------------------------------------------------------------------------------------


def test_prompts_are_lines_or_rows(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Who?\n\n Where? \n")
    assert read_prompts(str(tmp_path / "p.txt")) == ["Who?", "Where?"]
    rows = [{"prompt": "Who?"}, {"question": "Where?"}]
    assert read_prompts(jsonl(tmp_path / "p.jsonl", *rows)) == ["Who?", "Where?"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n", "holds no prompt"),
        ("p.txt", b"\xe9", "is not UTF-8"),
        ("p.jsonl", b'{"text": "?"}', "row 1: no prompt"),
    ],
)
def test_a_useless_file_of_prompts_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SuiteError, match=message):
        read_prompts(str(tmp_path / name))
    with pytest.raises(SuiteError, match="cannot be read"):
        read_prompts(str(tmp_path / "missing.txt"))
    with pytest.raises(SuiteError, match=rf"cannot be read .* Did you mean '.*{name}'\?"):
        read_prompts(str(tmp_path / name.replace(".", "s.")))


# --- anything at all -----------------------------------------------------------------------------

KEYS = sorted(
    {key for row, _ in ROWS.values() for key in row}
    | {"str", "subject", "prompt", "ground_truth", "Subject_Aliasing", "Relation_Specificity"}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def spoilt_rows(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a good row, some of whose fields are replaced by anything."""
    row, _ = ROWS[draw(st.sampled_from(sorted(ROWS)))]
    return {**row, **draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))}


@pytest.mark.filterwarnings("ignore:.*(is not read|have no new answer)")
@given(rows=st.lists(spoilt_rows(), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_whatever_a_file_holds_it_is_edits_or_a_message(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    source = jsonl(file, *rows)
    try:
        edits = read_edits(source)
    except SuiteError:
        with pytest.raises(SuiteError, match="fuzz.jsonl"):
            read_edits(source)
        return
    for edit in edits:
        texts = (edit.id, edit.prompt, edit.target, *edit.paraphrases, *edit.rephrases)
        assert all(isinstance(text, str) and text.strip() for text in texts)
        assert all(isinstance(p.prompt, str) and p.prompt for p in edit.locality)
        assert all(isinstance(p.kind, str) and p.kind for p in edit.locality)


@given(content=st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_whatever_bytes_a_file_holds_there_is_no_traceback(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    file.write_bytes(content)
    with pytest.raises(SuiteError, match="fuzz.jsonl"):
        read_edits(str(file))
