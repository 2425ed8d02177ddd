"""Gates on the input of the edited layer: closed, bce and the published one."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer
from torch import Tensor

from lightning_suite.scen import routing
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.gates import keyed
from lightning_suite.scen.gates.base import MISS, PromptQuery, Routing
from lightning_suite.scen.gates.bce import BCEGate
from lightning_suite.scen.gates.closed import ClosedGate
from lightning_suite.scen.gates.keyed import KeyedGate
from lightning_suite.scen.gates.published import PublishedGate
from lightning_suite.scen.prompts import PromptFormat

EDITS = [
    Edit("dog", "The dog is called", "Rex", paraphrases=("The name of the dog is",)),
    Edit("cat", "The cat likes to eat", "fish"),
    Edit("queen", "The queen lives in", "Rome", paraphrases=("The home of the queen is",)),
    Edit("boat", "The little boat was", "red"),
    Edit("tom", "Tom went to the", "zoo"),
]
REFERENCE = [
    "Once upon a time",
    "Lily and her mom",
    "The sun was",
    "It was a rainy day",
    "One day, a boy",
    "The bird said",
    "They all played in",
    "She was so happy",
]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(glass_model(), PromptFormat(glass_tokenizer(), "{prompt} {response}"))


def gate_with(
    encoder: PromptEncoder, edits: Sequence[Edit], slots: Sequence[int], kind: type = ClosedGate
) -> KeyedGate:
    gate = PublishedGate(encoder) if kind is PublishedGate else kind(encoder, REFERENCE)
    gate.add(edits, slots)
    return gate


def ask(gate: KeyedGate, encoder: PromptEncoder, questions: Sequence[str]) -> Routing:
    return gate.route(PromptQuery(states=encoder.layer_inputs(encoder.prompts(questions))))


def same(one: Routing, other: Routing) -> None:
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [ClosedGate, BCEGate])
def test_edits_are_served_and_other_text_is_not(encoder: PromptEncoder, kind: type) -> None:
    gate = gate_with(encoder, EDITS, range(5), kind)
    assert ask(gate, encoder, [edit.prompt for edit in EDITS]).expert.tolist() == [0, 1, 2, 3, 4]
    assert (ask(gate, encoder, REFERENCE).expert == MISS).all()


@pytest.mark.parametrize("kind", [ClosedGate, BCEGate])
def test_the_order_of_edits_makes_no_difference(encoder: PromptEncoder, kind: type) -> None:
    order = [3, 0, 4, 2, 1]
    questions = [edit.prompt for edit in EDITS] + REFERENCE
    together = gate_with(encoder, EDITS, range(5), kind)
    shuffled = gate_with(encoder, [EDITS[i] for i in order], order, kind)
    one_by_one = gate_with(encoder, EDITS[:1], [0], kind)
    for slot in (4, 2, 1, 3):
        one_by_one.add([EDITS[slot]], [slot])
    for other in (shuffled, one_by_one):
        same(ask(together, encoder, questions), ask(other, encoder, questions))


@pytest.mark.parametrize("kind", [ClosedGate, BCEGate])
def test_removed_edits_are_as_if_they_had_never_been(encoder: PromptEncoder, kind: type) -> None:
    gate = gate_with(encoder, EDITS, range(5), kind)
    gate.remove([1, 3])
    never = gate_with(encoder, [EDITS[0], EDITS[2], EDITS[4]], [0, 2, 4], kind)
    questions = [edit.prompt for edit in EDITS] + REFERENCE
    same(ask(gate, encoder, questions), ask(never, encoder, questions))
    assert not {1, 3} & set(ask(gate, encoder, questions).nearest.tolist())


@pytest.mark.parametrize("kind", [ClosedGate, BCEGate, PublishedGate])
def test_renumbered_slots_decide_as_before(encoder: PromptEncoder, kind: type) -> None:
    gate = gate_with(encoder, EDITS, [0, 1, 2, 5, 4], kind)
    gate.remove([0, 4])
    assert not gate.keys[[0, 3, 4]].any(), "nothing is left of what is gone"
    questions = [edit.prompt for edit in EDITS]
    before = ask(gate, encoder, questions)
    gate.renumber([5, 1, 2])
    gate.check()
    after = ask(gate, encoder, questions)
    place = {5: 0, 1: 1, 2: 2, MISS: MISS}
    assert after.nearest.tolist() == [place[slot] for slot in before.nearest.tolist()]
    assert after.expert.tolist() == [place[slot] for slot in before.expert.tolist()]
    torch.testing.assert_close(after.margin, before.margin)
    if isinstance(gate, ClosedGate):  # what raised whose threshold is still known
        gate.remove([1])
        other = gate_with(encoder, [EDITS[3], EDITS[2]], [0, 2], kind)
        same(ask(gate, encoder, questions), ask(other, encoder, questions))


def test_a_slot_that_is_added_again_has_its_new_key_only(encoder: PromptEncoder) -> None:
    gate = gate_with(encoder, EDITS, range(5))
    other = Edit("cat", "The big tree fell on", "him")
    gate.add([other], [1])
    fresh = gate_with(encoder, [EDITS[0], other, *EDITS[2:]], range(5))
    questions = [edit.prompt for edit in EDITS] + [other.prompt]
    same(ask(gate, encoder, questions), ask(fresh, encoder, questions))


def test_thresholds_lie_midway_between_lowest_positive_and_hardest_negative(
    encoder: PromptEncoder,
) -> None:
    gate = gate_with(encoder, EDITS, range(5))
    assert isinstance(gate, ClosedGate)
    for slot, edit in enumerate(EDITS):
        own = encoder.layer_inputs(encoder.prompts([edit.prompt, *edit.paraphrases]))
        others = [
            text for e in EDITS if e is not edit for text in (e.prompt, *e.paraphrases)
        ] + REFERENCE
        lowest = gate.similarity(own)[:, slot].min()
        hardest = gate.similarity(encoder.layer_inputs(encoder.prompts(others)))[:, slot].max()
        torch.testing.assert_close(
            gate.thresholds[slot], (lowest + hardest) / 2, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("kind", [ClosedGate, BCEGate, PublishedGate])
def test_a_gate_lives_on_in_its_state(encoder: PromptEncoder, kind: type) -> None:
    gate = gate_with(encoder, EDITS, range(5), kind)
    again = kind(encoder)
    again.load_state_dict(gate.state_dict())
    questions = [edit.prompt for edit in EDITS] + REFERENCE
    same(ask(gate, encoder, questions), ask(again, encoder, questions))
    for g in (gate, again):
        g.add([Edit("sun", "The sun was very", "cold")], [5])
    same(ask(gate, encoder, questions), ask(again, encoder, questions))


@pytest.mark.parametrize("kind", [ClosedGate, BCEGate, PublishedGate])
def test_a_module_that_is_put_into_half_precision_does_not_round_a_gate(
    encoder: PromptEncoder, kind: type
) -> None:
    gate = gate_with(encoder, EDITS, range(5), kind)
    before = {name: table.clone() for name, table in gate.named_buffers()}
    torch.nn.ModuleList([gate]).to(torch.bfloat16).half()
    after = dict(gate.named_buffers())
    assert all(torch.equal(after[name], table) for name, table in before.items())
    assert gate.double().keys.dtype == torch.float64


def test_without_edits_nothing_fires(encoder: PromptEncoder) -> None:
    gate = gate_with(encoder, EDITS, range(5))
    gate.remove(range(5))
    for nothing in (gate, ClosedGate(encoder, REFERENCE)):
        routing = ask(nothing, encoder, [EDITS[0].prompt])
        assert routing.expert.tolist() == routing.nearest.tolist() == [MISS]
        assert routing.score.tolist() == [float("-inf")]


def test_later_neurons_of_the_published_gate_know_the_earlier_ones_only(
    encoder: PromptEncoder,
) -> None:
    at_once = gate_with(encoder, EDITS, range(5), PublishedGate)
    first = gate_with(encoder, EDITS[:3], range(3), PublishedGate)
    torch.testing.assert_close(at_once.keys[:3], first.keys)
    first.add(EDITS[3:], [3, 4])
    torch.testing.assert_close(at_once.keys, first.keys)


def test_neurons_of_the_published_gate_fire_above_theta(encoder: PromptEncoder) -> None:
    gate = PublishedGate(encoder, theta=0.0, lr=1e-2)
    gate.add(EDITS, range(5))
    routing = ask(gate, encoder, [EDITS[1].prompt])
    assert routing.expert.item() >= 0
    states = encoder.layer_inputs(encoder.prompts([EDITS[1].prompt]))
    expected = torch.sigmoid(states @ gate.keys.T).max()
    torch.testing.assert_close(routing.score[0], expected)
    gate.thresholds[:] = float(expected) + 0.01
    assert ask(gate, encoder, [EDITS[1].prompt]).expert.item() == MISS


class TestManyKeys:
    """Above a size the nearest key is found by an index; here the size is small."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(routing, "EXACT_UP_TO", 3)

    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The numbers of keys of which an index was made."""
        pytest.importorskip("faiss")
        sizes: list[int] = []
        make = routing.KeyIndex

        def counted(keys: Tensor, thresholds: Tensor) -> routing.KeyIndex:
            sizes.append(int((thresholds < torch.inf).sum()))
            return make(keys, thresholds)

        monkeypatch.setattr(routing, "KeyIndex", counted)
        return sizes

    @pytest.mark.parametrize("kind", [ClosedGate, BCEGate])
    def test_an_index_decides_as_comparing_with_all(
        self, encoder: PromptEncoder, kind: type, made: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = gate_with(encoder, EDITS, range(5), kind)
        questions = [*(edit.prompt for edit in EDITS), *REFERENCE]
        found = ask(gate, encoder, questions)
        assert found.expert[:5].tolist() == [0, 1, 2, 3, 4]
        assert made == [5]
        monkeypatch.setattr(routing, "EXACT_UP_TO", 100)
        same(found, ask(gate, encoder, questions))

    def test_it_is_made_anew_when_edits_change_and_not_before(
        self, encoder: PromptEncoder, made: list[int]
    ) -> None:
        gate = gate_with(encoder, EDITS[:4], range(4))
        prompts = [edit.prompt for edit in EDITS]
        for _ in range(2):
            assert ask(gate, encoder, prompts).expert.tolist() == [0, 1, 2, 3, MISS]
        gate.add(EDITS[4:], [4])
        assert ask(gate, encoder, prompts).expert.tolist() == [0, 1, 2, 3, 4]
        gate.remove([1])
        assert ask(gate, encoder, prompts).expert.tolist() == [0, MISS, 2, 3, 4]
        assert made == [4, 5, 4]

    def test_a_copy_and_a_loaded_gate_have_their_own(
        self, encoder: PromptEncoder, made: list[int]
    ) -> None:
        gate = gate_with(encoder, EDITS, range(5))
        prompts = [edit.prompt for edit in EDITS]
        before = ask(gate, encoder, prompts)
        copied = copy.deepcopy(gate, {id(encoder): encoder})
        copied.remove([0])
        assert ask(copied, encoder, prompts).expert.tolist() == [MISS, 1, 2, 3, 4]
        same(ask(gate, encoder, prompts), before)
        loaded = ClosedGate(encoder, REFERENCE)
        loaded.load_state_dict(gate.state_dict())
        same(ask(loaded, encoder, prompts), before)
        assert made == [5, 4, 5]

    def test_without_faiss_all_keys_are_compared_and_it_is_said_once(
        self, encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "faiss", None)
        said: list[str] = []
        monkeypatch.setattr(keyed, "rank_zero_info", said.append)
        gate = gate_with(encoder, EDITS, range(5))
        for _ in range(2):
            found = ask(gate, encoder, [edit.prompt for edit in EDITS])
            assert found.expert.tolist() == [0, 1, 2, 3, 4]
        (message,) = said
        assert "faiss" in message

    def test_the_published_gate_compares_with_all(
        self, encoder: PromptEncoder, made: list[int]
    ) -> None:
        gate = gate_with(encoder, EDITS, range(5), PublishedGate)
        ask(gate, encoder, ["The dog is called"])
        assert made == []
