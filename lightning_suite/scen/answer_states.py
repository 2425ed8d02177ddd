"""All that training an expert needs to know of prompts and their answers, computed once.

Of a prompt whose expert acts from its last token on, everything earlier is constant: the keys and
values of the layers above the edit are kept, and an optimization step runs one prompt token and
the answer. Prompts that many edits learn from (reference questions) are kept for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_suite.language.batching import token_budget_batches
from lightning_suite.language.prompts import IGNORED
from lightning_suite.scen.upper_layers import KeyValues, SplitModel

Positions = Literal["last", "all"]
Tokens = tuple[int, ...]


class AnswerRow(NamedTuple):
    """One prompt with one answer.

    Attributes:
        tokens: Prompt, answer, end.
        n_prompt: How many of them, at the start, are prompt.
    """

    tokens: Tokens
    n_prompt: int


@dataclass(frozen=True)
class AnswerBatch:
    """What an optimization step reads; N rows, padded on the right to T tokens.

    Attributes:
        x: Input of the edited map, [N, T, d_in].
        acts: Where the expert acts, bool [N, T].
        labels: The token to be predicted, ``IGNORED`` outside the answer, [N, T].
    """

    split: SplitModel
    x: Tensor
    acts: Tensor
    labels: Tensor
    start: Tensor
    mask: Tensor
    positions: Tensor
    prefix: Sequence[KeyValues] | None

    def losses(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Run the upper layers.

        Args:
            change: What the expert adds to the edited map's output, [N, T, d_out].

        Returns:
            Mean cross-entropy of each row's answer [N], and whether every one of its tokens is
            the most likely one, bool [N].
        """
        final = self.split.from_layer(
            self.start, change.to(self.start.dtype), self.mask, self.positions, self.prefix
        )
        rows, _ = at = (self.labels != IGNORED).nonzero(as_tuple=True)
        labels = self.labels[at]
        logits = self.split.logits(final[at])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = F.cross_entropy(logits, labels, reduction="none")
        n_rows = len(self.x)
        sizes = torch.bincount(rows, minlength=n_rows)
        wrong = torch.bincount(rows, (logits.argmax(-1) != labels).to(each.dtype), n_rows)
        return each.new_zeros(n_rows).index_add(0, rows, each) / sizes, wrong == 0


class AnswerStates:
    """Constants of R rows, from which batches are taken.

    Build with :meth:`StateCache.build`.
    """

    def __init__(
        self, whole: AnswerBatch, prompt_of: Tensor, prefix_lengths: Tensor, lengths: Tensor
    ) -> None:
        self._whole = whole
        self._prompt_of = prompt_of
        self._prefix_lengths = prefix_lengths
        self._lengths = lengths

    def select(self, rows: Tensor) -> AnswerBatch:
        """Return the given rows [N], without the padding that they do not need."""
        whole, device = self._whole, self._whole.x.device
        rows = rows.to(device)
        longest = int(self._lengths[rows].max())
        prompts = self._prompt_of[rows]
        width = int(self._prefix_lengths[prompts].max()) if whole.prefix else 0
        prefix = None
        if whole.prefix and width:
            full = whole.prefix[0][0].shape[-2]
            prefix = [
                (k[prompts, :, full - width :], v[prompts, :, full - width :])
                for k, v in whole.prefix
            ]
        columns = whole.mask.shape[1] - whole.x.shape[1]
        mask = whole.mask[rows, columns - width : columns + longest]

        def cut(values: Tensor) -> Tensor:
            return values[rows, :longest]

        return AnswerBatch(
            whole.split,
            cut(whole.x),
            cut(whole.acts),
            cut(whole.labels),
            cut(whole.start),
            mask,
            cut(whole.positions),
            prefix,
        )


class StateCache:
    """Computes the constants of rows, and keeps those of shared prompts.

    Args:
        split: The model in two parts.
        positions: ``"last"``: experts act from the last prompt token on; ``"all"``: on every token.
        shared: Prompts (tokens but the last) to be kept from one :meth:`build` to the next.
        keep_prefix: False runs the whole sequence in every step, for models whose keys and values
            cannot be kept.
        token_budget: Most tokens of a forward pass, padding included.
    """

    def __init__(
        self,
        split: SplitModel,
        positions: Positions = "last",
        *,
        shared: frozenset[Tokens] = frozenset(),
        keep_prefix: bool = True,
        token_budget: int = 2048,
    ) -> None:
        self.split = split
        self._positions = positions
        self._keep = keep_prefix and positions == "last"
        self._shared = shared
        self._budget = token_budget
        self._kept: dict[Tokens, list[KeyValues]] = {}

    def prefix(self, row: AnswerRow) -> Tokens:
        """Return the tokens of a row whose keys and values are constants."""
        return row.tokens[: row.n_prompt - 1] if self._keep else ()

    def build(self, rows: Sequence[AnswerRow]) -> AnswerStates:
        """Compute the constants of ``rows``: one forward pass a distinct prompt, one a tail."""
        device = self.split.device
        prefixes = list(dict.fromkeys(self.prefix(row) for row in rows))
        known = self._key_values(prefixes)
        number = {prefix: i for i, prefix in enumerate(prefixes)}
        prompt_of = torch.tensor([number[self.prefix(row)] for row in rows])
        before = torch.tensor([len(prefix) for prefix in prefixes])
        tails = [row.tokens[len(self.prefix(row)) : -1] for row in rows]
        lengths = torch.tensor([len(tail) for tail in tails])

        # Every tail begins at its prefix' end; the padding is outside, left and right.
        width, longest = int(before.max()), int(lengths.max())
        start_at = before[prompt_of]
        ends = torch.tensor([row.n_prompt - 1 for row in rows])
        columns = torch.arange(longest)
        positions = start_at[:, None] + columns
        tokens = torch.stack([_right(tail, longest) for tail in tails])
        goals = [row.tokens[len(self.prefix(row)) + 1 :] for row in rows]
        real = columns < lengths[:, None]
        answers = real & (positions >= ends[:, None])
        labels = torch.stack([_right(goal, longest) for goal in goals])
        labels = labels.masked_fill(~answers, IGNORED)
        acts = answers if self._positions == "last" else real
        # What pads a tail stands after all that is read, so it needs no mask; a row of attention
        # that is masked as a whole would be nan in some implementations.
        seen = torch.arange(width) >= width - start_at[:, None]
        mask = torch.cat([seen, torch.ones_like(real)], 1).long()

        x, start = self._run_below(tokens, mask, positions, prompt_of, lengths, prefixes, known)
        upper = self.split.first_upper
        prefix = _left([known[p][upper:] for p in prefixes], width) if width else None
        whole = AnswerBatch(
            self.split,
            x,
            acts.to(device),
            labels.to(device),
            start,
            mask.to(device),
            positions.to(device),
            prefix,
        )
        return AnswerStates(whole, prompt_of.to(device), before.to(device), lengths.to(device))

    def _key_values(self, prefixes: Sequence[Tokens]) -> dict[Tokens, list[KeyValues]]:
        """Return keys and values of every layer, each [heads, tokens, head width]."""
        known = {p: self._kept[p] for p in prefixes if p in self._kept}
        missing = [p for p in prefixes if p and p not in known]
        # What all begin with, such as the header of a chat template, is read once.
        common = common_beginning(missing) if len(missing) > 1 else ()
        device = self.split.device
        begun = None
        if common:
            begun = self.split.prompt_key_values(torch.tensor([common], device=device))
        rests = [p[len(common) :] for p in missing]
        for batch in token_budget_batches([len(rest) for rest in rests], self._budget):
            longest = len(rests[batch[0]])
            tokens = torch.stack([_right(rests[i], longest) for i in batch]).to(device)
            layers = self.split.prompt_key_values(tokens, begun)
            for row, prompt in enumerate(missing[i] for i in batch):
                n = len(prompt)
                known[prompt] = [(k[row, :, :n].clone(), v[row, :, :n].clone()) for k, v in layers]
        self._kept.update({p: known[p] for p in missing if p in self._shared})
        if () in prefixes and len(prefixes) > 1:  # a prompt of one token beside longer ones
            pattern = next(iter(known.values()))
            known[()] = [(k[:, :0], v[:, :0]) for k, v in pattern]
        return known

    def _run_below(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        prompt_of: Tensor,
        lengths: Tensor,
        prefixes: Sequence[Tokens],
        known: dict[Tokens, list[KeyValues]],
    ) -> tuple[Tensor, Tensor]:
        width = mask.shape[1] - tokens.shape[1]
        n_rows, longest = tokens.shape
        device = self.split.device
        found: tuple[Tensor, Tensor] | None = None
        for batch in token_budget_batches(lengths.tolist(), self._budget):
            rows = torch.tensor(batch)
            chosen = [known[prefixes[i]] for i in prompt_of[rows].tolist()] if width else []
            below = _left([kv[: self.split.index + 1] for kv in chosen], width) if width else None
            parts = self.split.up_to_layer(
                tokens[rows].to(device), mask[rows].to(device), positions[rows].to(device), below
            )
            if found is None:
                x, start = (p.new_zeros(n_rows, longest, p.shape[-1]) for p in parts)
                found = x, start
            for whole, part in zip(found, parts, strict=True):
                whole[rows.to(device)] = part
        assert found is not None
        return found


def common_beginning(prompts: Sequence[Tokens]) -> Tokens:
    """Return the tokens that all begin with, at least one less than any of them has."""
    first, last = min(prompts), max(prompts)  # in between, nothing differs earlier
    most = min(map(len, prompts)) - 1
    return first[: next((i for i in range(most) if first[i] != last[i]), most)]


def _right(tokens: Sequence[int], length: int) -> Tensor:
    return F.pad(torch.tensor(tokens, dtype=torch.long), (0, length - len(tokens)))


def _left(rows: Sequence[Sequence[KeyValues]], length: int) -> list[KeyValues]:
    """Stack each layer's keys and values [heads, tokens, width], padded on the left with zeros."""

    def stack(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([F.pad(part, (0, 0, length - part.shape[-2], 0)) for part in parts])

    return [
        (stack([row[i][0] for row in rows]), stack([row[i][1] for row in rows]))
        for i in range(len(rows[0]))
    ]
