"""Linear maps after which directions that vary anyway weigh little in a comparison.

Two covariances are of use: that of any text at all (:func:`total_whitening`) and that of the same
question in other words (:func:`within_whitening`, :func:`discriminant`, :func:`two_covariances`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

_LEAST_VARIANCE = 1e-3  # of classes: a direction in which they do not differ says nothing


class Whitening(NamedTuple):
    """An affine map of features.

    Attributes:
        mean: What is subtracted, [d].
        matrix: What is multiplied by, [d, k].
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Map and scale to length 1, so that inner products are cosines.

        Args:
            features: [N, d].

        Returns:
            [N, k].
        """
        return normalize((features - self.mean) @ self.matrix, dim=-1)


def total_whitening(features: Tensor) -> Whitening:
    """Whiten by the covariance of all ``features``.

    Args:
        features: [N, d], N of 2 or more.
    """
    mean = features.double().mean(0)
    return Whitening(mean.float(), _inverse_root(shrunk_covariance(features.double() - mean)))


def within_whitening(classes: Sequence[Tensor]) -> Whitening:
    """Whiten by the covariance that features have within their class.

    Args:
        classes: Features of the members of each class, [n_c, d] each, n_c of 2 or more. The mean
            that is subtracted weighs classes alike.
    """
    means = torch.stack([members.double().mean(0) for members in classes])
    # n_c - 1 degrees of freedom are left in a class of n_c around its own mean.
    residuals = torch.cat(
        [
            (members.double() - mean) * (len(members) / (len(members) - 1)) ** 0.5
            for members, mean in zip(classes, means, strict=True)
        ]
    )
    return Whitening(means.mean(0).float(), _inverse_root(shrunk_covariance(residuals)))


def discriminant(classes: Sequence[Tensor], dimensions: int) -> Whitening:
    """Whiten within classes, and keep the directions in which classes differ most.

    Linear discriminant analysis with a shrunk covariance; all directions count alike.

    Args:
        classes: As for :func:`within_whitening`.
        dimensions: How many directions; no more than one less than there are classes.
    """
    mean, matrix = within_whitening(classes)
    means = torch.stack(
        [(members - mean).double().mean(0) @ matrix.double() for members in classes]
    )
    directions = torch.linalg.svd(means, full_matrices=False).Vh
    kept = min(dimensions, len(classes) - 1, matrix.shape[1])
    return Whitening(mean, (matrix.double() @ directions[:kept].T).float())


def two_covariances(classes: Sequence[Tensor], dimensions: int) -> tuple[Whitening, Tensor]:
    """Find a space in which members lie around their class with covariance 1, and classes apart.

    The model of probabilistic linear discriminant analysis with Gaussians: a class is drawn around
    0 with a diagonal covariance, its members around it with the identity.

    Args:
        classes: As for :func:`within_whitening`.
        dimensions: As for :func:`discriminant`.

    Returns:
        The map, and the variance of classes along its k directions, [k], above 0.
    """
    mean, matrix = discriminant(classes, dimensions)
    mapped = [(members - mean).double() @ matrix.double() for members in classes]
    centres = torch.stack([members.mean(0) for members in mapped])
    root = _inverse_root(
        shrunk_covariance(
            torch.cat(
                [
                    (members - centre) * (len(members) / (len(members) - 1)) ** 0.5
                    for members, centre in zip(mapped, centres, strict=True)
                ]
            )
        )
    ).double()
    centres = centres @ root
    # A mean of n members is off its class by 1/n of their covariance, which now is the identity.
    noise = sum(1 / len(members) for members in classes) / len(classes)
    spread = centres.T @ centres / len(centres)
    spread -= noise * torch.eye(len(spread), dtype=spread.dtype)
    values, vectors = torch.linalg.eigh(spread)
    moved = _signs_settled(matrix.double() @ root @ vectors).float()
    return Whitening(mean, moved), values.clamp(min=_LEAST_VARIANCE).float()


def shrunk_covariance(centred: Tensor) -> Tensor:
    """Return the covariance, drawn towards a multiple of the identity as far as noise demands.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices"
    (2004): the weight of the identity that minimises the expected squared error; without
    parameters, and of full rank however few the samples.

    Args:
        centred: Features around their mean, [N, d].
    """
    n, d = centred.shape
    covariance = centred.T @ centred / n
    scale = covariance.trace() / d
    distance = covariance.square().sum() - d * scale**2
    # Mean squared deviation of each sample's x xᵀ from the covariance.
    noise = (centred.square().sum(1).square().sum() / n - covariance.square().sum()) / n
    weight = (noise / distance).clamp(0, 1) if distance > 0 else torch.ones_like(noise)
    return (1 - weight) * covariance + weight * scale * torch.eye(d, dtype=centred.dtype)


def _signs_settled(directions: Tensor) -> Tensor:
    """Return columns whose largest entry is positive: an eigenvector's sign is rounding's choice.

    Maps made on two machines, of the same wordings, are then the same but for their last digits.
    """
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * largest.sign()


def _inverse_root(covariance: Tensor) -> Tensor:
    """Return the symmetric matrix S^(-1/2), float32."""
    values, vectors = torch.linalg.eigh(covariance)
    # Identical features have no spread at all; any scale will do then.
    floor = values.max().clamp(min=1e-30) * 1e-12
    root: Tensor = (vectors * values.clamp(min=floor).rsqrt()) @ vectors.T
    return root.float()
