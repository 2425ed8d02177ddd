"""What an edit is: a prompt, the answer that it is to have, and what is known around it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LocalityPrompt:
    """A prompt whose answer an edit must leave alone.

    Attributes:
        prompt: The question.
        kind: What it shares with the edit: ``"same_subject"`` (another relation of the subject),
            ``"same_object"`` (a fact that already has the new answer), ``"random"`` (nothing), or
            a name of the data's own.
        answer: The right answer, where the data has one. Locality is judged against the unedited
            model, never against this.
    """

    prompt: str
    kind: str = "random"
    answer: str | None = None


@dataclass(frozen=True)
class Edit:
    """One fact to be changed.

    Attributes:
        id: Names the edit in banks, reports and errors; unique.
        prompt: The question as the user asks it.
        target: The answer that the model shall give from now on.
        subject: The words of ``prompt`` that name what the fact is about; None where unknown.
        aliases: Other names of the subject, by which prompts may call it. Given to the method.
        paraphrases: Other wordings **given to the method**: the gate and the expert may learn
            from them.
        rephrases: Other wordings **kept for evaluation** (generality); no method ever sees them
            before it is scored.
        locality: Prompts that must keep their answers; for evaluation only.
    """

    id: str
    prompt: str
    target: str
    subject: str | None = None
    paraphrases: tuple[str, ...] = ()
    rephrases: tuple[str, ...] = ()
    locality: tuple[LocalityPrompt, ...] = ()
    aliases: tuple[str, ...] = ()
