"""Build or load a Hugging Face causal LM: dtype explicit, no code from the model, no pickle."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from lightning_suite.errors import PlacedError, SuiteError, did_you_mean
from lightning_suite.extras import import_extra
from lightning_suite.given_paths import given_path
from lightning_suite.json_text import load_json
from lightning_suite.language.gguf import local_model
from lightning_suite.language.hub import only_local
from lightning_suite.language.layers import config_class

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def causal_lm_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
) -> Any:
    """Build an untrained causal LM, initialised as its authors do.

    Args:
        config: ``{"model_type": "llama", "hidden_size": …}`` (what is not given has the value of
            the model type), or a ``config.json``, or a folder that holds one.
        dtype: Of the parameters; a key of ``DTYPES``.
        attn_implementation: ``"eager"``, ``"sdpa"``, ``"flash_attention_2"``; None leaves the
            choice to transformers.

    Raises:
        SuiteError: The configuration cannot be read, has an unknown key, or describes no model.
    """
    transformers = import_extra("transformers", "llm")
    values = dict(config) if isinstance(config, Mapping) else read_config(config)
    kind = config_class(values)
    arguments = {key: value for key, value in values.items() if key != "model_type"}
    check_config(config)
    try:
        return transformers.AutoModelForCausalLM.from_config(
            kind(**arguments),
            trust_remote_code=False,
            **_model_arguments(dtype, attn_implementation),
        )
    except (ValueError, TypeError, ImportError) as err:
        raise SuiteError(f"config: no causal LM can be built from it: {err}") from err


def check_config(config: Mapping[str, Any] | str | Path) -> None:
    """Refuse a configuration with keys that its class does not understand.

    The class itself takes any keyword and ignores it, so a mistyped one would go unnoticed.

    Args:
        config: As for :func:`causal_lm_from_config`. Files are not looked into: they hold keys
            that transformers itself has retired.

    Raises:
        SuiteError: ``model_type`` is missing or unknown.
        PlacedError: Other keys are.
    """
    if isinstance(config, Mapping):
        kind = config_class(config)
        known, also = _config_keys(kind)
        _refuse_unknown("config", config, known, f"model_type {kind.model_type}", also)


def check_lora(options: Mapping[str, Any]) -> None:
    """Refuse keys that are no fields of ``peft.LoraConfig``.

    Raises:
        PlacedError: There are such keys.
    """
    known = signature(import_extra("peft", "llm").LoraConfig).parameters
    _refuse_unknown("lora", options, known, "peft.LoraConfig")


def _config_keys(kind: Any) -> tuple[set[str], set[str]]:
    """Return the keys that a configuration class describes a model by, and what else it takes.

    The second are attributes that can be set, and names that the base class of all of them reads
    from older files.
    """
    described = {
        name for name, p in signature(kind).parameters.items() if p.kind is not p.VAR_KEYWORD
    }
    described |= {*kind().to_dict(), *kind.attribute_map, "model_type"}
    also = {name for name in dir(kind) if name[0] != "_" and not callable(getattr(kind, name))}
    also |= {"torch_dtype", "attn_implementation", "name_or_path", "num_labels"}
    if "rope_parameters" in described:
        also |= {"rope_theta", "rope_scaling", "partial_rotary_factor"}
    return described, also


def causal_lm_from_pretrained(
    name: str, *, dtype: str = "float32", attn_implementation: str | None = None
) -> Any:
    """Load a trained causal LM, in training mode.

    Args:
        name: A local folder written by ``save_pretrained``; ``package:NAME`` or a ``.gguf`` file,
            see :mod:`lightning_suite.language.gguf`; or a name of the Hugging Face Hub, which is
            downloaded once (``HF_HUB_OFFLINE=1`` forbids it). Weights must be safetensors; no
            code of the model is run.
        dtype: Of the parameters; a key of ``DTYPES``. Never taken from the checkpoint.
        attn_implementation: As in :func:`causal_lm_from_config`.

    Raises:
        SuiteError: Nothing loadable has that name, or the checkpoint lacks weights of the model.
    """
    transformers = import_extra("transformers", "llm")
    found = local_model(name)
    local = Path(found).is_dir()
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            found,
            local_files_only=local or only_local(found),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **_model_arguments(dtype, attn_implementation),
        )
    except SuiteError as err:
        raise SuiteError(f"pretrained: {err}") from err
    except (OSError, ValueError, ImportError) as err:
        kind = "folder" if local else "name (there is no such folder, so the Hub was asked)"
        raise SuiteError(f"pretrained: {name!r}: this {kind} cannot be loaded: {err}") from err
    missing = sorted(report["missing_keys"])
    if missing:
        raise SuiteError(
            f"pretrained: {name!r} lacks {len(missing)} weights of {type(model).__name__}, which "
            f"would be random: {', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}. "
            "Is it a checkpoint of another kind of model?"
        )
    return model.train()  # transformers returns it in evaluation mode: without dropout


def load_tokenizer(name: str) -> Any:
    """Load a Hugging Face tokenizer; runs no code of the model.

    Args:
        name: A local folder, a name of the Hub, ``package:NAME`` or a ``.gguf`` file.

    Raises:
        SuiteError: Nothing loadable has that name.
    """
    transformers = import_extra("transformers", "llm")
    found = local_model(name)
    # The Rust tokenizers would start threads of their own before the workers are forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            found,
            local_files_only=Path(found).is_dir() or only_local(found),
            trust_remote_code=False,
        )
    except SuiteError as err:
        raise SuiteError(
            f"tokenizer {name!r}: is neither 'bytes' nor a tokenizer that can be loaded: {err}"
        ) from err
    except (OSError, ValueError, TypeError) as err:  # the last: transformers 4, no vocabulary file
        raise SuiteError(
            f"tokenizer {name!r}: is neither 'bytes' nor a tokenizer that can be loaded: {err}"
        ) from err


def add_lora(model: Any, options: Mapping[str, Any]) -> Any:
    """Freeze ``model`` and add trainable low-rank adapters to it.

    Args:
        model: A Hugging Face causal LM.
        options: Fields of ``peft.LoraConfig``, such as ``{"r": 8, "lora_alpha": 16}``.

    Raises:
        SuiteError: A field is unknown, or peft refuses the combination.
    """
    peft = import_extra("peft", "llm")
    check_lora(options)
    try:
        return peft.get_peft_model(model, peft.LoraConfig(**{"task_type": "CAUSAL_LM", **options}))
    except (ValueError, TypeError) as err:
        raise SuiteError(f"lora: peft refuses it: {err}") from err


def checkpoint_activations(model: Any) -> None:
    """Make ``model`` compute its activations again in the backward pass instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # the newer name
    # not reentrant: the reentrant kind gives adapters in a frozen model no gradients
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def read_config(path: str | Path) -> dict[str, Any]:
    """Read ``config.json`` (the file, or its folder) as plain values."""
    file = given_path(path)
    file = file / "config.json" if file.is_dir() else file
    try:
        values = load_json(file.read_bytes())
    except OSError as err:
        raise SuiteError(f"config: {file} cannot be read ({err.strerror}).") from err
    except ValueError as err:
        raise SuiteError(f"config: {file} is not JSON: {err}") from err
    if not isinstance(values, dict):
        raise SuiteError(f"config: {file} holds a {type(values).__name__}, expected an object.")
    return values


def _model_arguments(dtype: str, attn_implementation: str | None) -> dict[str, Any]:
    if dtype not in DTYPES:
        raise SuiteError(
            f"dtype {dtype!r} is unknown.{did_you_mean(dtype, DTYPES)} Use one of "
            f"{', '.join(DTYPES)}."
        )
    arguments: dict[str, Any] = {_dtype_keyword(): DTYPES[dtype]}
    if attn_implementation is not None:
        arguments["attn_implementation"] = attn_implementation
    return arguments


def _dtype_keyword() -> str:
    version = import_extra("transformers", "llm").__version__.split(".")
    return "dtype" if (int(version[0]), int(version[1])) >= (4, 56) else "torch_dtype"


def _refuse_unknown(
    what: str, given: Iterable[Any], known: Collection[str], of: str, also: Collection[str] = ()
) -> None:
    """Raise for each key in ``given`` that is in neither ``known`` nor ``also``.

    Args:
        what: The option, as the user writes it.
        given: Its keys.
        known: Keys to suggest.
        of: What has these keys.
        also: Keys that are accepted, and that nobody means by a mistyped one.
    """
    places = [
        ((key,), f"{of} has no {key!r}.{did_you_mean(key, known)}")
        for key in given
        if key not in known and key not in also
    ]
    if places:
        raise PlacedError(what, places)
