"""Tokenized prompts with answers, of different lengths, and how they are made from text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_suite.datamodules.instruction_sources import Example
from lightning_suite.errors import SuiteError
from lightning_suite.language.prompts import IGNORED, ChatTemplate, Template, encode_answers

Batch = dict[str, Any]
_CHUNK = 1024  # samples tokenized at a time: lists of Python integers are large


class InstructionSamples(Dataset[Batch]):
    """Tokenized samples of different lengths; a batch is padded to its longest.

    Args:
        ids: One for each of N samples.
        tokens: Tokens of all samples, one after the other, of any integer type.
        starts: Where each sample begins in ``tokens``: int64 [N].
        lengths: int64 [N].
        prompts: How many of each sample's tokens are prompt: int64 [N].
        truncated: Whether a sample lost its end: bool [N].
        pad: Token to pad with; it is masked everywhere.
        padding_side: ``"left"`` or ``"right"``.
        empty: Whether a sample's answer has no text, so that only tokens of the template could be
            learnt: bool [N]; None if none is.
    """

    def __init__(
        self,
        ids: Sequence[str],
        tokens: Tensor,
        starts: Tensor,
        lengths: Tensor,
        prompts: Tensor,
        truncated: Tensor,
        pad: int = 0,
        padding_side: str = "right",
        empty: Tensor | None = None,
    ) -> None:
        self.empty = torch.zeros_like(truncated) if empty is None else empty
        self.ids, self.tokens, self.starts, self.lengths = ids, tokens, starts, lengths
        self.prompts, self.truncated = prompts, truncated
        self.pad, self.padding_side = pad, padding_side
        # Nothing predicts a sample's first token.
        self.n_label_tokens = (lengths - prompts.clamp(min=1)).clamp(min=0)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | Sequence[int]) -> Batch:
        return self.__getitems__([index] if isinstance(index, int) else index)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = torch.as_tensor(indices)
        lengths = self.lengths[rows]
        width = int(lengths.max())
        places = torch.arange(width).expand(len(rows), width)
        if self.padding_side == "left":
            places = places - (width - lengths)[:, None]
        inside = (places >= 0) & (places < lengths[:, None])
        flat = (self.starts[rows][:, None] + places).masked_fill(~inside, 0)
        ids = self.tokens[flat].long().masked_fill(~inside, self.pad)
        learnt = inside & (places >= self.prompts[rows][:, None])
        batch: Batch = {
            "input_ids": ids,
            "attention_mask": inside.long(),
            "labels": ids.masked_fill(~learnt, IGNORED),
            "ids": [self.ids[i] for i in indices],
            "n_tokens": lengths,
            "n_label_tokens": self.n_label_tokens[rows],
            "truncated": self.truncated[rows],
            "empty_answer": self.empty[rows],
        }
        if self.padding_side == "left":  # models count from the left edge otherwise
            batch["position_ids"] = places.clamp(min=0)
        return batch

    @property
    def status(self) -> list[str]:
        """``ok``, ``truncated``, ``empty_answer`` or ``no_labels`` for each sample."""
        marks = zip(
            self.n_label_tokens.tolist(), self.empty.tolist(), self.truncated.tolist(), strict=True
        )
        return [_status(labels, empty=empty, cut=cut) for labels, empty, cut in marks]

    def with_labels(self) -> InstructionSamples:
        """Return the samples that a loss can be computed for; the tokens are shared."""
        kept = self.n_label_tokens.nonzero().squeeze(1)
        if len(kept) == len(self):
            return self
        return InstructionSamples(
            [self.ids[i] for i in kept.tolist()],
            self.tokens,
            self.starts[kept],
            self.lengths[kept],
            self.prompts[kept],
            self.truncated[kept],
            self.pad,
            self.padding_side,
            self.empty[kept],
        )


def tokenize_examples(
    examples: Sequence[Example], tokenizer: Any, template: Template, max_length: int, where: str
) -> InstructionSamples:
    """Render and tokenize conversations.

    Args:
        examples: N conversations.
        tokenizer: As of transformers.
        template: Makes prompt and answer from a conversation.
        max_length: Most tokens a sample; what is over is cut off at the end.
        where: The data's name, for messages.

    Raises:
        SuiteError: The template cannot render a conversation; the message has its id.
    """
    add_end = not isinstance(template, ChatTemplate)
    tokens, lengths, prompts, cut = array("i"), [], [], []
    for start in range(0, len(examples), _CHUNK):
        rendered = [
            _render(example, template, where) for example in examples[start : start + _CHUNK]
        ]
        for ids, prompt in encode_answers(rendered, tokenizer, add_end=add_end):
            tokens.extend(ids[:max_length])
            lengths.append(min(len(ids), max_length))
            prompts.append(prompt)
            cut.append(len(ids) > max_length)
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    return InstructionSamples(
        ids=[example.id for example in examples],
        tokens=torch.frombuffer(tokens, dtype=torch.int32),
        starts=torch.tensor(lengths).cumsum(0) - torch.tensor(lengths),
        lengths=torch.tensor(lengths),
        prompts=torch.tensor(prompts),
        truncated=torch.tensor(cut),
        pad=0 if pad is None else pad,
        padding_side=tokenizer.padding_side,
        empty=torch.tensor([not example.response.strip() for example in examples]),
    )


def _render(example: Example, template: Template, where: str) -> tuple[str, str]:
    try:
        return template.render(example.messages)
    except SuiteError as err:
        raise SuiteError(f"{where}: sample {example.id!r}: {err}") from err


def _status(labels: int, *, empty: bool, cut: bool) -> str:
    if not labels:
        return "no_labels"
    if empty:
        return "empty_answer"
    return "truncated" if cut else "ok"
