"""Answers of the quality study, each generated once and kept in a file.

An answer depends on the prompt and on the expert that serves it, and on nothing else, so systems
share most of them. Greedy generation gives a text, and stops, exactly where each of its tokens is
the likeliest one after those before it: whether an expert gives its own target is seen in one pass
above the edited layer, from states that all experts share. What fails there is generated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scen_quality_model import BATCH, Beginning
from torch import Tensor

from lightning_suite.scen.answer_states import AnswerBatch, AnswerRow, StateCache
from lightning_suite.scen.answers import Answer
from lightning_suite.scen.experts import LowRankExperts
from lightning_suite.scen.split_choice import open_cache

MAX_NEW_TOKENS = 12
Expert = dict[str, Tensor]


class Served(NamedTuple):
    """What answers a question.

    Attributes:
        name: Of the expert, empty for the base model.
        target: What it was trained to say.
        everywhere: Whether it acts on all tokens, not from the last one of the prompt on.
    """

    name: str = ""
    target: str = ""
    everywhere: bool = False


Asked = tuple[Served, str]


class KeptAnswers:
    """Greedy answers.

    Args:
        beginning: Of all prompts.
        layer: Name of the edited map.
        path: The file, one answer a line.
    """

    def __init__(self, beginning: Beginning, layer: str, path: Path) -> None:
        self._beginning, self._layer, self._path = beginning, layer, path
        self._module = beginning.model.get_submodule(layer)
        self._states: StateCache | None = None
        lines = path.read_text().splitlines() if path.exists() else []
        self._known: dict[tuple[str, str], Answer] = {}
        for line in lines:
            expert, question, text, finished = json.loads(line)
            self._known[expert, question] = Answer(text, finished)

    def missing(self, asked: Iterable[Asked]) -> list[Asked]:
        """Return which of them nobody has answered yet, each once."""
        return [pair for pair in dict.fromkeys(asked) if (pair[0].name, pair[1]) not in self._known]

    def ask(self, asked: Sequence[Asked], experts: Mapping[str, Expert]) -> list[Answer]:
        """Answer questions.

        Args:
            asked: Who serves, and the question.
            experts: By name: ``a`` and ``b``, ``weight``, or ``value``, which stands for the
                map's output at the prompt's last token.
        """
        new = self.missing(asked)
        trained = [p for p in new if p[0].target and not p[0].everywhere]
        rows: dict[tuple[str, str], list[Asked]] = {}
        for pair in sorted(trained, key=lambda p: len(p[1])):
            rows.setdefault((pair[1], pair[0].target), []).append(pair)
        done: set[Asked] = set()
        for some in _parts([*rows.values()]):
            right = self._gives_target([pair for row in some for pair in row], experts)
            done.update(right)
            decode = self._beginning.prompts.decode
            encode = self._beginning.prompts.encode_answer
            said = [encode(question, served.target) for served, question in right]
            self._keep(right, [Answer(decode(tokens[n:]), True) for tokens, n in said])
        rest = [pair for pair in new if pair not in done]
        rest.sort(key=lambda p: (p[0].name if p[0].everywhere else "", len(p[1])))
        for pairs in _batches(rest, experts):
            self._keep(pairs, self._generate(pairs, experts))
        return [self._known[served.name, question] for served, question in asked]

    def _keep(self, pairs: Sequence[Asked], found: Sequence[Answer]) -> None:
        with self._path.open("a") as file:
            for (served, question), answer in zip(pairs, found, strict=True):
                self._known[served.name, question] = answer
                row = [served.name, question, answer.text, answer.finished]
                file.write(json.dumps(row) + "\n")

    @torch.no_grad()
    def _gives_target(self, pairs: Sequence[Asked], experts: Mapping[str, Expert]) -> list[Asked]:
        prompts, found = self._beginning.prompts, []
        encoded = {(q, served.target): prompts.encode_answer(q, served.target)
                   for served, q in pairs}  # fmt: skip
        rows = {key: AnswerRow(tuple(tokens), n) for key, (tokens, n) in encoded.items()
                if len(tokens) - n <= MAX_NEW_TOKENS}  # fmt: skip
        if not rows:
            return []
        if self._states is None:
            self._states = open_cache(self._beginning.model, self._layer, [*rows.values()])
        states, place = self._states.build([*rows.values()]), {key: i for i, key in enumerate(rows)}
        kinds: dict[frozenset[str], list[Asked]] = {}
        for pair in pairs:
            if (pair[1], pair[0].target) in rows:
                kinds.setdefault(_shape(experts[pair[0].name]), []).append(pair)
        for alike in (part for pairs in kinds.values() for part in _parts(pairs)):
            at = torch.tensor([place[q, served.target] for served, q in alike])
            batch = states.select(at)
            change = _change(batch, [experts[served.name] for served, _ in alike])
            _, right = batch.losses(change)
            found += [pair for pair, yes in zip(alike, right.tolist(), strict=True) if yes]
        return found

    @torch.no_grad()
    def _generate(self, pairs: Sequence[Asked], experts: Mapping[str, Expert]) -> list[Answer]:
        prompts, names = self._beginning.prompts, [served.name for served, _ in pairs]
        before = None
        if pairs[0][0].everywhere:  # the shared beginning is read by each expert in its own way
            distinct = list(dict.fromkeys(names))
            with self._acting([experts[name] for name in distinct], everywhere=True):
                known = self._beginning.read(len(distinct))
            rows = torch.tensor([distinct.index(name) for name in names])
            before = [(keys[rows], values[rows]) for keys, values in known]
        texts = [prompts.prompt_text(question) for _, question in pairs]
        inputs = self._beginning.batch(texts, before)
        chosen = [experts[name] for name in names if name]
        with self._acting(chosen, everywhere=pairs[0][0].everywhere):
            said = self._greedy(inputs)
        return [
            Answer(prompts.decode(row), not set(row).isdisjoint(prompts.end_token_ids))
            for row in said
        ]

    def _greedy(self, inputs: dict[str, Any]) -> list[list[int]]:
        ends = torch.tensor(self._beginning.prompts.end_token_ids)
        count = len(inputs["input_ids"])
        rows: list[Tensor] = []
        ended = torch.zeros(count, dtype=torch.bool)
        while len(rows) < MAX_NEW_TOKENS and not ended.all():
            logits = self._beginning.model(**inputs, logits_to_keep=1).logits
            token = logits[:, -1].argmax(-1)
            rows.append(token)
            ended |= torch.isin(token, ends)
            one = torch.ones(count, 1, dtype=torch.long)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], one], 1)
            inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1
            inputs["input_ids"] = token[:, None]
        return torch.stack(rows, 1).tolist()

    @contextmanager
    def _acting(self, chosen: Sequence[Expert], *, everywhere: bool) -> Iterator[None]:
        """Let an expert a row act inside the block; none: the base model as it is."""
        weights = _stacked(chosen)
        first = True

        def act(_module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            nonlocal first
            at = slice(None) if everywhere else slice(-1, None)
            x, output = args[0][:, at], output.clone()
            if "weight" in weights:
                output[:, at] = x @ weights["weight"].mT
            elif "value" in weights:
                if first:
                    output[:, -1] = weights["value"]
            else:
                output[:, at] += x @ weights["a"].mT @ weights["b"].mT
            first = False
            return output

        handle = self._module.register_forward_hook(act) if weights else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()


def _stacked(chosen: Sequence[Expert]) -> Expert:
    return {key: torch.stack([e[key] for e in chosen]) for key in (chosen[0] if chosen else {})}


def _shape(expert: Expert) -> frozenset[str]:
    return frozenset(f"{key} {tuple(value.shape)}" for key, value in expert.items())


def _change(batch: AnswerBatch, chosen: Sequence[Expert]) -> Tensor:
    """Return what experts, one a row, add to the map's output where they act."""
    weights, linear = _stacked(chosen), batch.split.linear
    if "a" in weights:
        change = LowRankExperts(**weights).change(batch.x)
    elif "weight" in weights:
        change = batch.x @ weights["weight"].mT - linear(batch.x)
    else:
        change = weights["value"][:, None] - linear(batch.x)
        change[:, 1:] = 0  # the first token of a row is the prompt's last
    return change * batch.acts[..., None]


def _batches(pairs: Sequence[Asked], experts: Mapping[str, Expert]) -> Iterator[Sequence[Asked]]:
    """Yield batches in which all or none is an expert, all of one shape, on the same tokens."""
    kinds: dict[tuple[bool, frozenset[str]], list[Asked]] = {}
    for pair in pairs:
        shape = _shape(experts[pair[0].name]) if pair[0].name else frozenset[str]()
        kinds.setdefault((pair[0].everywhere, shape), []).append(pair)
    for alike in kinds.values():
        yield from _parts(alike)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
