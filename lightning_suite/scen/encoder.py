"""What the unedited model makes of a prompt: the features that gates compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.language.batching import token_budget_batches
from lightning_suite.scen.answer_states import common_beginning
from lightning_suite.scen.layer_choice import causal_lm, find_layer
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.upper_layers import KeyValues, cached_key_values

# A beginning that prompts share is read once where that saves this many tokens.
_WORTH_SHARING = 256
_CLOSE = 0.05  # of the largest number of a state: rounding, in any precision


_Read = Callable[[dict[str, Any]], Tensor]


class PromptEncoder:
    """Reads states of the base model at the last token of prompts.

    Not a module: a gate that holds one does not hold the model's weights. What all prompts of a
    call begin with, such as the header of a chat template, is read once, if the model can go on
    from its keys and values.

    Args:
        model: A Hugging Face causal LM, a peft model, or a module that holds one.
        format: Writes questions as the model reads them.
        layer: The linear map that experts are added to, see
            :func:`~lightning_suite.scen.layer_choice.find_layer`.
        unedited: Makes a context in which no expert acts, such as that of an attached bank.
        token_budget: Most tokens of one forward pass, padding included.

    Attributes:
        layer: Dotted name of the map inside the causal LM.

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
        self._goes_on: bool | None = None  # from keys and values of a beginning; None: not tried

    def prompts(self, questions: Sequence[str]) -> list[str]:
        """Return the prompts, template included, of ``questions``."""
        return [self.format.prompt_text(question) for question in questions]

    def layer_inputs(self, prompts: Sequence[str]) -> Tensor:
        """Return the input of the edited layer at each prompt's last token.

        Args:
            prompts: N texts, template included.

        Returns:
            [N, d_in], float32, on the model's device; nothing above the layer is computed.
        """
        return self._encode(prompts, self._layer_input)

    def final_states(self, prompts: Sequence[str]) -> Tensor:
        """Return what the output layer reads at each prompt's last token: after the final norm.

        Args:
            prompts: N texts, template included.

        Returns:
            [N, hidden size], float32, on the model's device.
        """
        return self._encode(prompts, self._final_state)

    def _layer_input(self, batch: dict[str, Any]) -> Tensor:
        seen: list[Tensor] = []

        def stop(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
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
        return self.model.get_decoder()

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str], read: _Read) -> Tensor:
        ids = [self.format.encode_text(prompt) for prompt in prompts]
        device = next(self.model.parameters()).device
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        with self.unedited(), _evaluating(self.model):
            begun = self._beginning(ids, read, device)
            rests = [tokens[begun.length :] for tokens in ids]
            for rows in token_budget_batches([len(rest) for rest in rests], self.token_budget):
                states = self._read(begun, [rests[row] for row in rows], read, device)
                for row, state in zip(rows, states, strict=True):
                    found[row] = state
        return torch.stack(found) if found else torch.empty(0, 0, device=device)

    def _read(
        self, begun: _Beginning, rests: Sequence[list[int]], read: _Read, device: torch.device
    ) -> list[Tensor]:
        """Return the states at the ends of sequences that all have the same beginning."""
        # On the right: the causal mask alone keeps padding out of what is read.
        batch: dict[str, Any] = self.format.batch(rests, side="right")
        if begun.length:
            mask = batch["attention_mask"]
            batch["attention_mask"] = torch.cat([mask.new_ones(len(mask), begun.length), mask], 1)
        batch = {name: value.to(device) for name, value in batch.items()}
        if begun.length:
            batch |= {"past_key_values": begun.cache(len(rests)), "use_cache": True}
        states = read(batch)
        return [state[len(rest) - 1].float() for rest, state in zip(rests, states, strict=True)]

    def _beginning(self, ids: Sequence[list[int]], read: _Read, device: torch.device) -> _Beginning:
        """Read what all sequences begin with, if that is worth it and the model can go on from it.

        Whether it can is seen at the first sequence: states must come out as from the whole of it.
        """
        nothing = _Beginning([])
        length = len(common_beginning(list(map(tuple, ids)))) if len(ids) > 1 else 0
        if self._goes_on is False or length * (len(ids) - 1) < _WORTH_SHARING:
            return nothing
        try:
            cache = import_extra("transformers", "llm").DynamicCache()
            start = torch.tensor([ids[0][:length]], device=device)
            mask = torch.ones_like(start)
            read(
                {
                    "input_ids": start,
                    "attention_mask": mask,
                    "past_key_values": cache,
                    "use_cache": True,
                }
            )
            begun = _Beginning(cached_key_values(cache))
            if self._goes_on is None:
                (ours,) = self._read(begun, [ids[0][length:]], read, device)
                (whole,) = self._read(nothing, [ids[0]], read, device)
                self._goes_on = bool((ours - whole).abs().max() <= _CLOSE * whole.abs().max())
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
            self._goes_on = False  # a model that is built otherwise fails in its own way
        return begun if self._goes_on else nothing


class _Beginning:
    """Keys and values of tokens with which many sequences begin; one pair a decoder layer."""

    def __init__(self, layers: Sequence[KeyValues]) -> None:
        self._layers = layers
        self.length = layers[0][0].shape[-2] if layers else 0

    def cache(self, rows: int) -> Any:
        """Return a cache that begins with it in each of ``rows`` rows."""
        made = import_extra("transformers", "llm").DynamicCache()
        for index, (keys, values) in enumerate(self._layers):
            made.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return made


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
