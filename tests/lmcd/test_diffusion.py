"""Descriptions: made once, never of what is tested, and none is lost when the run is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cold_start_folders import write_plain
from glass_lm import glass_model, glass_tokenizer

from lightning_suite.datamodules.cold_start_formats import read_source
from lightning_suite.datamodules.cold_start_sources import (
    KC,
    Answer,
    Exercise,
    ResponseData,
    check_responses,
)
from lightning_suite.errors import SuiteError
from lightning_suite.lmcd import diffusion
from lightning_suite.lmcd.diffusion import (
    DescriptionCache,
    FunctionGenerator,
    Generator,
    LanguageModelGenerator,
    TemplateGenerator,
    diffuse,
    make_requests,
    request_key,
)
from lightning_suite.lmcd.diffusion_prompts import render_prompt, render_sentences

TRAIN = [f"e{e}" for e in range(7)]


@pytest.fixture
def data(tmp_path: Path) -> ResponseData:
    return check_responses(*read_source(str(write_plain(tmp_path))))


class Counting(FunctionGenerator):
    """Says how often each prompt is asked."""

    def __init__(self, model: str = "counting") -> None:
        self.asked: list[str] = []
        super().__init__(self._answer, {"model": model})

    def _answer(self, prompts: list[str]) -> list[str]:
        self.asked += prompts
        return [f" text {len(self.asked)} " for _ in prompts]


def run(data: ResponseData, generator: Generator, file: Path, **options: Any) -> list[dict]:
    requests = make_requests(data, TRAIN)
    return list(diffuse(requests, generator, DescriptionCache(file), train=TRAIN, **options))


def test_every_kc_and_exercise_is_described_from_training_exercises_only(
    data: ResponseData,
) -> None:
    requests = make_requests(data, TRAIN, distractors=2, examples=2)
    assert [r.id for r in requests] == [
        *(kc.id for kc in data.kcs),
        *(e.id for e in data.exercises),
    ]
    for request in requests:
        assert set(request.shown) <= set(TRAIN) - {request.id}
        assert len(request.distractors) == 2
        assert not {d.name for d in request.distractors} & set(request.kcs)
        prompt = render_prompt(request)
        assert request.text in prompt
        assert all(example.text in prompt for example in request.examples)
    carry = next(r for r in requests if r.id == "carry")
    assert carry.distractors[0].name == "to add"  # of the same domain
    nine = requests[-1]  # like e4: the same KC
    assert nine.examples[0].id == "e4"


def test_the_template_says_what_sets_an_exercise_apart(data: ResponseData, tmp_path: Path) -> None:
    rows = {row["id"]: row["text"] for row in run(data, TemplateGenerator(), tmp_path / "c.jsonl")}
    assert rows["e9"] == (
        "It takes 1 skill: to unit. It does not take: to add; to carry; to read. Compared with "
        "'Work out task 4', it takes the same skills. Compared with 'Work out task 1', it also "
        "takes to unit and it does without to carry."
    )
    assert rows["carry"].startswith("to carry. It is needed in: Work out task 0.")


def test_nothing_is_asked_twice_and_any_change_is_asked_anew(
    data: ResponseData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cache.jsonl"
    first = Counting()
    rows = run(data, first, file)
    assert len(first.asked) == len(rows) == 15
    assert rows[0]["text"] == "text 1"
    again = Counting()
    assert run(data, again, file, batch=4) == rows
    assert again.asked == []
    other = Counting("another model")
    run(data, other, file)
    assert len(other.asked) == 15
    monkeypatch.setattr(diffusion, "TEMPLATE_VERSION", "next")
    newer = Counting()
    run(data, newer, file)
    assert len(newer.asked) == 15
    requests = make_requests(data, TRAIN)
    keys = {request_key(r, first) for r in requests} | {request_key(r, other) for r in requests}
    assert len(keys) == 30


def test_a_request_that_shows_the_test_is_a_leak(data: ResponseData, tmp_path: Path) -> None:
    requests = make_requests(data, [e.id for e in data.exercises])
    cache = DescriptionCache(tmp_path / "c.jsonl")
    with pytest.raises(SuiteError, match=r"leak: the prompt for \w+ '\w+' shows exercise 'e[789]'"):
        list(diffuse(requests, TemplateGenerator(), cache, train=TRAIN))
    assert len(cache) == 0


def test_an_empty_text_or_a_foreign_file_is_named(data: ResponseData, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="the generator wrote nothing for kc 'add'"):
        run(data, FunctionGenerator(lambda prompts: [""] * len(prompts), {}), tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(SuiteError, match=r"d.jsonl, line 1: is not a description"):
        DescriptionCache(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda texts: texts[1:], r"returned 3 texts for 4 prompts \(first that of kc 'add'\)"),
        (lambda texts: [*texts, "more"], "returned 5 texts for 4 prompts"),
        (lambda texts: [*texts[:3], None], "returned NoneType for kc 'graph'; expected a text"),
        (lambda texts: [*texts[:3], " "], "the generator wrote nothing for kc 'graph'"),
        ("".join, "returned str; expected a list of 4 texts"),
        (lambda texts: None, "returned NoneType; expected a list of 4 texts"),
    ],
)
def test_an_answer_that_is_lost_spoils_no_other(
    spoil: Any, message: str, data: ResponseData, tmp_path: Path
) -> None:
    def answer(prompts: list[str]) -> list[str]:
        return [f"about {prompt.split('Skill: ')[-1].split()[1]}" for prompt in prompts]

    file = tmp_path / "c.jsonl"
    broken = FunctionGenerator(lambda prompts: spoil(answer(prompts)), {"model": "service"})
    with pytest.raises(SuiteError, match=message):
        run(data, broken, file, batch=4)
    assert len(DescriptionCache(file)) == 0
    rows = run(data, FunctionGenerator(answer, {"model": "service"}), file, batch=4)
    assert [row["text"] for row in rows[:2]] == ["about add", "about carry"]


def test_a_generator_of_another_kind_is_held_to_the_same(
    data: ResponseData, tmp_path: Path
) -> None:
    class Losing(TemplateGenerator):
        def __call__(self, requests: Any) -> list[str]:
            return super().__call__(requests)[1:]

    with pytest.raises(SuiteError, match="returned 3 texts for 4 prompts"):
        run(data, Losing(), tmp_path / "c.jsonl", batch=4)
    assert len(DescriptionCache(tmp_path / "c.jsonl")) == 0


def test_kcs_of_one_name_are_not_told_from_each_other() -> None:
    kcs = [KC("a", "add", "c"), KC("b", "add", "d"), KC("c", "cut"), KC("d", "cut")]
    needed = {"e0": ("a",), "e1": ("c",), "e2": ("b",), "e3": ("a", "b", "d")}
    exercises = [Exercise(name, f"text {name}", of) for name, of in needed.items()]
    catalogue = check_responses([Answer("s", "e0", "1")], exercises, kcs)
    said = {r.id: render_sentences(r) for r in make_requests(catalogue, list(needed))}
    assert said["a"] == "add. It is needed in: text e0; text e3. It is not: cut."
    assert said["b"] == "add. It is needed in: text e2; text e3. It is not: cut."
    assert said["e0"].startswith("It takes 1 skill: add. It does not take: cut. Compared with")
    assert said["e3"].startswith("It takes 2 skills: add; cut. Compared with")


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    script = Path(__file__).with_name("diffuse_slowly.py")
    support = Path(__file__).parents[1] / "support"
    environment = {**os.environ, "PYTHONPATH": str(support)}
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    seen = [process.stdout.readline().strip() for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    file = tmp_path / "cache.jsonl"
    with file.open("ab") as handle:
        handle.write(b'{"key": "half a li')  # what a kill in the middle of a write leaves
    kept = DescriptionCache(file)
    assert 3 <= len(kept) < 15
    assert file.read_bytes().endswith(b"\n")
    data = check_responses(*read_source(str(tmp_path)))
    asked: list[str] = []

    def answer(prompts: list[str]) -> list[str]:
        asked.extend(prompts)
        return [f"{len(prompt)} letters" for prompt in prompts]

    rows = run(data, FunctionGenerator(answer, {"model": "slow"}), file)
    assert len(asked) == 15 - len(kept)
    assert [row["id"] for row in rows][:3] == seen


def test_a_language_model_writes_greedily_and_the_same_for_any_batch(
    data: ResponseData, tmp_path: Path
) -> None:
    model = glass_model()
    model.config.max_position_embeddings = 1024
    generator = LanguageModelGenerator(model, glass_tokenizer(), "glass", max_new_tokens=5)
    requests = make_requests(data, TRAIN)[:3]
    alone = [generator([request])[0] for request in requests]
    assert generator(requests) == alone
    assert all(alone)
    assert generator.identity["decoding"] == {"greedy": True, "max_new_tokens": 5}
