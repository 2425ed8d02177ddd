"""Which linear map of a language model the experts are added to."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.extras import import_extra
from lightning_suite.language.layers import decoder_layers

# The map from the feed-forward width back to the residual stream, by the names in use: Llama and
# its kin, OPT and Phi, GPT-2, GPT-NeoX and Falcon.
OUTPUT_MAPS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h")
# Layer 20 of the 32 of Llama-2-7B in the published experiments.
_PUBLISHED_DEPTH = 20 / 32
_NUMBER = re.compile(r"-?\d+")


def causal_lm(model: nn.Module) -> Any:
    """Return the Hugging Face causal LM in ``model``, whatever is wrapped around it.

    Args:
        model: A Hugging Face model, a peft model, or any module that holds one.

    Raises:
        SuiteError: There is none.
    """
    kind = import_extra("transformers", "llm").PreTrainedModel
    found = next((module for module in model.modules() if isinstance(module, kind)), None)
    if found is None:
        raise SuiteError(f"{type(model).__name__} holds no Hugging Face model.")
    return found


def find_layer(model: nn.Module, layer: str | int | None = None) -> tuple[str, nn.Module]:
    """Find the linear map that experts are added to.

    Only what goes in and comes out of it matters, so it may be ``nn.Linear``, Hugging Face's
    ``Conv1D``, a quantised map, or one with a peft adapter.

    Args:
        model: As for :func:`causal_lm`.
        layer: Dotted name inside the causal LM; or the number of a decoder layer (negative: from
            the end), of which the last map of the feed-forward block is taken; or None for the
            layer at 5/8 of the depth, as published.

    Returns:
        The dotted name inside the causal LM, which peft and other wrappers do not change, and the
        module.

    Raises:
        SuiteError: There is no such module, or several could be meant.
    """
    lm = causal_lm(model)
    if isinstance(layer, str) and _NUMBER.fullmatch(layer):
        layer = int(layer)  # all that a command line gives is text
    if isinstance(layer, str):
        modules: dict[str, nn.Module] = dict(lm.named_modules())
        if layer not in modules:
            raise SuiteError(f"the model has no module {layer!r}.{did_you_mean(layer, modules)}")
        return layer, modules[layer]
    prefix, layers = decoder_layers(lm)
    published = min(round(_PUBLISHED_DEPTH * len(layers)), len(layers) - 1)
    number = published if layer is None else layer
    if not -len(layers) <= number < len(layers):
        raise SuiteError(f"layer={layer}, and the model has {len(layers)} decoder layers.")
    number %= len(layers)
    found = {
        f"{prefix}.{number}.{name}": module
        for name, module in layers[number].named_modules()
        if name.rpartition(".")[2] in OUTPUT_MAPS and "attn" not in name and "attention" not in name
    }
    if len(found) != 1:
        raise SuiteError(
            f"layer={number}: expected one module called {', '.join(OUTPUT_MAPS[:-1])} or "
            f"{OUTPUT_MAPS[-1]} outside the attention, found {', '.join(found) or 'none'}. Give "
            "the dotted name of the linear map instead."
        )
    return next(iter(found.items()))


def name_of(model: nn.Module, layer: nn.Module) -> str:
    """Return the dotted name of a module inside ``model``.

    Raises:
        SuiteError: It is not in there.
    """
    names: list[str] = [name for name, module in model.named_modules() if module is layer]
    if not names:
        raise SuiteError(f"the {type(layer).__name__} is no part of {type(model).__name__}.")
    return names[0]


def layer_shape(name: str, layer: nn.Module) -> tuple[int, int]:
    """Return how many numbers go in and how many come out of a linear map.

    Raises:
        SuiteError: The module does not say.
    """
    for keys in (("in_features", "out_features"), ("nx", "nf"), ("infeatures", "outfeatures")):
        sizes = [getattr(layer, key, None) for key in keys]
        if all(isinstance(size, int) for size in sizes):
            return sizes[0], sizes[1]  # type: ignore[return-value]
    raise SuiteError(
        f"{name!r} is a {type(layer).__name__}, which has no in_features and out_features; experts "
        "are added to a linear map."
    )


def unadapted(layer: nn.Module) -> nn.Module:
    """Return the map under a peft adapter, or ``layer`` itself."""
    inner = getattr(layer, "base_layer", None)
    return unadapted(inner) if isinstance(inner, nn.Module) else layer


def layer_bias(layer: nn.Module) -> Tensor | None:
    """Return the bias of a linear map, if it has one."""
    bias = getattr(unadapted(layer), "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None
