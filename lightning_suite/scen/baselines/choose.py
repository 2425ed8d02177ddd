"""Baselines by name, for configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from lightning_suite.errors import PlacedError, SuiteError, did_you_mean
from lightning_suite.scen.answers import Answerer
from lightning_suite.scen.baselines.fine_tune import FineTune
from lightning_suite.scen.baselines.grace import Grace
from lightning_suite.scen.baselines.in_context import InContextEdit
from lightning_suite.scen.baselines.no_edit import NoEdit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.systems import EditingSystem

BASELINES = (
    "no_edit",
    "in_context_perfect",
    "in_context_subject",
    "in_context_embedding",
    "fine_tune",
    "grace",
)


def make_baselines(
    wanted: Sequence[str | Mapping[str, Any]],
    answerer: Answerer,
    encoder: PromptEncoder,
    layer: nn.Module,
) -> list[Callable[[], EditingSystem]]:
    """Return what makes each baseline; made one at a time, as some copy weights.

    Args:
        wanted: Names of ``BASELINES``, or mappings of a name and arguments:
            ``{"name": "grace", "radius": 3.0}``.
        answerer: Of the unedited model.
        encoder: Reads the unedited model.
        layer: The linear map that fine-tuning and GRACE change.

    Raises:
        SuiteError: A name or an argument is unknown.
    """

    def embed(questions: Sequence[str]) -> Any:
        return encoder.final_states(encoder.prompts(questions))

    makers: dict[str, Callable[..., EditingSystem]] = {
        "no_edit": partial(NoEdit, answerer),
        "in_context_perfect": partial(InContextEdit, answerer, "perfect"),
        "in_context_subject": partial(InContextEdit, answerer, "subject", embed),
        "in_context_embedding": partial(InContextEdit, answerer, "embedding", embed),
        "fine_tune": partial(FineTune, answerer, layer),
        "grace": partial(Grace, answerer, layer),
    }
    return [partial(_make, makers[name], name, options) for name, options in read_baselines(wanted)]


def read_baselines(wanted: Sequence[str | Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return name and arguments of each baseline.

    Raises:
        PlacedError: Names are unknown.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    unknown = []
    for number, entry in enumerate(wanted):
        options = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = options.pop("name", None)
        if isinstance(name, str) and name in BASELINES:
            found.append((name, options))
            continue
        text = (
            f"{name!r} is not known.{did_you_mean(name, BASELINES)} "
            f"Choose from: {', '.join(BASELINES)}."
        )
        unknown.append(((number,), text))
    if unknown:
        raise PlacedError("baselines", unknown)
    return found


def _make(
    maker: Callable[..., EditingSystem], name: str, options: Mapping[str, Any]
) -> EditingSystem:
    try:
        return maker(**options)
    except TypeError as err:
        raise SuiteError(f"baselines: {name}: {err}.") from err
