"""What gates that hold one key an edit share: tables by slot, and the choice of the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_suite.errors import MissingExtraError, SuiteError
from lightning_suite.rank_zero import rank_zero_info
from lightning_suite.scen import routing
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.gates.base import MISS, Gate, PromptQuery, Routing

# Of a gate that trains: one that says more would not end when an edit is removed.
MOST_STEPS = 100_000


class KeyedGate(Gate):
    """A gate that compares the input of the edited layer with one key an edit.

    A prompt is compared with all keys up to 100,000 slots; beyond, an index finds the candidates,
    which are then scored as exactly (:class:`~lightning_suite.scen.routing.KeyIndex`), if FAISS is
    installed.

    Args:
        encoder: Reads the base model; needed to add edits, not to route.

    Attributes:
        keys: One row a slot, [slots, k].
        thresholds: What a slot's score must reach, [slots]; +inf in a slot without an edit. A
            change of keys makes a new tensor of them.
        indexable: Whether a score is the inner product of :meth:`query` and the key.
    """

    stage = "layer"
    indexable: ClassVar[bool] = True
    keys: Tensor
    thresholds: Tensor

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("keys", torch.empty(0, 0, dtype=torch.float32))
        self.register_buffer("thresholds", torch.empty(0, dtype=torch.float32))
        self._index: routing.KeyIndex | None = None
        self._without_index = False  # FAISS is not there, and it was said

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index out of copies: it is made from the keys, and FAISS's cannot be copied."""
        return {**self.__dict__, "_index": None}

    def check(self) -> None:
        """Refuse tables that do not fit each other."""
        self._need("keys", self.keys.ndim == 2)
        self._need("thresholds", self.thresholds.shape == self.keys.shape[:1])

    def _need(self, table: str, fits: bool) -> None:
        if not fits:
            raise SuiteError(f"the gate's table {table!r} does not fit the others.")

    def _need_number(
        self, setting: str, least: float, most: float, kind: type[int | float] = float
    ) -> None:
        """Refuse a setting with which no gate can have been made: a bank is made by anybody."""
        value = getattr(self, setting)
        if type(value) not in (int, kind) or not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            raise SuiteError(
                f"the gate's setting {setting!r} is {str(value)[:40]}, expected {what} "
                f"from {least:g} to {most:g}."
            )

    @property
    def alive(self) -> Tensor:
        """Return which slots have an edit, [slots], bool."""
        return self.thresholds < torch.inf

    def similarity(self, states: Tensor) -> Tensor:
        """Return the score of every slot for inputs of the layer, [N, d_in] -> [N, slots]."""
        return self.query(states) @ self.keys.T

    def query(self, states: Tensor) -> Tensor:
        """Return what is compared with the keys, [N, d_in] -> [N, k]."""
        return states.to(self.keys)

    def route(self, query: PromptQuery) -> Routing:
        """Take the slot that is furthest above its threshold, or least below it.

        Raises:
            ValueError: The query has no states.
        """
        if query.states is None:
            raise ValueError(f"the gate {self.kind!r} reads states of the edited layer.")
        if not len(self.thresholds):
            return misses(len(query.states), query.states.device)
        index = self._key_index()
        if index is not None:
            return index.nearest(self.query(query.states))
        return nearest(self.similarity(query.states), self.thresholds)

    def renumber(self, slots: Sequence[int]) -> None:
        """Keep the rows of ``slots``, in their order."""
        kept = torch.tensor(slots, dtype=torch.int64, device=self.thresholds.device)
        self.keys, self.thresholds = self.keys[kept], self.thresholds[kept]

    def _renumbered(self, of: Tensor, slots: Sequence[int]) -> Tensor:
        """Return what slots become, MISS for those that are none of ``slots``."""
        place = of.new_full((max([*slots, *of.tolist()], default=0) + 1,), MISS)
        place[torch.tensor(slots, dtype=torch.int64, device=of.device)] = torch.arange(
            len(slots), device=of.device
        )
        return torch.where(of >= 0, place[of.clamp_min(0)], MISS)

    def _key_index(self) -> routing.KeyIndex | None:
        """Return the index of the keys as they are, None where comparing with all is better."""
        if not self.indexable or self._without_index or len(self.keys) <= routing.EXACT_UP_TO:
            return None
        if self._index is None or self._index.thresholds is not self.thresholds:
            try:
                self._index = routing.KeyIndex(self.keys, self.thresholds)
            except MissingExtraError as err:
                self._without_index = True
                rank_zero_info(
                    f"gate {self.kind!r}: each prompt is compared with all {len(self.keys):,} keys;"
                    f" an index would be faster. {err}"
                )
                return None
        return self._index

    def _read(self, questions: Sequence[str]) -> Tensor:
        """Return the layer's inputs for questions, where and in what this gate's tables are."""
        prompts = self.encoder.prompts(questions)
        return self.encoder.layer_inputs(prompts).to(self.thresholds)

    def _reserve(self, slots: Sequence[int], width: int) -> None:
        """Make room for ``slots``; new ones are empty."""
        missing = max(slots, default=-1) + 1 - len(self.thresholds)
        if missing > 0:
            old = self.keys if self.keys.shape[1] else self.keys.new_empty(0, width)
            self.keys = torch.cat([old, old.new_zeros(missing, width)])
            self.thresholds = torch.cat(
                [self.thresholds, self.thresholds.new_full((missing,), torch.inf)]
            )


def nearest(scores: Tensor, thresholds: Tensor) -> Routing:
    """Choose the slot with the largest score less its threshold.

    Args:
        scores: [N, slots].
        thresholds: [slots]; +inf for a slot that must not be chosen.
    """
    if not (thresholds < torch.inf).any():
        return misses(len(scores), scores.device)
    margins = scores - thresholds
    margin, slot = margins.max(1)
    score = scores.gather(1, slot[:, None])[:, 0]
    return Routing(torch.where(margin >= 0, slot, MISS), slot, score, margin)


def misses(prompts: int, device: torch.device) -> Routing:
    """Return the decision that none of so many prompts asks for any edit."""
    none = torch.full((prompts,), MISS, device=device)
    lost = torch.full((prompts,), -torch.inf, device=device, dtype=torch.float32)
    return Routing(none, none.clone(), lost, lost.clone())
