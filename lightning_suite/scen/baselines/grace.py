"""GRACE: a codebook of keys and values inside one layer (Hartvigsen et al., arXiv 2211.11031).

Written from the paper's section 3. A key is the input of a layer at the last prompt token of an
edit; it owns the ball of radius ε around it (its *deferral radius*). A prompt whose own input lies
in the ball of its nearest key gets that key's value as the layer's output at that token; all other
prompts pass. Values are trained, one edit at a time.

Where an edit belongs depends on keys and targets alone, and a value's loss on no other value. So
all edits are placed first, and values are trained side by side, above the edited layer only; an
entry that several edits share is trained on them in their order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_suite.errors import check_choice
from lightning_suite.language.frozen import frozen
from lightning_suite.scen.answer_states import AnswerBatch, AnswerRow, StateCache
from lightning_suite.scen.answers import Answer, Answerer, learning
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.experts import StackedAdam, generator_of
from lightning_suite.scen.layer_choice import causal_lm, name_of
from lightning_suite.scen.split_choice import open_cache
from lightning_suite.scen.systems import Decision

_GROUP = 32  # values trained side by side


class Codebook:
    """Keys, values and deferral radii, and the rules by which edits change them.

    Args:
        radius: ε of a new key, Euclidean.
    """

    def __init__(self, radius: float = 1.0) -> None:
        self.radius = radius
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.radii: list[float] = []
        self.labels: list[str] = []
        self.ids: list[str] = []  # the edit that made each entry

    def nearest(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return distance and place of the nearest key of each query [N, d]."""
        found: tuple[Tensor, Tensor] = torch.cdist(query, torch.stack(self.keys)).min(1)
        return found

    def place(self, key: Tensor, value: Tensor, label: str, edit_id: str) -> int:
        """Make room for an edit and return the entry whose value it trains.

        Far from all keys: a new entry. In reach of a key with the same label: that key's radius
        grows to cover the edit. In reach of a key with another label: a new entry, and both radii
        become half the distance (algorithm 1).

        Args:
            key: [d_in].
            value: What a new entry starts from, [d_out].
            label: The target.
            edit_id: The edit.
        """
        if not self.keys:
            return self._add(key, value, self.radius, label, edit_id)
        distances, places = self.nearest(key[None])
        distance, place = distances.item(), int(places.item())
        if distance > self.radii[place] + self.radius:
            return self._add(key, value, self.radius, label, edit_id)
        if self.labels[place] == label:
            self.radii[place] = max(self.radii[place], distance)
            return place
        # Balls are closed: without the small step the two would share a point.
        self.radii[place] = max(0.0, distance / 2 - 1e-5)
        return self._add(key, value, distance / 2, label, edit_id)

    def _add(self, key: Tensor, value: Tensor, radius: float, label: str, edit_id: str) -> int:
        self.keys.append(key)
        self.values.append(value)
        self.radii.append(radius)
        self.labels.append(label)
        self.ids.append(edit_id)
        return len(self.keys) - 1


class Grace:
    """GRACE at the layer that SCEN would attach to, with the published settings.

    Args:
        answerer: Of the model.
        layer: The linear map, a submodule of the model.
        radius: ε of a new key; published: 1.0 for question answering.
        lr: Of Adam on an edit's value; published: 1.0.
        steps: An edit; published: 100.
        value_init: ``cold``: uniform in [0, 1), as published; ``warm``: the layer's own output.
        seed: Of cold values; each edit draws its own, whatever the others are.

    Raises:
        SuiteError: An unknown ``value_init``, or ``layer`` is not in the model.
    """

    name = "grace"

    def __init__(
        self,
        answerer: Answerer,
        layer: nn.Module,
        *,
        radius: float = 1.0,
        lr: float = 1.0,
        steps: int = 100,
        value_init: Literal["cold", "warm"] = "cold",
        seed: int = 0,
    ) -> None:
        check_choice("value_init", value_init, ("cold", "warm"))
        self.radius, self.lr, self.steps, self.value_init = radius, lr, steps, value_init
        self.codebook = Codebook(radius)
        self._answerer, self._layer, self._seed = answerer, layer, seed
        self._model = causal_lm(answerer.model)
        self._name = name_of(self._model, layer)
        self._encoder = PromptEncoder(self._model, answerer.prompts, self._name)

    def edit(self, edits: Sequence[Edit]) -> None:
        """Place each edit in the codebook and train its value."""
        if not edits:
            return
        with learning(self._model), frozen(self._model):
            keys = self._keys([edit.prompt for edit in edits])
            # Of the edits that share an entry, each is in a later round than the one before.
            rounds: defaultdict[int, list[tuple[int, AnswerRow]]] = defaultdict(list)
            turns = Counter[int]()
            for edit, key in zip(edits, keys, strict=True):
                place = self.codebook.place(key, self._start(edit, key), edit.target, edit.id)
                tokens, n = self._answerer.prompts.encode_answer(edit.prompt, edit.target)
                rounds[turns[place]].append((place, AnswerRow(tuple(tokens), n)))
                turns[place] += 1
            rows = [row for one in rounds.values() for _, row in one]
            cache = open_cache(self._model, self._name, rows)
            for one in rounds.values():
                for at in range(0, len(one), _GROUP):
                    self._train(cache, one[at : at + _GROUP])

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """Answer with the codebook in the layer."""
        if not self.codebook.keys:
            return self._answerer(questions)
        with self._attached():
            return self._answerer(questions)

    def route(self, questions: Sequence[str]) -> list[Decision]:
        """Return which entry each question meets; score and margin are negative distances."""
        if not self.codebook.keys:
            return [Decision(None, None, -torch.inf, -torch.inf) for _ in questions]
        distances, places = self.codebook.nearest(self._keys(questions))
        decisions = []
        for distance, place in zip(distances.tolist(), places.tolist(), strict=True):
            margin = self.codebook.radii[place] - distance
            edit = self.codebook.ids[place]
            decisions.append(Decision(edit if margin >= 0 else None, edit, -distance, margin))
        return decisions

    def undo(self) -> None:
        """Empty the codebook."""
        self.codebook = Codebook(self.radius)

    def _keys(self, questions: Sequence[str]) -> Tensor:
        """Return the layer's input at each last prompt token, [N, d_in]."""
        found = self._encoder.layer_inputs(self._encoder.prompts(questions))
        return found.to(self._model.dtype)

    def _start(self, edit: Edit, key: Tensor) -> Tensor:
        """Return what the value of a new entry starts from, [d_out]."""
        own: Tensor = self._layer(key[None])[0]
        if self.value_init == "warm":
            return own
        generator = generator_of(f"grace/{edit.id}", self._seed)
        cold = torch.rand(own.shape, generator=generator, dtype=torch.float32)
        return cold.to(own)

    def _train(self, cache: StateCache, chosen: Sequence[tuple[int, AnswerRow]]) -> None:
        """Train different entries, each on its row."""
        places = [place for place, _ in chosen]
        batch = cache.build([row for _, row in chosen]).select(torch.arange(len(chosen)))
        start = torch.stack([self.codebook.values[place] for place in places]).detach()
        kept = start.to(torch.promote_types(start.dtype, torch.float32), copy=True)
        adam = StackedAdam({"value": kept}, self.lr)
        for _ in range(self.steps):
            value = kept.detach().requires_grad_()
            each, _ = batch.losses(_change_at_prompt_end(batch, value))
            adam.step({"value": torch.autograd.grad(each.sum(), value)[0]})
        for place, trained in zip(places, kept.to(start.dtype), strict=True):
            self.codebook.values[place] = trained

    @contextmanager
    def _attached(self) -> Iterator[None]:
        """Replace outputs at the last prompt token; prompts are padded on the left."""

        def replace(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if inputs[0].shape[1] == 1:  # decoding: the prompt has been read
                return output
            distance, place = self.codebook.nearest(inputs[0][:, -1])
            radii = distance.new_tensor(self.codebook.radii)
            values = torch.stack(self.codebook.values)[place]
            output = output.clone()
            output[:, -1] = torch.where((distance <= radii[place])[:, None], values, output[:, -1])
            return output

        handle = self._layer.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def _change_at_prompt_end(batch: AnswerBatch, value: Tensor) -> Tensor:
    """Return what makes ``value`` [N, d_out] the layer's output at the last prompt token."""
    rows = torch.arange(len(value), device=value.device)
    last = batch.acts.int().argmax(1)  # the first token at which an expert would act
    output = batch.split.linear(batch.x[rows, last])
    nothing = value.new_zeros(*batch.acts.shape, value.shape[1])
    return nothing.index_put((rows, last), value - output)
