"""What the quality study asks of the model, asked once: states of prompts, answers with an expert.

All prompts of a chat model begin alike; keys and values of that beginning are computed once. Every
state and every answer is kept on disk, since systems share most of them: an answer depends on the
prompt and the expert that serves it, and on nothing else.
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

from lightning_suite.scen.answers import Answer, right_answer, same_answer
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.prompts import PromptFormat

BATCH = 48
MAX_NEW_TOKENS = 12
Expert = dict[str, Tensor]


class Beginning:
    """The tokens that all prompts share, read once."""

    def __init__(self, model: Any, prompts: PromptFormat) -> None:
        self.model, self.prompts = model, prompts
        two = zip(prompts.encode("What is it?"), prompts.encode("Name one."), strict=False)
        self.tokens = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], two)]
        cache = DynamicCache()
        if self.tokens:
            model.get_decoder()(torch.tensor([self.tokens]), past_key_values=cache, use_cache=True)
        layers: list[Any] = list(cache.layers)  # all of them have keys and values
        self._known: list[Any] = [(layer.keys, layer.values) for layer in layers]

    def batch(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the rest of the prompts, padded on the left, and what came before."""
        rest = [self.prompts.encode_text(text)[len(self.tokens) :] for text in texts]
        batch = self.prompts.batch(rest, "left")
        # The beginning stands left of the padding, which the mask leaves out; places count on.
        before = torch.ones(len(texts), len(self.tokens), dtype=torch.long)
        mask = torch.cat([before, batch["attention_mask"]], 1)
        cache = DynamicCache()
        for at, (keys, values) in enumerate(self._known):
            rows = (len(texts), -1, -1, -1)
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
        self._shared = beginning
        self._header = beginning.prompts.prompt_text("\0").partition("\0")[0]
        self._files = {kind: folder / f"states_{kind}" for kind in ("final", "layer")}
        self._known: dict[str, dict[str, Tensor]] = {}
        for kind, path in self._files.items():
            names = json.loads(path.with_suffix(".json").read_text()) if path.exists() else []
            rows: Any = load_file(path)["states"] if names else []
            self._known[kind] = dict(zip(names, rows, strict=True))

    def layer_inputs(self, prompts: Sequence[str]) -> Tensor:
        """Return what the base class does, mostly from the file."""
        return self._states("layer", prompts)

    def final_states(self, prompts: Sequence[str]) -> Tensor:
        """Return what the base class does, mostly from the file."""
        return self._states("final", prompts)

    @torch.no_grad()
    def _states(self, kind: str, prompts: Sequence[str]) -> Tensor:
        known = self._known[kind]
        missing = sorted({prompt for prompt in prompts if prompt not in known}, key=len)
        for texts in _parts(missing):
            if not all(text.startswith(self._header) for text in texts):
                known |= zip(texts, PromptEncoder.final_states(self, texts), strict=True)
                self._keep(kind)
                continue
            batch = self._shared.batch(texts)
            if kind == "final":
                states = self.model.get_decoder()(**batch).last_hidden_state[:, -1]
            else:
                states = self._layer_input(batch)[:, -1]
            known |= zip(texts, states.clone(), strict=True)
            self._keep(kind)
        return torch.stack([known[prompt] for prompt in prompts])

    def _keep(self, kind: str) -> None:
        path, known = self._files[kind], self._known[kind]
        save_file({"states": torch.stack(list(known.values()))}, path)
        path.with_suffix(".json").write_text(json.dumps(list(known)))


class KeptAnswers:
    """Greedy answers, each generated once and kept in a file.

    Args:
        beginning: Of all prompts.
        layer: Name of the edited map.
        path: The file, one answer a line.
    """

    def __init__(self, beginning: Beginning, layer: str, path: Path) -> None:
        self._beginning, self._path = beginning, path
        self._module = beginning.model.get_submodule(layer)
        lines = path.read_text().splitlines() if path.exists() else []
        self._known: dict[tuple[str, str], Answer] = {}
        for line in lines:
            expert, question, text, finished = json.loads(line)
            self._known[expert, question] = Answer(text, finished)

    def ask(self, asked: Sequence[tuple[str, str]], experts: dict[str, Expert]) -> list[Answer]:
        """Answer questions.

        Args:
            asked: Name of the expert that serves, empty for none, and the question.
            experts: By name; they act from the last token of the prompt on.
        """
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._known]
        new.sort(key=lambda pair: (not pair[0], len(pair[1])))
        served = [pair for pair in new if pair[0]]
        for pairs in (*_parts(served), *_parts(new[len(served) :])):
            found = self._generate(pairs, experts)
            self._known |= zip(pairs, found, strict=True)
            with self._path.open("a") as file:
                for (name, question), answer in zip(pairs, found, strict=True):
                    file.write(json.dumps([name, question, answer.text, answer.finished]) + "\n")
        return [self._known[pair] for pair in asked]

    @torch.no_grad()
    def _generate(
        self, pairs: Sequence[tuple[str, str]], experts: dict[str, Expert]
    ) -> list[Answer]:
        prompts = self._beginning.prompts
        inputs = self._beginning.batch([prompts.prompt_text(question) for _, question in pairs])
        chosen = [experts[name] for name, _ in pairs if name]
        weights = {key: torch.stack([e[key] for e in chosen]) for key in (chosen or [{}])[0]}

        def act(_module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            x = args[0][:, -1:]
            output = output.clone()
            if "weight" in weights:
                output[:, -1:] = x @ weights["weight"].mT
            else:
                output[:, -1:] += x @ weights["a"].mT @ weights["b"].mT
            return output

        handle = self._module.register_forward_hook(act) if chosen else None
        try:
            rows: list[Tensor] = []
            ended = torch.zeros(len(pairs), dtype=torch.bool)
            ends = torch.tensor(prompts.end_token_ids)
            while len(rows) < MAX_NEW_TOKENS and not ended.all():
                logits = self._beginning.model(**inputs, logits_to_keep=1).logits
                token = logits[:, -1].argmax(-1)
                rows.append(token)
                ended |= torch.isin(token, ends)
                one = torch.ones(len(pairs), 1, dtype=torch.long)
                inputs["attention_mask"] = torch.cat([inputs["attention_mask"], one], 1)
                inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1
                inputs["input_ids"] = token[:, None]
        finally:
            if handle is not None:
                handle.remove()
        return [
            Answer(prompts.decode(row), not set(row).isdisjoint(prompts.end_token_ids))
            for row in torch.stack(rows, 1).tolist()
        ]


def reached(answer: Answer, target: str) -> bool:
    """Return whether an answer is the edit's."""
    return right_answer(answer, target)


def kept(answer: Answer, before: Answer) -> bool:
    """Return whether an answer is the unedited model's."""
    return same_answer(answer.text, before.text)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def mean(values: Iterable[bool | float]) -> float | None:
    """Return the mean, None of nothing."""
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else None
