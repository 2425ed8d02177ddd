"""What a checkpoint says of the model's arguments, and what the configuration says.

A checkpoint of this program holds the arguments that its model was made with. Where the user gives
none of them, they are taken from there; where the user gives another value, nothing is replaced
in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, cast

import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_suite.errors import SuiteError

# By class, or one that it inherits from: what the weights do not depend on. The modules themselves
# refuse a pretrained model or a bank that does not go with the checkpoint.
_ANY_LM = {"pretrained", "dtype", "attn_implementation"}
_OPEN = {
    "CausalLMModule": {*_ANY_LM, "gradient_checkpointing"},
    "LMCDModule": {*_ANY_LM, "gradient_checkpointing", "mode", "cache_gib"},
    "SCENModule": {
        *_ANY_LM,
        *("tokenizer", "bank", "allow_other_weights", "allow_other_training"),
        *("answer_batch_size", "max_new_tokens", "num_beams"),
        *("checkpoints", "teacher_forced", "baselines"),
    },
}
# Without effect where nothing is trained, whatever the class.
_TRAINING = ("lr", "learning_rate", "weight_decay", "optimizer", "scheduler")
# Key of a checkpoint: arguments that made what it holds the state of, and which these are.
MAKING = "lightning_suite_optimizers"
MADE_BY = ("optimizer", "lr_scheduler")
_OWN_KEYS = ("_class_path", "_instantiator")
_MISSING = object()


def given_model(
    parser: ArgumentParser, config: Namespace, words: list[str] | None
) -> dict[str, Any]:
    """Return what the user typed of the model, in files and options, as YAML has it.

    Args:
        parser: Of the whole program.
        config: What it has parsed, with the defaults.
        words: From which; None: all that is in ``config`` counts as typed.
    """
    # dumped as Lightning dumps what it saves with a checkpoint, or equal values would differ
    dumped = yaml.safe_load(parser.dump(config, skip_none=False, format="yaml"))
    model = dumped[config.subcommand].get("model") or {}
    if words is not None:
        typed = parser.parse_args(words, defaults=False)[config.subcommand].get("model")
        model = _only(typed.as_dict(), model) if isinstance(typed, Namespace) else {}
    return cast("dict[str, Any]", model)


def checkpoint_arguments(
    path: str,
    hparams: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    trains: bool,
) -> dict[str, Any]:
    """Return the ``model`` section that a checkpoint adds to the configuration.

    Args:
        path: Of the checkpoint.
        hparams: Its hyperparameters, ``_class_path`` among them.
        given: The ``model`` section with what the user typed, in files or options, and without
            the defaults of the class.
        trains: Whether the command trains.

    Returns:
        ``class_path`` and ``dict_kwargs``, without what the user's values count for.

    Raises:
        SuiteError: The user asks for another model; the message lists the arguments.
    """
    saved = {key: value for key, value in hparams.items() if key not in _OWN_KEYS}
    saved_class = str(hparams["_class_path"])
    kind = str(given.get("class_path") or saved_class)
    if kind.rpartition(".")[2] == saved_class.rpartition(".")[2]:
        differing = []  # at most moved to another file
    else:
        differing = [("model.class_path", saved_class, kind)]
    free = _open_arguments(kind)
    arguments = given.get("init_args") or {}
    for key in saved.keys() & arguments.keys():
        if key in free:
            continue
        if trains or not _is_of_training(key):
            differing += _differences(f"model.init_args.{key}", saved[key], arguments[key])
    if differing:
        lines = [
            f"  {key}: {_short(was)} in the checkpoint, {_short(now)} given"
            for key, was, now in sorted(differing, key=lambda item: item[0])
        ]
        raise SuiteError(
            "\n".join([f"--ckpt_path {path}: the configuration asks for another model:", *lines])
            + "\nLeave these out of files and options (the checkpoint's values then count), or "
            "give the checkpoint's; without --ckpt_path the model begins anew as configured."
        )
    taken = {k: v for k, v in saved.items() if not (k in free and k in arguments)}
    return {"class_path": kind, "dict_kwargs": taken}


def undone_by_state(checkpoint: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return what the user gave and the restored state of optimizer and scheduler undoes.

    Args:
        checkpoint: To go on from.
        given: As for :func:`checkpoint_arguments`.
    """
    made, arguments = checkpoint.get(MAKING) or {}, given.get("init_args") or {}
    return [
        f"{key}: {_short(was)} in the checkpoint, {_short(now)} given"
        for name in MADE_BY
        if made.get(name) and arguments.get(name)  # one that is new has no state there
        for key, was, now in _differences(f"model.init_args.{name}", made[name], arguments[name])
    ]


def _only(wanted: object, values: object) -> object:
    """Return of nested values those whose keys are in ``wanted``."""
    if not isinstance(wanted, dict) or not isinstance(values, dict):
        return values
    return {key: _only(item, values[key]) for key, item in wanted.items() if key in values}


def _open_arguments(class_path: str) -> set[str]:
    module, _, name = class_path.rpartition(".")
    kinds: tuple[type, ...] = ()
    with suppress(ImportError, AttributeError, ValueError):  # not for us to explain
        kinds = getattr(import_module(module), name).__mro__
    return set().union(*(_OPEN.get(kind.__name__, ()) for kind in kinds))


def _is_of_training(key: str) -> bool:
    return key in _TRAINING or key.startswith(("lr_", "scheduler_", "optimizer_"))


def _differences(key: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield key and both values of what is given otherwise, a mapping entry by entry."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name, value in now.items():
            yield from _differences(f"{key}.{name}", was.get(name, _MISSING), value)
    elif _plain(was) != _plain(now):
        yield key, was, now


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
