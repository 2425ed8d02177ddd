"""Find which subjects of edits a text speaks of, in time that does not grow with their number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from lightning_suite.scen.edits import Edit

_WORD = re.compile(r"\w+")
_LEADING = frozenset({"the", "a", "an"})
# Words that name nothing by themselves: articles, pronouns, auxiliaries, prepositions, questions.
_COMMON_WORDS = """
    a an the this that these those it its he she his her they their them we our you your i my me
    is are was were be been being am do does did has have had can could will would shall should may
    might must not no of in on at to for from by with about as into over after before between under
    out up down off and or but if than then so such there here who whom whose which what when where
    why how name tell give state say list mention please just also only very more most other same
    s t
"""
_COMMON = frozenset(_COMMON_WORDS.split())
Words = tuple[str, ...]


class Match(NamedTuple):
    """A known subject in a text.

    Attributes:
        words: The subject, as :func:`subject_words` returns it.
        spans: Where it stands, as (start, end) of characters, left to right.
    """

    words: Words
    spans: tuple[tuple[int, int], ...]


class InnerMatch(NamedTuple):
    """A known subject inside a longer one.

    Attributes:
        words: The subject.
        spans: All places where it stands, within longer ones and elsewhere, left to right.
        around: Of each longer one that it stands in, the words before it and those after it.
    """

    words: Words
    spans: tuple[tuple[int, int], ...]
    around: tuple[tuple[Words, Words], ...]


def subject_words(subject: str) -> Words:
    """Return the words of a subject without case, accents, punctuation and a leading article."""
    words = tuple(word for word, _, _ in _words(subject))
    return words[1:] if len(words) > 1 and words[0] in _LEADING else words


class SubjectIndex:
    """A set of subjects, each a run of words, that is looked up in texts.

    Every run of words of a text that is no longer than a subject with that first word is looked
    up in a hash table: time in proportion to the text, whatever the number of subjects.
    """

    def __init__(self) -> None:
        self._slots: dict[Words, list[int]] = {}
        self._longest: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, words: Words, slot: int) -> None:
        """Add a subject of ``slot``; several slots may share one."""
        self._slots.setdefault(words, []).append(slot)
        self._longest[words[0]] = max(self._longest.get(words[0], 0), len(words))

    def remove(self, words: Words, slot: int) -> None:
        """Take ``slot`` from a subject; the subject goes with its last one."""
        slots = self._slots[words]
        slots.remove(slot)
        if not slots:
            del self._slots[words]

    def slots(self, words: Words) -> Sequence[int]:
        """Return the slots that have this subject, in the order in which they were added."""
        return self._slots.get(words, ())

    def find(self, text: str) -> list[Match]:
        """Return the subjects that ``text`` speaks of, the first one first.

        A subject inside a longer one, as "Korea" in "South Korea", is not meant there, unless an
        edit about it says so itself: :meth:`find_inner`.
        """
        words = list(_words(text))
        found: list[tuple[int, int, Words]] = []
        for start, (first, _, _) in enumerate(words):
            # The longest at a place is enough: shorter ones lie inside it.
            for end in range(min(start + self._longest.get(first, 0), len(words)), start, -1):
                run = tuple(word for word, _, _ in words[start:end])
                if run in self._slots:
                    found.append((start, end, run))
                    break
        spans: dict[Words, list[tuple[int, int]]] = {}
        reached = 0
        for start, end, run in found:
            if end > reached:  # starts are in order: what ends no later lies inside
                spans.setdefault(run, []).append((words[start][1], words[end - 1][2]))
            reached = max(reached, end)
        return [Match(run, tuple(places)) for run, places in spans.items()]

    def find_inner(self, text: str) -> list[InnerMatch]:
        """Return the subjects that stand in ``text`` inside longer ones."""
        words = list(_words(text))
        found = [
            (start, end, run)
            for start, (first, _, _) in enumerate(words)
            for end in range(start + 1, min(start + self._longest.get(first, 0), len(words)) + 1)
            if (run := tuple(word for word, _, _ in words[start:end])) in self._slots
        ]
        inner: dict[Words, list[tuple[Words, Words]]] = {}
        for start, end, run in found:
            for first, last, longer in found:
                if first <= start and end <= last and len(longer) > len(run):
                    around = (longer[: start - first], longer[end - first :])
                    inner.setdefault(run, []).append(around)
        return [
            InnerMatch(
                run,
                tuple((words[s][1], words[e - 1][2]) for s, e, other in found if other == run),
                tuple(around),
            )
            for run, around in inner.items()
        ]


def has_words(text: str, run: Words) -> bool:
    """Return whether a text has the words of ``run`` one after the other."""
    return _contains([word for word, _, _ in _words(text)], run)


def replaced(text: str, spans: Iterable[tuple[int, int]], placeholder: str) -> str:
    """Return ``text`` with ``placeholder`` in place of each span, which are left to right."""
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], placeholder]
        at = max(at, end)
    return "".join([*parts, text[at:]])


def find_words(text: str, words: Words) -> str:
    """Return the part of ``text`` that reads as ``words``, as it is written there."""
    index = SubjectIndex()
    index.add(words, 0)
    (start, end), *_ = index.find(text)[0].spans
    return text[start:end]


def edit_subject(edit: Edit) -> tuple[Words, bool]:
    """Return the words that a prompt must have to be about ``edit``, and whether they are a guess.

    Taken from the first of these that there is:

    1. ``edit.subject``, where the prompt has it;
    2. the run of words that the prompt shares with every paraphrase given; the shortest one with
       the most capitalised words, or where there are none the last one;
    3. the last run of capitalised words or numbers that does not open the prompt;
    4. the last run of words that are not common;
    5. the whole prompt.
    """
    if edit.subject:
        words = subject_words(edit.subject)
        if words and _contains([word for word, _, _ in _words(edit.prompt)], words):
            return words, False
    prompt = list(_words(edit.prompt))
    plain = [word for word, _, _ in prompt]
    naming = [word not in _COMMON for word in plain]
    capital = [
        index > 0 and naming[index] and not edit.prompt[start:end].islower()
        for index, (_, start, end) in enumerate(prompt)
    ]
    others = [[word for word, _, _ in _words(text)] for text in edit.paraphrases]
    shared = [
        (start, end)
        for start, end in combinations(range(len(plain) + 1), 2)
        if naming[start]
        and naming[end - 1]
        and others
        and all(_contains(text, tuple(plain[start:end])) for text in others)
    ]
    if shared:
        most = max(sum(capital[slice(*run)]) for run in shared)
        if most:  # no more than the name
            named = [run for run in shared if sum(capital[slice(*run)]) == most]
            start, end = min(named, key=lambda run: run[1] - run[0])
        else:
            start, end = max(shared, key=lambda run: (run[1], run[1] - run[0]))
        return tuple(plain[start:end]), True
    return _last_run(plain, capital) or _last_run(plain, naming) or tuple(plain), True


def edit_aliases(edit: Edit) -> tuple[Words, ...]:
    """Return the words of the other names that ``edit`` says its subject has, each once."""
    own = edit_subject(edit)[0]
    named = (subject_words(alias) for alias in edit.aliases)
    return tuple(dict.fromkeys(words for words in named if words and words != own))


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each word without case and accents, and where it stands."""
    for found in _WORD.finditer(text):
        decomposed = unicodedata.normalize("NFKD", found.group())
        bare = "".join(char for char in decomposed if not unicodedata.combining(char))
        yield bare.casefold(), found.start(), found.end()


def _contains(words: Sequence[str], run: Words) -> bool:
    return any(tuple(words[i : i + len(run)]) == run for i in range(len(words) - len(run) + 1))


def _last_run(words: Sequence[str], wanted: Sequence[bool]) -> Words:
    end = next((i + 1 for i in reversed(range(len(words))) if wanted[i]), 0)
    start = next((i + 1 for i in reversed(range(end)) if not wanted[i]), 0)
    return tuple(words[start:end])
