"""What the parser accepts, and is a mistake all the same."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonargparse import Namespace

from lightning_suite.cli.listed import listed
from lightning_suite.cli.problems.classes import find_class
from lightning_suite.cli.problems.sources import Keys, Problem, Source, has, items
from lightning_suite.errors import PlacedError, SuiteError, check_choice

# Classes that can be named without their package, and fail only when they are made.
_EXTRAS = {"WandbLogger": "wandb"}
_PACKAGE = "lightning_suite."


def missing_extras(source: Source) -> Iterator[Problem]:
    """Classes that need a package which is not installed."""
    for keys, name in _class_paths(source.values):
        extra = _EXTRAS.get(name.rpartition(".")[2])
        if extra and importlib.util.find_spec(extra) is None:
            text = f"{name} needs the extra '{extra}': pip install 'lightning-suite[{extra}]'"
            yield source.problem(keys, text)


def _class_paths(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    for key, item in items(value):
        if key == "class_path" and isinstance(item, str):
            yield (*keys, key), item
        yield from _class_paths(item, (*keys, key))


def wrong_inside(source: Source, values: Mapping[str, Any], command: str) -> Iterator[Problem]:
    """Names inside options which the parser takes as they are, and the option's owner refuses.

    Args:
        source: Whose problems are wanted.
        values: Its values, on top of those of the sources before it.
        command: Whose options these are, such as ``"score"``.
    """
    for keys, text in _wrong_inside(values, (), _of_commands().get(command, {})):
        if has(source.values, keys):
            yield source.problem(keys, text)


def wrong_values(parsed: Namespace, command: str) -> list[tuple[Keys, str]]:
    """Return the same of a whole configuration, as the parser has made it."""
    values = parsed.as_dict()
    inside = list(_wrong_inside(values, (), _of_commands().get(command, {})))
    return [*inside, *refused_arguments(values)]


def refused_arguments(values: Mapping[str, Any]) -> list[tuple[Keys, str]]:
    """Return what one of our data modules refuses of its arguments, such as a value out of range.

    They are made to find out: all that their constructors do is to look at the arguments.

    Args:
        values: Of a whole configuration.
    """
    data = values.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("class_path"), str):
        return []
    cls = find_class(data["class_path"], ("data",)).cls
    if cls is None or not cls.__module__.startswith(f"{_PACKAGE}datamodules."):
        return []
    return [
        (("data", *keys), text) for keys, text in _refused_in_making(cls, data.get("init_args"))
    ]


def _refused_in_making(cls: type, arguments: Any) -> Iterator[tuple[Keys, str]]:
    """Yield what a constructor refuses, at the argument that its message names."""
    arguments = arguments or {}
    try:
        with warnings.catch_warnings():  # who uses the object will be warned
            warnings.simplefilter("ignore")
            cls(**arguments)
    except SuiteError as err:
        text = str(err).removeprefix(f"{cls.__name__}: ")
        named = [(word.start(), key) for key in arguments if (word := _word(key).search(text))]
        yield ("init_args", min(named)[1]) if named else (), text
    except Exception:  # a value of the wrong type: the parser says so
        return


def _word(text: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(text)}\b")


Checks = Mapping[str, Callable[[Any], object]]


def _of_commands() -> dict[str, Checks]:
    """Return by command and option what refuses a wrong value of it."""
    return {"score": {"features": _check_features}}


def _check_features(value: Any) -> None:
    from lightning_suite.resofilter.features import make_features  # noqa: PLC0415

    try:
        make_features(listed(value), states_follow=True)
    except PlacedError as err:
        if isinstance(value, list):
            raise
        raise SuiteError(str(err)) from err  # one name has no places


def _of_classes() -> dict[str, Checks]:
    """Return the same by class and argument: what their constructors call."""
    from lightning_suite.language.loading import check_config, check_lora  # noqa: PLC0415
    from lightning_suite.lmcd.heads.registry import HEADS  # noqa: PLC0415
    from lightning_suite.scen.baselines.choose import read_baselines  # noqa: PLC0415
    from lightning_suite.scen.editing import GATES, check_training  # noqa: PLC0415

    return {
        "CausalLMModule": {"config": check_config, "lora": check_lora},
        "GradientFeatureCallback": _of_commands()["score"],
        "LMCDModule": {
            "config": check_config,
            "lora": check_lora,
            "head": lambda value: check_choice("head", value, HEADS),
        },
        "SCENModule": {
            "config": check_config,
            "training": check_training,
            "baselines": read_baselines,
            "gate": lambda value: check_choice("gate", value, GATES),
        },
    }


def _wrong_inside(value: Any, keys: Keys, checks: Checks) -> Iterator[tuple[Keys, str]]:
    """Yield the places of wrong names in ``value`` and below it.

    Args:
        value: What stands at ``keys``.
        keys: Where in the configuration.
        checks: Of the options that ``value`` has itself.
    """
    if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        arguments = value.get("init_args")
        inside = list(_wrong_inside(arguments, (*keys, "init_args"), _checks(value, keys)))
        cls = find_class(value["class_path"], keys).cls
        if not inside and cls is not None and cls.__module__.startswith(f"{_PACKAGE}callbacks."):
            inside = [((*keys, *more), text) for more, text in _refused_in_making(cls, arguments)]
        yield from inside
        return
    for key, item in items(value):
        if key in checks and item is not None:
            yield from _refused_by(checks[str(key)], item, (*keys, key))
        yield from _wrong_inside(item, (*keys, key), {})


def _checks(described: Mapping[str, Any], keys: Keys) -> Checks:
    found = find_class(described["class_path"], keys)
    cls = found.cls or (find_class(found.meant, keys).cls if found.meant else None)
    known = _of_classes()
    ours = (c.__name__ for c in getattr(cls, "__mro__", ()) if c.__module__.startswith(_PACKAGE))
    return next((known[name] for name in ours if name in known), {})


def _refused_by(
    check: Callable[[Any], object], value: Any, keys: Keys
) -> Iterator[tuple[Keys, str]]:
    option = str(keys[-1])
    try:
        check(value)
    except PlacedError as err:
        for place, text in err.places:
            yield (*keys, *place), text
    except SuiteError as err:
        yield keys, str(err).removeprefix(f"{option}: ")
    except Exception:  # a value of the wrong type: the parser says so
        return
