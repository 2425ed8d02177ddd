"""Let the experts of a bank act in a model: hooks alone, which leave it as it was when they go.

A forward pass whose cache is empty, or not known here, is a *prefill*: each row's prompt is routed
at its last real token, and the decision is kept with the cache. Passes that continue a known cache
follow it, be it one token or many; :meth:`Attachment.route_again` makes the next pass a prefill
all the same, for a new question in an old conversation. Beams and repeated samples of a prompt are
rows of the prefill already, and beams only ever move between rows of their own prompt. Several
threads may run the model at a time.

What cannot be seen from here: without a cache (``use_cache=False``) every step of ``generate`` is a
prefill, so say where the prompts end (:meth:`Attachment.prompt_lengths`), as with an assistant
model or prompt lookup, whose first pass holds guessed tokens behind the prompt and is refused
otherwise; of a prompt that is read in pieces (``prefill_chunk_size``) the first piece decides; and
adapters below the layer change the states that a layer gate compares, so its edits may no longer
fire.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from lightning_suite.compilation import is_compiled
from lightning_suite.errors import SuiteError
from lightning_suite.language.layers import decoder_layers
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.expert_table import Weights, edited_rows
from lightning_suite.scen.fingerprint import check_base
from lightning_suite.scen.gates.base import MISS, PromptQuery, Routing
from lightning_suite.scen.layer_choice import causal_lm, find_layer, layer_bias
from lightning_suite.scen.passes import (
    ForwardPass,
    HeldDecision,
    PassesToLearnFrom,
    Running,
    cache_in,
    guessing,
)
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.sequences import last_prompt_tokens, real_tokens
from lightning_suite.scen.systems import Decision

# Kept alive by the hooks, and so by the models.
_ATTACHED: WeakSet[Attachment] = WeakSet()


def attach(
    bank: ExpertBank, model: nn.Module, tokenizer: Any, *, allow_other_weights: bool = False
) -> Attachment:
    """Let the experts of ``bank`` act in ``model``.

    The modules of the model and the keys of its ``state_dict`` stay what they are. A prompt that
    asks for no edit gets the base model's logits, bit by bit.

    A deep copy of the model is edited as it is, by a copy of the bank, until the copy's own handle
    (:func:`attachments_in`) is detached. A model that a bank is attached to cannot be pickled.

    Args:
        bank: For this model.
        model: A Hugging Face causal LM, a peft model, or a module that holds one.
        tokenizer: Of the model.
        allow_other_weights: See :func:`~lightning_suite.scen.fingerprint.check_base`.

    Returns:
        The handle, which is also a context: at its end the bank is detached.

    Raises:
        SuiteError: The bank is for another model, a bank acts on that layer already, or the model
            is compiled.
    """
    if is_compiled(model):
        raise SuiteError(
            "the model is compiled, and compiled code does not see what is attached later. Attach "
            "the bank to the model before torch.compile."
        )
    check_base(bank.base, model, allow_other_weights=allow_other_weights)
    return Attachment(bank, model, tokenizer)


def attachment_of(bank: ExpertBank) -> Attachment:
    """Return where ``bank`` is attached.

    Raises:
        SuiteError: Nowhere, or to several models.
    """
    found = [attachment for attachment in _ATTACHED if attachment.bank is bank]
    if len(found) != 1:
        raise SuiteError(f"the bank is attached to {len(found)} models; attach it to one first.")
    return found[0]


def attachments_in(model: nn.Module) -> list[Attachment]:
    """Return the handles of the banks that are attached to ``model``, such as to a deep copy."""
    modules = set(model.modules())
    return [attachment for attachment in list(_ATTACHED) if attachment.layer in modules]


@contextmanager
def without_experts(model: nn.Module) -> Iterator[None]:
    """Let no attached bank act in ``model`` for a while."""
    with ExitStack() as stack:
        for attachment in attachments_in(model):
            stack.enter_context(attachment.paused())
        yield


class Attachment:
    """Hooks of one bank on one model; made by :func:`attach`.

    Attributes:
        bank: The bank.
        layer: The linear map that its experts are added to.
        format: How questions become prompts.
        last_routing: The gate's decision on the rows of the last prefill; None before the first.
    """

    def __init__(self, bank: ExpertBank, model: nn.Module, tokenizer: Any) -> None:
        lm = causal_lm(model)
        self._lm = lm
        name, self.layer = find_layer(lm, bank.base.layer)
        if any(attachment.layer is self.layer for attachment in _ATTACHED):
            raise SuiteError(
                f"a bank acts on {name} of this model already; detach it first, or merge the two."
            )
        self.bank = bank
        self.format = PromptFormat.for_model(lm, tokenizer, bank.template)
        self.last_routing: Routing | None = None
        self._stack = lm.get_submodule(decoder_layers(lm)[0].rpartition(".")[0])
        self._signature = inspect.signature(self._stack.forward)
        self._held: WeakKeyDictionary[Any, HeldDecision] = WeakKeyDictionary()
        self._run = Running()
        self._learning = PassesToLearnFrom()
        self._hooks = [
            self._stack.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.layer.register_forward_hook(self._act),
            self._stack.register_forward_hook(self._end),
        ]
        _ATTACHED.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """Make the handle of a copy of the model, as the hooks are copied with it."""
        made = object.__new__(type(self))
        memo[id(self)] = made  # the hooks know it
        for name, value in vars(self).items():
            setattr(made, name, copy.deepcopy(value, memo))
        if made._hooks:
            _ATTACHED.add(made)
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled: a file, or another process, would hold hooks that none can undo."""
        raise SuiteError(
            f"a bank is attached to {self.bank.base.layer} of this model, and a model with experts "
            "in it cannot be pickled (torch.save of a whole model, or a process that is spawned). "
            "Detach the bank first, or save the state_dict; attach it where the model is loaded. "
            "A Trainer with ExpertGateCallback does so in each process."
        )

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Leave the model as it was; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._run.now = [], None
        self._held.clear()
        self._learning.clear()
        _ATTACHED.discard(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no expert act in this model for a while, as far as this thread runs it."""
        self._run.paused += 1
        try:
            yield
        finally:
            self._run.paused -= 1

    @contextmanager
    def prompt_lengths(self, lengths: Sequence[int] | Tensor) -> Iterator[None]:
        """Say where the prompts end in passes that also hold their answers.

        Without it a prefill is all prompt. With it, a pass over prompt and answer gives the logits
        that generation had.

        Args:
            lengths: Number of prompt tokens of each row, padding not counted.
        """
        before, self._run.lengths = self._run.lengths, torch.as_tensor(lengths)
        try:
            yield
        finally:
            self._run.lengths = before

    def route_again(self) -> None:
        """Make the next forward pass a prefill, whatever its cache holds.

        For a conversation that goes on: its new turn is routed anew. A gate that reads text sees
        that of the new tokens.
        """
        self._run.again = True

    def explain(self, questions: Sequence[str]) -> list[Decision]:
        """Say which edit each question would be answered with, and how close a call it is."""
        routing = self.route([self.format.prompt_text(question) for question in questions])
        return self.decisions(routing)

    def decisions(self, routing: Routing) -> list[Decision]:
        """Put ids in place of slots, such as in :attr:`last_routing`."""
        records = self.bank.history.records
        return [
            Decision(
                fired=None if slot == MISS else records[slot].edit.id,
                nearest=None if near == MISS else records[near].edit.id,
                score=score,
                margin=margin,
            )
            for slot, near, score, margin in zip(*(part.tolist() for part in routing), strict=True)
        ]

    def route(self, prompts: Sequence[str]) -> Routing:
        """Return the gate's decision on prompts, template included; nothing is generated.

        Raises:
            SuiteError: As :meth:`ExpertBank.route`.
        """
        if self.bank.gate.stage == "prompt":
            with self.paused(), torch.no_grad():
                return self.bank.route(PromptQuery(texts=list(prompts)))
        encoder = PromptEncoder(self._lm, self.format, self.bank.base.layer, unedited=self.paused)
        return self.bank.route(PromptQuery(states=encoder.layer_inputs(prompts)))

    @property
    def _on(self) -> bool:
        return not self._run.paused and self.bank.enabled

    def _begin(self, _stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = self._run
        if not self._on and not torch.is_grad_enabled():
            return  # perhaps a gate's own reading, within a pass
        run.now, run.learning = None, False
        if not self._on or not len(self.bank):
            run.learning = torch.is_grad_enabled()
            return
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        shown = ids if ids is not None else embeds
        if shown is None:
            return  # the model itself will say so
        rows, length = shown.shape[:2]
        cache, mask = cache_in(given), given.get("attention_mask")
        again, run.again = run.again, False
        known = self._held.get(cache) if cache is not None and int(cache.get_seq_length()) else None
        if known is not None and not again:
            if known.rows != rows:
                raise SuiteError(
                    f"the cache was filled with {known.rows} sequences and is continued with "
                    f"{rows}; experts are chosen for each sequence when it is filled."
                )
            run.now, run.learning = ForwardPass(known, length), torch.is_grad_enabled()
            return
        if run.lengths is None and guessing():
            raise SuiteError(
                "generate with an assistant model or prompt lookup reads guessed tokens behind the "
                "prompt, and prompts are routed at their end. Say where it is: with "
                "attached.prompt_lengths([number of prompt tokens]): model.generate(…)."
            )
        past = int(cache.get_seq_length()) if cache is not None else 0
        real = real_tokens(mask, rows, length, shown.device, past)
        last = last_prompt_tokens(real, run.lengths)
        decision = HeldDecision(rows)
        first = last if self.bank.positions == "last" else None
        now = ForwardPass(decision, length, last, first)
        if self.bank.gate.stage == "prompt":
            if ids is None:
                raise SuiteError(
                    f"the gate {self.bank.gate.kind!r} reads the text of prompts, and the model "
                    "was given inputs_embeds. Give input_ids, or use a gate that reads states."
                )
            self._decide(decision, PromptQuery(texts=self._texts(ids, real, last)))
        if cache is not None:
            self._held[cache] = decision
        run.now, run.learning = now, torch.is_grad_enabled()

    def _end(self, _stack: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        run = self._run
        if not self._on and not torch.is_grad_enabled():
            return
        now, run.now, learning, run.learning = run.now, None, run.learning, False
        if now is None:
            return
        cache = cache_in(output) if isinstance(output, Mapping) else None
        if cache is not None:
            self._held[cache] = now.decision
        elif learning:
            now.decision.weights = {}  # many may wait for their backward pass

    def _act(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        run = self._run
        if run.learning and (self._on or run.now is None):
            self._learning.note(args[0], run.now)
        if run.now is not None:
            return self._edited(run.now, layer, args, output) if self._on else None
        if run.learning or not torch.is_grad_enabled():
            return None
        # No pass through the model: activation checkpointing computes the layer once more.
        now = self._learning.find(args[0])
        if now is None:
            return None
        try:
            return self._edited(now, layer, args, output)
        finally:
            now.decision.weights = {}

    def _edited(
        self, now: ForwardPass, layer: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        decision = now.decision
        x = args[0].view(decision.rows, now.length, -1)  # OPT joins rows and positions
        if not decision.decided:
            assert now.last is not None
            at = torch.arange(decision.rows, device=x.device)
            self._decide(decision, PromptQuery(states=x.detach()[at, now.last.to(x.device)]))
        if not decision.fired:
            return None
        weights = self._weights(decision, x)
        changed = edited_rows(
            weights,
            x,
            output.view(decision.rows, now.length, -1),
            torch.tensor(decision.fired, device=x.device),
            first=None if now.first is None else now.first.to(x.device),
            bias=layer_bias(layer),
        )
        return changed.view(output.shape)

    def _decide(self, decision: HeldDecision, query: PromptQuery) -> None:
        with self.paused(), torch.no_grad():  # a gate may ask the base model
            routing = self.bank.route(query)
        self.last_routing = routing
        slots = routing.expert.tolist()
        decision.fired = [row for row, slot in enumerate(slots) if slot != MISS]
        decision.slots = [slot for slot in slots if slot != MISS]
        decision.decided = True

    def _weights(self, decision: HeldDecision, x: Tensor) -> Weights:
        """Return the experts of the fired rows, fetched once for all passes of a sequence."""
        kept = next(iter(decision.weights.values()), None)
        if kept is None or kept.device != x.device or kept.dtype != x.dtype:
            decision.weights = self.bank.table.gather(decision.slots, x.device, x.dtype)
        return decision.weights

    def _texts(self, ids: Tensor, real: Tensor, last: Tensor) -> list[str]:
        return [
            self.format.text_of(row[: end + 1][kept[: end + 1]].tolist())
            for row, kept, end in zip(ids, real, last.tolist(), strict=True)
        ]
