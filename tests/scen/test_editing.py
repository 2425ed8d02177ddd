"""Editing from a script: train, answer, save, and answer the same elsewhere."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer

from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import save_bank
from lightning_suite.scen.editing import GATES, make_gate, open_bank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.prompts import PromptFormat

EDITS = [
    Edit(name.casefold(), f"What is the colour of {name}?", colour, subject=name)
    for name, colour in (("Tom", "red"), ("Lily", "blue"), ("Max", "green"))
]
OTHER = "Who is there?"
SETTINGS = ExpertSettings(steps=60)  # a tiny model learns slowly
ANSWER = """
import json, sys
import torch
torch.set_num_threads(1)
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.editing import open_bank
from lightning_suite.scen.prompts import PromptFormat

folder, questions = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = causal_lm_from_pretrained(folder + "/lm").eval(), load_tokenizer(folder + "/lm")
form = PromptFormat.for_model(model, tokenizer)
bank = open_bank(folder + "/facts", model, tokenizer)
with bank.attach(model, tokenizer):
    batch = form.batch([form.encode(question) for question in questions])
    out = model.generate(**batch, max_new_tokens=8, do_sample=False)
print(json.dumps([form.decode(row[batch["input_ids"].shape[1]:].tolist()) for row in out]))
"""


def answers(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    form = PromptFormat.for_model(model, tokenizer)
    batch = form.batch([form.encode(question) for question in questions])
    out = model.generate(**batch, max_new_tokens=8, do_sample=False)
    return [form.decode(row[batch["input_ids"].shape[1] :].tolist()) for row in out]


@pytest.fixture(scope="module")
def model() -> Any:
    return glass_model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return glass_tokenizer()


@pytest.mark.parametrize("gate", ["closed", "subject"])
def test_edits_are_answered_here_and_in_another_process(
    gate: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    questions = [*(edit.prompt for edit in EDITS), OTHER]
    before = answers(model, tokenizer, questions)
    bank = ExpertBank.for_model(model, tokenizer, gate=gate)
    trained = bank.add(model, tokenizer, EDITS, settings=SETTINGS)
    assert trained.learned.all()
    with bank.attach(model, tokenizer):
        after = answers(model, tokenizer, questions)
        assert [bank.explain(question).fired for question in questions] == [
            "tom",
            "lily",
            "max",
            None,
        ]
    assert after == ["red", "blue", "green", before[3]]
    assert answers(model, tokenizer, questions) == before
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    save_bank(bank, tmp_path / "facts")
    command = [sys.executable, "-c", ANSWER, str(tmp_path), json.dumps(questions)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == after


@pytest.mark.parametrize("expert", ["low_rank", "full"])
def test_further_edits_are_trained_while_the_bank_acts(
    expert: Any, model: Any, tokenizer: Any
) -> None:
    both = ExpertBank.for_model(model, tokenizer, gate="subject", expert=expert)
    both.add(model, tokenizer, EDITS[:1], settings=SETTINGS)
    with both.attach(model, tokenizer):
        both.add(model, tokenizer, EDITS[1:], settings=SETTINGS)
        answered = answers(model, tokenizer, [edit.prompt for edit in EDITS])
    at_once = ExpertBank.for_model(model, tokenizer, gate="subject", expert=expert)
    at_once.add(model, tokenizer, EDITS, settings=SETTINGS)
    assert answered == [edit.target for edit in EDITS]
    for name, rows in at_once.table.state().items():
        torch.testing.assert_close(both.table.state()[name], rows, rtol=0.05, atol=1e-3)


def test_edits_that_the_bank_refuses_are_not_trained(model: Any, tokenizer: Any) -> None:
    bank = ExpertBank.for_model(model, tokenizer, gate="subject")
    wrong = [EDITS[0], Edit("other", EDITS[0].prompt, "black")]
    with pytest.raises(SuiteError, match="'tom' .-> 'red'. and 'other' .-> 'black'."):
        bank.add(model, tokenizer, wrong, settings=ExpertSettings(steps=10**9))


def test_another_model_is_refused(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    bank = ExpertBank.for_model(model, tokenizer, gate="closed")
    save_bank(bank, tmp_path / "facts")
    other = glass_model()
    with torch.no_grad():
        other.get_submodule(bank.base.layer).weight.mul_(1.1)
    for use in (
        lambda: bank.attach(other, tokenizer),
        lambda: bank.add(other, tokenizer, EDITS),
        lambda: open_bank(tmp_path / "facts", other, tokenizer),
    ):
        with pytest.raises(SuiteError, match=r"10\.0% apart"):
            use()
    with pytest.warns(UserWarning, match=r"10\.0% apart"):
        opened = open_bank(tmp_path / "facts", other, tokenizer, allow_other_weights=True)
    with pytest.warns(UserWarning, match=r"10\.0% apart"):
        opened.attach(other, tokenizer, allow_other_weights=True).detach()
    one = ExpertSettings(steps=1)
    with pytest.warns(UserWarning, match=r"10\.0% apart"):
        opened.add(other, tokenizer, EDITS[:1], settings=one, allow_other_weights=True)
    assert [edit.id for edit in opened.edits] == ["tom"]


@pytest.mark.parametrize("kind", sorted(GATES))
def test_every_gate_comes_back_from_a_file(
    kind: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    bank = ExpertBank.for_model(model, tokenizer, gate=kind)
    experts = {name: torch.ones(3, *shape) for name, shape in bank.table.shapes.items()}
    bank.insert(EDITS, experts)
    bank.remove(["lily"])
    questions = [*(edit.prompt for edit in EDITS), "What is the name of Tom?", OTHER]
    save_bank(bank, tmp_path / "facts")
    opened = open_bank(tmp_path / "facts", model, tokenizer)
    with bank.attach(model, tokenizer) as attached:
        expected = attached.explain(questions)
    with opened.attach(model, tokenizer) as attached:
        assert attached.explain(questions) == expected
    assert expected[1].fired is None
    opened.rollback("lily")
    opened.insert(
        [Edit("new", "What is new?", "this", subject="new")], {n: t[:1] for n, t in experts.items()}
    )
    assert len(opened) == 4


def test_an_unknown_gate_is_refused() -> None:
    with pytest.raises(SuiteError, match="gate='close' is not known. Did you mean 'closed'"):
        make_gate("close")


def test_a_model_with_a_bank_is_forgotten_with_its_last_owner(tokenizer: Any) -> None:
    model = glass_model()
    bank = ExpertBank.for_model(model, tokenizer, gate="closed")
    bank.attach(model, tokenizer)
    gone = weakref.ref(model)
    del model, bank
    gc.collect()
    assert gone() is None


def test_the_model_of_a_folder_and_its_tokenizer_are_enough(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, words = causal_lm_from_pretrained(str(tmp_path)).eval(), load_tokenizer(str(tmp_path))
    bank = ExpertBank.for_model(loaded, words)
    assert bank.base.name == str(tmp_path)
    assert (bank.expert, bank.rank, bank.dtype, bank.positions) == (
        "low_rank",
        4,
        "bfloat16",
        "last",
    )
