"""The published method (arXiv 2404.02699), stage by stage, without its repeated work.

Stage 1 trains a full copy of the matrix an edit: :meth:`PublishedSettings.experts`, for
:func:`lightning_suite.scen.expert_training.train_experts`. Stage 2 trains an indexing neuron an
edit (:func:`train_neurons`), whose input is a constant of the frozen model. The first code ran the
whole model for every pair of a neuron and an earlier edit in every step; here every edit is read
once, and all neurons are rows of one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.scen.experts import ExpertSettings, StackedAdam, generator_of

# What the two parts of the loss add to a neuron's loss beside its scores (Sec. 3.3).
_MARGINS = 0.7 + 0.3


@dataclass(frozen=True)
class PublishedSettings:
    """Values of the published method.

    Attributes:
        expert_lr: Adam's learning rate in stage 1.
        expert_steps: Optimizer steps of stage 1.
        neuron_lr: Adam's learning rate in stage 2.
        neuron_steps: Optimizer steps of stage 2: 20 for question answering, 30 for hallucinations.
        theta: Score above which the best neuron's expert serves: 0.65, and 0.6 for hallucinations.
        seed: Of the neurons' initial weights.
    """

    expert_lr: float = 1e-4
    expert_steps: int = 10
    neuron_lr: float = 1e-4
    neuron_steps: int = 20
    theta: float = 0.65
    seed: int = 0

    def experts(self) -> ExpertSettings:
        """Return stage 1 as settings: full copies, a fixed number of steps, on every token."""
        return ExpertSettings(
            kind="full",
            lr=self.expert_lr,
            steps=self.expert_steps,
            decay=False,
            stop_loss=None,
            positions="all",
            seed=self.seed,
        )


@dataclass(frozen=True)
class Neurons:
    """Indexing neurons of n edits.

    Attributes:
        weight: [n, d_in].
        losses: Loss before each step, [n, steps].
    """

    weight: Tensor
    losses: Tensor

    def scores(self, states: Tensor) -> Tensor:
        """Return every neuron's activation: states [M, d_in] -> [M, n], between 0 and 1."""
        return torch.sigmoid(states.to(self.weight) @ self.weight.T)


def train_neurons(
    keys: Tensor,
    ids: Sequence[str],
    *,
    first: int = 0,
    lr: float = 1e-4,
    steps: int = 20,
    seed: int = 0,
    rows_at_once: int = 1024,
) -> Neurons:
    """Train the indexing neurons of the edits ``first``, …, N - 1, each against all earlier ones.

    With a neuron's own score s⁺ and its scores s⁻_j on the prompts of the i edits before it, its
    loss is exp(-s⁺) + mean_j[exp(s⁻_j) + 0.7] + mean_j[exp(s⁻_j) - s⁺ + 0.3]; that of the first
    edit is exp(-s⁺). The rows of the gradient of all neurons are C K with the keys K and
    coefficients C [n, N], zero where an edit came later. So a neuron depends on the order of the
    edits, as published, but not on those after it: edits can be added later.

    Args:
        keys: Input of the edited map at the last prompt token of the unedited model, for all
            edits in order, [N, d_in].
        ids: Of the edits, N; each draws its neuron's initial weights.
        first: Edits before this one have their neurons already.
        lr: Learning rate of Adam.
        steps: Optimizer steps.
        seed: Of the initial weights (PyTorch's default of a linear layer).
        rows_at_once: Neurons trained side by side; memory grows with this times N.

    Returns:
        Neurons of the edits from ``first`` on, on the keys' device.

    Raises:
        SuiteError: There are not as many ids as keys.
    """
    if len(ids) != len(keys):
        raise SuiteError(f"{len(keys)} keys but {len(ids)} ids of edits; give one for each.")
    keys = keys.detach().to(torch.promote_types(keys.dtype, torch.float32))
    weight = _initial(ids[first:], keys, seed)
    losses = keys.new_empty(len(weight), steps)
    for at in range(0, len(weight), rows_at_once):
        rows = slice(at, at + rows_at_once)
        order = torch.arange(first + at, first + at + len(weight[rows]), device=keys.device)
        _train_rows(weight[rows], losses[rows], order, keys, lr)
    return Neurons(weight, losses)


def _train_rows(weight: Tensor, losses: Tensor, order: Tensor, keys: Tensor, lr: float) -> None:
    """Train neurons with the positions ``order`` among the edits, in place."""
    keys = keys[: int(order[-1]) + 1]
    own = (torch.arange(len(order), device=keys.device), order)
    earlier = torch.arange(len(keys), device=keys.device) < order[:, None]
    # Two means over the earlier edits, each with exp(s⁻): 2 / i on every one of them.
    share = 2 * earlier / order.clamp(min=1)[:, None].to(keys)
    later_ones = (order > 0).to(keys)  # the first edit's loss ends after its first term
    adam = StackedAdam({"weight": weight}, lr)
    for step in range(losses.shape[1]):
        scores = torch.sigmoid(weight @ keys.T)
        plus = scores[own]
        against = share * scores.exp()
        losses[:, step] = (-plus).exp() + against.sum(1) + later_ones * (_MARGINS - plus)
        slope = scores * (1 - scores)
        coefficients = against * slope
        coefficients[own] = -((-plus).exp() + later_ones) * slope[own]
        adam.step({"weight": coefficients @ keys})


def _initial(ids: Sequence[str], like: Tensor, seed: int) -> Tensor:
    """Return PyTorch's default weights of a bias-free ``Linear(d_in, 1)``, drawn per edit."""
    weight = torch.empty(len(ids), like.shape[1], dtype=torch.float32)
    for row, name in zip(weight, ids, strict=True):
        generator = generator_of(f"neuron/{name}", seed)
        nn.init.kaiming_uniform_(row[None], a=math.sqrt(5), generator=generator)
    return weight.to(like)
