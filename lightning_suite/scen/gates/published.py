"""The published gate: one indexing neuron an edit, trained against the edits before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.gates.keyed import MOST_STEPS, KeyedGate
from lightning_suite.scen.published import train_neurons


class PublishedGate(KeyedGate):
    """Indexing neurons of arXiv 2404.02699, Sec. 3.3, kept for replication.

    A neuron depends on the edits before it, so the order of edits matters. ``paraphrases`` of
    edits are not used, as published. Removing an edit leaves the neurons of later ones as they are.

    Args:
        encoder: Reads the base model; needed to add edits, not to route.
        theta: Activation above which the best neuron's expert serves: 0.65 for questions.
        lr: Learning rate of Adam.
        steps: Optimizer steps.
        seed: Of the neurons' initial weights.

    Attributes:
        states: Input of the edited layer of each edit's prompt, in the order of the edits,
            [n, d_in].
        slots: Their slots, [n].
    """

    kind = "scen"
    indexable = False  # a bank of full experts that large does not fit anywhere
    states: Tensor
    slots: Tensor

    def __init__(
        self,
        encoder: PromptEncoder,
        *,
        theta: float = 0.65,
        lr: float = 1e-4,
        steps: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        self.theta, self.lr, self.steps, self.seed = theta, lr, steps, seed
        self.register_buffer("states", torch.empty(0, 0, dtype=torch.float32))
        self.register_buffer("slots", torch.empty(0, dtype=torch.int64))

    def check(self) -> None:
        """Refuse tables that do not fit each other."""
        super().check()
        self._need_number("theta", -1e3, 1e3)
        self._need_number("lr", 0, 1e3)
        self._need_number("steps", 0, MOST_STEPS, int)
        self._need_number("seed", -(2**63), 2**63 - 1, int)
        self._need("slots", self.slots.ndim == 1)
        self._need("slots", bool(((self.slots >= 0) & (self.slots < len(self.keys))).all()))
        self._need("states", len(self.states) == len(self.slots))
        if len(self.slots):
            self._need("states", self.states.shape == (len(self.slots), self.keys.shape[1]))

    def similarity(self, states: Tensor) -> Tensor:
        """Return the activations of all neurons, [N, d_in] -> [N, slots]."""
        return torch.sigmoid(super().similarity(states))

    def add(self, edits: Sequence[Edit], slots: Sequence[int]) -> None:
        """Train neurons for ``edits``, in their order, against each other and all before."""
        if not edits:
            return
        self.remove(slots)
        found = self._read([edit.prompt for edit in edits])
        first = len(self.slots)
        self.states = torch.cat([self.states.reshape(-1, found.shape[1]).to(found), found])
        new = torch.tensor(slots, device=found.device)
        self.slots = torch.cat([self.slots.to(new), new])
        # Only the new edits' names are of use: they draw the neurons' initial weights.
        ids = [""] * first + [edit.id for edit in edits]
        neurons = train_neurons(
            self.states, ids, first=first, lr=self.lr, steps=self.steps, seed=self.seed
        )
        self._reserve(slots, found.shape[1])
        self.keys[new] = neurons.weight.to(self.keys)
        self.thresholds[new] = self.theta

    def remove(self, slots: Sequence[int]) -> None:
        """Forget ``slots``."""
        gone = torch.tensor(slots, device=self.slots.device)
        keep = ~torch.isin(self.slots, gone)
        self.states, self.slots = self.states[keep], self.slots[keep]
        gone = gone[gone < len(self.thresholds)]
        self.thresholds[gone] = torch.inf
        self.keys[gone] = 0

    def renumber(self, slots: Sequence[int]) -> None:
        """Keep the neurons in ``slots``, in their order."""
        super().renumber(slots)
        self.slots = self._renumbered(self.slots, slots)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the settings."""
        return {"theta": self.theta, "lr": self.lr, "steps": self.steps, "seed": self.seed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the settings."""
        self.theta, self.lr = state["theta"], state["lr"]
        self.steps, self.seed = state["steps"], state["seed"]
