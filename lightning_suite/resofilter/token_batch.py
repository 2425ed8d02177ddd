"""Tokens of some samples, padded or packed, and which position is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError

IGNORED = -100


@dataclass
class TokenBatch:
    """Tokens of some samples, padded on either side or packed.

    Attributes:
        ids: Of the samples, from the data: N of them.
        input_ids: [B, T].
        labels: The same tokens, -100 where no loss is wanted: [B, T].
        segments: Which sample each position belongs to, -1 for padding: [B, T].
        truncated: Whether each sample lost its end before it came here.
        empty: Whether each sample's answer has no text, so that its labels are the template's.
    """

    ids: Sequence[str]
    input_ids: Tensor
    labels: Tensor
    segments: Tensor
    truncated: Sequence[bool]
    empty: Sequence[bool]

    @classmethod
    def from_mapping(cls, batch: Mapping[str, Any], device: torch.device) -> TokenBatch:
        """Read a batch with ``ids``, ``input_ids``, ``labels`` and optionally others.

        Args:
            batch: ``attention_mask`` (default: no padding) or, for packed samples, ``segments``;
                ``truncated`` and ``empty_answer`` (default: none is).
            device: Where the model is.

        Raises:
            SuiteError: A key is missing, or the number of ids is not the number of samples.
        """
        for key in ("ids", "input_ids", "labels"):
            if key not in batch:
                raise SuiteError(
                    f"probe: the batch has no {key!r}; it has {', '.join(batch)}. A batch needs "
                    "ids (one per sample, from the data), input_ids and labels."
                )
        ids = [str(i) for i in batch["ids"]]
        input_ids = batch["input_ids"].to(device)
        segments = batch.get("segments")
        if segments is None:
            rows = torch.arange(len(input_ids), device=device)[:, None].expand_as(input_ids)
            mask = batch.get("attention_mask")
            segments = rows if mask is None else rows.masked_fill(mask.to(device) == 0, -1)
        else:
            segments = segments.to(device)
        n = int(segments.max()) + 1 if "segments" in batch else len(input_ids)
        if len(ids) != n:
            raise SuiteError(f"probe: {len(ids)} ids for a batch of {n} samples.")
        truncated, empty = (
            [bool(mark) for mark in batch.get(key, [False] * n)]
            for key in ("truncated", "empty_answer")
        )
        return cls(ids, input_ids, batch["labels"].to(device), segments, truncated, empty)

    @cached_property
    def position_ids(self) -> Tensor:
        """Positions within each sample, from 0: [B, T]."""
        places = torch.arange(self.segments.shape[1], device=self.segments.device)
        starts = torch.ones_like(self.segments, dtype=torch.bool)
        starts[:, 1:] = self.segments[:, 1:] != self.segments[:, :-1]
        return places - (places * starts).cummax(1).values

    @cached_property
    def predicting(self) -> Tensor:
        """Positions whose next token is a label of the same sample: [B, T], bool."""
        found = torch.zeros_like(self.segments, dtype=torch.bool)
        same = (self.segments[:, 1:] == self.segments[:, :-1]) & (self.segments[:, 1:] >= 0)
        found[:, :-1] = same & (self.labels[:, 1:] != IGNORED)
        return found

    @cached_property
    def packed(self) -> bool:
        """Whether a row holds several samples, or none."""
        last = self.segments.max(1, keepdim=True).values
        others = (self.segments >= 0) & (self.segments != last)
        return len(self.ids) != len(self.segments) or bool(others.any())

    def counts(self, where: Tensor) -> Tensor:
        """Count the positions of each sample at which ``where`` [B, T] holds: [N]."""
        return torch.bincount(self.segments[where], minlength=len(self.ids))

    def alone(self, n: int) -> TokenBatch:
        """Return sample ``n`` in a batch of its own, without padding."""
        own = self.segments == n
        ids, labels = self.input_ids[own][None], self.labels[own][None]
        marks = [self.truncated[n]], [self.empty[n]]
        return TokenBatch([self.ids[n]], ids, labels, torch.zeros_like(ids), *marks)

    def attention_mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return what keeps samples apart and padding out; None where nothing is needed."""
        padding = self.segments < 0
        if not self.packed:
            return (~padding).long() if bool(padding.any()) else None
        length = self.segments.shape[1]
        visible = self.segments[:, None, :] == self.segments[:, :, None]
        visible &= torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
        hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return hidden.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def answers_only(tokens: TokenBatch, bos: int | None) -> TokenBatch:
    """Return each sample's label tokens alone, after the beginning-of-sequence token if any."""
    prefix = [] if bos is None else [bos]
    wanted = tokens.predicting
    labels = tokens.labels.roll(-1, 1)[wanted]
    owners = tokens.segments[wanted]
    answers = [prefix + labels[owners == n].tolist() for n in range(len(tokens.ids))]
    length = max(2, *(len(answer) for answer in answers))
    ids, own = (tokens.input_ids.new_zeros(len(answers), length) for _ in range(2))
    own -= 1
    for n, answer in enumerate(answers):
        ids[n, : len(answer)] = torch.tensor(answer, dtype=ids.dtype)
        own[n, : len(answer)] = n
    return TokenBatch(tokens.ids, ids, ids, own, tokens.truncated, tokens.empty)
