"""What a model computes with its weights, as plain values: classes, configurations, settings.

Two models with the same weights may be two functions: another activation, another scale of an
adapter. What is said here is compared by value when scores are continued, so it holds nothing that
differs between two starts of the same command: no memory addresses, no order of keys, no paths.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_suite.module_names import clean_name

# Of a configuration: where it comes from, what is noted elsewhere, and what only training uses.
_BOOKKEEPING = re.compile(
    r"_name_or_path|name_or_path|base_model_name_or_path|transformers_version|peft_version|"
    r"_commit_hash|revision|(torch_)?dtype|architectures|auto_mapping|use_cache|output_attentions|"
    r"output_hidden_states|return_dict|id2label|label2id|problem_type|initializer_range|"
    r"inference_mode|init_lora_weights|_attn_implementation_autoset|.*dropout.*"
)
# Of a module's hyperparameters and attributes: how it is trained, and Lightning's own.
_TRAINING = frozenset(
    {
        *("lr", "learning_rate", "optimizer", "lr_scheduler", "scheduler", "scheduler_interval"),
        *("batch_size", "num_workers", "gradient_checkpointing"),
        *("_class_path", "_instantiator", "training", "prepare_data_per_node"),
        "allow_zero_length_dataloader_with_multiple_devices",
    }
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# Methods of a LightningModule that no score runs.
_NOT_SCORED = re.compile(
    r"configure_.*|(validation|test|predict)_.*|on_(?!(before|after)_batch_transfer).*|log.*|"
    r"(pre|post).*"
)
_ITSELF = "(itself)"  # the name of what is described, where its parts have theirs
_DEPTH = 8  # of values within values


def computation(module: nn.Module, described: Collection[str] = ()) -> dict[str, Any]:
    """Return what decides a model's function besides its weights.

    Args:
        module: A LightningModule or any other.
        described: Names of hyperparameters that are told by something else in here, such as those
            that a configuration of transformers was made from.

    Returns:
        ``class`` and, where there are any: ``hparams`` (without those of the training), ``models``
        (by name: class, configuration and adapters of each model of transformers), ``modules``
        (by name with ``*`` for numbers: class and settings of all others) and ``code`` (a hash of
        the methods of classes that are in no installed package).
    """
    found: dict[str, Any] = {"class": _path(type(module))}
    given = getattr(module, "hparams", None)  # of a LightningModule
    if isinstance(given, Mapping):
        known = {*_TRAINING, *described}
        if hparams := {k: plain(v) for k, v in given.items() if k not in known}:
            found["hparams"] = dict(sorted(hparams.items()))
    models: dict[str, Any] = {}
    others: dict[str, list[Any]] = {}
    classes: set[type] = set()
    for name, part in _outside_models(module):
        if _config(part) is not None:
            models[name or _ITSELF] = _hugging_face(part)
            continue
        classes.add(type(part))
        settings = _settings(part, described)
        alike = others.setdefault(re.sub(r"\b\d+\b", "*", name) or _ITSELF, [])
        if settings not in alike:
            alike.append(settings)
    if models:
        found["models"] = models
    modules = {name: alike[0] if len(alike) == 1 else alike for name, alike in others.items()}
    found["modules"] = dict(sorted(modules.items()))
    if code := _code_hash(classes):
        found["code"] = code
    return found


def plain(value: Any, depth: int = _DEPTH) -> Any:
    """Return a value as plain ones that are equal whenever the value means the same.

    Objects become their class with their public attributes, functions their import path, arrays
    their hash, files the hash of their content, folders that of their files' names and sizes.

    Args:
        value: Anything.
        depth: How many levels of values within values are told.
    """
    for kinds, tell in _LEAVES:
        if isinstance(value, kinds):
            return tell(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return _path(value)
    return _path(type(value)) if depth == 0 else _container(value, depth - 1)


def _container(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        items = {str(key): plain(inner, depth) for key, inner in value.items()}
        return dict(sorted(items.items()))
    if isinstance(value, (list, tuple)):
        return [plain(inner, depth) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(inner, depth) for inner in value), key=json.dumps)
    if isinstance(value, partial):
        parts = {"call": value.func, "arguments": value.args, "keywords": value.keywords}
        return {name: plain(part, depth) for name, part in parts.items()}
    names = (
        [field.name for field in dataclasses.fields(value)]
        if dataclasses.is_dataclass(value)
        else [*getattr(value, "__dict__", {})]
    )
    public = {n: plain(getattr(value, n, None), depth) for n in names if not n.startswith("_")}
    return {"class": _path(type(value)), **dict(sorted(public.items()))}


def _outside_models(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules, and nothing of what is inside a model of transformers."""
    inside: list[str] = []
    for full_name, part in module.named_modules():
        name = clean_name(full_name)
        if any(name.startswith(f"{outer}.") or not outer for outer in inside):
            continue
        # counted only, or without an effect when nothing is trained
        if isinstance(part, nn.modules.dropout._DropoutNd) or _is_metric(part):
            continue
        if _config(part) is not None:
            inside.append(name)
        yield name, part


def _is_metric(part: nn.Module) -> bool:
    return type(part).__module__.partition(".")[0] == "torchmetrics"


def _config(part: nn.Module) -> Any:
    config = getattr(part, "config", None)
    there = hasattr(config, "to_dict") and hasattr(config, "model_type")
    return config if there else None


def _hugging_face(model: nn.Module) -> dict[str, Any]:
    """Return classes, configuration and adapters of a model of transformers, or peft's of one."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    base, config = unwrap(), _config(model)
    found = {
        "class": _path(type(base)),
        "config": _without_bookkeeping(plain(config.to_dict())),
        "attention": getattr(config, "_attn_implementation", None),
        # an activation or a norm may have been exchanged by hand
        "parts": dict(sorted(Counter(_path(type(part)) for part in base.modules()).items())),
    }
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, Mapping):
        found["adapters"] = {
            "class": _path(type(model)),
            "active": plain(getattr(model, "active_adapters", None)),
            **{
                name: _without_bookkeeping(plain(adapter.to_dict()))
                for name, adapter in sorted(adapters.items())
            },
        }
    return found


def _without_bookkeeping(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: _without_bookkeeping(value)
            for key, value in config.items()
            if not _BOOKKEEPING.fullmatch(key)
        }
    return config


def _settings(part: nn.Module, described: Collection[str]) -> dict[str, Any]:
    """Return a module's class, what it prints of itself, and its attributes that are plain."""
    attributes = {
        name: plain(value)
        for name, value in sorted(vars(part).items())
        if not name.startswith("_")
        and name not in _TRAINING
        and name not in described
        and _is_plain(value)
    }
    printed = _ADDRESS.sub("", part.extra_repr())
    return {"class": _path(type(part)), **({"printed": printed} if printed else {}), **attributes}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(
        value, (bool, int, float, str, torch.dtype, partial, type, FunctionType)
    )


def _path(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"


def _text(value: str | Path) -> Any:
    """Return text as it is; of a path what lies there, wherever that is."""
    text = str(value)
    if isinstance(value, Path) or os.sep in text:
        try:
            path = Path(text).expanduser()
            if path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.sha256()
                    while part := file.read(1 << 20):
                        digest.update(part)
                return f"file sha256:{digest.hexdigest()}"
            if path.is_dir():
                files = sorted((p.name, p.stat().st_size) for p in path.iterdir() if p.is_file())
                return f"folder sha256:{hashlib.sha256(repr(files).encode()).hexdigest()}"
        except (OSError, ValueError, RuntimeError):
            pass  # no path, or not ours to read
    return _ADDRESS.sub("", text)


def _array(value: Any) -> str:
    tensor = value.detach().cpu() if isinstance(value, Tensor) else value
    if isinstance(tensor, Tensor):
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        content = tensor.tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} sha256:{hashlib.sha256(content).hexdigest()}"


def _code_hash(classes: Collection[type]) -> str | None:
    """Return a hash of the methods of classes that no installed package holds.

    Comments, the wording of docstrings and line numbers do not count, nor do the methods that no
    score runs.
    """
    own = {base for kind in classes for base in kind.__mro__ if _is_users(base)}
    if not own:
        return None
    digest = hashlib.sha256()
    for kind in sorted(own, key=_path):
        for name, member in sorted(vars(kind).items()):
            inner = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if isinstance(inner, FunctionType) and not _NOT_SCORED.fullmatch(name):
                told = _code(inner.__code__, inner.__doc__)
                defaults = plain([inner.__defaults__, inner.__kwdefaults__])
                digest.update(f"{_path(kind)}.{name} {told} {defaults}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _is_users(kind: type) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None or kind.__module__.partition(".")[0] == "lightning_suite":
        return False
    parts = Path(file).parts
    return (
        "site-packages" not in parts
        and "dist-packages" not in parts
        and (Path(os.__file__).parent not in Path(file).parents)
    )


def _code(code: CodeType, doc: str | None = None) -> str:
    constants = list(code.co_consts)
    if doc is not None and constants and constants[0] == doc:
        constants[0] = ""
    told = [_constant(constant) for constant in constants]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {told}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, frozenset):
        return str(sorted(map(repr, value)))
    return repr(value)


def _number(value: float) -> Any:
    return value if math.isfinite(value) else str(value)  # JSON has none


# Kinds of values without parts, the first that fits.
_LEAVES: list[tuple[tuple[type, ...], Callable[[Any], Any]]] = [
    ((Enum,), lambda value: f"{_path(type(value))}.{value.name}"),
    ((type(None), bool, int), lambda value: value),
    ((float,), _number),
    ((str, Path), _text),
    ((torch.dtype, torch.device), str),
    ((Tensor, np.ndarray, np.generic), _array),
    ((type, FunctionType), _path),
]
