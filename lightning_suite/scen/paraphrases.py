"""Other wordings of edits for the method to learn from: by template, or written by the base model.

They come from the edit's own prompt and nothing else. A wording that would tell the target, loses
the subject, asks nothing new, or is one of those that are kept for the evaluation is left out, so
an edit may end up with fewer than asked for, or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from lightning_suite.scen.answers import Answerer
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.records import same_prompt
from lightning_suite.scen.subjects import (
    SubjectIndex,
    edit_aliases,
    edit_subject,
    find_words,
    subject_words,
)

Way = Literal["template", "model"]
TEMPLATES = (
    "Tell me: {prompt}",
    "I would like to know: {prompt}",
    "{prompt} Answer in a few words.",
    "Here is a quiz question. {prompt}",
    "A friend asked me this: {prompt}",
)
# Each is asked once and answered greedily, so the outcome is always the same.
INSTRUCTIONS = (
    'Rewrite this question in other words. Keep the name "{subject}". Write only the new question.'
    "\n{prompt}",
    'Ask the same thing about "{subject}" in a different way. Write one question and nothing else.'
    "\n{prompt}",
    'How would a child ask this about "{subject}"? Write only the question.\n{prompt}',
    'Write a longer question about "{subject}" that has the same answer as this one.\n{prompt}',
    'Write a very short question about "{subject}" that asks the same as this one.\n{prompt}',
)
_DECORATION = re.compile(r"^(?:\s*(?:\d+[.)]|[-*•])\s*)?(?:\w[\w ]{0,30}:\s+)?[\"'“”‘’]*\s*")
_TALK = re.compile(r"[.!?:]['\"”’]?\s|[\"“”]")
_LONGEST = 4  # times the words of the prompt, and a few more


def by_template(edits: Sequence[Edit], count: int) -> list[Edit]:
    """Return edits with ``count`` paraphrases more at most, made by templates."""
    return [
        with_wordings(edit, [t.replace("{prompt}", edit.prompt) for t in TEMPLATES], count)
        for edit in edits
    ]


def by_model(
    edits: Sequence[Edit],
    count: int,
    answerer: Answerer,
    on_edit: Callable[[Edit], None] | None = None,
) -> list[Edit]:
    """Return edits with ``count`` paraphrases more at most, written by a model.

    Args:
        edits: Of which prompt and subject are shown to the model.
        count: Most wordings an edit.
        answerer: Of the unedited model, greedy.
        on_edit: Called with each edit when it is finished.
    """
    size = max(1, answerer.batch_size // len(INSTRUCTIONS))
    done: list[Edit] = []
    for start in range(0, len(edits), size):
        group = edits[start : start + size]
        asked = [
            instruction.replace("{subject}", _subject(edit)).replace("{prompt}", edit.prompt)
            for edit in group
            for instruction in INSTRUCTIONS
        ]
        answers = iter(answerer(asked))
        for edit in group:
            written = [next(answers) for _ in INSTRUCTIONS]
            texts = [cleaned(answer.text) for answer in written if answer.finished]
            done.append(with_wordings(edit, texts, count))
            if on_edit is not None:
                on_edit(done[-1])
    return done


def with_wordings(edit: Edit, texts: Sequence[str], count: int) -> Edit:
    """Return ``edit`` with the first ``count`` of ``texts`` that are of use, see :func:`usable`."""
    found: list[str] = []
    for text in texts:
        if len(found) < count and usable(
            replace(edit, paraphrases=(*edit.paraphrases, *found)), text
        ):
            found.append(text)
    return replace(edit, paraphrases=(*edit.paraphrases, *found))


def usable(edit: Edit, text: str) -> bool:
    """Return whether the method may learn ``text`` as another wording of the edit's prompt.

    It names the subject; it is neither the prompt, nor known already, nor kept for the evaluation;
    it does not tell the target, unless the prompt does; a question stays a question; and it is no
    speech.
    """
    known = (edit.prompt, *edit.paraphrases, *edit.rephrases, *(p.prompt for p in edit.locality))
    if same_prompt(text) in map(same_prompt, known) or "\n" in text.strip():
        return False
    names = (edit_subject(edit)[0], *edit_aliases(edit))
    target = subject_words(edit.target)
    tells = bool(target) and _has(text, target) and not _has(edit.prompt, target)
    question = not edit.prompt.endswith("?") or "?" in text
    short = len(text.split()) <= _LONGEST * len(edit.prompt.split()) + _LONGEST
    return any(_has(text, name) for name in names) and question and short and not tells


def cleaned(text: str) -> str:
    """Return the first line of what a model wrote, without number, label and quotation marks.

    Nothing where the line is more than one sentence or quotes something: that is talk about the
    question.
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    bare = _DECORATION.sub("", line, count=1).strip()
    sentence = bare.strip("\"'“”‘’ ")
    return "" if _TALK.search(sentence) else sentence


def _has(text: str, words: tuple[str, ...]) -> bool:
    index = SubjectIndex()
    index.add(words, 0)
    return bool(index.find(text))


def _subject(edit: Edit) -> str:
    return find_words(edit.prompt, edit_subject(edit)[0])
