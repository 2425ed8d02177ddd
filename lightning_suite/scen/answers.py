"""What a model answers: generated until it stops by itself, and compared as an examiner would."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.language.batching import token_budget_batches
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.surroundings import lasting

_BATCH_TOKENS = 8192  # most prompt tokens of a batch, padding included
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Answer:
    """What a model generated.

    Attributes:
        text: Without the end token and surrounding whitespace.
        finished: Whether the model ended it by itself, before the limit on new tokens.
    """

    text: str
    finished: bool


class TeacherForced(NamedTuple):
    """How a given answer fares when the model is shown its beginning; **not** generation.

    Attributes:
        accuracy: Share of the answer's tokens (end token included) that the model would have
            chosen. [N].
        nll: Their mean negative log-likelihood, in nats. [N].
    """

    accuracy: Tensor
    nll: Tensor


class Answerer:
    """Lets a causal LM answer questions: greedy (or beams), until it stops by itself.

    Questions are sorted by length and padded on the left; an answer depends on neither its batch
    nor its place in it, but for ties within rounding. Equal questions are generated once.

    Args:
        model: A Hugging Face causal LM; what is attached to it works.
        prompts: How a question becomes tokens, and which tokens end an answer.
        batch_size: Most questions at a time.
        max_new_tokens: Limit; an answer that reaches it is not ``finished``.
        num_beams: 1 is greedy.

    Raises:
        SuiteError: A number is out of range; in calls: a prompt with its answer is longer than
            the model's context.
    """

    def __init__(
        self,
        model: Any,
        prompts: PromptFormat,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 32,
        num_beams: int = 1,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("max_new_tokens", max_new_tokens),
            ("num_beams", num_beams),
        ):
            if value < 1:
                raise SuiteError(f"{name}={value}, and it must be at least 1.")
        self.model = model
        self.prompts = prompts
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams

    def __call__(self, questions: Sequence[str]) -> list[Answer]:
        """Return the answer to each question, in the order of the questions."""
        distinct = list(dict.fromkeys(questions))
        tokens = [self.prompts.encode(question) for question in distinct]
        self._check_lengths(distinct, [len(ids) + self.max_new_tokens for ids in tokens])
        answers: dict[str, Answer] = {}
        with evaluating(self.model):
            for batch in token_budget_batches([*map(len, tokens)], _BATCH_TOKENS, self.batch_size):
                found = self._generate([tokens[i] for i in batch])
                answers |= zip((distinct[i] for i in batch), found, strict=True)
        return [answers[question] for question in questions]

    def teacher_forced(self, questions: Sequence[str], answers: Sequence[str]) -> TeacherForced:
        """Return how likely the model finds given answers.

        The prompt is read first and the answer after it, through the cache, as in generation:
        what decides on a prompt decides on the same tokens.

        Args:
            questions: N questions.
            answers: N answers, not empty.
        """
        encoded = [
            self.prompts.encode_answer(question, answer)
            for question, answer in zip(questions, answers, strict=True)
        ]
        self._check_lengths(questions, [len(ids) for ids, _ in encoded])
        accuracy, nll = torch.zeros(2, len(encoded), dtype=torch.float32).unbind()
        lengths = [len(ids) for ids, _ in encoded]
        with evaluating(self.model):
            for batch in token_budget_batches(lengths, _BATCH_TOKENS, self.batch_size):
                right, logp, n = self._score([encoded[i] for i in batch])
                accuracy[batch] = (right / n).cpu()
                nll[batch] = (-logp / n).cpu()
        return TeacherForced(accuracy, nll)

    def _generate(self, tokens: list[list[int]]) -> list[Answer]:
        batch = self._batch(tokens, "left")
        out = self.model.generate(
            **batch,
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            do_sample=False,
            # None: what a model's own settings say about sampling is not asked for here
            temperature=None,
            top_k=None,
            top_p=None,
            eos_token_id=list(self.prompts.end_token_ids),
            pad_token_id=self.prompts.pad_token_id,
        )
        ends = set(self.prompts.end_token_ids)
        return [
            Answer(self.prompts.decode(row), not ends.isdisjoint(row))
            for row in out[:, batch["input_ids"].shape[1] :].tolist()
        ]

    def _score(self, encoded: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
        prompt = self._batch([tokens[:n] for tokens, n in encoded], "left")
        answer = self._batch([tokens[n:] for tokens, n in encoded], "right")
        wanted, shown = answer["input_ids"], answer["attention_mask"]
        start = prompt["input_ids"].shape[1]
        mask = torch.cat([prompt["attention_mask"], shown], 1)
        places = (mask.cumsum(1) - 1).clamp_min(0)
        first = self.model(**prompt, position_ids=places[:, :start], use_cache=True)
        logits = first.logits[:, -1:]
        if wanted.shape[1] > 1:
            rest = self.model(
                input_ids=wanted[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=places[:, start:-1],
                past_key_values=first.past_key_values,
                use_cache=True,
            )
            logits = torch.cat([logits, rest.logits], 1)
        logp = logits.float().log_softmax(-1)
        right = (logp.argmax(-1) == wanted) & shown.bool()
        gained = logp.gather(-1, wanted[..., None])[..., 0] * shown
        return right.sum(1).float(), gained.sum(1), shown.sum(1)

    def _batch(self, tokens: list[list[int]], side: Literal["left", "right"]) -> dict[str, Tensor]:
        batch = self.prompts.batch(tokens, side)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def _check_lengths(self, questions: Sequence[str], lengths: Sequence[int]) -> None:
        config = getattr(self.model.config, "text_config", None) or self.model.config
        limit = getattr(config, "max_position_embeddings", None)
        for question, length in zip(questions, lengths, strict=True):
            if limit is not None and length > limit:
                shown = question if len(question) <= 60 else f"{question[:57]}…"
                raise SuiteError(
                    f"the prompt {shown!r} needs {length} tokens with its answer, and the model's "
                    f"context has {limit}. Shorten the prompt, or lower max_new_tokens."
                )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without gradients and dropout inside the block; then each module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def learning(model: torch.nn.Module) -> Iterator[None]:
    """With gradients, also inside a Trainer's evaluation, without autocast and dropout."""
    with evaluating(model), lasting(gradients=True):
        yield


def normalise(text: str) -> str:
    """Return ``text`` in lower case, without punctuation, articles and surplus whitespace.

    The normalisation of SQuAD's evaluation (arXiv 1606.05250), for Unicode: compatible forms are
    made one (NFKC) and all Unicode punctuation goes.

    Example:
        >>> normalise("The  Côte d’Ivoire.")
        'côte divoire'
    """
    plain = unicodedata.normalize("NFKC", text).lower()
    kept = (c for c in plain if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", "".join(kept)).split())


def same_answer(one: str, other: str) -> bool:
    """Return whether two answers are equal once normalised.

    A text of which normalisation leaves nothing (``"?"``, ``"The"``) is compared as it stands.
    """
    left, right = normalise(one), normalise(other)
    return left == right and (bool(left) or one.strip() == other.strip())


def right_answer(answer: Answer, target: str) -> bool:
    """Return whether the model gave the target and then stopped."""
    return answer.finished and same_answer(answer.text, target)


def contains_answer(text: str, answer: str) -> bool:
    """Return whether ``answer`` occurs in ``text`` as whole words, both normalised.

    An answer of which normalisation leaves nothing is looked for as it stands.
    """
    wanted = normalise(answer)
    if not wanted:
        return answer.strip() in text.split()
    return f" {wanted} " in f" {normalise(text)} "
