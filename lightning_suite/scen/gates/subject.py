"""A gate that asks two questions: is this the edit's subject, and is this asked of it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.rank_zero import rank_zero_info
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.gates.base import Gate, PromptQuery, Routing
from lightning_suite.scen.gates.keyed import misses
from lightning_suite.scen.known_metrics import known_metric
from lightning_suite.scen.question_readings import PROBE, read_questions, readable
from lightning_suite.scen.relation_metric import RelationMetric
from lightning_suite.scen.subjects import (
    SubjectIndex,
    Words,
    edit_aliases,
    edit_subject,
    has_words,
    replaced,
    subject_words,
)
from lightning_suite.scen.whitening import Whitening

_NAMES_SHOWN = 5


class _Key(NamedTuple):
    """What is known of the edit in a slot: its subject's names, and the numbers of its wordings."""

    subjects: tuple[Words, ...]
    wordings: tuple[int, ...]


class SubjectRelationGate(Gate):
    """Fires where a prompt names the edit's subject and asks the same of it.

    1. The subjects of all edits are looked up in the prompt, word for word (case, accents and
       punctuation aside), in time that does not grow with the number of edits. A prompt without
       any is the base model's, at no further cost.
    2. The prompt with a placeholder for the subject, and with an answer that begins "The question
       asks for the", is read by the base model, and with ``examples`` also after examples of
       questions and of what they ask for, both in one pass over the question's own tokens: keys
       and values of what stands before it are kept. From its final states and those of the edit's
       own prompt and paraphrases follows how much likelier it is that they ask the same than that
       they do not. What is the same, and the threshold, come from the wordings of other relations
       (:mod:`~lightning_suite.scen.relation_metric`). A prompt that is word for word one of an
       edit's own is not read at all.

    Edits that ask the same of different subjects share their wordings: a million edits of ten
    relations have ten keys. Another name of the subject is
    recognised where the edit gives it in its ``aliases``.

    Args:
        encoder: Reads the base model.
        placeholder: What replaces the subject.
        probe: How the answer begins after which the state is read.
        false_rate: Share of questions that may pass of those about the relations nearest to an
            edit's, among what ships with the package.
        examples: Read the question after ten examples too. Without it more rephrases are missed
            and more near questions taken.
    """

    kind = "subject"
    stage = "prompt"
    features: Tensor
    mean: Tensor
    matrix: Tensor
    between: Tensor
    thresholds: Tensor

    def __init__(
        self,
        encoder: PromptEncoder,
        *,
        placeholder: str = "X",
        probe: str = PROBE,
        false_rate: float = 0.03,
        examples: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.placeholder, self.probe, self.false_rate = placeholder, probe, false_rate
        self.examples = examples
        for name, shape in (("features", (0, 0)), ("mean", 0), ("matrix", (0, 0))):
            self.register_buffer(name, torch.empty(shape, dtype=torch.float32))
        self.register_buffer("between", torch.empty(0, dtype=torch.float32))
        self.register_buffer("thresholds", torch.empty(0, dtype=torch.float32))
        self._index = SubjectIndex()
        self._keys: dict[int, _Key] = {}
        self._wordings: dict[str, int] = {}
        self._texts: list[str] = []  # of the wordings, by number

    @property
    def metric(self) -> RelationMetric:
        """Return how wordings are compared."""
        return RelationMetric(Whitening(self.mean, self.matrix), self.between, self.thresholds)

    def add(self, edits: Sequence[Edit], slots: Sequence[int]) -> None:
        """Look up subjects and encode the wordings that no edit had before."""
        if edits:
            self._prepare()
        self.remove([slot for slot in slots if slot in self._keys])
        guessed = []
        for edit, slot in zip(edits, slots, strict=True):
            subject, guess = edit_subject(edit)
            if guess:
                guessed.append(f"{edit.id}: {' '.join(subject)}")
            aliases = edit_aliases(edit)
            asked = dict.fromkeys(
                self._masked(question, (subject, *aliases))
                for question in (edit.prompt, *edit.paraphrases)
            )
            numbers = [self._wordings.setdefault(text, len(self._wordings)) for text in asked]
            self._hold(slot, _Key((subject, *aliases), tuple(numbers)))
        try:
            self._read_new()
        except BaseException:  # as if they had never been given
            self.remove(slots)
            raise
        if guessed:
            shown = "; ".join(guessed[:_NAMES_SHOWN])
            rank_zero_info(
                f"gate {self.kind!r}: {len(guessed)} of {len(edits)} edits do not say what they "
                f"are about; taken from their prompts: {shown}"
                f"{' …' if len(guessed) > _NAMES_SHOWN else ''}. Give 'subject' to be sure."
            )

    def remove(self, slots: Sequence[int]) -> None:
        """Forget the edits in ``slots``, and the wordings that no other edit has."""
        for slot in slots:
            key = self._keys.pop(slot, None)
            if key is not None:
                for words in key.subjects:
                    self._index.remove(words, slot)
        self._forget_unused()

    def renumber(self, slots: Sequence[int]) -> None:
        """Give the edits in ``slots`` the slots 0, 1, …; no others are left."""
        kept = [self._keys[slot] for slot in slots]
        self._index, self._keys = SubjectIndex(), {}
        for slot, key in enumerate(kept):
            self._hold(slot, key)
        self._forget_unused()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change the keys in the block; if it raises, lookups and tables are as before."""
        # Tables are never written to here, and lookups may be large: both are kept as they are.
        before, keys, wordings = dict(self._buffers), dict(self._keys), dict(self._wordings)
        try:
            yield
        except BaseException:
            self._buffers.update(before)
            self._wordings, self._texts = wordings, []
            self._index, self._keys = SubjectIndex(), {}
            for slot, key in keys.items():
                self._hold(slot, key)
            raise

    def route(self, query: PromptQuery) -> Routing:
        """Decide on each prompt: one forward pass of those that name a subject.

        A question that fills the model's context so far that it cannot be read asks for no edit.

        Raises:
            ValueError: The query has no texts.
        """
        if query.texts is None:
            raise ValueError(f"the gate {self.kind!r} reads the text of prompts.")
        if self._keys:
            self._prepare()
        expert, nearest, score, margin = misses(len(query.texts), self.features.device)
        asked = [
            (row, slots, text)
            for row, prompt in enumerate(query.texts)
            for slots, text in self._candidates(prompt)
            if text in self._wordings
            or readable(self.encoder, text, self.probe, examples=self.examples)
        ]
        texts = list(dict.fromkeys(text for _, _, text in asked))
        states = self._states(texts) if texts else self.features
        place = {text: number for number, text in enumerate(texts)}
        metric, scores, sure = self.metric, dict[tuple[int, ...], Tensor](), set[int]()
        for row, slots, text in asked:
            for slot in slots:
                own = self._keys[slot].wordings
                if own not in scores:
                    scores[own] = metric.scores(states, self.features[list(own)])
                found, limit = float(scores[own][place[text]]), metric.threshold(len(own))
                same = self._wordings.get(text) in own
                above = max(found - limit, 0.0) if same else found - limit
                if (same, above) > (row in sure, float(margin[row])):
                    sure |= {row} if same else set()
                    nearest[row], score[row], margin[row] = slot, above + limit, above
        return Routing(torch.where(margin >= 0, nearest, expert), nearest, score, margin)

    def check(self) -> None:
        """Refuse lookups that do not fit the tables."""
        texts = (self.placeholder, self.probe, *self._wordings)
        numbers = [number for key in self._keys.values() for number in key.wordings]
        learnt = len(self.mean)
        fits = (
            all(isinstance(text, str) for text in texts)
            and isinstance(self.examples, bool)
            and type(self.false_rate) in (int, float)
            and all(type(slot) is int and slot >= 0 for slot in self._keys)
            and all(type(number) is int and 0 <= number < len(self._wordings) for number in numbers)
            and all(key.wordings for key in self._keys.values())
            and (not learnt or self.matrix.shape[:1] == self.mean.shape)
            and (
                not (learnt and self._wordings)
                or self.features.shape == (len(self._wordings), self.matrix.shape[1])
            )
            and (not learnt or self.between.shape == self.matrix.shape[1:])
            and self.thresholds.ndim == 1
            and bool(len(self.thresholds)) == bool(learnt)
        )
        if not fits:
            raise SuiteError("the lookups of the gate 'subject' do not fit its tables.")

    def get_extra_state(self) -> dict[str, Any]:
        """Return subjects and wordings as plain values."""
        return {
            "placeholder": self.placeholder,
            "probe": self.probe,
            "false_rate": self.false_rate,
            "examples": self.examples,
            "wordings": list(self._wordings),
            "edits": [
                [
                    slot,
                    " ".join(key.subjects[0]),
                    list(key.wordings),
                    *map(" ".join, key.subjects[1:]),
                ]
                for slot, key in self._keys.items()
            ],
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Build the tables of lookups again."""
        self.placeholder, self.probe = state["placeholder"], state["probe"]
        self.false_rate = state["false_rate"]
        self.examples = state.get("examples", False)  # as were all before there were any
        self._wordings = {text: number for number, text in enumerate(state["wordings"])}
        self._texts = []
        self._index, self._keys = SubjectIndex(), {}
        for slot, subject, wordings, *aliases in state["edits"]:
            names = tuple(tuple(name.split(" ")) for name in (subject, *aliases))
            self._hold(slot, _Key(names, tuple(wordings)))

    def _hold(self, slot: int, key: _Key) -> None:
        self._keys[slot] = key
        for words in key.subjects:
            self._index.add(words, slot)

    def _forget_unused(self) -> None:
        used = sorted({number for key in self._keys.values() for number in key.wordings})
        if len(used) == len(self._wordings):
            return
        texts, place = list(self._wordings), {old: new for new, old in enumerate(used)}
        self._wordings = {texts[old]: new for old, new in place.items()}
        self._texts = []
        # Those that have not been read yet are the last.
        self.features = self.features[[old for old in used if old < len(self.features)]]
        for slot, key in self._keys.items():
            numbers = tuple(place[number] for number in key.wordings)
            self._keys[slot] = key._replace(wordings=numbers)

    def _prepare(self) -> None:
        """Learn the metric if that was not done; a bank of an older format has another one."""
        if not self.mean.numel():
            metric = known_metric(
                self.encoder,
                self.placeholder,
                self.probe,
                false_rate=self.false_rate,
                examples=self.examples,
            )
            # Copies: other gates may have the same metric.
            self.mean, self.matrix = (t.to(self.mean, copy=True) for t in metric.whitening)
            self.between = metric.between.to(self.mean, copy=True)
            self.thresholds = metric.thresholds.to(self.mean, copy=True)
            self._read_new()

    def _read_new(self) -> None:
        new = list(self._wordings)[len(self.features) :]
        if new:
            found = self._encode(new)
            self.features = torch.cat([self.features.reshape(-1, found.shape[1]), found])

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if prefix + "between" not in state_dict:  # before format 2: features compared by cosines
            names = ("mean", "matrix", "between", "thresholds", "features")
            empty = {prefix + name: self._buffers[name] for name in names}
            state_dict = {
                **state_dict,
                **{key: t.new_empty((0,) * t.dim()) for key, t in empty.items() if t is not None},
            }
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _states(self, questions: Sequence[str]) -> Tensor:
        """Return what is known of questions; those in an edit's own words have been read."""
        new = [text for text in questions if text not in self._wordings]
        fresh = iter(self._encode(new) if new else ())
        return torch.stack(
            [
                next(fresh) if number is None else self.features[number]
                for number in map(self._wordings.get, questions)
            ]
        )

    def _encode(self, questions: Sequence[str]) -> Tensor:
        states = read_questions(self.encoder, questions, self.probe, examples=self.examples)
        return self.metric.embed(states.to(self.mean))

    def _masked(self, question: str, names: Sequence[Words]) -> str:
        one = SubjectIndex()
        for words in names:
            one.add(words, 0)
        spans = sorted(span for match in one.find(question) for span in match.spans)
        return replaced(question, spans, self.placeholder)

    def _candidates(self, prompt: str) -> Iterator[tuple[Sequence[int], str]]:
        """Yield the slots of each subject in a prompt, and the question without that subject."""
        question = self.encoder.format.question_in(prompt)
        for match in self._index.find(question):
            masked = replaced(question, match.spans, self.placeholder)
            yield self._index.slots(match.words), masked
        # "New York" in "New York City": meant by an edit of the one that speaks of the other.
        for inner in self._index.find_inner(question):
            stand_in = subject_words(self.placeholder)
            runs = [(*before, *stand_in, *after) for before, after in inner.around]
            slots = [
                slot
                for slot in self._index.slots(inner.words)
                if any(self._says(slot, run) for run in runs)
            ]
            if slots:
                yield slots, replaced(question, inner.spans, self.placeholder)

    def _says(self, slot: int, run: Words) -> bool:
        """Return whether one of an edit's own wordings has a run of words."""
        if len(self._texts) != len(self._wordings):
            self._texts = list(self._wordings)
        return any(has_words(self._texts[number], run) for number in self._keys[slot].wordings)
