"""The gate that matches the subject and then what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_suite.errors import SuiteError
from lightning_suite.scen import reference_data
from lightning_suite.scen.attachment import attach
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.fingerprint import identify
from lightning_suite.scen.gates.base import MISS, PromptQuery, Routing
from lightning_suite.scen.gates.subject import SubjectRelationGate
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.question_readings import EXAMPLES
from lightning_suite.scen.reference_data import wordings_by_kind

EDITS = [
    Edit("capital", "What is the capital of France?", "Lyon", "France"),
    Edit("food", "What do people eat in France?", "rice", "France", ("The food of France is",)),
    Edit("capital2", "What is the capital of South Korea?", "Busan", "South Korea"),
    Edit("capital3", "What is the capital of Korea?", "Suwon", "Korea"),
]


@pytest.fixture(scope="module", autouse=True)
def _fewer_wordings() -> Iterator[None]:
    """Learn from 50 relations in place of 218: a quarter of the time."""
    few = {kind: relations[:5] for kind, relations in [*wordings_by_kind().items()][:10]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_data, "wordings_by_kind", lambda: few)
        yield


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(
        glass_model(), PromptFormat(glass_tokenizer(), "Q: {prompt}\nA: {response}")
    )


@pytest.fixture(scope="module")
def fitted(encoder: PromptEncoder) -> dict[str, Any]:
    gate = SubjectRelationGate(encoder, examples=True)
    gate.add(EDITS[:1], [0])
    return gate.state_dict()


@pytest.fixture
def gate(encoder: PromptEncoder, fitted: dict[str, Any]) -> SubjectRelationGate:
    """All edits, with the metric fitted once for all tests."""
    gate = SubjectRelationGate(encoder)
    gate.load_state_dict(fitted)
    gate.add(EDITS[1:], [1, 2, 3])
    return gate


def ask(gate: SubjectRelationGate, *questions: str) -> Routing:
    return gate.route(PromptQuery(texts=gate.encoder.prompts(questions)))


def test_the_prompts_of_edits_are_served_by_their_own(gate: SubjectRelationGate) -> None:
    prompts = [text for edit in EDITS for text in (edit.prompt, *edit.paraphrases)]
    assert ask(gate, *prompts).expert.tolist() == [0, 1, 1, 2, 3]


def test_an_edits_own_prompt_is_served_whatever_was_said_before(
    encoder: PromptEncoder, fitted: dict[str, Any]
) -> None:
    tokenizer = glass_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
    )
    gate = SubjectRelationGate(PromptEncoder(encoder.model, PromptFormat(tokenizer)))
    gate.load_state_dict(fitted)
    asked = [{"role": "user", "content": EDITS[0].prompt}]
    system = [{"role": "system", "content": "You help the people of France."}]
    earlier = [
        {"role": "user", "content": "What is the currency of Peru?"},
        {"role": "assistant", "content": "The sol."},
    ]
    texts = [
        tokenizer.apply_chat_template(turns, tokenize=False)
        for turns in (asked, system + asked, earlier + asked, asked + earlier)
    ]
    assert gate.route(PromptQuery(texts=texts)).expert.tolist() == [0, 0, 0, MISS]


def test_a_question_that_leaves_no_room_to_be_read_asks_for_no_edit() -> None:
    words = glass_tokenizer()
    form = PromptFormat(words, "Q: {prompt}\nA: {response}")
    room = len(form.encode_text(EXAMPLES)) + 60  # positions are looked up in a table
    config = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": room}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **config)).eval()
    gate = SubjectRelationGate(PromptEncoder(model, form))
    gate.add(EDITS[:1], [0])
    long = f"What is the {'very ' * 60}capital of France?"
    assert ask(gate, EDITS[0].prompt, long).expert.tolist() == [0, MISS]
    with pytest.raises(SuiteError, match="the model's context is too short to read"):
        gate.add([Edit("long", long, "Lyon", "France")], [1])
    gate.add([Edit("food", "What do people eat in France?", "rice", "France")], [2])
    assert ask(gate, "What do people eat in France?", long).expert.tolist() == [2, MISS]


def test_a_change_that_fails_leaves_lookups_and_tables_as_they_were(
    gate: SubjectRelationGate,
) -> None:
    asked = [edit.prompt for edit in EDITS]
    before, state = ask(gate, *asked), gate.get_extra_state()

    def change() -> None:
        with gate.changing():
            gate.remove([0, 2])
            gate.add([Edit("leader", "Who rules Peru?", "Ada", "Peru")], [4])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change()
    assert gate.get_extra_state() == state
    for ours, theirs in zip(ask(gate, *asked), before, strict=True):
        assert torch.equal(ours, theirs)
    gate.add([Edit("leader", "Who rules Peru?", "Ada", "Peru")], [4])
    assert ask(gate, "Who rules Peru?").expert.tolist() == [4]


def test_a_question_without_a_subject_costs_no_forward_pass(
    gate: SubjectRelationGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(gate.encoder, "final_states", refuse)
    routing = ask(gate, "What is the capital of Spain?", "Tell me about frances.")
    assert routing.expert.tolist() == routing.nearest.tolist() == [MISS, MISS]
    assert routing.margin.tolist() == [float("-inf")] * 2


def test_what_an_edit_answers_depends_on_no_other_edit(gate: SubjectRelationGate) -> None:
    gate.add([Edit("leader", "Who rules Peru?", "Ada", "Peru")], [4])
    asked = ["Who rules Peru?", "What is the capital of Peru?", "Peru has which ruler?"]
    before = ask(gate, *asked)
    gate.remove([0, 1, 2, 3])
    for ours, theirs in zip(ask(gate, *asked), before, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_own_words_win_over_what_is_likelier(gate: SubjectRelationGate) -> None:
    """Whatever the thresholds: the edit asked for literally is served."""
    gate.thresholds.fill_(1e6)
    assert ask(gate, "The food of France is").expert.item() == 1
    gate.thresholds.fill_(-1e6)
    assert ask(gate, "The food of France is").expert.item() == 1
    assert ask(gate, "What is the capital of France?").expert.item() == 0


def test_scores_are_ratios_for_the_known_wordings(
    gate: SubjectRelationGate, encoder: PromptEncoder
) -> None:
    routing = ask(gate, "Do you know what France eats?")
    asked = ("Do you know what X eats?", "What do people eat in X?", "The food of X is",
             "What is the capital of X?")  # fmt: skip
    read = [
        encoder.final_states([f"Q: {question}\nA:The question asks for the" for question in asked]),
        encoder.final_states([f"{EXAMPLES}{question} ->" for question in asked]),
    ]
    query, *known = gate.metric.embed(torch.cat(read, 1))
    food = gate.metric.scores(query[None], torch.stack(known[:2]))[0]
    capital = gate.metric.scores(query[None], known[2][None])[0]
    above = [capital - gate.metric.threshold(1), food - gate.metric.threshold(2)]
    assert routing.nearest.item() == int(above[1] > above[0])
    torch.testing.assert_close(routing.margin[0], max(above), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        routing.score[0], (capital, food)[int(routing.nearest)], atol=1e-3, rtol=1e-3
    )


class TestBeginningsThatAreKept:
    """A question is read after kept keys and values: it must not show in any score."""

    ASKED = ("Which city is the capital of France?", "Do you know what France eats?",
             "Is there rice in Korea?", "Where does Tom live?")  # fmt: skip

    @pytest.fixture
    def exact(self, fitted: dict[str, Any]) -> SubjectRelationGate:
        prompts = PromptFormat(glass_tokenizer(), "Q: {prompt}\nA: {response}")
        gate = SubjectRelationGate(PromptEncoder(glass_model(torch.float64), prompts)).double()
        gate.load_state_dict(fitted)
        gate.add(EDITS[1:], [1, 2, 3])
        return gate

    def in_full(self, gate: SubjectRelationGate) -> Routing:
        """Every question and reading by itself, from its first token on."""
        read = gate.encoder.final_states

        def each(prompts: list[str]) -> torch.Tensor:
            gate.encoder.beginnings = ()
            return torch.cat([read([prompt]) for prompt in prompts])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate.encoder, "final_states", each)
            return ask(gate, *self.ASKED)

    def test_scores_are_those_of_reading_in_full(self, exact: SubjectRelationGate) -> None:
        truth = self.in_full(exact)
        assert truth.nearest.tolist()[-1] == MISS
        assert (truth.nearest[:-1] != MISS).all()
        together = ask(exact, *self.ASKED)
        alone = [ask(exact, question) for question in self.ASKED]
        for part, expected in enumerate(truth):
            torch.testing.assert_close(together[part], expected, atol=1e-9, rtol=1e-9)
            ours = torch.cat([routing[part] for routing in alone])
            torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)

    def test_an_edits_own_words_are_not_read_again(
        self, gate: SubjectRelationGate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gate.encoder, "final_states", lambda *_: pytest.fail("read again"))
        assert ask(gate, *(edit.prompt for edit in EDITS)).expert.tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize("beams", [1, 3])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_generation_goes_its_own_way(
        self, exact: SubjectRelationGate, beams: int, side: Literal["left", "right"]
    ) -> None:
        model, prompts = exact.encoder.model, exact.encoder.format
        bank = ExpertBank(identify(model, exact.encoder.layer), exact, template=prompts.template)
        exact.remove([0, 1, 2, 3])
        bank.insert(EDITS, {n: torch.ones(4, *s) for n, s in bank.table.shapes.items()})
        exact.thresholds.fill_(1e6)  # all but the edits' own words are the base model's
        ids = [prompts.encode(question) for question in (*self.ASKED, EDITS[1].prompt)]
        batch = prompts.batch(ids, side)
        options = {"max_new_tokens": 4, "num_beams": beams, "do_sample": False}
        plain = model.generate(**batch, **options)
        memory = []
        for _ in range(2):
            with attach(bank, model, prompts.tokenizer) as handle:
                edited = model.generate(**batch, **options)
                assert handle.last_routing is not None
                fired = handle.last_routing.expert.tolist()
            assert fired == [MISS] * 4 * beams + [1] * beams or fired == [MISS] * 4 + [1]
            assert torch.equal(edited[:4, : plain.shape[1]], plain[:4, : edited.shape[1]])
            memory.append(exact.encoder.kept.bytes)
        assert memory[0] == memory[1] > 0

    def test_no_state_holds_them(self, gate: SubjectRelationGate) -> None:
        ask(gate, *self.ASKED)
        assert gate.encoder.kept.bytes > 0
        assert {name for name in gate.state_dict() if name != "_extra_state"} == {
            "features", "mean", "matrix", "between", "thresholds"
        }  # fmt: skip


def test_the_longest_name_is_meant(gate: SubjectRelationGate) -> None:
    north, south = ask(
        gate, "Name Korea's capital.", "Name South Korea's capital."
    ).nearest.tolist()
    assert (north, south) == (3, 2)


def test_an_edit_may_speak_of_the_longer_name_that_another_edit_is_about(
    gate: SubjectRelationGate,
) -> None:
    york = Edit("york", "Who is the mayor of New York City?", "Ada", "New York")
    city = Edit("city", "What do people eat in New York City?", "rice", "New York City")
    gate.add([york, city], [4, 5])
    assert ask(gate, york.prompt, city.prompt).expert.tolist() == [4, 5]
    gate.thresholds.fill_(-1e6)
    assert ask(gate, york.prompt, city.prompt).expert.tolist() == [4, 5], "the own words count"
    assert ask(gate, "Who is the mayor of New York?").nearest.item() == 4
    gate.remove([4])
    assert ask(gate, york.prompt).nearest.item() == 5
    gate.add([Edit("state", "Who is the mayor of New York?", "Ben", "New York")], [4])
    assert ask(gate, york.prompt).nearest.item() == 5, "it says nothing of the city"


def test_a_subject_is_known_by_the_other_names_that_the_edit_gives(
    gate: SubjectRelationGate, encoder: PromptEncoder
) -> None:
    edit = Edit("thai", "What is the capital of Thailand?", "Oslo", "Thailand", aliases=("Siam",))
    asked = ["What is the capital of Thailand?", "what is the capital of Siam?"]
    gate.add([edit], [4])
    before = ask(gate, *asked)
    assert before.expert.tolist()[0] == 4
    assert before.nearest.tolist() == [4, 4]
    again = SubjectRelationGate(encoder)
    again.load_state_dict(gate.state_dict())
    for ours, theirs in zip(ask(again, *asked), before, strict=True):
        torch.testing.assert_close(ours, theirs)
    own = ask(gate, "What is the capital of Siam?")
    assert own.expert.tolist() == [4], "the edit's own words, by the other name"
    again.remove([4])
    assert ask(again, *asked).nearest.tolist() == [MISS, MISS]


def test_a_paraphrase_may_use_another_name(gate: SubjectRelationGate) -> None:
    gate.add([Edit("a", "Who rules Siam?", "Ada", "Siam", ("Siam's king is who?",))], [4])
    known = gate.get_extra_state()["wordings"]
    paraphrases = ("Tahuantinsuyo's king is who?",)
    edit = Edit("b", "Who rules Peru?", "Ada", "Peru", paraphrases, aliases=("Tahuantinsuyo",))
    gate.add([edit], [5])
    assert gate.get_extra_state()["wordings"] == known


def test_edits_that_ask_the_same_share_their_wording(gate: SubjectRelationGate) -> None:
    assert len(gate.features) == 3  # capital, and food in two wordings


def test_what_the_template_says_is_not_asked(gate: SubjectRelationGate) -> None:
    gate.add([Edit("q", "What does Q stand for?", "Quiz", "Q")], [4])
    assert ask(gate, "What is the capital of Spain?").nearest.item() == MISS
    assert ask(gate, "What does Q stand for?").expert.item() == 4


def test_removed_edits_never_fire(gate: SubjectRelationGate) -> None:
    gate.remove([0, 2])
    assert ask(gate, EDITS[0].prompt).nearest.item() == 1
    assert ask(gate, EDITS[2].prompt).nearest.item() == 3  # Korea is still a subject


def test_nothing_is_left_of_a_removed_edit(
    gate: SubjectRelationGate, encoder: PromptEncoder, fitted: dict[str, Any]
) -> None:
    gate.remove([0, 1])
    state = gate.state_dict()
    assert state["_extra_state"]["wordings"] == ["What is the capital of X?"]  # of the Koreas, too
    assert len(gate.features) == 1
    gate.add(EDITS[:2], [0, 1])  # as rolling back does
    whole = SubjectRelationGate(encoder)
    whole.load_state_dict(fitted)
    whole.add(EDITS[1:], [1, 2, 3])
    questions = [*(edit.prompt for edit in EDITS), "Do people in France eat?"]
    for ours, theirs in zip(ask(gate, *questions), ask(whole, *questions), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_slots_are_given_anew(gate: SubjectRelationGate) -> None:
    questions = [*(edit.prompt for edit in EDITS), "Do people in France eat?"]
    gate.remove([0, 3])
    before = ask(gate, *questions)
    gate.renumber([1, 2])
    gate.check()
    after = ask(gate, *questions)
    assert after.expert.tolist() == [{1: 0, 2: 1}.get(s, MISS) for s in before.expert.tolist()]
    torch.testing.assert_close(after.score, before.score)


def test_a_slot_that_is_added_again_has_its_new_subject_only(gate: SubjectRelationGate) -> None:
    gate.add([Edit("capital", "What is the capital of Peru?", "Cusco", "Peru")], [3])
    assert ask(gate, "What is the capital of Peru?").expert.item() == 3
    assert ask(gate, "What is the capital of Korea?").expert.item() == MISS


def test_the_order_of_edits_makes_no_difference(
    gate: SubjectRelationGate, encoder: PromptEncoder, fitted: dict[str, Any]
) -> None:
    other = SubjectRelationGate(encoder)
    other.load_state_dict(fitted)
    for slot in (3, 1, 2):
        other.add([EDITS[slot]], [slot])
    questions = [*(edit.prompt for edit in EDITS), "Do people in France eat?", "Korea is nice."]
    for ours, theirs in zip(ask(gate, *questions), ask(other, *questions), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_gate_lives_on_in_its_state(gate: SubjectRelationGate, encoder: PromptEncoder) -> None:
    again = SubjectRelationGate(encoder, placeholder="it", probe="", false_rate=0.5)
    again.load_state_dict(gate.state_dict())
    for g in (gate, again):
        g.remove([1])
        g.add([Edit("sea", "Which sea is near France?", "Aral", "France")], [1])
    questions = [*(edit.prompt for edit in EDITS), "Which sea is near France?", "France?"]
    for ours, theirs in zip(ask(gate, *questions), ask(again, *questions), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_there_is_a_threshold_for_each_number_of_wordings(gate: SubjectRelationGate) -> None:
    assert gate.thresholds.shape == (5,)
    assert gate.thresholds.isfinite().all()


def test_a_gate_saved_before_format_2_reads_its_wordings_again(
    gate: SubjectRelationGate, encoder: PromptEncoder
) -> None:
    """Its features were compared by cosines; subjects and wordings are all that is left of it."""
    old = gate.state_dict()
    del old["between"]
    old["features"] = torch.nn.functional.normalize(old["features"], dim=-1)
    again = SubjectRelationGate(encoder)
    again.load_state_dict(old)
    questions = [*(edit.prompt for edit in EDITS), "Do people in France eat?"]
    for ours, theirs in zip(ask(gate, *questions), ask(again, *questions), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_gate_saved_before_there_were_examples_goes_on_without(encoder: PromptEncoder) -> None:
    old = SubjectRelationGate(encoder, examples=False)
    old.add(EDITS, range(4))
    state = old.state_dict()
    del state["_extra_state"]["examples"]
    again = SubjectRelationGate(encoder, examples=True)
    again.load_state_dict(state)
    again.add([Edit("sea", "Which sea is near France?", "Aral", "France")], [4])
    questions = [*(edit.prompt for edit in EDITS), "Do people in France eat?"]
    for ours, theirs in zip(ask(old, *questions), ask(again, *questions), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
