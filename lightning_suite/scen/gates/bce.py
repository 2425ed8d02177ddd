"""A gate of logistic neurons, each trained against all others and not the earlier ones alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.experts import StackedAdam
from lightning_suite.scen.gates.closed import ClosedGate
from lightning_suite.scen.gates.keyed import MOST_STEPS


class BCEGate(ClosedGate):
    """Neurons on the features of :class:`ClosedGate`, trained with binary cross-entropy.

    Each starts as the edit's centroid and learns to tell its own wordings from the ``hard``
    nearest ones of all other edits and reference text, whichever came first: the outcome does not
    depend on the order of edits. Thresholds are set as in the closed gate. Every change of the
    edits trains all neurons anew.

    Args:
        encoder: Reads the base model; needed to add edits, not to route.
        reference: Questions whose answers no edit changes; None takes the shipped ones.
        hard: Negatives of a neuron.
        lr: Learning rate of Adam.
        steps: Optimizer steps.
        scale: Length of a neuron at the start: how fast its activation rises with the cosine.
    """

    kind = "bce"

    def __init__(
        self,
        encoder: PromptEncoder,
        reference: Sequence[str] | None = None,
        *,
        hard: int = 32,
        lr: float = 0.05,
        steps: int = 50,
        scale: float = 10.0,
    ) -> None:
        super().__init__(encoder, reference)
        self.hard, self.lr, self.steps, self.scale = hard, lr, steps, scale

    def check(self) -> None:
        """Refuse tables that do not fit each other."""
        super().check()
        self._need_number("hard", 1, 1e6, int)
        self._need_number("lr", 0, 1e3)
        self._need_number("steps", 0, MOST_STEPS, int)
        self._need_number("scale", 0, 1e6)

    def remove(self, slots: Sequence[int]) -> None:
        """Forget ``slots`` and train the others without them."""
        self._drop(slots)
        self._set_thresholds()
        self._train()

    def _learn(self, slots: Tensor, features: Tensor, owners: Tensor) -> None:
        super()._learn(slots, features, owners)
        self._train()

    def _train(self) -> None:
        slots = torch.unique(self.owners)
        if not len(slots):
            return
        features = torch.cat([self.positives, self.background])
        owners = torch.cat([self.owners, self.owners.new_full((len(self.background),), -1)])
        own = slots[:, None] == owners[None]
        # Centroids again, whatever the neurons of an earlier training: no history.
        sums = own[:, : len(self.owners)].to(features) @ self.positives
        start = normalize(sums, dim=1)
        similar = (start @ features.T).masked_fill(own, -torch.inf)
        hard = similar.topk(min(self.hard, len(self.background))).indices
        neurons = {
            "weight": self.scale * start,
            "bias": features.new_full((len(slots),), -self.scale / 2),
        }
        adam = StackedAdam(neurons, self.lr)
        for _ in range(self.steps):
            weight, bias = (adam.parameters[name].detach().requires_grad_() for name in neurons)
            with torch.enable_grad():
                logits = weight @ features.T + bias[:, None]
                positive = (softplus(-logits) * own).sum(1) / own.sum(1)
                loss = positive + softplus(logits.gather(1, hard)).mean(1)
                gradients = torch.autograd.grad(loss.sum(), (weight, bias))
            adam.step(dict(zip(neurons, gradients, strict=True)))
        self.keys[slots] = adam.parameters["weight"]
        self._compare_anew(slots)
        self._set_thresholds()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the settings."""
        return {"hard": self.hard, "lr": self.lr, "steps": self.steps, "scale": self.scale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the settings."""
        self.hard, self.lr = state["hard"], state["lr"]
        self.steps, self.scale = state["steps"], state["scale"]
