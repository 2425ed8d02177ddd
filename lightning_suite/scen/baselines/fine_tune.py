"""Fine-tuning of the edited matrix itself, one edit after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_suite.language.frozen import frozen
from lightning_suite.scen.answer_states import AnswerRow, AnswerStates
from lightning_suite.scen.answers import Answer, Answerer, learning
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.layer_choice import causal_lm, name_of
from lightning_suite.scen.linear_maps import base_weight
from lightning_suite.scen.split_choice import open_cache

_GROUP = 32  # edits whose states are held at a time


class FineTune:
    """Trains the weight that SCEN would attach to, in sequence, with nothing held back.

    Each edit: a fresh Adam, its own prompt and target, cross-entropy of the answer. What lies
    below the matrix never changes and is computed once.

    Args:
        answerer: Of the model.
        layer: The linear map, a submodule of the model.
        lr: Of Adam.
        steps: An edit.

    Raises:
        SuiteError: The layer is not in the model, or holds no plain matrix.
    """

    name = "fine_tune"

    def __init__(
        self, answerer: Answerer, layer: nn.Module, *, lr: float = 1e-4, steps: int = 10
    ) -> None:
        self.lr, self.steps = lr, steps
        self._answerer = answerer
        self._model = causal_lm(answerer.model)
        self._layer, self._name = layer, name_of(self._model, layer)
        self._before = base_weight(layer).clone()

    def edit(self, edits: Sequence[Edit]) -> None:
        """Train on one edit after the other."""
        encoded = [self._answerer.prompts.encode_answer(edit.prompt, edit.target) for edit in edits]
        rows = [AnswerRow(tuple(tokens), n_prompt) for tokens, n_prompt in encoded]
        if not rows:
            return
        now = base_weight(self._layer)  # stays in the model until the end
        with learning(self._model), frozen(self._model):
            change = torch.zeros_like(now).requires_grad_(True)
            cache = open_cache(self._model, self._name, rows, "all")
            for start in range(0, len(rows), _GROUP):
                group = rows[start : start + _GROUP]
                states = cache.build(group)
                for row in range(len(group)):
                    self._train(states, row, change)
        with torch.no_grad():
            now += change.detach()

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """Answer with the weights as they are now."""
        return self._answerer(questions)

    @torch.no_grad()
    def undo(self) -> None:
        """Put the original weight back."""
        base_weight(self._layer).copy_(self._before)

    def _train(self, states: AnswerStates, row: int, change: Tensor) -> None:
        """Train the change of the weight [d_out, d_in] on one row."""
        batch = states.select(torch.tensor([row]))
        optimizer = torch.optim.Adam([change], lr=self.lr)
        for _ in range(self.steps):
            loss, _ = batch.losses(batch.x @ change.mT)
            (change.grad,) = torch.autograd.grad(loss.sum(), [change])
            optimizer.step()
        change.grad = None
