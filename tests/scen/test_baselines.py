"""Every baseline: one protocol, and what its paper says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer
from scen_reference import answer_loss
from torch import Tensor

from lightning_suite.scen.answers import Answerer
from lightning_suite.scen.baselines.fine_tune import FineTune
from lightning_suite.scen.baselines.grace import Codebook, Grace
from lightning_suite.scen.baselines.in_context import InContextEdit
from lightning_suite.scen.baselines.no_edit import NoEdit
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.prompts import PromptFormat

EDITS = [
    Edit("1", "The dog", "cat", subject="dog", rephrases=("One dog",)),
    Edit("2", "Alice was", "sad", subject="Alice"),
    Edit("3", "The queen of hearts", "big", subject="queen"),
]
PROMPTS = [edit.prompt for edit in EDITS]
OTHERS = ["Once upon a time", "Tom and Lily went to", "The rabbit"]


@pytest.fixture
def answerer() -> Answerer:
    return story_answerer()


def story_answerer(dtype: torch.dtype = torch.float32) -> Answerer:
    """Lines end answers: a model of stories has never ended anything else after three words."""
    tokenizer = glass_tokenizer()
    end = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    prompts = PromptFormat(tokenizer, "{prompt} {response}", [end])
    return Answerer(glass_model(dtype), prompts, max_new_tokens=8)


def texts(system: Any, questions: list[str]) -> list[str]:
    return [answer.text for answer in system.answer(questions)]


def layer(answerer: Answerer) -> Any:
    return answerer.model.model.layers[0].mlp.down_proj


def embed(questions: Any) -> Tensor:
    """Letters that occur: enough to tell the questions of this file apart."""
    return torch.stack(
        [
            torch.tensor([float(q.lower().count(c)) for c in map(chr, range(97, 123))])
            for q in questions
        ]
    )


SYSTEMS: dict[str, Callable[[Answerer], Any]] = {
    "no_edit": NoEdit,
    "in_context": lambda a: InContextEdit(a, "perfect", context="{prompt} {target} {question}"),
    "fine_tune": lambda a: FineTune(a, layer(a), lr=1e-2, steps=30),
    "grace": lambda a: Grace(a, layer(a), radius=0.5, steps=10),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_undone_leaves_no_trace(answerer: Answerer, name: str) -> None:
    state = {k: v.clone() for k, v in answerer.model.state_dict().items()}
    before = answerer([*PROMPTS, *OTHERS])
    system = SYSTEMS[name](answerer)
    system.edit(EDITS[:1])
    system.edit(EDITS[1:])
    changed = system.answer([*PROMPTS, *OTHERS]) != before
    assert changed == (name != "no_edit")
    system.undo()
    assert system.answer([*PROMPTS, *OTHERS]) == before
    after = answerer.model.state_dict()
    assert all(torch.equal(state[k], after[k]) for k in state)
    assert not any(m._forward_hooks for m in answerer.model.modules())


@pytest.mark.parametrize("name", ["fine_tune", "grace"])
def test_training_works_inside_an_evaluation(answerer: Answerer, name: str) -> None:
    """A Trainer tests in inference mode."""
    with torch.inference_mode():
        before = answerer(PROMPTS[:1])
        system = SYSTEMS[name](answerer)
        system.edit(EDITS[:1])
        assert system.answer(PROMPTS[:1]) != before


# --- in context -----------------------------------------------------------------------------------


def test_the_question_is_preceded_by_its_edit(answerer: Answerer) -> None:
    asked: list[str] = []
    system = InContextEdit(lambda q: asked.extend(q) or [], "perfect")  # type: ignore[arg-type, func-returns-value]
    system.edit(EDITS)
    system.answer(["One dog", "The rabbit"])
    assert asked == [
        "New fact: The dog cat\nAnswer with the new fact only.\nOne dog",
        "The rabbit",
    ]


def test_retrieval_by_subject_takes_the_longest_subject_then_the_most_similar() -> None:
    edits = [
        Edit("york", "Where is York?", "Peru", subject="York"),
        Edit("new", "Where is New York?", "Chile", subject="New York"),
        Edit("mayor", "Who runs New York?", "Ada", subject="New York"),
    ]
    system = InContextEdit(lambda _: [], "subject", embed)  # type: ignore[arg-type, return-value]
    system.edit(edits[:2])
    system.edit(edits[2:])
    questions = [
        "Where is new york city?",
        "Who runs the mayor of New York?",
        "York where?",
        "Rome?",
    ]
    fired = [decision.fired for decision in system.route(questions)]
    assert fired == ["new", "mayor", "york", None]


def test_retrieval_by_embedding_always_finds_something() -> None:
    system = InContextEdit(lambda _: [], "embedding", embed)  # type: ignore[arg-type, return-value]
    assert system.route(["The dog"])[0].fired is None
    system.edit(EDITS)
    assert [d.fired for d in system.route(["A dog the", "zzz Alice"])] == ["1", "2"]


# --- GRACE ----------------------------------------------------------------------------------------


def point(*values: float) -> Tensor:
    return torch.tensor(values)


def test_codebook_adds_far_edits_expands_to_equal_ones_and_splits_from_others() -> None:
    book = Codebook(radius=1.0)
    value = point(0.0)
    assert book.place(point(0.0, 0.0), value, "a", "e1") == 0
    # out of reach (more than both radii): a ball of its own
    assert book.place(point(0.0, 2.5), value, "b", "e2") == 1
    assert book.radii == [1.0, 1.0]
    # in reach, same target: the radius grows to cover it
    assert book.place(point(1.8, 0.0), value, "a", "e3") == 0
    assert book.radii == pytest.approx([1.8, 1.0])
    assert book.place(point(0.5, 0.0), value, "a", "e4") == 0, "covered already"
    assert book.radii == pytest.approx([1.8, 1.0])
    # in reach, another target: both get half the distance and do not touch
    assert book.place(point(-1.0, 0.0), value, "c", "e5") == 2
    assert book.radii == pytest.approx([0.5, 1.0, 0.5], abs=2e-5)
    assert book.radii[0] + book.radii[2] < 1.0
    assert book.ids == ["e1", "e2", "e5"]


def test_grace_answers_its_edits_and_nothing_else(answerer: Answerer) -> None:
    before = answerer(OTHERS)
    system = Grace(answerer, layer(answerer), radius=1e-3, steps=100)
    system.edit(EDITS)
    assert texts(system, PROMPTS) == ["cat", "sad", "big"]
    assert system.answer(OTHERS) == before
    decisions = system.route([*PROMPTS, *OTHERS])
    assert [d.fired for d in decisions] == ["1", "2", "3", None, None, None]
    assert all((d.margin >= 0) == (d.fired is not None) for d in decisions)


def test_grace_is_the_same_in_a_batch_and_alone(answerer: Answerer) -> None:
    system = Grace(answerer, layer(answerer), radius=1e-3, steps=10)
    system.edit(EDITS)
    questions = [*OTHERS, *PROMPTS]
    together = system.answer(questions)
    assert together == [system.answer([question])[0] for question in questions]


@pytest.mark.parametrize("value_init", ["cold", "warm"])
def test_values_trained_side_by_side_are_those_of_the_loop(value_init: Any) -> None:
    """The loop of the paper: one edit, one Adam, the whole model in every step.

    In float64, but for the keys.
    """
    edits = [
        EDITS[1],
        EDITS[0],
        Edit("4", "One dog", "cat"),
        Edit("5", "A little girl", "red ball"),
    ]
    answerer = story_answerer(torch.float64)
    module, steps, radius = layer(answerer), 6, 3.0
    system = Grace(answerer, module, radius=radius, steps=steps, value_init=value_init)
    system.edit(edits[:1])
    system.edit(edits[1:])
    assert len(system.codebook.keys) == 3, "two edits share an entry"

    book = Codebook(radius)
    for edit in edits:
        tokens, n = answerer.prompts.encode_answer(edit.prompt, edit.target)
        seen: list[tuple[Tensor, Tensor]] = []
        handle = module.register_forward_hook(
            lambda _m, x, y, at=n - 1, seen=seen: seen.append((x[0][0, at], y[0, at]))
        )
        answerer.model(torch.tensor([tokens]))
        handle.remove()
        key, start = seen[0]
        if value_init == "cold":
            start = system._start(edit, key)
        place = book.place(key, start, edit.target, edit.id)
        value = book.values[place].detach().clone().requires_grad_()
        handle = module.register_forward_hook(
            lambda _m, _x, y, at=n - 1, value=value: torch.cat(
                [y[:, :at], value.expand(1, 1, -1), y[:, at + 1 :]], 1
            )
        )
        adam = torch.optim.Adam([value], lr=1.0)
        for _ in range(steps):
            adam.zero_grad()
            answer_loss(answerer.model, tokens, n).backward()
            adam.step()
        handle.remove()
        book.values[place] = value.detach()
    torch.testing.assert_close(
        torch.stack(system.codebook.values), torch.stack(book.values), rtol=0, atol=1e-6
    )


def test_cold_values_do_not_depend_on_the_other_edits(answerer: Answerer) -> None:
    systems = [Grace(answerer, layer(answerer), radius=1e-3, steps=2) for _ in range(2)]
    systems[0].edit(EDITS)
    systems[1].edit(EDITS[::-1])
    torch.testing.assert_close(systems[0].codebook.values, systems[1].codebook.values[::-1])


def test_one_big_ball_swallows_every_prompt(answerer: Answerer) -> None:
    before = answerer(OTHERS)
    system = Grace(answerer, layer(answerer), radius=1e6, steps=10)
    system.edit(EDITS[:1])
    assert [d.fired for d in system.route(OTHERS)] == ["1"] * 3
    assert all(new != old for new, old in zip(system.answer(OTHERS), before, strict=True))


def test_warm_values_start_at_the_layer_s_own_output(answerer: Answerer) -> None:
    before = answerer(PROMPTS)
    system = Grace(answerer, layer(answerer), steps=0, value_init="warm", radius=1e-3)
    system.edit(EDITS)
    assert system.answer(PROMPTS) == before


# --- fine-tuning ----------------------------------------------------------------------------------


def test_fine_tuning_learns_the_last_edit_and_freezes_the_rest(answerer: Answerer) -> None:
    frozen = answerer.model.requires_grad_(False).state_dict()
    frozen = {k: v.clone() for k, v in frozen.items()}
    system = FineTune(answerer, layer(answerer), lr=1e-2, steps=30)
    system.edit(EDITS)
    assert texts(system, PROMPTS[-1:]) == ["big"]
    moved = [k for k, v in answerer.model.state_dict().items() if not torch.equal(v, frozen[k])]
    assert moved == ["model.layers.0.mlp.down_proj.weight"]
    assert not any(p.requires_grad for p in answerer.model.parameters())
    assert all(p.grad is None for p in answerer.model.parameters())


def test_fine_tuning_is_that_of_the_whole_model() -> None:
    """In float64: each edit a fresh Adam on the matrix, every step through the whole model."""
    answerer = story_answerer(torch.float64)
    weight = layer(answerer).weight
    system = FineTune(answerer, layer(answerer), lr=1e-3, steps=5)
    system.edit(EDITS[:2])
    system.edit(EDITS[2:])
    ours = weight.detach().clone()
    system.undo()

    for edit in EDITS:
        tokens, n = answerer.prompts.encode_answer(edit.prompt, edit.target)
        weight.requires_grad_(True)
        adam = torch.optim.Adam([weight], lr=1e-3)
        for _ in range(5):
            loss = answer_loss(answerer.model, tokens, n)
            (weight.grad,) = torch.autograd.grad(loss, [weight])
            adam.step()
    torch.testing.assert_close(ours, weight.detach(), rtol=0, atol=1e-9)
