"""Run a frozen causal LM in two parts, below and above the edited matrix.

What enters the edited layer does not depend on the expert, so it is computed once; an optimization
step runs only what lies above. Both parts are the model's own code: shallow copies of its
containers, which share every weight, in which single decoder layers are replaced. The model itself
is never changed, and masks, rotary embeddings and norms are the model's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.language.layers import decoder_layers
from lightning_suite.language.partial_copies import replaced, with_module
from lightning_suite.scen.linear_maps import find_linear

# Keys and values of one decoder layer, each [N, heads, positions, head width].
KeyValues = tuple[Tensor, Tensor]


class SplitModel:
    """One causal LM, cut at one of its linear maps.

    Args:
        model: Hugging Face causal LM or peft model around one, in evaluation mode and frozen for
            as long as this is used (:func:`lightning_suite.language.frozen.frozen`).
        layer: Dotted name of the edited linear map in ``model``, such as
            ``"model.layers.19.mlp.down_proj"``.
        additive: Whether the map's output is added to the residual stream as it is, with nothing
            that depends on it in between: then a change of the output is a change of the decoder
            layer's output, and not even the edited decoder layer runs again.

    Attributes:
        linear: The edited map.
        index: Which decoder layer holds it.

    Raises:
        SuiteError: ``layer`` is not in the model, not inside a decoder layer, or not linear.
    """

    def __init__(self, model: nn.Module, layer: str, *, additive: bool = True) -> None:
        self.additive = additive
        self.linear = find_linear(model, layer)
        whole: Any = model
        if hasattr(model, "get_base_model"):  # peft's
            whole = cast(Any, model).get_base_model()
        path, layers = decoder_layers(whole)
        found = [
            (index, name)
            for index, decoder_layer in enumerate(layers)
            for name, module in decoder_layer.named_modules()
            if module is self.linear
        ]
        if len(found) != 1:
            raise SuiteError(f"layer {layer!r} is not inside one decoder layer of {path}.")
        self.index, name = found[0]
        self.n_layers = len(layers)
        self.model = model
        self._decoder_path, _, list_name = path.rpartition(".")
        decoder = whole.get_submodule(self._decoder_path)
        self._position_ids = "position_ids" in signature(decoder.forward).parameters
        self.hidden_size = int(whole.get_input_embeddings().embedding_dim)

        self._below = _Tap(layers[self.index], name)
        skipped = [_skip(decoder_layer) for decoder_layer in layers]
        below = [*layers[: self.index], self._below.module, *skipped[self.index + 1 :]]
        self._decoder = decoder
        self._lower = with_module(decoder, list_name, nn.ModuleList(below))
        self._start = _Start(layers[self.index], name, additive)
        above = [*skipped[: self.index], self._start.module, *layers[self.index + 1 :]]
        self._upper = with_module(decoder, list_name, nn.ModuleList(above))
        self._hidden = _Given(decoder)
        self._head = with_module(whole, self._decoder_path, self._hidden.module)

    @property
    def device(self) -> torch.device:
        """Return where the model lives."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return in what the model computes: a quantized map holds nothing that would say so."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def prompt_key_values(
        self, tokens: Tensor, beginning: Sequence[KeyValues] | None = None
    ) -> list[KeyValues]:
        """Run prompts and return every layer's keys and values.

        Args:
            tokens: Padded on the right, [N, P].
            beginning: Keys and values of the same tokens before each of them, N = 1; None: none.

        Returns:
            Of beginning and tokens.
        """
        rows = len(tokens)
        cache = import_extra("transformers", "llm").DynamicCache()
        if beginning is not None:
            before = [
                (k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in beginning
            ]
            cache = self._cache(before, rows, 0)
        length = tokens.shape[1] + (beginning[0][0].shape[-2] if beginning else 0)
        with torch.no_grad():
            self._call(self._decoder, tokens, tokens.new_ones(rows, length), None, cache)
        return cached_key_values(cache)

    def up_to_layer(
        self, tokens: Tensor, mask: Tensor, positions: Tensor, prefix: Sequence[KeyValues] | None
    ) -> tuple[Tensor, Tensor]:
        """Run the lower layers.

        Args:
            tokens: What follows the prefix, padded on the right, [N, T].
            mask: 0 for what pads the prefix, on the left, 1 for the rest, [N, P + T].
            positions: Of the tokens in their sequence, [N, T].
            prefix: Keys and values of the prefix in each of the layers 0 … ``index``; None: none.

        Returns:
            Input of the edited map [N, T, d_in], and where :meth:`from_layer` starts
            [N, T, hidden]: the decoder layer's output where ``additive``, else its input.
        """
        cache = self._cache(prefix, len(tokens), 0)
        with torch.no_grad():
            self._call(self._lower, tokens, mask, positions, cache)
        self._start.as_tuple = self._below.as_tuple
        found, outer, inner = self._below.take()
        return found, outer if self.additive else inner

    def from_layer(
        self,
        start: Tensor,
        change: Tensor,
        mask: Tensor,
        positions: Tensor,
        prefix: Sequence[KeyValues] | None,
    ) -> Tensor:
        """Run the upper layers and the final norm; differentiable in ``change``.

        Args:
            start: As :meth:`up_to_layer` returns it.
            change: What is added to the edited map's output, [N, T, d_out].
            mask: As there.
            positions: As there.
            prefix: Keys and values of the prefix in the layers above (:attr:`first_upper`); None:
                none.

        Returns:
            Final hidden states, [N, T, hidden].
        """
        cache = self._cache(prefix, len(start), self.first_upper)
        self._start.state, self._start.change = start, change
        # Only the shape, type and device of these embeddings are read: the start replaces them.
        hidden: Tensor = self._call(self._upper, start, mask, positions, cache)
        return hidden

    @property
    def first_upper(self) -> int:
        """Return the first decoder layer whose keys and values :meth:`from_layer` needs."""
        return self.index + 1 if self.additive else self.index

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the model's head, with whatever scaling it does, to final states [N, hidden]."""
        self._hidden.state = hidden[None]
        found: Tensor = self._head(
            input_ids=torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device),
            use_cache=False,
        ).logits
        return found[0]

    def _call(
        self, decoder: nn.Module, given: Tensor, mask: Tensor, positions: Tensor | None, cache: Any
    ) -> Any:
        arguments: dict[str, Any] = {
            "inputs_embeds" if given.is_floating_point() else "input_ids": given,
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        if self._position_ids and positions is not None:
            arguments["position_ids"] = positions
        return decoder(**arguments).last_hidden_state

    def _cache(self, prefix: Sequence[KeyValues] | None, rows: int, first: int) -> Any:
        """Return a cache that holds ``prefix`` in the layers from ``first`` on."""
        if prefix is None:
            return None
        cache = import_extra("transformers", "llm").DynamicCache()
        if first:  # the model asks the first layer how long the prefix is; no one reads the rest
            length = prefix[0][0].shape[-2]
            nothing = prefix[0][0].new_zeros(()).expand(rows, 1, length, 1)
            for index in range(first):
                cache.update(nothing, nothing, index)
        for index, (keys, values) in enumerate(prefix, first):
            cache.update(keys, values, index)
        return cache


class _Tap:
    """A decoder layer that notes what enters it, what enters one map in it, and what leaves it."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.as_tuple = False
        self._found: dict[str, Tensor] = {}
        linear = layer.get_submodule(name)

        def read(x: Tensor) -> Any:
            self._found["x"] = x
            return linear(x)

        inside = with_module(layer, name, replaced(linear, read))

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._found["inner"] = hidden_states
            out = inside(hidden_states, *args, **kwargs)
            self.as_tuple = isinstance(out, tuple)
            self._found["outer"] = out[0] if self.as_tuple else out
            return out

        self.module = replaced(layer, forward)

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what was noted: input of the map, output and input of the layer."""
        found, self._found = self._found, {}
        x, state = found["x"], found["outer"]  # OPT works on one row a token
        return x.reshape(*state.shape[:-1], x.shape[-1]), state, found["inner"]


class _Start:
    """Stands for the edited decoder layer: its known state plus the expert's change."""

    def __init__(self, layer: nn.Module, name: str, additive: bool) -> None:
        self.state: Tensor | None = None
        self.change: Tensor | None = None
        self.as_tuple = False
        linear = layer.get_submodule(name)

        def changed(x: Tensor) -> Any:
            assert self.change is not None
            out = linear(x)
            return out + self.change.reshape(out.shape)

        inside = with_module(layer, name, replaced(linear, changed))

        def forward(_hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            assert self.state is not None
            assert self.change is not None
            if not additive:
                return inside(self.state, *args, **kwargs)
            out = self.state + self.change
            return (out,) if self.as_tuple else out

        self.module = replaced(layer, forward)


class _Given:
    """Stands for the whole decoder: final hidden states that are there already."""

    def __init__(self, decoder: nn.Module) -> None:
        self.state: Tensor | None = None
        outputs = import_extra("transformers", "llm").modeling_outputs

        def forward(*_args: Any, **_kwargs: Any) -> Any:
            return outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.state)

        self.module = replaced(decoder, forward)


def _skip(layer: nn.Module) -> nn.Module:
    return replaced(layer, lambda hidden_states, *_args, **_kwargs: hidden_states)


def cached_key_values(cache: Any) -> list[KeyValues]:
    """Return what a cache of transformers holds, a pair a decoder layer."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))  # before transformers 4.54
