"""A gate in closed form: whitened features, a centroid an edit, thresholds between neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.gates.keyed import KeyedGate
from lightning_suite.scen.reference_data import reference_questions
from lightning_suite.scen.whitening import Whitening, total_whitening

_REFERENCE = -1  # owner of reference features


class ClosedGate(KeyedGate):
    """Key of an edit: the mean of its whitened, normalised features; no gradient steps.

    Features are the inputs of the edited layer at the last prompt token, whitened by the
    covariance of reference text. The threshold of an edit lies midway between its lowest positive
    (its prompt and paraphrases) and its hardest negative (those of other edits, and reference
    text). The outcome does not depend on the order of edits; adding one costs one forward pass
    per wording, and comparisons with the others.

    Args:
        encoder: Reads the base model; needed to add edits, not to route.
        reference: Questions whose answers no edit changes; None takes the shipped ones.

    Attributes:
        positives: Whitened features of all wordings, [P, d_in].
        owners: Their slots, [P].
        lowest: Least similarity of a slot's wordings to its key, [slots].
        hardest: Largest similarity of another edit's wording or reference text to it, [slots].
        hardest_owner: The slot of that other edit; -1 for reference text, [slots].
    """

    kind = "closed"
    positives: Tensor
    owners: Tensor
    background: Tensor
    mean: Tensor
    matrix: Tensor
    lowest: Tensor
    hardest: Tensor
    hardest_owner: Tensor

    def __init__(self, encoder: PromptEncoder, reference: Sequence[str] | None = None) -> None:
        super().__init__(encoder)
        self.reference = reference
        for name in ("mean", "lowest", "hardest"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float32))
        for name in ("positives", "background", "matrix"):
            self.register_buffer(name, torch.empty(0, 0, dtype=torch.float32))
        for name in ("owners", "hardest_owner"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))

    def check(self) -> None:
        """Refuse tables that do not fit each other."""
        super().check()
        slots, width = self.keys.shape
        of_slots = (slots,)
        for name in ("lowest", "hardest", "hardest_owner"):
            self._need(name, getattr(self, name).shape == of_slots)
        self._need("owners", self.owners.ndim == 1 and _within(self.owners, 0, slots))
        self._need("hardest_owner", _within(self.hardest_owner, _REFERENCE, slots))
        if slots:
            self._need("positives", self.positives.shape == (len(self.owners), width))
            self._need("matrix", self.matrix.shape == (*self.mean.shape, width))
            self._need("background", self.background.shape[1:] == (width,))

    def whiten(self, states: Tensor) -> Tensor:
        """Return whitened features of length 1 of inputs of the layer, both [N, d_in]."""
        return Whitening(self.mean, self.matrix)(states.to(self.mean))

    def query(self, states: Tensor) -> Tensor:
        """Return the whitened features, whose products with the keys are cosines."""
        return self.whiten(states)

    def add(self, edits: Sequence[Edit], slots: Sequence[int]) -> None:
        """Make the keys of ``edits`` from their prompts and paraphrases."""
        if not edits:
            return
        if not self.mean.numel():
            self._fit_reference()
        self._drop(slots)
        wordings = [(edit.prompt, *edit.paraphrases) for edit in edits]
        texts = [text for texts in wordings for text in texts]
        features = self.whiten(self._read(texts))
        owners = torch.tensor(
            [slot for slot, texts in zip(slots, wordings, strict=True) for _ in texts],
            device=features.device,
        )
        self._reserve(slots, features.shape[1])
        self.positives = torch.cat([self.positives.reshape(-1, features.shape[1]), features])
        self.owners = torch.cat([self.owners, owners])
        self._learn(torch.tensor(slots, device=features.device), features, owners)

    def _learn(self, slots: Tensor, features: Tensor, owners: Tensor) -> None:
        """Make the keys of new ``slots``, whose wordings are ``features``, and all thresholds."""
        place = torch.full_like(self.lowest, -1, dtype=torch.int64)
        place[slots] = torch.arange(len(slots), device=slots.device)
        sums = features.new_zeros(len(slots), features.shape[1])
        self.keys[slots] = normalize(sums.index_add(0, place[owners], features), dim=1)
        self._compare(self.alive.nonzero()[:, 0], features, owners)
        self._compare_anew(slots)
        self._set_thresholds()

    def remove(self, slots: Sequence[int]) -> None:
        """Forget ``slots``, and lower the thresholds that they had raised."""
        self._drop(slots)
        self._set_thresholds()

    def renumber(self, slots: Sequence[int]) -> None:
        """Keep the rows of ``slots``, in their order."""
        super().renumber(slots)
        kept = torch.tensor(slots, dtype=torch.int64, device=self.lowest.device)
        self.lowest, self.hardest = self.lowest[kept], self.hardest[kept]
        self.hardest_owner = self._renumbered(self.hardest_owner[kept], slots)
        self.owners = self._renumbered(self.owners, slots)

    def _drop(self, slots: Sequence[int]) -> None:
        gone = torch.tensor(slots, device=self.owners.device)
        gone = gone[(gone < len(self.thresholds))]
        keep = ~torch.isin(self.owners, gone)
        self.positives, self.owners = self.positives[keep], self.owners[keep]
        self.thresholds[gone] = torch.inf
        self.keys[gone] = 0
        lost = self.alive & torch.isin(self.hardest_owner, gone)
        self._compare_anew(lost.nonzero()[:, 0])

    def _compare_anew(self, slots: Tensor) -> None:
        """Find the lowest positive and the hardest negative of ``slots`` from nothing."""
        if not len(slots):
            return
        self.hardest[slots] = (self.keys[slots] @ self.background.T).max(1).values
        self.hardest_owner[slots] = _REFERENCE
        self._compare(slots, self.positives, self.owners)
        scores = (self.positives * self.keys[self.owners]).sum(1)
        lowest = torch.full_like(self.lowest, torch.inf)
        lowest.scatter_reduce_(0, self.owners, scores, "amin")
        self.lowest[slots] = lowest[slots]

    def _compare(self, slots: Tensor, features: Tensor, owners: Tensor) -> None:
        """Let ``features`` be negatives of those ``slots`` that do not own them."""
        for part in torch.split(slots, 4096):  # memory in proportion to the features
            scores = self.keys[part] @ features.T
            scores[part[:, None] == owners[None]] = -torch.inf
            score, which = scores.max(1)
            harder = score > self.hardest[part]
            self.hardest[part[harder]] = score[harder]
            self.hardest_owner[part[harder]] = owners[which[harder]]

    def _set_thresholds(self) -> None:
        used = torch.zeros_like(self.thresholds, dtype=torch.bool)
        used[self.owners] = True
        midway = (self.lowest + self.hardest) / 2
        self.thresholds = torch.where(used, midway, torch.full_like(midway, torch.inf))

    def _reserve(self, slots: Sequence[int], width: int) -> None:
        super()._reserve(slots, width)
        missing = len(self.thresholds) - len(self.lowest)
        self.lowest = torch.cat([self.lowest, self.lowest.new_zeros(missing)])
        self.hardest = torch.cat([self.hardest, self.hardest.new_zeros(missing)])
        self.hardest_owner = torch.cat(
            [self.hardest_owner, self.hardest_owner.new_full((missing,), _REFERENCE)]
        )

    def _fit_reference(self) -> None:
        questions = reference_questions() if self.reference is None else self.reference
        states = self._read(questions)
        self.mean, self.matrix = total_whitening(states.cpu())
        self.mean, self.matrix = self.mean.to(states), self.matrix.to(states)
        self.background = self.whiten(states)


def _within(numbers: Tensor, first: int, end: int) -> bool:
    return bool(((numbers >= first) & (numbers < end)).all())
