"""Names of what was found out about a model: hashes of all that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from torch import nn

from lightning_suite.scen.layer_choice import causal_lm
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.weights import weights_hash

_QUESTION = "What is this?"  # shows what the template makes of a question


def outcome_key(
    model: nn.Module, prompts: PromptFormat, facts: Mapping[str, Any], version: int
) -> str:
    """Return a hash of a model's weights, its template and tokens, and what else there is.

    Args:
        model: A Hugging Face causal LM or what holds one.
        prompts: How questions and answers are written.
        facts: All else that the outcome depends on, plain values.
        version: Of how it is found out.
    """
    what = {
        "format": version,
        "model": weights_hash(causal_lm(model)),
        "prompt": prompts.encode_answer(_QUESTION, "Yes"),
        **facts,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def data_hash(name: str) -> str:
    """Return a hash of a file in ``lightning_suite/data``."""
    file = files("lightning_suite").joinpath("data", name)
    return hashlib.sha256(file.read_bytes()).hexdigest()
