"""How good predicted answers are: exact over all answers of all ranks, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_calibration_error, binary_f1_score
from torchmetrics.utilities.data import dim_zero_cat

from lightning_suite.lmcd.agreement import degree_of_agreement

CALIBRATION_BINS = 15
_SCORES = ("auc", "acc", "f1", "rmse", "mae", "brier", "ece", "nll")
_NOT_KNOWN = torch.tensor(torch.nan)


class DiagnosisMetrics(Metric):
    """All metrics of predicted answers, computed once over all answers.

    Answers are gathered from all ranks and none is counted twice, although samplers repeat some to
    give every rank as many: the value on two ranks is that on one.

    ``compute`` returns ``auc``, ``acc``, ``f1`` (both at .5), ``rmse``, ``mae``, ``brier``,
    ``ece`` (15 bins) and ``nll`` (nats), scalars each; and ``doa``, the mean over KCs of
    :func:`~lightning_suite.lmcd.agreement.degree_of_agreement`, where ``diagnosis`` is set.

    Attributes:
        diagnosis: Proficiency [S, K] or [S, 1] and Q-matrix [E, K] to compute ``doa`` with.
    """

    full_state_update = False
    logits: list[Tensor]
    correct: list[Tensor]
    students: list[Tensor]
    exercises: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("logits", "correct", "students", "exercises"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.diagnosis: tuple[Tensor, Tensor] | None = None

    def update(self, logits: Tensor, correct: Tensor, students: Tensor, exercises: Tensor) -> None:
        """Add N answers: logits [N], whether they were right [N], and who answered what."""
        self.logits.append(logits.detach().float())
        self.correct.append(correct.float())
        self.students.append(students)
        self.exercises.append(exercises)

    def answers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, correct, students and exercises of each answer once, in one order."""
        logits, correct, students, exercises = (
            dim_zero_cat(state)
            for state in (self.logits, self.correct, self.students, self.exercises)
        )
        order = students.argsort(stable=True)
        order = order[exercises[order].argsort(stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        by = torch.stack([exercises[order], students[order]])
        first[1:] = (by[:, 1:] != by[:, :-1]).any(0)
        order = order[first]
        return logits[order], correct[order], students[order], exercises[order]

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all answers so far."""
        logits, correct, students, exercises = (values.cpu() for values in self.answers())
        scores = score_answers(logits, correct)
        if self.diagnosis is not None:
            proficiency, q_matrix = (values.detach().cpu() for values in self.diagnosis)
            doa = degree_of_agreement(proficiency, students, exercises, correct, q_matrix)
            scores["doa"] = doa.nanmean().float() if not logits.isnan().any() else _NOT_KNOWN
        return scores


def score_answers(logits: Tensor, correct: Tensor) -> dict[str, Tensor]:
    """Return the metrics of :class:`DiagnosisMetrics` for logits [N] and answers [N].

    All are NaN where a logit is: sorted and compared, it would count as some chance or other.
    """
    if logits.isnan().any():
        return dict.fromkeys(_SCORES, _NOT_KNOWN)
    probability, target = logits.double().sigmoid(), correct.double()
    away = probability - target
    return {
        name: value.float()
        for name, value in {
            "auc": weighted_auc(logits, correct, torch.ones_like(target)),
            "acc": ((logits > 0) == (correct > 0.5)).double().mean(),
            "f1": binary_f1_score(probability, correct.long()),
            "rmse": away.square().mean().sqrt(),
            "mae": away.abs().mean(),
            "brier": away.square().mean(),
            "ece": binary_calibration_error(
                probability, correct.long(), n_bins=CALIBRATION_BINS, norm="l1"
            ),
            "nll": F.binary_cross_entropy_with_logits(logits.double(), target),
        }.items()
    }


def weighted_auc(scores: Tensor, correct: Tensor, weights: Tensor) -> Tensor:
    """Return the area under the ROC curve, ties counted half, in float64.

    Args:
        scores: Higher for answers that are more likely right: [N].
        correct: 1 or 0: [N].
        weights: How often each answer counts: [N], or [B, N] for B resamples at once.

    Returns:
        Scalar or [B]; NaN where all answers are alike.
    """
    order = scores.argsort()
    right = correct[order].double() * weights[..., order].double()
    wrong = weights[..., order].double() - right
    _, tied, counts = torch.unique_consecutive(
        scores[order], return_inverse=True, return_counts=True
    )
    ends = counts.cumsum(0)
    cumulative = F.pad(wrong.cumsum(-1), (1, 0))
    below = (cumulative[..., ends - counts] + cumulative[..., ends]) / 2
    pairs = right.sum(-1) * wrong.sum(-1)
    return (right * below[..., tied]).sum(-1) / pairs.where(pairs > 0, pairs.new_tensor(torch.nan))


def bootstrap_auc(
    scores: Sequence[Tensor],
    correct: Tensor,
    students: Tensor,
    *,
    population: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Return the AUC of each model in each resample of the *students*, float64 [M, resamples].

    Students, and not answers, are drawn with replacement: the answers of one student depend on
    each other. All models see the same resamples, so differences between rows are paired.

    Args:
        scores: Of M models, [N] each.
        correct: [N].
        students: Who gave each answer: int64 [N].
        population: Draw from students 0 … ``population`` - 1 instead of from those in
            ``students``: tests with other students then see the same ones drawn under one seed.
        resamples: How many.
        seed: Of the draws.
    """
    who = students
    if population is None:
        _, who = students.unique(return_inverse=True)
    count = population or int(who.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    results = []
    for start in range(0, resamples, 50):  # a few at a time: [50, N] is the largest tensor
        draws = torch.randint(count, (min(50, resamples - start), count), generator=generator)
        weights = torch.zeros(draws.shape, dtype=torch.float64)
        weights.scatter_add_(1, draws, torch.ones_like(weights))
        each = weights.to(scores[0].device)[:, who]
        results.append(torch.stack([weighted_auc(score, correct, each) for score in scores]))
    return torch.cat(results, dim=1)


def interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap ``values`` [B]."""
    values = values[values.isfinite()]
    if not len(values):
        return float("nan"), float("nan")
    low, high = values.quantile(values.new_tensor([(1 - level) / 2, (1 + level) / 2])).tolist()
    return low, high
