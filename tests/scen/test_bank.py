"""A bank: what may enter it, what replaces what, and that every change can be undone."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from exact_gates import TextGate
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.edits import Edit, LocalityPrompt
from lightning_suite.scen.expert_table import ExpertTable, edited_rows, expert_shapes
from lightning_suite.scen.fingerprint import BaseIdentity
from lightning_suite.scen.gates.base import PromptQuery
from lightning_suite.scen.records import from_plain, to_plain

BASE = BaseIdentity(
    name="tiny",
    layer="model.layers.0.mlp.down_proj",
    d_in=6,
    d_out=4,
    config={"hidden_size": 4},
    sha256="0" * 64,
    sketch=(1.0, 2.0),
)


def bank(**options: Any) -> ExpertBank:
    return ExpertBank(BASE, TextGate(), **{"rank": 2, "dtype": "float32", **options})


def edit(name: str, prompt: str | None = None, target: str = "new", **more: Any) -> Edit:
    return Edit(name, f"What is {name}?" if prompt is None else prompt, target, **more)


def experts(count: int, value: float = 1.0) -> dict[str, Tensor]:
    steps = torch.arange(float(count))[:, None, None]
    return {"a": (value + steps).expand(-1, 2, 6), "b": (value + steps).expand(-1, 4, 2)}


def fired(of: ExpertBank, *prompts: str) -> list[int]:
    return of.route(PromptQuery(texts=prompts)).expert.tolist()


def targets(of: ExpertBank) -> dict[str, str]:
    return {live.id: live.target for live in of.edits}


class TestInserting:
    def test_edits_get_slots_in_order_and_their_prompts_fire(self) -> None:
        made = bank()
        assert made.insert([edit("a"), edit("b")], experts(2)) == [0, 1]
        assert made.insert([edit("c")], experts(1, 9.0)) == [2]
        assert len(made) == 3
        assert fired(made, "What is c?", "What is d?", "What is a?") == [2, -1, 0]
        rows = made.experts([2, 0])["a"][:, 0, 0]
        assert rows.tolist() == [9.0, 1.0]

    def test_what_is_for_evaluation_is_not_kept(self) -> None:
        made = bank()
        given = edit("a", rephrases=("Say a.",), locality=(LocalityPrompt("What is b?"),))
        given = replace(given, paraphrases=("Tell a.",), aliases=("A",))
        made.insert([given], experts(1))
        assert made.edits == [replace(given, rephrases=(), locality=())]
        plain = to_plain(made.history.records[0])
        assert from_plain(plain) == made.history.records[0]
        del plain["aliases"]  # as in a bank of an earlier version
        assert from_plain(plain).edit.aliases == ()

    @pytest.mark.parametrize(
        ("edits", "message"),
        [
            ([edit("b", target="  ")], "edit 'b': its target is empty"),
            ([edit("b", prompt="")], "edit 'b': its prompt is empty"),
            ([edit("b"), edit("b", "Who is b?")], "two edits have the id 'b'"),
            (
                [edit("b", "Who?", "I"), edit("c", " who?", "you")],
                "edits 'b' .-> 'I'. and 'c' .-> 'you'. have the same prompt ' who",
            ),
            ([edit("a", "Who is a?")], "'a': the bank has an edit of this id.* update it"),
        ],
    )
    def test_edits_that_contradict_each_other_are_refused(
        self, edits: list[Edit], message: str
    ) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        with pytest.raises(SuiteError, match=message):
            made.insert(edits, experts(len(edits)))
        assert (len(made), len(made.table)) == (1, 1)

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"a": torch.zeros(1, 2, 6)}, "expected tensors"),
            ({"a": torch.zeros(1, 2, 6), "b": torch.zeros(1, 4, 3)}, "expected tensors"),
            ({"a": torch.zeros(2, 2, 6), "b": torch.zeros(2, 4, 2)}, "expected tensors"),
            (
                {"a": torch.full((1, 2, 6), torch.nan), "b": torch.zeros(1, 4, 2)},
                "a of expert 0 .of 1. is not finite",
            ),
        ],
    )
    def test_tensors_that_are_no_experts_of_the_bank_are_refused(
        self, tensors: dict[str, Tensor], message: str
    ) -> None:
        made = bank()
        with pytest.raises(SuiteError, match=message):
            made.insert([edit("a")], tensors)
        assert fired(made, "What is a?") == [-1]

    def test_where_the_gate_refuses_the_old_version_still_serves(self) -> None:
        class Strict(TextGate):
            def add(self, edits: Any, slots: Any) -> None:
                if any(given.target == "bad" for given in edits):
                    raise SuiteError("no")
                super().add(edits, slots)

        made = ExpertBank(BASE, Strict(), rank=2)
        made.insert([edit("a")], experts(1))
        with pytest.raises(SuiteError, match="no"):
            made.insert([edit("b", "What is a?", "bad")], experts(1))
        assert fired(made, "What is a?") == [0]
        assert (len(made), len(made.table)) == (1, 1)

    @pytest.mark.parametrize(
        "wrong", [{"expert": "huge"}, {"dtype": "int4"}, {"positions": "some"}, {"rank": 0}]
    )
    def test_unknown_settings_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(SuiteError, match=next(iter(wrong))):
            bank(**wrong)

    def test_a_gate_of_another_mind_is_not_followed(self) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        made.gate.add([edit("ghost")], [7])
        with pytest.raises(SuiteError, match="slot 7, which is no live edit"):
            fired(made, "What is ghost?")


class TestVersions:
    def test_the_same_prompt_replaces_and_rolling_back_restores(self) -> None:
        made = bank()
        made.insert([edit("a", target="one"), edit("b")], experts(2))
        made.insert([edit("a2", "what  is A?", "two")], experts(1))
        assert targets(made) == {"b": "new", "a2": "two"}
        assert made.history.records[2].version == 2
        assert fired(made, "What is a?", "what  is A?") == [-1, 2]  # the gate is literal
        assert made.rollback("a2").target == "one"
        assert targets(made) == {"a": "one", "b": "new"}
        assert fired(made, "What is a?", "what  is A?") == [0, -1]

    def test_an_update_replaces_by_id_whatever_the_prompt(self) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        made.insert([edit("a", "Who is a?")], experts(1), update=True)
        assert fired(made, "What is a?", "Who is a?") == [-1, 1]
        made.rollback("a")
        assert fired(made, "What is a?", "Who is a?") == [0, -1]

    def test_versions_can_be_rolled_back_one_by_one(self) -> None:
        made = bank()
        for target in ("one", "two", "three"):
            made.insert([edit("a", target=target)], experts(1))
        assert [record.version for record in made.history.records] == [1, 2, 3]
        assert [made.rollback("a").target for _ in range(2)] == ["two", "one"]
        with pytest.raises(SuiteError, match="'a' has no earlier version"):
            made.rollback("a")

    def test_an_edit_that_would_replace_two_is_refused(self) -> None:
        made = bank()
        made.insert([edit("a"), edit("b")], experts(2))
        with pytest.raises(SuiteError, match="'a' has the prompt of 'b'"):
            made.insert([edit("a", "What is b?")], experts(1), update=True)

    @pytest.mark.parametrize("order", [1, -1])
    def test_an_update_leaves_its_old_prompt_to_another_new_edit(self, order: int) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        new = [edit("a", "Who is a?"), edit("c", "What is a?")][::order]
        assert made.insert(new, experts(2, 5.0), update=True) == [1, 2]
        slots = [made.history.slot(name) for name in ("a", "c")]
        assert fired(made, "Who is a?", "What is a?") == slots
        assert [made.history.records[slot].version for slot in slots] == [2, 1]
        with pytest.raises(SuiteError, match="'a': its prompt belongs to 'c' now"):
            made.rollback("a")
        made.remove(["c"])
        assert made.rollback("a").prompt == "What is a?"

    def test_an_update_may_exchange_two_prompts(self) -> None:
        made = bank()
        made.insert([edit("a"), edit("b")], experts(2))
        made.insert([edit("a", "What is b?"), edit("b", "What is a?")], experts(2), update=True)
        assert fired(made, "What is a?", "What is b?") == [3, 2]
        assert [record.replaces for record in made.history.records[2:]] == [0, 1]

    def test_removing_and_bringing_back(self) -> None:
        made = bank()
        made.insert([edit("a"), edit("b")], experts(2))
        made.remove(["a", "a"])
        assert fired(made, "What is a?", "What is b?") == [-1, 1]
        with pytest.raises(SuiteError, match="no live edit 'a': it was removed, and .* brings it"):
            made.remove(["b", "a"])
        assert len(made) == 1
        made.rollback("a")
        assert fired(made, "What is a?") == [0]

    def test_a_removed_edit_does_not_come_back_over_a_new_one(self) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        made.remove(["a"])
        made.insert([edit("new", "What is a?")], experts(1))
        with pytest.raises(SuiteError, match="'a': its prompt belongs to 'new' now"):
            made.rollback("a")

    def test_an_earlier_version_does_not_come_back_over_another_edit(self) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        made.insert([edit("a", "Who is a?", "two")], experts(1), update=True)
        made.insert([edit("c", "What is a?", "three")], experts(1))
        before = made.history.records.copy()
        with pytest.raises(SuiteError, match="'a': its prompt belongs to 'c' now"):
            made.rollback("a")
        assert made.history.records == before
        assert fired(made, "What is a?", "Who is a?") == [2, 1]

    def test_an_earlier_version_does_not_come_back_over_another_edit_of_its_id(self) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        made.insert([edit("b", "What is a?", "two")], experts(1))
        made.insert([edit("a", "Who is a?")], experts(1))
        with pytest.raises(SuiteError, match="'a': its id belongs to 'a' now .'Who is a"):
            made.rollback("b")
        assert fired(made, "What is a?", "Who is a?") == [1, 2]

    def test_what_was_rolled_back_does_not_return_in_place_of_what_was_removed(self) -> None:
        made = bank()
        for target in ("one", "two"):
            made.insert([edit("a", target=target)], experts(1))
        made.rollback("a")
        made.remove(["a"])
        assert made.rollback("a").target == "one"

    def test_an_id_may_be_used_again_after_removal(self) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        made.remove(["a"])
        assert made.insert([edit("a", "Who is a?")], experts(1)) == [1]

    def test_compacting_keeps_the_live_edits_alone(self) -> None:
        made = bank()
        made.insert([edit("a"), edit("b"), edit("c")], experts(3))
        made.insert([edit("b", target="two"), edit("d")], experts(2, 10.0))
        made.remove(["a"])
        assert made.compact() == 2
        assert [record.edit.id for record in made.history.records] == ["c", "b", "d"]
        assert targets(made) == {"b": "two", "c": "new", "d": "new"}
        assert fired(made, "What is a?", "What is b?", "What is c?", "What is d?") == [-1, 1, 0, 2]
        assert made.experts([0, 1, 2])["a"][:, 0, 0].tolist() == [3, 10, 11]
        assert made.insert([edit("a")], experts(1)) == [3]
        with pytest.raises(SuiteError, match="'b' has no earlier version"):
            made.rollback("b")

    def test_compacting_a_bank_without_live_edits_leaves_an_empty_one(self) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        made.remove(["a"])
        assert made.compact() == 1
        assert (len(made.table), made.compact()) == (0, 0)
        assert made.insert([edit("a")], experts(1)) == [0]

    def test_unknown_ids_are_named_with_the_nearest(self) -> None:
        made = bank()
        made.insert([edit("france")], experts(1))
        with pytest.raises(SuiteError, match="'frence'. Did you mean 'france'"):
            made.remove(["frence"])
        with pytest.raises(SuiteError, match="'frence' to roll back. Did you mean 'france'"):
            made.rollback("frence")


class TestMerging:
    def test_live_edits_come_over_with_their_experts(self) -> None:
        ours, theirs = bank(), bank()
        ours.insert([edit("a")], experts(1))
        theirs.insert([edit("x"), edit("b"), edit("c")], experts(3, 5.0))
        theirs.remove(["x"])
        assert ours.merge(theirs) == [1, 2]
        assert fired(ours, "What is a?", "What is x?", "What is b?", "What is c?") == [0, -1, 1, 2]
        assert ours.experts([1, 2])["a"][:, 0, 0].tolist() == [6.0, 7.0]
        assert len(theirs) == 2

    def test_conflicts_are_named(self) -> None:
        ours, theirs = bank(), bank()
        ours.insert([edit("a")], experts(1))
        theirs.insert([edit("b", "what is a?")], experts(1))
        with pytest.raises(SuiteError, match="'b' has the prompt of 'a'"):
            ours.merge(theirs)

    @pytest.mark.parametrize("what", ["rank", "expert", "positions", "template"])
    def test_other_kinds_are_refused(self, what: str) -> None:
        other = {"rank": 3, "expert": "full", "positions": "all", "template": "{prompt}{response}"}
        with pytest.raises(SuiteError, match=f"cannot be merged: {what} is"):
            bank(positions="last").merge(bank(**{"positions": "last", what: other[what]}))

    def test_banks_of_other_models_are_refused_but_not_for_their_names(self) -> None:
        theirs = ExpertBank(replace(BASE, name="a copy"), TextGate(), rank=2, dtype="float32")
        assert bank().merge(theirs) == []
        theirs = ExpertBank(replace(BASE, sha256="1" * 64), TextGate(), rank=2, dtype="float32")
        with pytest.raises(SuiteError, match="cannot be merged: base"):
            bank().merge(theirs)


class TestState:
    def test_a_checkpoint_restores_everything(self) -> None:
        made = bank()
        made.insert([edit("a"), edit("b")], experts(2), [{"loss": 0.5}, {"loss": 0.25}])
        made.insert([edit("a", target="two")], experts(1, 7.0))
        made.remove(["b"])
        other = bank()
        other.load_state_dict(made.state_dict())
        assert other.history.records == made.history.records
        assert fired(other, "What is a?", "What is b?") == [2, -1]
        assert torch.equal(other.experts([0, 1, 2])["b"], made.experts([0, 1, 2])["b"])
        other.rollback("a")
        assert fired(other, "What is a?") == [0]
        other.insert([edit("c")], experts(1))
        assert len(other.table) == 4

    def test_a_checkpoint_holds_the_bank_only(self, tmp_path: Any) -> None:
        made = bank()
        made.insert([edit("a")], experts(1))
        torch.save(made.state_dict(), tmp_path / "bank.pt")
        loaded = torch.load(tmp_path / "bank.pt", weights_only=True)
        assert set(loaded) == {"_extra_state", "gate._extra_state"}
        assert list(made.parameters()) == []

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (lambda: bank(rank=3), "another settings"),
            (lambda: ExpertBank(replace(BASE, d_in=5), TextGate(), rank=2), "another base model"),
        ],
    )
    def test_a_checkpoint_of_another_kind_of_bank_is_refused(
        self, other: Any, message: str
    ) -> None:
        with pytest.raises(SuiteError, match=message):
            other().load_state_dict(bank().state_dict())

    def test_a_newer_format_is_refused(self) -> None:
        state = bank().get_extra_state()
        with pytest.raises(SuiteError, match="format 99"):
            bank().set_extra_state({**state, "format": 99})


class TestTable:
    shapes = expert_shapes("low_rank", 6, 4, 2)

    def test_rows_come_from_the_stored_and_the_new_part(self) -> None:
        table = ExpertTable(self.shapes, torch.float32)
        table.load(experts(3))
        table.append(experts(2, 10.0))
        for slots in ([0, 4], [1, 2], [3, 4], [4, 0, 3, 0]):
            rows = table.gather(slots, torch.device("cpu"), torch.float64)
            expected = torch.tensor([1.0, 2.0, 3.0, 10.0, 11.0])[slots]
            assert torch.equal(rows["a"][:, 1, 3], expected.double())
        assert torch.equal(table.state()["b"][:, 0, 0], torch.tensor([1.0, 2.0, 3.0, 10.0, 11.0]))
        assert table.nbytes == 5 * (2 * 6 + 4 * 2) * 4

    def test_growing_one_by_one_takes_time_in_proportion(self) -> None:
        def seconds(count: int) -> float:
            table, row = ExpertTable(self.shapes, torch.float32), experts(1)
            start = time.process_time()
            for _ in range(count):
                table.append(row)
            return time.process_time() - start

        seconds(100)
        assert seconds(8000) < 40 * seconds(1000)  # copying all each time: 64 times and more

    def test_off_the_host_the_most_recent_experts_are_kept(self) -> None:
        table = ExpertTable(self.shapes, torch.float32, recent=2)
        table.append(experts(4))
        device = torch.device("meta")  # a device that is not the host, on every machine
        copies = []
        select = table._select
        table._select = lambda slots: (copies.append(list(slots)), select(slots))[1]  # type: ignore[method-assign]
        for slots in ([0, 1, 0], [1, 0], [2], [0], [1]):
            rows = table.gather(slots, device, torch.float32)
            assert rows["a"].shape == (len(slots), 2, 6)
        assert copies == [[0, 1], [], [2], [], [1]]


class TestActing:
    @pytest.mark.parametrize("kind", ["low_rank", "full"])
    def test_each_row_gets_its_own_expert_from_its_own_position_on(self, kind: Any) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        weights = {name: random(2, *s) for name, s in expert_shapes(kind, 6, 4, 2).items()}
        x, y, bias = random(3, 5, 6), random(3, 5, 4), random(4)
        rows, first = torch.tensor([2, 0]), torch.tensor([4, 0, 1])
        out = edited_rows(weights, x, y, rows, first=first, bias=bias)
        expected = y.clone()
        for expert, row in enumerate(rows.tolist()):
            for position in range(int(first[row]), 5):
                if kind == "full":
                    new = weights["weight"][expert] @ x[row, position] + bias
                else:
                    a, b = weights["a"][expert], weights["b"][expert]
                    new = y[row, position] + b @ (a @ x[row, position])
                expected[row, position] = new
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        assert torch.equal(out[1], y[1])
        assert torch.equal(out[0, :4], y[0, :4])
        assert torch.equal(out[2, :1], y[2, :1])
