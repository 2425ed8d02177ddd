"""Keys and experts are the same wherever a call stands: precision, inference mode, default type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer
from torch import Tensor

from lightning_suite.scen.attachment import attach
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.editing import new_bank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.fingerprint import identify

EDITS = [
    Edit("0", "Where does Tom live?", "a boat", subject="Tom"),
    Edit("1", "Who is Sam?", "red", subject="Sam"),
    Edit("2", "What did the little dog eat?", "tea", subject="dog"),
]
REFERENCE = ["Once upon a time", "There was a little girl", "It rained", "They had a cat"]


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """What Lightning's precisions bf16-true and 16-true do around every hook."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16 autocast": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "bfloat16 by default": lambda: default_type(torch.bfloat16),
    "float16 by default": lambda: default_type(torch.float16),
}
surroundings = pytest.mark.parametrize("around", AROUND)
gates = pytest.mark.parametrize("gate", ["closed", "bce", "scen"])


@pytest.fixture(scope="module")
def model() -> Any:
    return glass_model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return glass_tokenizer()


def empty_bank(model: Any, tokenizer: Any, gate: str) -> ExpertBank:
    options = {} if gate == "scen" else {"reference": REFERENCE}
    return new_bank(model, tokenizer, layer=1, gate=gate, gate_options=options, rank=2)


def experts(bank: ExpertBank, count: int) -> dict[str, Tensor]:
    return {
        name: torch.full((count, *shape), 0.5, dtype=torch.float32)
        for name, shape in bank.table.shapes.items()
    }


def tables(bank: ExpertBank) -> dict[str, Tensor]:
    return {**dict(bank.gate.named_buffers()), **bank.table.state()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for (name, a), (other, b) in zip(ours.items(), theirs.items(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_base_model_is_known_whatever_the_default_type(model: Any, dtype: torch.dtype) -> None:
    known = identify(model)
    with default_type(dtype):
        assert identify(model) == known
    with torch.autocast("cpu", torch.bfloat16):
        assert identify(model) == known


@gates
@surroundings
def test_a_bank_that_is_changed_anywhere_is_the_same_and_can_be_changed_everywhere(
    model: Any, tokenizer: Any, gate: str, around: str
) -> None:
    plain = empty_bank(model, tokenizer, gate)
    plain.insert(EDITS[:2], experts(plain, 2))
    with AROUND[around]():
        bank = empty_bank(model, tokenizer, gate)
        bank.insert(EDITS[:2], experts(bank, 2))
    assert_same(tables(bank), tables(plain))
    for each in (bank, plain):
        each.insert(EDITS[2:], experts(each, 1))
        each.remove(["0"])
        each.rollback("0")
        each.remove(["1"])
        each.compact()
    assert_same(tables(bank), tables(plain))
    with AROUND[around]():
        bank.remove(["2"])
        bank.insert(EDITS[1:2], experts(bank, 1))
    plain.remove(["2"])
    plain.insert(EDITS[1:2], experts(plain, 1))
    assert_same(tables(bank), tables(plain))


@surroundings
def test_experts_that_are_trained_anywhere_are_the_same(
    model: Any, tokenizer: Any, around: str
) -> None:
    def trained() -> ExpertBank:
        bank = empty_bank(model, tokenizer, "closed")
        bank.add(model, tokenizer, EDITS, settings=ExpertSettings(steps=3))
        return bank

    plain = trained()
    with AROUND[around]():
        bank = trained()
    assert_same(tables(bank), tables(plain))
    assert bank.history.records == plain.history.records


@surroundings
def test_the_gates_decision_is_the_same(model: Any, tokenizer: Any, around: str) -> None:
    bank = empty_bank(model, tokenizer, "closed")
    bank.insert(EDITS, experts(bank, 3))
    asked = [*(edit.prompt for edit in EDITS), "Where does Max live?"]
    with attach(bank, model, tokenizer) as attached:
        plain = attached.explain(asked)
        with AROUND[around]():
            assert attached.explain(asked) == plain
    assert [decision.fired for decision in plain[:3]] == ["0", "1", "2"]


class TestAChangeThatFails:
    """Leaves gate, experts and history as they were: what was learned half is not there."""

    @gates
    @pytest.mark.parametrize("where", ["reads", "compares", "keeps"])
    def test_the_bank_is_as_before_and_the_change_can_be_made_again(
        self,
        model: Any,
        tokenizer: Any,
        gate: str,
        where: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        bank = empty_bank(model, tokenizer, gate)
        bank.insert(EDITS[:2], experts(bank, 2))
        before = {name: table.clone() for name, table in tables(bank).items()}
        records = bank.history.records.copy()
        changed = [Edit("0", EDITS[0].prompt, "gold"), EDITS[2]]

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            owner: Any = bank.gate if where != "keeps" else bank.history
            name = {"reads": "_read", "compares": "_reserve", "keeps": "extend"}[where]
            patch.setattr(owner, name, fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                bank.insert(changed, experts(bank, 2))
        assert_same(tables(bank), before)
        assert (bank.history.records, len(bank), len(bank.table)) == (records, 2, 2)
        assert bank.insert(changed, experts(bank, 2)) == [2, 3]
        assert [edit.target for edit in bank.edits] == ["red", "gold", "tea"]
