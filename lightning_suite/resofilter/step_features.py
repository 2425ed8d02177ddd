"""Features that look at what one optimizer step on a sample would change."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_suite.resofilter.feature import Feature, sum_of_entries
from lightning_suite.resofilter.rows import Block, LayerGradients


@dataclass(frozen=True)
class Adam1MeanAbs(Feature):
    """Mean absolute change of the weight by the first step of a fresh AdamW.

    Source: ResoFilter (arXiv 2412.14809). With empty state the bias-corrected moments are G and
    G², so that step is η(λW + G/(|G|+ε)) and needs no optimizer.

    Attributes:
        lr: Learning rate η.
        eps: AdamW's ε.
        weight_decay: AdamW's λ.
    """

    name: ClassVar[str] = "adam1_mean_abs"
    reads_entries: ClassVar[bool] = True
    counts_small_entries: ClassVar[bool] = True
    nearly_constant: ClassVar[bool] = True

    lr: float = 1e-5
    eps: float = 1e-8
    weight_decay: float = 0.01

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        denominator = block.denominator(self.eps)
        if not self.weight_decay:
            return sum_of_entries(block.magnitude / denominator)
        # |λW + G/(|G|+ε)| / λ, for which torch has one pass
        step = torch.addcdiv(block.weight, block.gradient, denominator, value=1 / self.weight_decay)
        return sum_of_entries(step.abs_())

    @override
    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        return self.lr * (self.weight_decay or 1.0) * total / math.prod(layer.shape)


@dataclass(frozen=True)
class Adam1MeanAbsRounded(Feature):
    """The first step of a fresh AdamW as it is taken: mean |W_before - W_after| after rounding.

    ``adam1_mean_abs`` is that number exactly. The published script stores W_after in float32,
    where a step of 1e-5 keeps few digits next to W; what it ranks by includes that rounding. This
    feature is for its replication: it rounds to the dtype of the gradients, float32. In float64 the
    two agree.

    Source: the authors' script of ResoFilter (arXiv 2412.14809); the order of operations is that
    of ``torch.optim.AdamW``.

    Attributes:
        lr: Learning rate η.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: AdamW's ε.
        weight_decay: AdamW's λ.
    """

    name: ClassVar[str] = "adam1_mean_abs_rounded"
    reads_entries: ClassVar[bool] = True
    counts_small_entries: ClassVar[bool] = True
    nearly_constant: ClassVar[bool] = True

    lr: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        first = block.gradient * (1 - self.beta1)
        second = block.gradient.square().mul_(1 - self.beta2)
        root = second.sqrt_().div_(math.sqrt(1 - self.beta2)).add_(self.eps)
        decayed = block.weight * (1 - self.lr * self.weight_decay)
        after = torch.addcdiv(decayed, first, root, value=-self.lr / (1 - self.beta1))
        return sum_of_entries(after.sub_(block.weight).abs_())

    @override
    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        return total / math.prod(layer.shape)


@dataclass(frozen=True)
class Unsaturation(Feature):
    """One minus the mean of |G|/(|G|+ε): the readable part of ``adam1_mean_abs``.

    Attributes:
        eps: AdamW's ε.
    """

    name: ClassVar[str] = "unsaturation"
    reads_entries: ClassVar[bool] = True
    counts_small_entries: ClassVar[bool] = True

    eps: float = 1e-8

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        return sum_of_entries(block.denominator(self.eps).reciprocal())

    @override
    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        return self.eps * total / math.prod(layer.shape)


@dataclass(frozen=True)
class SGDMeanAbs(Feature):
    """Mean absolute change of the weight by one step of SGD.

    Attributes:
        lr: Learning rate η.
        weight_decay: The L2 penalty's λ, as in ``torch.optim.SGD``.
    """

    name: ClassVar[str] = "sgd_mean_abs"
    reads_entries: ClassVar[bool] = True

    lr: float = 1.0
    weight_decay: float = 0.0

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        if not self.weight_decay:
            return sum_of_entries(block.magnitude)
        return sum_of_entries(
            torch.add(block.gradient, block.weight, alpha=self.weight_decay).abs_()
        )

    @override
    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        return self.lr * total / math.prod(layer.shape)


@dataclass(frozen=True)
class AdamState:
    """What Adam remembers of one weight.

    Attributes:
        exp_avg: First moment, as the matrix [O, I] of the target.
        exp_avg_sq: Second moment [O, I].
        step: Steps taken so far.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int


@dataclass(frozen=True)
class AdamMeanAbs(Feature):
    """Mean absolute change of the weight by AdamW's next step on this sample.

    The direction is LESS's (arXiv 2402.04333, section 3.2), from a saved optimizer state; a
    weight without state takes a first step.

    Attributes:
        lr: Learning rate η.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: AdamW's ε.
        weight_decay: AdamW's λ.
        states: State by the target's name.
    """

    name: ClassVar[str] = "adam_mean_abs"
    reads_entries: ClassVar[bool] = True
    counts_small_entries: ClassVar[bool] = True
    nearly_constant: ClassVar[bool] = True

    lr: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    states: Mapping[str, AdamState] = field(default_factory=dict, repr=False, compare=False)

    @override
    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        state = self.states.get(layer.name)
        step = 1 if state is None else state.step + 1
        first = block.gradient * (1 - self.beta1)
        second = block.gradient.square().mul_(1 - self.beta2)
        if state is not None:
            first.add_(state.exp_avg[block.rows].to(first), alpha=self.beta1)
            second.add_(state.exp_avg_sq[block.rows].to(first), alpha=self.beta2)
        first.div_(1 - self.beta1**step)
        root = second.div_(1 - self.beta2**step).sqrt_().add_(self.eps)
        change = first.div_(root).add_(block.weight, alpha=self.weight_decay)
        return sum_of_entries(change.abs_())

    @override
    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        return self.lr * total / math.prod(layer.shape)

    @override
    def spec(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "states"}
        return {"name": self.name, **values, "states": _fingerprint(self.states)}


def _fingerprint(states: Mapping[str, AdamState]) -> str:
    digest = hashlib.sha256()
    for name in sorted(states):
        state = states[name]
        digest.update(f"{name}/{state.step}".encode())
        for moment in (state.exp_avg, state.exp_avg_sq):
            digest.update(moment.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
