"""Where a Hugging Face causal LM keeps its decoder layers, and which keys set its depth and width.

Nothing here names an architecture: the layers are the module list as long as the configuration
says the model is deep, and the keys come from the configuration class's own map of names. So
Llama, Mistral, Qwen, GPT-2, GPT-NeoX, OPT and later ones are all found, wrapped by peft or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_suite.errors import PlacedError, SuiteError, did_you_mean
from lightning_suite.extras import import_extra

_FEED_FORWARD_KEYS = ("intermediate_size", "ffn_dim", "n_inner")
# Widths that must stay equal to the hidden size where a configuration writes them down.
_SAME_AS_HIDDEN = ("word_embed_proj_dim",)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the decoder layers of a causal LM.

    Args:
        model: A Hugging Face model, a peft model around one, or any module that holds one.

    Returns:
        The dotted name inside ``model``, such as ``"model.layers"`` or ``"transformer.h"``, and
        the module list.

    Raises:
        SuiteError: No module has a configuration with a depth, or none or several lists of that
            length are there.
    """
    depths = (
        getattr(getattr(module, "config", None), "num_hidden_layers", None)
        for module in model.modules()
    )
    depth = next((d for d in depths if isinstance(d, int)), None)
    if depth is None:
        raise SuiteError(
            f"{type(model).__name__}: no module in it has a configuration with a number of hidden "
            "layers; is it a Hugging Face causal LM?"
        )
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inside:
            found[name] = module
    if len(found) != 1:
        raise SuiteError(
            f"{type(model).__name__}: expected one list of {depth} layers, found "
            f"{', '.join(found) or 'none'}."
        )
    return next(iter(found.items()))


def config_class(config: Mapping[str, Any]) -> Any:
    """Return the Hugging Face configuration class of ``config["model_type"]``."""
    known = import_extra("transformers", "llm").CONFIG_MAPPING
    kind = config.get("model_type")
    if kind is None:
        raise SuiteError("config: the key 'model_type' is missing, for example model_type: llama.")
    if not isinstance(kind, str) or kind not in known:
        text = (
            f"model_type {kind!r} is unknown to the installed transformers."
            f"{did_you_mean(kind, known.keys())}"
        )
        raise PlacedError("config", [(("model_type",), text)])
    return known[kind]


def depth_key(config: Mapping[str, Any]) -> str:
    """Return the key that sets the number of layers, such as ``"n_layer"`` for GPT-2."""
    return _own_key(config, "num_hidden_layers")


def width_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys that grow with the width, the hidden size first.

    The head dimension is not among them: a wider model has more heads of the same size.
    """
    defaults = config_class(config)()
    keys = [_own_key(config, "hidden_size")]
    keys += [key for key in _FEED_FORWARD_KEYS if hasattr(defaults, key)]
    keys += [
        _own_key(config, key)
        for key in ("num_attention_heads", "num_key_value_heads")
        if hasattr(defaults, key)
    ]
    keys += [key for key in _SAME_AS_HIDDEN if hasattr(defaults, key)]
    return list(dict.fromkeys(keys))


def scaled_config(
    config: Mapping[str, Any], *, depth: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """Return a copy of ``config`` with another depth or hidden size.

    With the hidden size, the feed-forward width and the numbers of attention and key-value heads
    grow by the same factor; the head dimension stays.

    Args:
        config: A configuration as plain values, with ``model_type``.
        depth: Number of layers; None keeps it.
        width: Hidden size; None keeps it.

    Raises:
        SuiteError: A scaled width or number of heads is not a whole number, or the configuration
            lists its layers one by one in a way that another depth cannot continue.
    """
    scaled = dict(config)
    if depth is not None:
        if depth < 1:
            raise SuiteError(f"config: depth {depth} is not possible; it must be 1 or more.")
        _drop_layer_list(scaled)
        _set(scaled, "num_hidden_layers", depth)
    if width is not None:
        full = config_class(config)(**_arguments(config))
        base = full.hidden_size
        for key in width_keys(config):
            value = getattr(full, key)
            if value is None:  # follows the hidden size by itself
                continue
            if value * width % base or width < 1:
                raise SuiteError(
                    f"config: hidden size {width} instead of {base} would need {key} = "
                    f"{value}·{width}/{base}, which is not a positive whole number. Scale by "
                    "whole numbers of heads."
                )
            _set(scaled, key, value * width // base)
    return scaled


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "model_type"}


def _own_key(config: Mapping[str, Any], key: str) -> str:
    """Return what the model type calls ``key``."""
    return str(config_class(config).attribute_map.get(key, key))


def _set(config: dict[str, Any], key: str, value: int) -> None:
    """Set ``key`` under the name that ``config`` uses: common or the model type's own."""
    own = _own_key(config, key)
    common = {theirs: ours for ours, theirs in config_class(config).attribute_map.items()}
    name = next((n for n in (key, own, common.get(own)) if n in config), own)
    assert name is not None
    config[name] = value


def _drop_layer_list(config: dict[str, Any]) -> None:
    """Remove ``layer_types`` if it is what the configuration class would write itself."""
    given = config.pop("layer_types", None)
    if given is not None and config_class(config)(**_arguments(config)).layer_types != given:
        raise SuiteError(
            "config: layer_types lists a kind for every layer; another depth cannot be derived. "
            "Remove layer_types or keep the depth."
        )
