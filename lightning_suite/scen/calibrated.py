"""Settings that were chosen by trial for a model: found once, kept, and looked up from then on.

What was found is kept by a hash of all that it depends on: the model's weights, the template, the
settings that were not tried, and the calibration facts. So nothing has to be told apart by name,
and a change of any of them is a new trial. Where nobody has tried, the trials take minutes; for the
small model of the examples they come with the package (``data/calibrations.jsonl``).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Any

import torch
from torch import nn

from lightning_suite.files import write_json
from lightning_suite.json_text import load_json
from lightning_suite.language.gguf import cache_folder
from lightning_suite.rank_zero import rank_zero_info
from lightning_suite.scen import calibration, relation_metric
from lightning_suite.scen.calibration import ExpertTrial, try_experts, try_gate
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.layer_choice import causal_lm, find_layer
from lightning_suite.scen.outcome_keys import data_hash, outcome_key
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.reference_data import calibration_edits

FORMAT = 1
EDITS = 16  # that each setting is tried on
_SHIPPED = "calibrations.jsonl"
_WORDINGS = "relation_wordings.jsonl"


def calibrated_experts(
    model: nn.Module, prompts: PromptFormat, settings: ExpertSettings, layer: str | int | None
) -> dict[str, Any]:
    """Choose the layer and the learning rate of experts, or look up what was chosen.

    Layers at 5/8, 3/4 and 1/2 of the depth are tried at the usual learning rate, then a third of it
    and three times as much on the best one. Layers that answer as many questions are told apart by
    the loss; another rate than the usual one must answer more, since larger steps lower the loss in
    any case. What is given is not varied. The outcome depends on nothing but the arguments.

    Args:
        model: A Hugging Face causal LM or what holds one; no bank may act in it.
        prompts: How questions and answers are written.
        settings: Of the training; ``lr`` None: to be chosen.
        layer: As for :func:`~lightning_suite.scen.layer_choice.find_layer`; None: to be chosen.

    Returns:
        Plain values: ``layer`` (dotted name), ``lr``, ``trials`` (the first one is
        what was chosen), ``data``.
    """
    edits = calibration_edits()[:EDITS]
    wordings = data_hash(_WORDINGS)
    facts = {
        "what": "experts",
        "settings": asdict(settings),
        "layer": layer,
        "edits": [len(edits), wordings],
        "contexts": data_hash("reference_questions.jsonl"),
    }
    key = outcome_key(model, prompts, facts, FORMAT)

    def find() -> dict[str, Any]:
        with _fast(model):
            trials = _tried(model, prompts, settings, layer, edits)
        best = trials[0]
        return {
            "layer": find_layer(model, best.layer)[0],
            "lr": best.settings.lr,
            "trials": [_plain(trial) for trial in trials],
            "data": f"{len(edits)} shipped calibration facts, {wordings[:12]}",
        }

    return _kept(key, "layer and learning rate", find)


def calibrated_gate(model: nn.Module, prompts: PromptFormat, layer: str) -> dict[str, Any]:
    """Choose placeholder and probe of the gate ``subject``, or look up what was chosen.

    Args:
        model: As for :func:`calibrated_experts`.
        prompts: Likewise.
        layer: Dotted name of the edited map, which this gate does not read.

    Returns:
        Plain values: ``placeholder``, ``probe``, ``trials`` (the best first), ``data``.
    """
    wordings = data_hash(_WORDINGS)
    facts = {
        "what": "gate",
        "placeholders": list(calibration.PLACEHOLDERS),
        "probes": list(calibration.PROBES),
        "wordings": wordings,
        "measure": relation_metric.MEASURE,
    }
    key = outcome_key(model, prompts, facts, FORMAT)

    def find() -> dict[str, Any]:
        with _fast(model):
            trials = try_gate(PromptEncoder(model, prompts, layer), seconds=math.inf)
        return {
            "placeholder": trials[0].placeholder,
            "probe": trials[0].probe,
            "trials": [asdict(trial) for trial in trials],
            "data": f"wordings of the shipped calibration relations, {wordings[:12]}",
        }

    return _kept(key, "placeholder and probe of the gate", find)


def _tried(
    model: nn.Module,
    prompts: PromptFormat,
    settings: ExpertSettings,
    layer: str | int | None,
    edits: tuple[Edit, ...],
) -> list[ExpertTrial]:
    """Try layers first, then learning rates on the best one; the trial that counts comes first."""
    name = "change" if settings.kind == "full" else "b"
    usual = settings.rates[name]
    layers: list[str | int] = (
        [layer] if layer is not None else [*calibration.layers_to_try(causal_lm(model))]
    )
    done = try_experts(
        model,
        prompts,
        [(each, replace(settings, lr=usual)) for each in layers],
        edits=edits,
        seconds=math.inf,
        on_trial=_report,
    )
    if settings.lr is None:
        chosen = done[0].layer
        rates = try_experts(
            model,
            prompts,
            [(chosen, replace(settings, lr=usual * factor)) for factor in (1 / 3, 3.0)],
            edits=edits,
            seconds=math.inf,
            on_trial=_report,
        )
        better = [trial for trial in rates if trial.right > done[0].right]
        done = [*better, *done, *(trial for trial in rates if trial not in better)]
    return done


def _report(trial: ExpertTrial) -> None:
    rank_zero_info(
        f"calibration: layer {trial.layer}, lr {trial.settings.rates}: reliability "
        f"{trial.reliability:.2f}, generality {trial.generality:.2f}, loss {trial.loss:.3g} "
        f"({trial.seconds:.0f} s)"
    )


def _plain(trial: ExpertTrial) -> dict[str, Any]:
    return {
        "layer": trial.layer,
        "lr": trial.settings.lr,
        "reliability": round(trial.reliability, 4),
        "generality": round(trial.generality, 4),
        "loss": float(f"{trial.loss:.4g}"),
    }


def _kept(key: str, what: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is kept under ``key``: in the package, in the cache, or found now."""
    shipped = _shipped().get(key)
    if shipped is not None:
        return shipped
    path = cache_folder() / "calibration" / f"{key}.json"
    try:
        kept = load_json(path.read_bytes())
        if kept["key"] == key and _is_outcome(kept["found"]):
            found: dict[str, Any] = kept["found"]
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or no such file: it is written anew
    rank_zero_info(f"calibration: {what} are chosen by trial, once for this model …")
    start = time.monotonic()
    found = find()
    write_json(path, {"key": key, "found": found})
    rank_zero_info(f"calibration: {time.monotonic() - start:.0f} s; kept in {path}")
    return found


def _is_outcome(found: Any) -> bool:
    """Say whether a file of the cache holds what a trial finds: it may be damaged."""
    if not isinstance(found, dict):
        return False
    kinds: dict[str, Any] = {"layer": str, "lr": float, "placeholder": str, "probe": str}
    kinds |= {"trials": list, "data": str}
    chosen = {"layer", "lr"} if "layer" in found else {"placeholder", "probe"}
    return chosen | {"trials", "data"} <= found.keys() and all(
        isinstance(found[key], kind) for key, kind in kinds.items() if key in found
    )


def _shipped() -> dict[str, dict[str, Any]]:
    file = files("lightning_suite").joinpath("data", _SHIPPED)
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {row["key"]: row["found"] for row in rows}


@contextmanager
def _fast(model: nn.Module) -> Iterator[None]:
    """Move the model to an accelerator for a while: Lightning moves it there only later."""
    home = next(model.parameters()).device
    if home.type != "cpu" or not torch.cuda.is_available():
        yield
        return
    rank = int(os.environ.get("LOCAL_RANK", "0"))  # of several processes each its own
    model.to(f"cuda:{rank % torch.cuda.device_count()}")
    try:
        yield
    finally:
        model.to(home)
