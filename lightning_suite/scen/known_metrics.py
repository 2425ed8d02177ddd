"""The metric of the gate ``subject``: as it ships for the examples' model, or learned now.

Learning it takes a reading of all shipped wordings, which is minutes for the small model of the
examples on a CPU. What comes out depends on weights, template and settings alone, so for that model
it ships with the package (``data/relation_metrics.safetensors``), under a hash of all these.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from lightning_suite.extras import import_extra
from lightning_suite.scen import reference_data, relation_metric
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.outcome_keys import data_hash, outcome_key
from lightning_suite.scen.question_readings import EXAMPLES, wording_features
from lightning_suite.scen.relation_metric import RelationMetric, fit_relation_metric
from lightning_suite.scen.whitening import Whitening

FORMAT = 1
_REMEMBERED = 8  # metrics that were learned in this process: for further banks of the same model
_LEARNED: dict[tuple[Any, ...], RelationMetric] = {}
FILE = "relation_metrics.safetensors"


def known_metric(
    encoder: PromptEncoder, placeholder: str, probe: str, *, false_rate: float, examples: bool
) -> RelationMetric:
    """Return the metric of the gate ``subject``, on the CPU.

    Args:
        encoder: Reads the base model.
        placeholder: As for :class:`~lightning_suite.scen.gates.subject.SubjectRelationGate`, and
            so the others.
        probe: Likewise.
        false_rate: Likewise.
        examples: Likewise.
    """
    key = metric_key(encoder, placeholder, probe, false_rate=false_rate, examples=examples)
    stored = _shipped().get(key)
    if stored is not None:
        return unpacked(stored)
    kinds = reference_data.wordings_by_kind()
    learned = _LEARNED.get((key, tuple(kinds.items())))
    if learned is None:
        relations = wording_features(encoder, placeholder, probe, kinds.values(), examples=examples)
        learned = fit_relation_metric(relations, false_rate=false_rate, views=1 + examples)
        if len(_LEARNED) == _REMEMBERED:
            del _LEARNED[next(iter(_LEARNED))]
        _LEARNED[key, tuple(kinds.items())] = learned
    return learned


def metric_key(
    encoder: PromptEncoder, placeholder: str, probe: str, *, false_rate: float, examples: bool
) -> str:
    """Return under which name a metric is shipped."""
    facts = {
        "what": "relation metric",
        "placeholder": placeholder,
        "probe": probe,
        "examples": EXAMPLES if examples else "",
        "false_rate": false_rate,
        "wordings": [data_hash("relation_wordings.jsonl"), data_hash("relation_kinds.jsonl")],
        "measure": relation_metric.MEASURE,
    }
    return outcome_key(encoder.model, encoder.format, facts, FORMAT)


def packed(metric: RelationMetric, views: int) -> dict[str, Tensor]:
    """Return a metric without the zeros of its matrix, whose blocks are one for each view."""
    rows, columns = (size // views for size in metric.whitening.matrix.shape)
    blocks = [
        metric.whitening.matrix[at * rows : (at + 1) * rows, at * columns : (at + 1) * columns]
        for at in range(views)
    ]
    return {
        "mean": metric.whitening.mean.contiguous(),
        "blocks": torch.stack(blocks),
        "between": metric.between.contiguous(),
        "thresholds": metric.thresholds.contiguous(),
    }


def unpacked(stored: dict[str, Tensor]) -> RelationMetric:
    """Return the metric that :func:`packed` was given."""
    space = Whitening(stored["mean"], torch.block_diag(*stored["blocks"]))
    return RelationMetric(space, stored["between"], stored["thresholds"])


@cache
def _shipped() -> dict[str, dict[str, Tensor]]:
    safetensors = import_extra("safetensors.torch", "llm")
    file = files("lightning_suite").joinpath("data", FILE)
    found: dict[str, dict[str, Tensor]] = {}
    if file.is_file():  # not while it is made
        for name, tensor in safetensors.load(file.read_bytes()).items():
            key, _, part = name.partition(".")
            found.setdefault(key, {})[part] = tensor
    return found
