"""The selection of the authors' published script, and whether scores were made as it makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.precision import FULL
from lightning_suite.resofilter.selection import Array, exact_share, select
from lightning_suite.resofilter.targets import layer_number, matches

_CONSTANTS = {"lr": 1e-5, "eps": 1e-8, "weight_decay": 0.01}
SCORES: Mapping[str, Mapping[str, float]] = {
    "adam1_mean_abs": _CONSTANTS,
    "adam1_mean_abs_rounded": {**_CONSTANTS, "beta1": 0.9, "beta2": 0.999},
}
"""The published score, exactly and as the script rounds it, with the constants it has there."""

# One dense matrix a layer: neither `3.mlp.shared_expert.up_proj` nor `3.mlp.experts.5.up_proj`.
_DENSE = re.compile(r"(^|\.)\d+\.mlp\.up_proj$")


def resofilter_selection(
    scores: Array, prompts: Sequence[str], drop: float | str
) -> NDArray[np.int64]:
    """Return what the authors' published script keeps, in the original order.

    Duplicate prompts lose all but their first sample; of the N left, ``int(N · drop)`` with the
    highest scores go, the smaller index first among equals. Prompts come first: where the first
    sample of a prompt has no score, none of that prompt is kept.

    Args:
        scores: [N]; NaN where there is none.
        prompts: [N].
        drop: Share to drop: 0.25, 0.5 or 0.75 in the paper.
    """
    first = np.array(sorted({p: i for i, p in reversed(list(enumerate(prompts)))}.values()))
    if len(first) == 0:
        raise SuiteError("select: there are no samples.")
    kept = select(scores[first], 1 - exact_share(drop, lowest_allowed=True))
    return np.asarray(first[kept], dtype=np.int64)


def as_published(manifest: Mapping[str, Any], longest: int, **options: Any) -> None:
    """Refuse scores or options that are not those of the authors' published script.

    Args:
        manifest: Of the scores.
        longest: Tokens of the longest sample, after it was cut.
        options: Of the selection: ``by``, ``order``, ``layers``, ``module``, ``strata``.

    Raises:
        SuiteError: Something differs; the message lists all of it.
    """
    by = options.get("by", "adam1_mean_abs")
    wanted = {"order": "lowest", "layers": "last:3", "strata": None}
    wrong = [
        f"{name} is {options[name]!r}, expected {value!r}"
        for name, value in wanted.items()
        if name in options and options[name] != value
    ]
    if by in SCORES:
        scored = manifest.get("features", {}).get(by, {})
        wrong += [
            f"{name} of {by} is {scored.get(name)}, expected {value}"
            for name, value in SCORES[by].items()
            if scored.get(name) != value
        ]
    else:
        wrong.append(f"by is {by!r}, expected {' or '.join(map(repr, SCORES))}")
    if options.get("module", "all") not in ("all", "up_proj", "mlp.up_proj"):
        wrong.append(f"module is {options['module']!r}, expected 'up_proj'")
    wrong += _other_modules(manifest)
    precision = manifest.get("precision", {})
    if precision.get("autocast") is not None:
        wrong.append(f"autocast is {precision['autocast']}, expected none")
    if (products := precision.get("matmul")) != FULL:
        wrong.append(f"products of float32 are {products}, expected {FULL} (in full)")
    max_length = manifest.get("max_length")
    if max_length != 768 and (max_length is None or longest >= min(max_length, 769)):
        wrong.append(
            f"max_length is {max_length}, expected 768, and there are samples of {longest} tokens"
        )
    if wrong:
        raise SuiteError("compat=resofilter: " + "; ".join(wrong) + ".")


def _other_modules(manifest: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the matrices that were scored."""
    wrong = []
    targets: Mapping[str, str] = manifest.get("targets", {})
    modules = {name: dtype for name, dtype in targets.items() if matches(name, "up_proj")}
    if not modules:
        wrong.append("no up_proj was scored")
    if parts := [name for name in modules if not name.endswith("up_proj")]:
        wrong.append(f"{parts[0]} is part of an adapter, expected whole up_proj matrices")
    elif others := [name for name in modules if not _DENSE.search(name)]:
        wrong.append(f"{others[0]} is not the layer's own mlp.up_proj, as of an expert")
    if low := sorted({dtype for dtype in modules.values() if dtype != "float32"}):
        wrong.append(f"the weights are {', '.join(low)}, expected float32")
    depth = manifest.get("depth")
    scored_layers = sorted(n for name in modules if (n := layer_number(name)) is not None)
    if several := sorted({n for n in scored_layers if scored_layers.count(n) > 1}):
        wrong.append(f"layers {several} have several up_proj, expected one mlp.up_proj each")
    if depth is None:
        wrong.append("how many layers the model has is not recorded")
    elif modules and scored_layers[-3:] != list(range(depth))[-3:]:
        wrong.append(f"layers {scored_layers} of {depth} are scored, expected the last three")
    return wrong
