"""Batches of answers that share exercises, so that an exercise's text is read once for many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

Batch = dict[str, Any]


class AnswerSamples(Dataset[Batch]):
    """Answers as batches of M exercises and N answers to them.

    Args:
        tokens: Tokens of each of E exercises.
        pad: Token to pad with, on the right; it is masked everywhere.
        q_matrix: bool [E, K].
        student: Of each answer: int64 [N].
        exercise: int64 [N].
        correct: float32 [N].
        batch_size: Answers that the mean batch has, which give batches a ``weight``: their
            answers over these. None for no weights.
    """

    def __init__(
        self,
        tokens: Sequence[Tensor],
        pad: int,
        q_matrix: Tensor,
        student: Tensor,
        exercise: Tensor,
        correct: Tensor,
        batch_size: float | None = None,
    ) -> None:
        self.tokens, self.pad, self.q_matrix = tokens, pad, q_matrix
        self.student, self.exercise, self.correct = student, exercise, correct
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.correct)

    def __getitem__(self, index: int | Sequence[int]) -> Batch:
        rows = torch.as_tensor([index] if isinstance(index, int) else index)
        exercises, place = self.exercise[rows].unique(return_inverse=True)
        size = self.batch_size
        return {
            **self.texts(exercises),
            **({} if size is None else {"weight": torch.tensor(len(rows) / size)}),
            "rows": place,
            "students": self.student[rows],
            "exercises": exercises,
            "kcs": self.q_matrix[exercises].float(),
            "correct": self.correct[rows],
        }

    def texts(self, exercises: Tensor) -> Batch:
        """Return ``input_ids`` and ``lengths`` of some exercises."""
        return pad_tokens([self.tokens[e] for e in exercises.tolist()], self.pad)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self[indices]


def pad_tokens(tokens: Sequence[Tensor], pad: int) -> dict[str, Tensor]:
    """Return ``input_ids`` int64 [M, P], padded on the right, and ``lengths`` int64 [M]."""
    ids = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True, padding_value=pad)
    return {"input_ids": ids, "lengths": torch.tensor([len(t) for t in tokens])}


class ExerciseBatches(DistributedSampler[Any]):
    """Batches of a few exercises with many of their answers each.

    The answers of an exercise are cut into chunks of like size, at most ``students`` each;
    ``exercises`` chunks are a batch. The batches depend on ``seed`` and the epoch alone, and every
    rank gets each so-many-th; where the number does not divide, some come twice.

    Args:
        exercise: The exercise of each answer: int64 [N].
        students: Most answers of an exercise in a batch.
        exercises: Chunks a batch.
        ranks: Number of ranks.
        rank: This one.
        seed: Draws who comes together, every epoch anew; None keeps the data's own order.

    Attributes:
        mean_size: Answers of a batch, the mean over an epoch's batches.
        alike: Whether all exercises have as many answers: then any answer has the same share of
            the batches' means over the epochs, without weights.
    """

    def __init__(
        self,
        exercise: Tensor,
        students: int,
        exercises: int,
        *,
        ranks: int = 1,
        rank: int = 0,
        seed: int | None = None,
    ) -> None:
        self.exercise, self.students, self.exercises = exercise, students, exercises
        counts = exercise.unique(return_counts=True)[1]
        self.chunks = int((-(-counts // students)).sum())
        batches: Any = range(-(-self.chunks // exercises))
        self.mean_size = len(exercise) / len(batches) if batches else 0.0
        self.alike = not len(counts) or bool((counts == counts[0]).all())
        super().__init__(batches, ranks, rank, shuffle=False, seed=seed or 0)
        self.shuffled = seed is not None

    def __iter__(self) -> Iterator[list[int]]:
        order, chunks = self._cut()
        for batch in super().__iter__():
            first = batch * self.exercises
            parts = chunks[first : first + self.exercises].tolist()
            yield torch.cat([order[start:end] for start, end in parts]).tolist()

    def _cut(self) -> tuple[Tensor, Tensor]:
        """Return this epoch's order of answers [N], and start and end in it of each chunk [C, 2].

        The batches are made of it one by one: lists of all pairs of a large school would not fit.
        """
        order = torch.arange(len(self.exercise))
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        if self.shuffled:
            order = order[torch.randperm(len(order), generator=generator)]
        order = order[self.exercise[order].argsort(stable=True)]
        counts = self.exercise[order].unique_consecutive(return_counts=True)[1]
        # the sizes of an exercise's chunks differ by one at most, the larger ones first
        number = -(-counts // self.students)
        place = torch.arange(self.chunks) - (number.cumsum(0) - number).repeat_interleave(number)
        size, larger = counts // number, counts % number
        sizes = size.repeat_interleave(number) + (place < larger.repeat_interleave(number))
        ends = sizes.cumsum(0)
        chunks = torch.stack([ends - sizes, ends], dim=1)
        if self.shuffled:
            chunks = chunks[torch.randperm(len(chunks), generator=generator)]
        return order, chunks
