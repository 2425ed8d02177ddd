"""What LMCD is measured against: bounds, models of ids, and ridge regression on frozen text.

Every function gets training answers and returns logits for other answers, so that all are scored
on the same split with the same metrics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_suite.lmcd.heads.base import Head
from lightning_suite.lmcd.heads.registry import make_head
from lightning_suite.lmcd.metrics import score_answers
from lightning_suite.lmcd.ridge import RidgeFit, fit_ridge


class Answers(NamedTuple):
    """N answers: ``student`` and ``exercise`` int64 [N], ``correct`` 0 or 1 [N]."""

    student: Tensor
    exercise: Tensor
    correct: Tensor


def rate_logits(who: Tensor, correct: Tensor, count: int) -> Tensor:
    """Return the logit of the share of right answers of each of ``count`` students or exercises.

    Shares are drawn half an answer towards the overall share, so that all are finite; one without
    answers has the overall share. float64 [count].
    """
    right = torch.zeros(count, dtype=torch.float64).index_add(0, who, correct.double())
    total = torch.zeros(count, dtype=torch.float64).index_add(
        0, who, torch.ones_like(correct, dtype=torch.float64)
    )
    overall = correct.double().mean().clamp(1e-6, 1 - 1e-6)
    return torch.logit((right + overall) / (total + 1))


def floor_logits(train: Answers, test: Answers, students: int) -> Tensor:
    """Return each student's own rate: what is known without the exercise. [N]."""
    return rate_logits(train.student, train.correct, students)[test.student]


def ceiling_logits(train: Answers, test: Answers, students: int, exercises: int) -> Tensor:
    """Return the student's rate and the *test's own* difficulty of each exercise. [N].

    Where all students answered the same exercises, a model with one ability hardly does better,
    and one with several may. Where they did not, it is no ceiling: the rate of one who was asked
    hard exercises is low, and a model with one ability may pass it, too.
    """
    easy = rate_logits(test.exercise, test.correct, exercises)
    return floor_logits(train, test, students) + easy[test.exercise]


class ColdStartBounds(NamedTuple):
    """Metrics of the floor and of the ceiling, as :func:`score_answers` gives them."""

    floor: dict[str, Tensor]
    ceiling: dict[str, Tensor]


def cold_start_bounds(
    train: Answers, test: Answers, students: int, exercises: int
) -> ColdStartBounds:
    """Return what results on this split are read beside; see :func:`ceiling_logits`."""
    return ColdStartBounds(
        score_answers(floor_logits(train, test, students), test.correct),
        score_answers(ceiling_logits(train, test, students, exercises), test.correct),
    )


def easiness_ridge(train: Answers, features: Tensor) -> RidgeFit:
    """Regress the easiness of the training exercises on features of all exercises [E, H]."""
    easy = rate_logits(train.exercise, train.correct, len(features))
    seen = train.exercise.unique()
    return fit_ridge(features[seen], easy[seen])


def ridge_logits(train: Answers, test: Answers, features: Tensor, students: int) -> Tensor:
    """Return the student's rate and the easiness that features [E, H] predict. [N].

    Features may be q_v of a frozen model, or the rows of the Q-matrix.
    """
    easy = easiness_ridge(train, features).predict(features)
    return floor_logits(train, test, students) + easy[test.exercise]


class IdModel(nn.Module):
    """A diagnosis model that knows exercises by their ids: the heads of LMCD on tables of vectors.

    Args:
        head: A name of the registry of heads.
        students: S.
        exercises: E.
        q_matrix: [E, K].
        dim: Length of the vectors.
        seed: Of the start.
    """

    def __init__(
        self,
        head: str,
        students: int,
        exercises: int,
        q_matrix: Tensor,
        dim: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head: Head = make_head(head, dim, q_matrix.shape[1])
            self.students = nn.Embedding(students, dim)
            self.items = nn.Embedding(exercises, dim)
            self.relative = nn.Embedding(exercises, dim)
            for table in (self.students, self.items, self.relative):
                nn.init.normal_(table.weight, std=0.1)
        # a constant, which a head without bias needs for its mean
        with torch.no_grad():
            self.items.weight[:, 0] = self.relative.weight[:, 0] = 1.0
        self.q_matrix: Tensor
        self.register_buffer("q_matrix", q_matrix.float())

    def forward(self, student: Tensor, exercise: Tensor) -> Tensor:
        """Return logits [N]."""
        return self.head.logit(
            self.students(student),
            self.items(exercise),
            self.relative(exercise),
            self.q_matrix[exercise],
        )

    @torch.no_grad()
    def forget(self, known: Tensor) -> None:
        """Give exercises that are not among ``known`` the mean vectors: they are new."""
        new = torch.ones(len(self.items.weight), dtype=torch.bool)
        new[known] = False
        for table in (self.items, self.relative):
            table.weight[new] = table.weight[known].mean(0)


def fit_by_id(
    head: str,
    train: Answers,
    students: int,
    q_matrix: Tensor,
    *,
    dim: int = 4,
    steps: int = 200,
    lr: float = 0.05,
    prior: float = 1.0,
    seed: int = 0,
) -> IdModel:
    """Fit a model of ids to all answers at once.

    Args:
        head: A name of the registry of heads.
        train: Answers to fit.
        students: S.
        q_matrix: [E, K].
        dim: Length of the vectors.
        steps: Of Adam on all answers.
        lr: Its rate, which falls to zero along a half cosine.
        prior: Weight of standard normal priors on abilities and on all parameters of exercises
            and head; 1 is maximum a posteriori.
        seed: Of the start.
    """
    model = IdModel(head, students, len(q_matrix), q_matrix, dim, seed).train()
    others = [p for name, p in model.named_parameters() if name != "students.weight"]

    def rest() -> Tensor:
        # Without it abilities would shrink under their prior, and discriminations grow for it.
        return torch.stack([0.5 * p.square().sum() for p in others]).sum()

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        for _ in range(steps):
            loss = F.binary_cross_entropy_with_logits(
                model(train.student, train.exercise), train.correct.float(), reduction="sum"
            )
            loss = loss + prior * (students * model.head.prior(model.students.weight) + rest())
            optimizer.zero_grad()
            (loss / len(train.correct)).backward()
            optimizer.step()
            scheduler.step()
    model.forget(train.exercise.unique())
    return model.eval()
