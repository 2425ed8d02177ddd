"""Read what many prompts begin with once, and go on from there.

Keys and values of a beginning are constants of a model. They are read from and never written to:
each pass gets a cache of its own, which is filled with copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_suite.extras import import_extra
from lightning_suite.scen.upper_layers import KeyValues
from lightning_suite.scen.weights import weights_stamp


class Beginning:
    """Tokens with which sequences begin, and their keys and values; one pair a decoder layer.

    Args:
        tokens: P of them.
        layers: Keys and values [1, heads, P, head width] of each layer.
    """

    def __init__(self, tokens: Sequence[int] = (), layers: Sequence[KeyValues] = ()) -> None:
        self.tokens, self.layers = tuple(tokens), tuple(layers)

    def __len__(self) -> int:
        return len(self.tokens)

    def starts(self, sequence: Sequence[int]) -> bool:
        """Return whether a sequence begins so and goes on."""
        length = len(self.tokens)
        return length < len(sequence) and tuple(sequence[:length]) == self.tokens

    def cache(self, rows: int) -> Any:
        """Return a cache of transformers that begins with it in each of ``rows`` rows."""
        return _cache(
            [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers]
        )


class KeptBeginnings:
    """Beginnings that are known by name, kept until the model's weights change.

    Where a model's weights lie in another place (``model.to``), have another type, or other
    numbers, or other adapters act, what was kept is forgotten: see
    :func:`~lightning_suite.scen.weights.weights_stamp`. Copies and pickles of it are empty.

    They take 2 * layers * key heads * head width numbers a token: for SmolLM2-135M in float32
    46 KB, for a model like Llama-2-7B in bfloat16 512 KB.
    """

    def __init__(self) -> None:
        self._stamp: tuple[Any, ...] = ()
        self._kept: dict[str, Beginning] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_stamp": (), "_kept": {}}

    @property
    def bytes(self) -> int:
        """Return how much memory the keys and values take."""
        pairs = (pair for kept in self._kept.values() for pair in kept.layers)
        return sum(tensor.nbytes for pair in pairs for tensor in pair)

    def get(
        self, model: nn.Module, texts: Sequence[str], read: Callable[[str], Beginning]
    ) -> list[Beginning]:
        """Return the beginnings of ``texts``, those that are not kept from ``read``."""
        stamp = weights_stamp(model)
        if stamp != self._stamp:
            self._stamp, self._kept = stamp, {}
        for text in texts:
            if text not in self._kept:
                self._kept[text] = read(text)
        return [self._kept[text] for text in texts]


def packed(
    beginnings: Sequence[Beginning], rests: Sequence[Sequence[int]], dtype: torch.dtype
) -> tuple[dict[str, Any], list[int]]:
    """Put sequences behind one another in a single row, each of which sees itself alone.

    No padding, and a beginning that several sequences have is there once.

    Args:
        beginnings: Of N sequences.
        rests: Their other tokens, at least one each.
        dtype: In which the model computes.

    Returns:
        Arguments of a model for the L other tokens in a row, on the CPU but for the cache, and the
        place of the last one of each sequence.
    """
    different = {id(begun): begun for begun in beginnings if len(begun)}
    at, before = {}, 0
    for key, begun in different.items():
        at[key] = slice(before, before + len(begun))
        before += len(begun)
    length = sum(map(len, rests))
    seen = torch.zeros(length, before + length, dtype=torch.bool)
    positions, ends, start = [], [], 0
    for begun, rest in zip(beginnings, rests, strict=True):
        rows = slice(start, start + len(rest))
        if len(begun):
            seen[rows, at[id(begun)]] = True
        columns = slice(before + start, before + start + len(rest))
        seen[rows, columns] = torch.ones(len(rest), len(rest), dtype=torch.bool).tril()
        positions.append(torch.arange(len(begun), len(begun) + len(rest)))
        start += len(rest)
        ends.append(start - 1)
    # Added to the attention's scores, which all ways of computing it understand.
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    layers = zip(*(begun.layers for begun in different.values()), strict=True)
    given = {
        "input_ids": torch.tensor([[token for rest in rests for token in rest]]),
        "attention_mask": mask[None, None],
        "position_ids": torch.cat(positions)[None],
        "past_key_values": _cache([_joined(layer) for layer in layers]),
        "use_cache": True,
    }
    return given, ends


def _joined(pairs: Sequence[KeyValues]) -> tuple[Tensor, Tensor]:
    keys, values = zip(*pairs, strict=True)
    return torch.cat(keys, 2), torch.cat(values, 2)


def _cache(layers: Sequence[KeyValues]) -> Any:
    made = import_extra("transformers", "llm").DynamicCache()
    for index, (keys, values) in enumerate(layers):
        made.update(keys, values, index)
    return made
