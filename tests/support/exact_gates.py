"""The simplest gates there can be, one of each stage: a prompt fires if it is an edit's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.gates.base import MISS, Gate, PromptQuery, Routing


class TextGate(Gate):
    """Fires on prompts that contain an edit's prompt, letter by letter."""

    kind = "exact_text"
    stage = "prompt"

    def __init__(self) -> None:
        super().__init__()
        self.prompts: dict[str, int] = {}
        self.asked: list[str] = []  # so that tests see what a gate is shown

    def add(self, edits: Sequence[Edit], slots: Sequence[int]) -> None:
        for edit, slot in zip(edits, slots, strict=True):
            for text in (edit.prompt, *edit.paraphrases):
                self.prompts[text] = slot

    def remove(self, slots: Sequence[int]) -> None:
        self.prompts = {text: slot for text, slot in self.prompts.items() if slot not in slots}

    def renumber(self, slots: Sequence[int]) -> None:
        place = {old: new for new, old in enumerate(slots)}
        self.prompts = {text: place[slot] for text, slot in self.prompts.items()}

    def route(self, query: PromptQuery) -> Routing:
        assert query.texts is not None
        self.asked += query.texts
        found = torch.tensor(
            [
                next((slot for prompt, slot in self.prompts.items() if prompt in text), MISS)
                for text in query.texts
            ]
        )
        score = (found != MISS).double()
        return Routing(found, found, score, score - 0.5)

    def get_extra_state(self) -> Any:
        return {"prompts": dict(self.prompts)}

    def set_extra_state(self, state: Any) -> None:
        self.prompts = dict(state["prompts"])


class StateGate(Gate):
    """Fires on prompts whose state at the edited layer is an edit's own, up to rounding."""

    kind = "exact_state"
    stage = "layer"
    keys: Tensor
    slots: Tensor

    def __init__(self, encoder: PromptEncoder | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("keys", torch.empty(0, 0))
        self.register_buffer("slots", torch.empty(0, dtype=torch.long))

    def add(self, edits: Sequence[Edit], slots: Sequence[int]) -> None:
        assert self.encoder is not None
        new = self.encoder.layer_inputs(self.encoder.prompts([edit.prompt for edit in edits]))
        self.keys = torch.cat([self.keys.reshape(-1, new.shape[1]), new])
        self.slots = torch.cat([self.slots, torch.tensor(slots)])

    def remove(self, slots: Sequence[int]) -> None:
        keep = ~torch.isin(self.slots, torch.tensor(slots))
        self.keys, self.slots = self.keys[keep], self.slots[keep]

    def renumber(self, slots: Sequence[int]) -> None:
        place = {old: new for new, old in enumerate(slots)}
        self.slots = torch.tensor([place[slot] for slot in self.slots.tolist()])

    def route(self, query: PromptQuery) -> Routing:
        assert query.states is not None
        near, row = torch.cdist(query.states.float(), self.keys).min(1)
        found = self.slots[row]
        fired = near < 1e-5 * query.states.float().norm(dim=1)
        return Routing(torch.where(fired, found, MISS), found, -near, 1e-5 - near)

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        for name in ("keys", "slots"):
            setattr(self, name, getattr(self, name).new_empty(state[prefix + name].shape))
        super()._load_from_state_dict(state, prefix, *args)
