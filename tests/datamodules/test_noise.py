"""Planted noise: what is spoilt, how, and that the record is the truth."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lightning_suite.datamodules.instruction_sources import Example, read_examples, read_rows
from lightning_suite.datamodules.noise import KINDS, plant_noise, write_noise
from lightning_suite.errors import SuiteError

ALL = {"wrong_answer": 0.1, "gibberish": 0.2, "off_topic": 0.1, "duplicate": 0.05}


@pytest.fixture(scope="module")
def clean() -> list[Example]:
    return read_examples(read_rows("word_problems:200")["train"])


def example(answer: str, prompt: str = "?", sample_id: str = "x") -> Example:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Example(sample_id, messages)


def form(text: str) -> str:
    return re.sub(r"\d", "0", re.sub("[A-Z]", "A", re.sub("[a-z]", "a", text)))


def test_the_asked_shares_are_spoilt_and_nothing_else(clean: list[Example]) -> None:
    spoilt, records = plant_noise(clean, ALL)
    assert [r.kind for r in records].count("gibberish") == 40
    assert {kind: sum(r.kind == kind for r in records) for kind in ALL} == {
        kind: round(share * 200) for kind, share in ALL.items()
    }
    recorded = {r.id: r for r in records}
    assert len(recorded) == len(records) == 90
    for before, after in zip(clean, spoilt, strict=True):
        assert before.id == after.id
        assert (before != after) == (before.id in recorded)
        if before.id in recorded:
            record = recorded[before.id]
            assert (record.prompt, record.response) == (before.prompt, before.response)


def test_each_kind_does_what_it_says(clean: list[Example]) -> None:
    by_id = {e.id: e for e in clean}
    spoilt, records = plant_noise(clean, ALL)
    after = {e.id: e for e in spoilt}
    dirty = {r.id for r in records}
    for record in records:
        old, new = by_id[record.id], after[record.id]
        if record.kind == "duplicate":
            assert new.messages == by_id[record.source_id].messages
        else:
            assert new.prompt == old.prompt
        if record.kind == "off_topic":
            assert new.response == by_id[record.source_id].response != old.response
        if record.kind in ("off_topic", "duplicate"):
            assert record.source_id not in dirty
        else:
            assert record.source_id is None
        if record.kind == "gibberish":
            assert form(new.response) == form(old.response)
            assert new.response != old.response
        if record.kind == "wrong_answer":
            was, now = (text.rpartition("#### ")[2] for text in (old.response, new.response))
            assert was != now
            assert was not in re.findall(r"\d+", new.response)


@pytest.mark.parametrize(
    ("answer", "pattern"),
    [
        ("12 + 30 = 42. So 42.", r"12 \+ 30 = (\d+)\. So \1\."),
        ("It costs $1,250", r"It costs \$\d{1,3}(,\d{3})*"),
        ("about 3.50 metres", r"about \d+\.\d\d metres"),
        ("7 of 0", r"7 of [1-9]"),
    ],
)
def test_a_wrong_answer_looks_like_a_right_one(answer: str, pattern: str) -> None:
    for seed in range(20):
        examples, _ = plant_noise([example(answer)] * 2, {"wrong_answer": 0.5}, seed)
        (spoilt,) = {e.response for e in examples} - {answer}
        assert re.fullmatch(pattern, spoilt), spoilt


def test_it_depends_on_the_seed_alone(clean: list[Example]) -> None:
    assert plant_noise(clean, ALL, 1) == plant_noise(clean, ALL, 1)
    assert plant_noise(clean, ALL, 1) != plant_noise(clean, ALL, 2)
    assert plant_noise(clean, {}) == (clean, [])


def test_the_record_is_a_line_of_json_each(clean: list[Example], tmp_path: Path) -> None:
    _, records = plant_noise(clean, ALL)
    write_noise(tmp_path / "artifacts" / "noise.jsonl", records)
    lines = (tmp_path / "artifacts" / "noise.jsonl").read_text().splitlines()
    assert len(lines) == len(records)
    first = json.loads(lines[0])
    assert first["kind"] in KINDS
    assert first["response"] == next(e.response for e in clean if e.id == first["id"])


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"gibbrish": 0.1}, "kind 'gibbrish' is unknown. Did you mean 'gibberish'"),
        ({"gibberish": -0.1}, r"gibberish is -0.1; it must be in \[0, 1\)"),
        ({"gibberish": 0.6, "duplicate": 0.4}, "add up to 1; some samples must stay clean"),
    ],
)
def test_impossible_shares_are_named(
    clean: list[Example], noise: dict[str, float], message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        plant_noise(clean, noise)


def test_samples_that_do_not_qualify_are_named() -> None:
    words = [example("none", f"{n}", f"{n}") for n in range(10)]
    with pytest.raises(SuiteError, match="wrong_answer 0.5 is 5 samples, but only 0 have a number"):
        plant_noise(words, {"wrong_answer": 0.5})
    with pytest.raises(SuiteError, match="off_topic needs clean samples with other prompts and"):
        plant_noise(words, {"off_topic": 0.5})
