"""A metric between questions, and thresholds that let through as much as they say."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import eigh
from sklearn.covariance import ledoit_wolf
from torch.distributions import MultivariateNormal

from lightning_suite.scen.relation_metric import (
    MEASURE,
    Relation,
    RelationMetric,
    _cross_fitted,
    fit_relation_metric,
    recall,
)
from lightning_suite.scen.whitening import (
    Whitening,
    discriminant,
    shrunk_covariance,
    total_whitening,
    two_covariances,
    within_whitening,
)


def relations(noise: float, *, seed: int = 0, kinds: int = 10) -> list[Relation]:
    """Wordings around the centre of their relation; a kind has four relations."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Relation(
            torch.randn(1, 16, generator=generator)
            + noise * torch.randn(8, 16, generator=generator) * torch.linspace(0.1, 2, 16),
            kind,
        )
        for kind in range(kinds)
        for _ in range(4)
    ]


def test_covariance_is_ledoit_and_wolfs() -> None:
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = x - x.mean(0)
    expected, _ = ledoit_wolf(centred.numpy(), assume_centered=True)
    torch.testing.assert_close(shrunk_covariance(centred), torch.from_numpy(expected))


def test_whitened_text_has_the_covariance_of_white_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator) * torch.linspace(1, 2, 6) + 3
    white = total_whitening(x)
    y = (x - white.mean) @ white.matrix
    torch.testing.assert_close(y.mT @ y / len(y), torch.eye(6), atol=0.03, rtol=0)  # shrunk


def test_within_whitening_ignores_where_the_classes_are() -> None:
    classes = [r.features for r in relations(1.0)]
    moved = [features + 100 * i for i, features in enumerate(classes)]
    torch.testing.assert_close(
        within_whitening(classes).matrix, within_whitening(moved).matrix, atol=1e-3, rtol=1e-3
    )


def test_discriminant_directions_are_those_of_the_generalised_eigenproblem() -> None:
    classes = [r.features.double() for r in relations(0.5)]
    ours = discriminant(classes, 5)
    within = shrunk_covariance(torch.cat([c - c.mean(0) for c in classes]) * (8 / 7) ** 0.5)
    means = torch.stack([members.mean(0) for members in classes])
    between = (means - means.mean(0)).T @ (means - means.mean(0))
    _, vectors = eigh(between.numpy(), within.numpy())
    one, _ = torch.linalg.qr(ours.matrix.double())
    other, _ = torch.linalg.qr(torch.from_numpy(vectors[:, -5:].copy()))
    cosines = torch.linalg.svdvals(one.T @ other)
    torch.testing.assert_close(cosines, torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_classes_lie_apart_as_said_and_members_around_them_with_covariance_one() -> None:
    """Drawn by the model itself, far more classes than directions."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([9.0, 4.0, 1.0])
    centres = torch.randn(3000, 1, 3, generator=generator) * spread.sqrt()
    members = (centres + torch.randn(3000, 6, 3, generator=generator)) * torch.tensor([1.0, 5, 0.2])
    moved, between = two_covariances(list(members), 3)
    torch.testing.assert_close(between.sort(descending=True).values, spread, rtol=0.1, atol=0)
    mapped = (members - moved.mean) @ moved.matrix
    inside = (mapped - mapped.mean(1, keepdim=True)).reshape(-1, 3)
    covariance = inside.T @ inside / (5 * 3000)
    torch.testing.assert_close(covariance, torch.eye(3), atol=0.05, rtol=0)


def test_scores_are_ratios_of_the_densities_of_all_questions_together() -> None:
    """Joint Gaussians, written out: one relation for all questions, or one of its own for one."""
    generator = torch.Generator().manual_seed(0)
    between = torch.tensor([2.0, 0.5])
    metric = RelationMetric(Whitening(torch.zeros(2), torch.eye(2)), between, torch.zeros(1))
    known, asked = torch.randn(3, 2, generator=generator), torch.randn(4, 2, generator=generator)

    def density(values: torch.Tensor) -> torch.Tensor:  # [n, 2], of one relation
        covariances = [torch.eye(len(values)) + b for b in between]
        return sum(
            MultivariateNormal(torch.zeros(len(values)), c).log_prob(values[:, d])
            for d, c in enumerate(covariances)
        )

    expected = torch.stack(
        [density(torch.cat([known, a[None]])) - density(known) - density(a[None]) for a in asked]
    )
    torch.testing.assert_close(metric.scores(asked, known), expected)


def test_thresholds_let_through_no_more_than_they_say_of_relations_never_seen() -> None:
    metric = fit_relation_metric(relations(0.7, kinds=40), false_rate=0.1)
    passed: dict[int, list[torch.Tensor]] = {1: [], 3: []}
    unseen = relations(0.7, seed=1, kinds=40)
    for at, relation in enumerate(unseen):
        own = metric.embed(relation.features)
        rest = [r for r in unseen[at // 4 * 4 : at // 4 * 4 + 4] if r is not relation]
        for n, found in passed.items():
            scores = [metric.scores(metric.embed(other.features), own[:n]) for other in rest]
            nearest = max(scores, key=lambda found: float(found.mean()))
            found.append((nearest >= metric.threshold(n)).float().mean())
    for found in passed.values():
        # Fewer than asked: the final metric has seen more relations than those of the folds.
        assert 0.02 < torch.stack(found).mean().item() < 0.12


def test_more_known_wordings_than_thresholds_use_the_last() -> None:
    metric = fit_relation_metric(relations(0.7), false_rate=0.1, most=3)
    assert metric.threshold(3) == metric.threshold(9) == metric.thresholds[2].item()


def test_recall_falls_with_what_wordings_have_not_in_common() -> None:
    near, far = (recall(relations(noise), false_rate=0.02) for noise in (0.2, 1.5))
    assert near > 0.9
    assert far < 0.7
    knowing_more = recall(relations(1.0), false_rate=0.02, known=3)
    assert knowing_more > recall(relations(1.0), false_rate=0.02, known=1)


def test_what_is_measured_has_a_number_of_its_own() -> None:
    """Where this fails because the score changed, raise MEASURE: kept trials are of another one."""
    others, same = _cross_fitted(relations(1.0, seed=3), [1], 1)
    found = [float(scores.mean()) for scores in (*others, *same)]
    assert MEASURE == 2
    assert found == pytest.approx([-7.4716, 5.6932], rel=1e-2)


def test_two_readings_add_their_ratios() -> None:
    one, two = relations(1.0, seed=1), relations(1.0, seed=2)
    both = [
        Relation(torch.cat([a.features, b.features], 1), a.kind)
        for a, b in zip(one, two, strict=True)
    ]
    fitted = [fit_relation_metric(each, false_rate=0.1, most=1) for each in (one, two)]
    metric = fit_relation_metric(both, false_rate=0.1, most=1, views=2)
    alone = [m.embed(r[0].features) for m, r in zip(fitted, (one, two), strict=True)]
    expected = sum(m.scores(x[3:], x[:2]) for m, x in zip(fitted, alone, strict=True))
    x = metric.embed(both[0].features)
    torch.testing.assert_close(metric.scores(x[3:], x[:2]), expected, rtol=1e-4, atol=1e-4)
