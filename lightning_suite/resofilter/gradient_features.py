"""Features of the gradient itself: its size, its direction, its singular values."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_suite.resofilter.feature import Feature, sum_of_entries
from lightning_suite.resofilter.rows import Block, LayerGradients


@dataclass(frozen=True)
class GradL1(Feature):
    """Sum of the absolute entries of G."""

    name: ClassVar[str] = "grad_l1"
    reads_entries: ClassVar[bool] = True

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        return sum_of_entries(block.magnitude)


@dataclass(frozen=True)
class GradMax(Feature):
    """Largest absolute entry of G."""

    name: ClassVar[str] = "grad_max"
    reads_entries: ClassVar[bool] = True
    takes_maximum: ClassVar[bool] = True

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        return block.magnitude.flatten(1).amax(1)


@dataclass(frozen=True)
class GradNorm(Feature):
    """Frobenius norm of G."""

    name: ClassVar[str] = "grad_norm"
    reads_entries: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = True

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        return sum_of_entries(block.gradient.square())

    @override
    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        return total.sqrt()

    @override
    def of_rows(self, layer: LayerGradients) -> Tensor:
        return layer.squared_norm.sqrt()


@dataclass(frozen=True)
class WDotG(Feature):
    """Inner product of the weight and its gradient."""

    name: ClassVar[str] = "wdotg"
    reads_entries: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = True

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        return sum_of_entries(block.gradient * block.weight)

    @override
    def of_rows(self, layer: LayerGradients) -> Tensor:
        return layer.weight_inner_product


@dataclass(frozen=True)
class WeightNormChange(Feature):
    """Change of the weight's norm by one step of SGD, ‖W − ηG‖ − ‖W‖ (DONOD, arXiv 2504.14810).

    Computed as (η²‖G‖² − 2η⟨W,G⟩) / (‖W − ηG‖ + ‖W‖), which does not cancel.

    Attributes:
        lr: Learning rate η.
    """

    name: ClassVar[str] = "weight_norm_change"
    reads_entries: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = True

    lr: float = 1e-5

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        step = block.gradient * self.lr
        return sum_of_entries(step.mul_(step - 2 * block.weight))

    @override
    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        before = layer.weight_squared_norm
        return total / ((before + total).clamp_min(0).sqrt() + before.sqrt())

    @override
    def of_rows(self, layer: LayerGradients) -> Tensor:
        change = self.lr**2 * layer.squared_norm - 2 * self.lr * layer.weight_inner_product
        return self.finish(change.double(), layer)


@dataclass(frozen=True)
class StepNorm(GradNorm):
    """Norm of one step of SGD, ‖ηG‖ (DONOD).

    Attributes:
        lr: Learning rate η.
    """

    name: ClassVar[str] = "step_norm"

    lr: float = 1e-5

    @override
    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        return self.lr * total.sqrt()

    @override
    def of_rows(self, layer: LayerGradients) -> Tensor:
        return self.lr * layer.squared_norm.sqrt()


@dataclass(frozen=True)
class NuclearNorm(Feature):
    """Sum of the singular values of G."""

    name: ClassVar[str] = "nuclear_norm"
    reads_rows: ClassVar[bool] = True

    @override
    def of_rows(self, layer: LayerGradients) -> Tensor:
        return torch.stack([values.sum() for values in singular_values(layer)])


@dataclass(frozen=True)
class EffectiveRank(Feature):
    """Exponential of the entropy of the singular values divided by their sum; 0 if G is 0.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """

    name: ClassVar[str] = "effective_rank"
    reads_rows: ClassVar[bool] = True

    @override
    def of_rows(self, layer: LayerGradients) -> Tensor:
        return torch.stack([_effective_rank(values) for values in singular_values(layer)])


@dataclass(frozen=True)
class Sketch(Feature):
    """Two-sided random projection: the k × k matrix P G Qᵀ, row by row.

    P and Q have independent entries ±1/√k, drawn from the seed and the layer's name, so the
    inner product of two sketches estimates ⟨G_i, G_j⟩ whatever else is measured.

    Attributes:
        size: Rows and columns k.
        seed: Of the projections.
    """

    name: ClassVar[str] = "sketch"
    reads_rows: ClassVar[bool] = True

    size: int = 8
    seed: int = 0

    @override
    def of_rows(self, layer: LayerGradients) -> Tensor:
        n_out, n_in = layer.shape
        left = layer.g @ self.projection(layer.name, "out", n_out).to(layer.g).mT
        right = layer.x @ self.projection(layer.name, "in", n_in).to(layer.x).mT
        split = layer.inputs.samples
        pairs = zip(split(left), split(right), strict=True)
        return torch.stack([(p.mT @ q).flatten() for p, q in pairs])

    def projection(self, name: str, side: str, width: int) -> Tensor:
        """Return the projection of one side of a layer: [k, width], float32."""
        digest = hashlib.sha256(f"{self.seed}/{name}/{side}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        signs = torch.randint(0, 2, (self.size, width), generator=generator)
        return (2.0 * signs - 1) / math.sqrt(self.size)


def singular_values(layer: LayerGradients) -> list[Tensor]:
    """Return the singular values of each sample's G that can differ from 0.

    With the QR factors of gᵀ and xᵀ, G = gᵀx = Q_g (R_g R_xᵀ) Q_xᵀ has the singular values of a
    matrix not larger than T × T.
    """
    found: list[Tensor] = []
    for x, g in layer.samples():
        r_g = torch.linalg.qr(g.mT, mode="r").R
        r_x = torch.linalg.qr(x.mT, mode="r").R
        core = r_g @ r_x.mT
        # LAPACK refuses what is not finite; the sample's status must not cost the others theirs
        finite = bool(core.isfinite().all())
        found.append(torch.linalg.svdvals(core) if finite else core.new_full((1,), math.nan))
    return found


def _effective_rank(values: Tensor) -> Tensor:
    total = values.sum()
    if total == 0:
        return total
    share = values / total
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank
