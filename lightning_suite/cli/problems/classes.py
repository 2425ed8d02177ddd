"""The class that a ``class_path`` means, or probably means."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lightning_suite
from lightning_suite.cli.problems.sources import Keys
from lightning_suite.errors import SuiteError, closest, did_you_mean

# What may stand under a key; elsewhere (an optimizer inside a module's arguments) any of `_OTHERS`.
_BASES: dict[str | int, type] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "callbacks": Callback,
    "callbacks+": Callback,
    "logger": Logger,
    "logger+": Logger,
}
_OTHERS: tuple[type, ...] = (Optimizer, LRScheduler, nn.Module)


class Found(NamedTuple):
    """What a ``class_path`` names.

    Attributes:
        cls: The class; None if there is none of this name, or none that can be imported.
        problem: Why there is none, with what to do.
        meant: The ``class_path`` that was probably meant, of a class of the right kind.
    """

    cls: type | None
    problem: str = ""
    meant: str = ""


def find_class(name: str, keys: Keys) -> Found:
    """Return the class that ``class_path: name`` at ``keys`` means, or why there is none."""
    if "." in name:
        return _by_path(name, keys)
    if name in lightning_suite.__all__:
        try:
            getattr(lightning_suite, name)
        except (SuiteError, ImportError) as err:
            return Found(None, f"{name} cannot be used here: {err}")
    known: dict[str, type] = {}
    for base in _bases(keys):
        known.update((cls.__name__, cls) for cls in _subclasses(base))
    if name in known:
        return Found(known[name])
    advice = did_you_mean(name, known) or f" Your own needs its module: my_module.{name}"
    return Found(None, f"unknown class {name!r}.{advice}", closest(name, known))


def _by_path(name: str, keys: Keys) -> Found:
    path, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(path)
        found = getattr(module, attribute, None)  # a module may import what it is asked for
    except Exception as err:  # the user's module may fail in any way while it is imported
        problem = f"cannot import {name!r}: {type(err).__name__}: {err}"
        near = _nearest_module(path, err.name) if isinstance(err, ModuleNotFoundError) else ""
        if not near:
            return Found(None, problem)
        there = find_class(f"{near}.{attribute}", keys)
        meant = f"{near}.{attribute}" if there.cls else there.meant
        return Found(None, f"{problem}. Did you mean {near!r}?", meant)
    if found is not None:
        is_class = isinstance(found, type)
        return Found(found) if is_class else Found(None, f"{name!r} is not a class")
    names = {key: value for key, value in vars(module).items() if key[0] != "_"}
    bases = _bases(keys)
    fitting = [k for k, v in names.items() if isinstance(v, type) and issubclass(v, bases)]
    near = closest(attribute, fitting)
    advice = did_you_mean(attribute, fitting) or did_you_mean(attribute, names)
    return Found(None, f"{path} has no {attribute!r}.{advice}", f"{path}.{near}" if near else "")


def _nearest_module(path: str, missing: str | None) -> str:
    """Return ``path`` with the part of it that is missing replaced by one that is there."""
    if missing is None:
        return ""
    if path != missing and not path.startswith(f"{missing}."):
        return ""  # it is imported by what was named, which is there
    package, _, word = missing.rpartition(".")
    folders = importlib.import_module(package).__path__ if package else None
    near = closest(word, [module.name for module in pkgutil.iter_modules(folders)])
    there = f"{package}.{near}" if package else near
    return there + path.removeprefix(missing) if near else ""


def _bases(keys: Keys) -> tuple[type, ...]:
    named = tuple(_BASES[key] for key in keys if key in _BASES and "init_args" not in keys)
    return named or _OTHERS


def _subclasses(base: type[Any]) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)
