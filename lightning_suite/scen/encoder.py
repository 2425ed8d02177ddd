"""What the unedited model makes of a prompt: the features that gates compare."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.language.batching import token_budget_batches
from lightning_suite.scen.answer_states import common_beginning
from lightning_suite.scen.beginnings import Beginning, KeptBeginnings, packed
from lightning_suite.scen.layer_choice import causal_lm, find_layer
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.surroundings import own_precision
from lightning_suite.scen.upper_layers import cached_key_values

# A beginning that prompts share is read once where that saves this many tokens.
_WORTH_SHARING = 256
_WORTH_KEEPING = 8  # tokens of a beginning that is kept from call to call
# As many tokens are read in one row: beyond, padding costs little, and who sees whom much. With a
# beginning it is less than the windows (512 tokens and more) that some models attend to.
_PACKED = 256
_CLOSE = 0.05  # of the largest number of a state: rounding, in any precision
_UNABLE = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


_Read = Callable[[dict[str, Any]], Tensor]


class PromptEncoder:
    """Reads states of the base model at the last token of prompts.

    Not a module: a gate that holds one does not hold the model's weights. States are computed in
    the precision of the model's weights, without autocast. What all prompts of a call begin with,
    such as the header of a chat template, is read once, if the model can go on from its keys and
    values.

    Args:
        model: A Hugging Face causal LM, a peft model, or a module that holds one.
        format: Writes questions as the model reads them.
        layer: The linear map that experts are added to, see
            :func:`~lightning_suite.scen.layer_choice.find_layer`.
        unedited: Makes a context in which no expert acts, such as that of an attached bank.
        token_budget: Most tokens of one forward pass, padding included.

    Attributes:
        layer: Dotted name of the map inside the causal LM.
        beginnings: Texts with which prompts are known to begin. Where :meth:`final_states` has read
            one, its keys and values are kept for all later calls, so that a prompt costs no more
            than its other tokens; see :class:`~lightning_suite.scen.beginnings.KeptBeginnings`.

    Raises:
        SuiteError: The model has no such layer.
    """

    def __init__(
        self,
        model: Any,
        format: PromptFormat,
        layer: str | int | None = None,
        *,
        unedited: Callable[[], AbstractContextManager[Any]] = nullcontext,
        token_budget: int = 2048,
    ) -> None:
        self.model, self.format = causal_lm(model), format
        self.layer, self._module = find_layer(self.model, layer)
        self.unedited, self.token_budget = unedited, token_budget
        self.beginnings: tuple[str, ...] = ()
        self.kept = KeptBeginnings()
        self._goes_on: bool | None = None  # from keys and values of a beginning; None: not tried
        kinds = {type(module).__name__.lower() for module in self.model.modules()}
        self._ends = not any("rotary" in kind for kind in kinds)  # the table of positions
        self._packs: bool | None = None  # several sequences in a row; None: not tried

    def prompts(self, questions: Sequence[str]) -> list[str]:
        """Return the prompts, template included, of ``questions``."""
        return [self.format.prompt_text(question) for question in questions]

    def fits(self, prompt: str) -> bool:
        """Return whether the model can read a prompt, template included, to its end.

        Rotary embeddings have no end; where positions are looked up in a table, it has.
        """
        if not self._ends:
            return True
        config = getattr(self.model.config, "text_config", None) or self.model.config
        limit = getattr(config, "max_position_embeddings", None)
        if limit is None or len(prompt.encode()) < limit:  # no token is less than a byte
            return True
        return len(self.format.encode_text(prompt)) <= int(limit)

    def layer_inputs(self, prompts: Sequence[str]) -> Tensor:
        """Return the input of the edited layer at each prompt's last token.

        Args:
            prompts: N texts, template included.

        Returns:
            [N, d_in], float32, on the model's device; nothing above the layer is computed.
        """
        return self._encode(prompts, self._layer_input).float()

    def final_states(self, prompts: Sequence[str]) -> Tensor:
        """Return what the output layer reads at each prompt's last token: after the final norm.

        Args:
            prompts: N texts, template included.

        Returns:
            [N, hidden size], float32 (float64 of a model in float64), on the model's device.
        """
        return self._encode(prompts, self._final_state, self.beginnings)

    def _layer_input(self, batch: dict[str, Any]) -> Tensor:
        seen: list[Tensor] = []
        own = threading.get_ident()

        def stop(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if threading.get_ident() != own:
                return  # another thread runs the model to its end
            seen.append(arguments[0])
            raise _Reached

        handle = self._module.register_forward_pre_hook(stop)
        try:
            self._decoder()(**{"use_cache": False, **batch})
        except _Reached:
            return seen[0].view(*batch["input_ids"].shape, -1)  # OPT joins rows and positions
        finally:
            handle.remove()
        raise SuiteError(f"{self.layer!r} takes no part in the model's forward pass.")

    def _final_state(self, batch: dict[str, Any]) -> Tensor:
        state: Tensor = self._decoder()(**{"use_cache": False, **batch}).last_hidden_state
        return state

    def _decoder(self) -> Any:
        """Return the model without its output layer: logits of every position are not wanted."""
        decoder = self.model.get_decoder()
        # GPT-2's before transformers 5 is the model with its output layer
        return self.model.base_model if decoder is None or decoder is self.model else decoder

    @torch.no_grad()
    @own_precision()
    def _encode(
        self, prompts: Sequence[str], read: _Read, beginnings: Sequence[str] = ()
    ) -> Tensor:
        for prompt in prompts:
            if not self.fits(prompt):
                raise SuiteError(
                    f"the model's context is too short to read {prompt[:60]!r}… to its end, as a "
                    f"gate has to ({len(self.format.encode_text(prompt))} tokens). Shorten it."
                )
        ids = [self.format.encode_text(prompt) for prompt in prompts]
        device = next(self.model.parameters()).device
        if not ids:
            return torch.empty(0, 0, device=device)
        with self.unedited(), _evaluating(self.model):
            begun = self._begun(ids, read, beginnings)
            rests = [tokens[len(start) :] for tokens, start in zip(ids, begun, strict=True)]
            if beginnings and len(rests) > 1 and sum(map(len, rests)) <= _PACKED:
                found = self._read_together(begun, rests, read)
            else:
                found = self._read_apart(begun, rests, read)
        return torch.stack(found)

    def _read_apart(
        self, begun: Sequence[Beginning], rests: Sequence[list[int]], read: _Read
    ) -> list[Tensor]:
        """Return the states at the ends of sequences, a pass for those of each beginning."""
        found: list[Tensor] = [torch.empty(0)] * len(rests)
        for start in {id(start): start for start in begun}.values():
            group = [row for row, own in enumerate(begun) if own is start]
            lengths = [len(rests[row]) for row in group]
            for batch in token_budget_batches(lengths, self.token_budget):
                rows = [group[place] for place in batch]
                states = self._read(start, [rests[row] for row in rows], read)
                for row, state in zip(rows, states, strict=True):
                    found[row] = state
        return found

    def _read_together(
        self, begun: Sequence[Beginning], rests: Sequence[list[int]], read: _Read
    ) -> list[Tensor]:
        """Return the same from a single pass, if the model can keep sequences of a row apart.

        Whether it can is seen the first time: states must come out as from passes of their own.
        """
        if self._packs is False or not any(map(len, begun)):
            return self._read_apart(begun, rests, read)
        try:
            given, ends = packed(begun, rests, next(self.model.parameters()).dtype)
            states = _precise(read(self._placed(given))[0, ends])
            if self._packs is None:
                apart = self._read_apart(begun, rests, read)
                self._packs = _alike(states, torch.stack(apart))
        except _UNABLE:
            self._packs = False
        return [*states] if self._packs else self._read_apart(begun, rests, read)

    def _read(self, begun: Beginning, rests: Sequence[list[int]], read: _Read) -> list[Tensor]:
        """Return the states at the ends of sequences that all have the same beginning."""
        # On the right: the causal mask alone keeps padding out of what is read.
        batch: dict[str, Any] = self.format.batch(rests, side="right")
        if len(begun):
            mask = batch["attention_mask"]
            batch["attention_mask"] = torch.cat([mask.new_ones(len(mask), len(begun)), mask], 1)
            batch |= {"past_key_values": begun.cache(len(rests)), "use_cache": True}
        states = read(self._placed(batch))
        return [_precise(state[len(rest) - 1]) for rest, state in zip(rests, states, strict=True)]

    def _placed(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return arguments of the model with their tensors where it is."""
        device = next(self.model.parameters()).device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()}

    def _begun(
        self, ids: Sequence[list[int]], read: _Read, beginnings: Sequence[str]
    ) -> list[Beginning]:
        """Return the beginning from which each sequence is read on: one that is kept, or shared."""
        nothing = Beginning()
        kept: list[Beginning] = []
        if beginnings and self._goes_on is not False:
            kept = self.kept.get(self.model, beginnings, lambda text: self._known(text, ids, read))
        begun = [
            max((start for start in kept if start.starts(tokens)), key=len, default=nothing)
            for tokens in ids
        ]
        if self._goes_on is False:  # as the first of them has shown
            begun = [nothing] * len(ids)
        others = [tokens for tokens, start in zip(ids, begun, strict=True) if not len(start)]
        shared = self._shared(others, read)
        return [start if len(start) else shared for start in begun]

    def _known(self, text: str, ids: Sequence[list[int]], read: _Read) -> Beginning:
        """Read a text with which prompts begin; none if it is short."""
        # Its last tokens may be joined with what follows: those that stay whatever it is.
        longer = [tuple(self.format.encode_text(text + more)) for more in ("a", "The", "1", '"')]
        tokens = common_beginning(longer)
        if len(tokens) < _WORTH_KEEPING:
            return Beginning()
        asked = next((own for own in ids if tuple(own[: len(tokens)]) == tokens), [*longer[1]])
        return self._tried(tokens, asked, read)

    def _shared(self, ids: Sequence[list[int]], read: _Read) -> Beginning:
        """Read what all sequences begin with, if that is worth it."""
        tokens = common_beginning(list(map(tuple, ids))) if len(ids) > 1 else ()
        if self._goes_on is False or len(tokens) * (len(ids) - 1) < _WORTH_SHARING:
            return Beginning()
        return self._tried(tokens, ids[0], read)

    def _tried(self, tokens: Sequence[int], asked: list[int], read: _Read) -> Beginning:
        """Read a beginning, if the model can go on from it.

        Whether it can is seen at the first sequence, ``asked``: its state must come out as from
        the whole of it.
        """
        nothing = Beginning()
        try:
            cache = import_extra("transformers", "llm").DynamicCache()
            start = torch.tensor([tokens])
            given = {"input_ids": start, "attention_mask": torch.ones_like(start)}
            read(self._placed({**given, "past_key_values": cache, "use_cache": True}))
            begun = Beginning(tokens, cached_key_values(cache))
            if self._goes_on is None:
                (ours,) = self._read(begun, [asked[len(tokens) :]], read)
                (whole,) = self._read(nothing, [asked], read)
                self._goes_on = _alike(ours, whole)
        except _UNABLE:
            self._goes_on = False  # a model that is built otherwise fails in its own way
        return begun if self._goes_on else nothing


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= _CLOSE * theirs.abs().max())


def _precise(states: Tensor) -> Tensor:
    return states if states.dtype == torch.float64 else states.float()


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass early
    """The forward pass has reached the layer."""


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Leave dropout out for a while, and leave the model as it was found."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
