"""Build the same LightningModule at several depths, widths and rules, from one YAML section."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

import lightning_suite
from lightning_suite.cli.messages import condense
from lightning_suite.cli.parsing import instantiate
from lightning_suite.depth_mup.rules import Rule
from lightning_suite.errors import SuiteError, did_you_mean

T = TypeVar("T")

Spec = dict[str, Any]


def build(base: type[T], spec: Mapping[str, Any], section: str) -> T:
    """Instantiate what a section of a YAML file describes.

    Args:
        base: The class must be this one or derive from it.
        spec: ``class_path`` and ``init_args``.
        section: Name of the section, for messages.

    Raises:
        SuiteError: The class or one of its arguments does not exist or does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, section, required=True)
    try:
        config = parser.parse_object({section: dict(spec)})
        built: T = instantiate(parser, config)[section]
    except ArgumentError as err:
        raise SuiteError(condense(str(err))) from err
    return built


def at_shape(
    spec: Mapping[str, Any],
    *,
    rule: Rule,
    depth: int,
    base_depth: int,
    width: int | None = None,
    base_width: int | None = None,
    depth_key: str | None = None,
    width_key: str | None = None,
) -> Spec:
    """Return the description of the same module at another shape.

    A class with a ``depth`` argument is given it (and ``rule``, ``base_depth``, ``base_width``
    where it has these); for one with a ``config`` dictionary of a Hugging Face model the keys are
    the architecture's own (:func:`~lightning_suite.language.layers.scaled_config`); for any other
    the keys say where depth and width are.

    Args:
        spec: The ``model`` section: ``class_path`` and ``init_args``.
        rule: For classes that scale their branches themselves.
        depth: L.
        base_depth: L0.
        width: n; None keeps the width of ``spec``.
        base_width: n0.
        depth_key: Dotted key of the depth, such as ``model.init_args.num_layers``.
        width_key: Dotted key of the width.

    Raises:
        SuiteError: Where depth or width is set is not known, or a key does not exist.
    """
    shaped: Spec = copy.deepcopy(dict(spec))
    init = shaped.setdefault("init_args", {})
    accepted = _arguments(shaped)
    for name, value in (("rule", rule), ("base_depth", base_depth), ("base_width", base_width)):
        if name in accepted and value is not None:
            init[name] = value
    for name, value, key in (("depth", depth, depth_key), ("width", width, width_key)):
        if value is None:
            continue
        if key is not None:
            _set(shaped, key, value)
        elif name in accepted:
            init[name] = value
        elif isinstance(init.get("config"), dict):
            from lightning_suite.language.layers import scaled_config  # noqa: PLC0415

            init["config"] = scaled_config(init["config"], **{name: value})
        else:
            raise SuiteError(
                f"{shaped.get('class_path')} has no argument {name!r}. Say where its {name} is "
                f"set: --{name}_key=model.init_args.…"
            )
    return shaped


def _arguments(spec: Mapping[str, Any]) -> set[str]:
    """Return the names of the arguments of the class that ``spec`` names."""
    path = spec.get("class_path")
    if not isinstance(path, str):
        raise SuiteError("model: expected class_path and init_args, as in a config of `fit`.")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module) if module else lightning_suite, name)
    except (ImportError, AttributeError) as err:
        hint = did_you_mean(name, lightning_suite.__all__)
        raise SuiteError(f"model.class_path: {path!r} cannot be imported.{hint} ({err})") from err
    return set(inspect.signature(cls).parameters)


def _set(spec: Spec, key: str, value: int) -> None:
    *path, last = key.removeprefix("model.").split(".")
    place = spec
    for part in path:
        if not isinstance(place.get(part), dict):
            raise SuiteError(
                f"{key}: there is no {part!r} in the config.{did_you_mean(part, place)} Keys "
                f"there: {', '.join(place)}."
            )
        place = place[part]
    place[last] = value
