"""How the gate ``subject`` reads what a question asks: the words around it, and the states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.kept_states import kept_final_states
from lightning_suite.scen.reference_data import wordings_by_kind
from lightning_suite.scen.relation_metric import Relation

# Begins the answer, so that the state after it is about what is asked and not how to phrase it.
PROBE = "The question asks for the"
# Show how to say in few words what is asked; none is an edit's relation or a calibration's.
_SHOWN = (
    ("Which shoes fit X?", "shoe size"),
    ("By whom was X repaired after the fire?", "person who repaired it"),
    ("On what day of the week is the market held in X?", "weekday of the market"),
    ("Somebody waters the roses of X. Who is it?", "gardener"),
    ("X was closed to visitors when?", "year of closing"),
    ("If you brought X home, which room would it go in?", "room where it belongs"),
    ("How much did people pay for X in the old days?", "old price"),
    ("X moved here from which village?", "village of origin"),
    ("Give the number of doors of X.", "number of doors"),
    ("What do children shout when they see X?", "shout of the children"),
)
EXAMPLES = "".join(f"{question} -> {asked}\n" for question, asked in _SHOWN)


def read_questions(
    encoder: PromptEncoder, questions: Sequence[str], probe: str, *, examples: bool
) -> Tensor:
    """Return the states at the ends of all readings of questions, side by side.

    What the template says before a question, and the examples, are read once for a model; then a
    few questions take a single pass over their own tokens, both readings in it.

    Args:
        encoder: Reads the base model.
        questions: N texts, the subject already replaced.
        probe: How the answer begins after which the state is read.
        examples: Also read each question after :data:`EXAMPLES`.

    Returns:
        [N, H], or [N, 2 H] with examples.
    """
    read = _readings(encoder, questions, probe, examples)
    opening = encoder.format.opening
    encoder.beginnings = (opening, EXAMPLES) if examples else (opening,)
    states = encoder.final_states([prompt for way in read for prompt in way])
    return torch.cat(states.chunk(len(read)), 1)


def readable(encoder: PromptEncoder, question: str, probe: str, *, examples: bool) -> bool:
    """Return whether the model's context holds all readings of a question."""
    read = _readings(encoder, [question], probe, examples)
    return all(encoder.fits(prompt) for (prompt,) in read)


def wording_features(
    encoder: PromptEncoder,
    placeholder: str,
    probe: str,
    kinds: Iterable[Sequence[Sequence[str]]] | None = None,
    *,
    examples: bool = False,
) -> list[Relation]:
    """Return what is read of the wordings of relations, on the CPU; kept on disk for large models.

    Args:
        encoder: Reads the base model.
        placeholder: Replaces the subject.
        probe: As for :func:`read_questions`.
        kinds: For each kind of subject the wordings of its relations; None: all that ship.
        examples: As for :func:`read_questions`.
    """
    kinds = wordings_by_kind().values() if kinds is None else kinds
    relations = [(at, w) for at, kind in enumerate(kinds) for w in kind]
    texts = [text.replace("{subject}", placeholder) for _, asked in relations for text in asked]
    read = _readings(encoder, texts, probe, examples)
    states = torch.cat([kept_final_states(encoder, prompts) for prompts in read], 1)
    parts = torch.split(states, [len(asked) for _, asked in relations])
    return [Relation(part, kind) for (kind, _), part in zip(relations, parts, strict=True)]


def _readings(
    encoder: PromptEncoder, questions: Sequence[str], probe: str, examples: bool
) -> list[list[str]]:
    """Return the prompts at whose ends questions are read, one list a reading."""
    read = [[prompt + probe for prompt in encoder.prompts(questions)]]
    return [*read, [f"{EXAMPLES}{text} ->" for text in questions]] if examples else read
