"""What the quality study reads of the model, each state computed once.

All prompts of a chat model begin alike; keys and values of that beginning are computed once. Every
state is kept on disk, since gates and runs share most of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.upper_layers import KeyValues

BATCH = 48


class Beginning:
    """The tokens that all prompts share, read once."""

    def __init__(self, model: Any, prompts: PromptFormat) -> None:
        self.model, self.prompts = model, prompts
        two = zip(prompts.encode("What is it?"), prompts.encode("Name one."), strict=False)
        self.tokens = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], two)]
        self._known = self.read(1)

    @torch.no_grad()
    def read(self, rows: int) -> list[KeyValues]:
        """Return keys and values of each layer for so many rows, as the model is now."""
        cache = DynamicCache()
        if self.tokens:
            tokens = torch.tensor([self.tokens]).expand(rows, -1)
            self.model.get_decoder()(tokens, past_key_values=cache, use_cache=True)
        layers: list[Any] = list(cache.layers)  # all of them have keys and values
        return [(layer.keys, layer.values) for layer in layers]

    def batch(self, texts: Sequence[str], known: Sequence[KeyValues] | None = None) -> Any:
        """Return the rest of the prompts, padded on the left, and what came before.

        Args:
            texts: Prompts, template included.
            known: The beginning's keys and values of each row; default: the base model's.
        """
        rest = [self.prompts.encode_text(text)[len(self.tokens) :] for text in texts]
        batch = self.prompts.batch(rest, "left")
        # The beginning stands left of the padding, which the mask leaves out; places count on.
        before = torch.ones(len(texts), len(self.tokens), dtype=torch.long)
        mask = torch.cat([before, batch["attention_mask"]], 1)
        cache = DynamicCache()
        rows = (len(texts), -1, -1, -1)
        for at, (keys, values) in enumerate(self._known if known is None else known):
            cache.update(keys.expand(rows).clone(), values.expand(rows).clone(), at)
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1)[:, len(self.tokens) :].clamp_min(0),
            "past_key_values": cache,
            "use_cache": True,
        }


class KeptEncoder(PromptEncoder):
    """States of prompts, each computed once and kept in a file."""

    def __init__(self, beginning: Beginning, layer: str, folder: Path) -> None:
        super().__init__(beginning.model, beginning.prompts, layer)
        self._study_beginning = beginning
        self._same_start = beginning.prompts.prompt_text("\0").partition("\0")[0]
        self._state_files = {kind: folder / f"states_{kind}" for kind in ("final", "layer")}
        self._kept: dict[str, dict[str, Tensor]] = {}
        for kind, path in self._state_files.items():
            names = json.loads(path.with_suffix(".json").read_text()) if path.exists() else []
            rows: Any = load_file(path)["states"] if names else []
            self._kept[kind] = dict(zip(names, rows, strict=True))

    def layer_inputs(self, prompts: Sequence[str]) -> Tensor:
        """Return what the base class does, mostly from the file."""
        return self._states("layer", prompts)

    def final_states(self, prompts: Sequence[str]) -> Tensor:
        """Return what the base class does, mostly from the file."""
        return self._states("final", prompts)

    @torch.no_grad()
    def _states(self, kind: str, prompts: Sequence[str]) -> Tensor:
        known = self._kept[kind]
        missing = sorted({prompt for prompt in prompts if prompt not in known}, key=len)
        for texts in _parts(missing):
            if not all(text.startswith(self._same_start) for text in texts):
                known |= zip(texts, PromptEncoder.final_states(self, texts), strict=True)
                self._write(kind)
                continue
            batch = self._study_beginning.batch(texts)
            if kind == "final":
                states = self.model.get_decoder()(**batch).last_hidden_state[:, -1]
            else:
                states = self._layer_input(batch)[:, -1]
            known |= zip(texts, states.clone(), strict=True)
            self._write(kind)
        return torch.stack([known[prompt] for prompt in prompts])

    def _write(self, kind: str) -> None:
        path, known = self._state_files[kind], self._kept[kind]
        save_file({"states": torch.stack(list(known.values()))}, path)
        path.with_suffix(".json").write_text(json.dumps(list(known)))


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def mean(values: Iterable[bool | float]) -> float | None:
    """Return the mean, None of nothing."""
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else None
