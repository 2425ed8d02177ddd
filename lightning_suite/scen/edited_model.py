"""A model with a bank, as a system that can be scored."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any

from lightning_suite.scen.answers import Answer, Answerer, TeacherForced
from lightning_suite.scen.attachment import Attachment
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.evaluation import BaseAnswers
from lightning_suite.scen.systems import Decision


class EditedModel:
    """Answers with the experts of a bank; to edit is to switch on what the bank holds.

    With some of the edits switched on, the gate is that of a bank of these edits alone. A prompt
    at which no expert fires has the unedited model's answer (bit by bit the same logits), and one
    at which an expert fires has that expert's, whatever else is in the bank: so each answer is
    generated once for all numbers of edits.

    Args:
        bank: For the answerer's model; it is not changed.
        answerer: Of the model, without a bank attached.
        before: The unedited model's answers.
        name: In tables.
    """

    def __init__(
        self, bank: ExpertBank, answerer: Answerer, before: BaseAnswers, name: str = "scen"
    ) -> None:
        self.name = name
        self._all = bank
        self._bank: ExpertBank | None = None
        self._answerer, self._before = answerer, before
        self._on: set[str] = set()
        self._known: dict[tuple[str, str], Answer] = {}

    def edit(self, edits: Sequence[Edit]) -> None:
        """Switch on those of ``edits`` that the bank holds."""
        held = {edit.id for edit in self._all.edits}
        self._on |= {edit.id for edit in edits} & held
        self._bank = self._all if self._on == held else subset(self._all, self._on)

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """Answer with the edits that are on."""
        fired = [decision.fired for decision in self.route(questions)]
        base = iter(self._before([q for q, f in zip(questions, fired, strict=True) if f is None]))
        keys = [(q, f) for q, f in zip(questions, fired, strict=True) if f is not None]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if new:
            assert self._bank is not None
            with self._attached(self._bank):
                self._known |= zip(new, self._answerer([q for q, _ in new]), strict=True)
        return [
            next(base) if edit is None else self._known[question, edit]
            for question, edit in zip(questions, fired, strict=True)
        ]

    def answers_with_reasons(self, questions: Sequence[str]) -> list[dict[str, Any]]:
        """Return each question with the answers before and now, and the gate's decision."""
        return [
            {"prompt": question, "before": old.text, "answer": new.text, "finished": new.finished}
            | vars(decision)
            for question, old, new, decision in zip(
                questions,
                self._before(questions),
                self.answer(questions),
                self.route(questions),
                strict=True,
            )
        ]

    def teacher_forced(self, questions: Sequence[str], answers: Sequence[str]) -> TeacherForced:
        """Return how likely the edited model finds given answers."""
        if self._bank is None:
            return self._answerer.teacher_forced(questions, answers)
        with self._attached(self._bank):
            return self._answerer.teacher_forced(questions, answers)

    def route(self, questions: Sequence[str]) -> list[Decision]:
        """Return the gate's decision on each question."""
        if self._bank is None or not questions:
            return [Decision(None, None, -math.inf, -math.inf) for _ in questions]
        with self._attached(self._bank) as handle:
            return handle.explain(questions)

    def undo(self) -> None:
        """Switch all edits off."""
        self._on, self._bank = set(), None

    def _attached(self, bank: ExpertBank) -> Attachment:
        # whoever opened the bank has decided whether it may be used on this model
        return Attachment(bank, self._answerer.model, self._answerer.prompts.tokenizer)


def subset(bank: ExpertBank, ids: Collection[str]) -> ExpertBank:
    """Return a bank of some of the live edits: the same slots and experts, a gate of its own.

    Args:
        bank: It is not changed.
        ids: Of the edits that stay.
    """
    # A gate's encoder holds the whole model, and the experts are only read.
    shared: list[Any] = [bank.table, getattr(bank.gate, "encoder", None)]
    copied = copy.deepcopy(bank, {id(thing): thing for thing in shared if thing is not None})
    gone = [edit.id for edit in bank.edits if edit.id not in ids]
    if gone:
        copied.remove(gone)
    return copied
