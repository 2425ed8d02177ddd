"""When do two questions ask the same of a subject? A likelihood ratio, and thresholds for it.

Learned from relations whose questions are known in several wordings, none of which need to be
edits. The features of a wording are taken to lie around those of its relation with one covariance,
and relations around their mean with another. How many times likelier is it then that a question and
an edit's own wordings are of one relation than that they are of two? The threshold is where all but
few questions about *other* relations of the same kind of subject are told apart; it lies below 0,
as real wordings differ more than Gaussians would.

Prince and Elder, "Probabilistic linear discriminant analysis for inferences about identity" (2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_suite.scen.whitening import Whitening, two_covariances

# Of what `recall` measures: another number where scores, folds or negatives change, so that what
# was measured before is not taken for it.
MEASURE = 2
_FOLDS = 6
_FIRST_ASKED = 3
_NEAREST = 4  # one in so many relations of a kind is near enough to be mistaken
_DIMENSIONS = 60  # of 30, 60, 80 and 100 the best on the shipped wordings, cross-fitted


@dataclass(frozen=True)
class Relation:
    """Features of one relation's wordings.

    Attributes:
        features: [n, d]; the first ones are those that people write first.
        kind: Relations of one kind are asked about the same subjects, so that an edit of one has
            to be told from questions about the others.
    """

    features: Tensor
    kind: int


@dataclass(frozen=True)
class RelationMetric:
    """Log-likelihood ratio of "asks the same" to "asks something else", and what it must reach.

    Attributes:
        whitening: Its mean and matrix take features to where wordings have covariance 1 around
            their relation; lengths count there.
        between: Variance of relations in each direction, [k].
        thresholds: [K]; entry n - 1 is for an edit known in n wordings, the last one for more.
    """

    whitening: Whitening
    between: Tensor
    thresholds: Tensor

    def embed(self, features: Tensor) -> Tensor:
        """Take features to where they are compared, [N, d] -> [N, k]."""
        return (features - self.whitening.mean) @ self.whitening.matrix

    def scores(self, questions: Tensor, known: Tensor) -> Tensor:
        """Return how much likelier it is that each question is of the relation of ``known``.

        Args:
            questions: Embedded, [N, k].
            known: All wordings known of one relation, embedded, [n, k].

        Returns:
            [N], nats.
        """
        left = self.between / (1 + len(known) * self.between)  # variance of it, given them
        centre = left * known.sum(0)
        alone, given = 1 + self.between, 1 + left  # variances of a question
        terms = questions.square() / alone - (questions - centre).square() / given
        return 0.5 * (terms + (alone / given).log()).sum(1)

    def threshold(self, wordings: int) -> float:
        """Return what the score must reach where so many wordings are known."""
        return float(self.thresholds[min(wordings, len(self.thresholds)) - 1])


def fit_relation_metric(
    relations: Sequence[Relation], *, false_rate: float, most: int = 5, views: int = 1
) -> RelationMetric:
    """Learn the metric from all relations, and thresholds from relations left out of it.

    For the thresholds the kinds are dealt into folds; in each, the metric of the other folds
    compares the first n wordings of a relation with the first questions about the nearest quarter
    of the other relations of its kind: what else an edit's subject is asked is seldom far off (who
    and when), and plain questions are more alike than odd ones. The threshold for n is the quantile
    that lets through ``false_rate`` of them.

    Args:
        relations: At least two kinds, two relations of some kind, two wordings each.
        false_rate: Share of questions about near relations of the subject that may pass.
        most: Largest number of known wordings with a threshold of its own.
        views: Features are as many readings of a wording side by side, of the same length; each
            has a model of its own, and their log-likelihood ratios are added.
    """
    others, _ = _cross_fitted(relations, range(1, most + 1), views)
    thresholds = torch.stack([scores.quantile(1 - false_rate) for scores in others])
    return RelationMetric(*_model(relations, views), thresholds)


def recall(
    relations: Sequence[Relation], *, false_rate: float, known: int = 1, views: int = 1
) -> float:
    """Return the share of further wordings that pass, with metrics of other kinds' relations.

    Args:
        relations: As for :func:`fit_relation_metric`.
        false_rate: Likewise.
        known: How many wordings of a relation are known; all from the fourth on are asked.
        views: As for :func:`fit_relation_metric`.
    """
    (others,), (same,) = _cross_fitted(relations, [known], views)
    return float((same >= others.quantile(1 - false_rate)).float().mean())


def _model(relations: Sequence[Relation], views: int) -> tuple[Whitening, Tensor]:
    """Fit each view; independent Gaussians side by side add their log-likelihood ratios."""
    read = zip(*(relation.features.chunk(views, 1) for relation in relations), strict=True)
    spaces, between = zip(*(two_covariances(view, _DIMENSIONS) for view in read), strict=True)
    matrix = torch.block_diag(*(space.matrix for space in spaces))
    return Whitening(torch.cat([space.mean for space in spaces]), matrix), torch.cat(between)


def _cross_fitted(
    relations: Sequence[Relation], known: Sequence[int], views: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return scores of questions about near relations of a kind, and of further wordings.

    One tensor for each number of ``known`` wordings.
    """
    others: list[list[Tensor]] = [[] for _ in known]
    same: list[list[Tensor]] = [[] for _ in known]
    for fold in _folds([relation.kind for relation in relations]):
        rest = [relation for relation in relations if relation.kind not in fold]
        metric = RelationMetric(*_model(rest, views), torch.empty(0, dtype=torch.float32))
        held = [(r.kind, metric.embed(r.features)) for r in relations if r.kind in fold]
        for place, (kind, own) in enumerate(held):
            asked = [
                f[:_FIRST_ASKED] for at, (k, f) in enumerate(held) if at != place and k == kind
            ]
            for row, n in enumerate(known):
                same[row].append(metric.scores(own[max(n, _FIRST_ASKED) :], own[:n]))
                scores = [metric.scores(questions, own[:n]) for questions in asked]
                scores.sort(key=lambda found: -float(found.mean()))
                others[row] += scores[: math.ceil(len(scores) / _NEAREST)]
    return [torch.cat(scores) for scores in others], [torch.cat(scores) for scores in same]


def _folds(kinds: Sequence[int]) -> list[set[int]]:
    """Deal kinds into folds of like size, the kinds with most relations first."""
    distinct = sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))
    folds: list[set[int]] = [set() for _ in range(min(_FOLDS, len(distinct)))]
    for kind in distinct:
        least = min(folds, key=lambda fold: sum(k in fold for k in kinds))
        least.add(kind)
    return folds
