"""What is remembered of a batch between its prefill and the last token that is generated."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import FrameType

from torch import Tensor

from lightning_suite.scen.expert_table import Weights


@dataclass
class HeldDecision:
    """What holds for the rows of a batch from its prefill on.

    Attributes:
        rows: Number of sequences.
        decided: False until a layer gate has seen the states.
        fired: Rows with an expert.
        slots: Their experts.
        weights: Those of these experts, once a pass has needed them.
    """

    rows: int
    decided: bool = False
    fired: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    weights: Weights = field(default_factory=dict)


@dataclass
class ForwardPass:
    """One run through the model.

    Attributes:
        decision: What holds for its rows.
        length: Number of new tokens of each.
        last: Where each row's prompt ends, [B]; None in a pass that continues a cache.
        first: Where experts begin to act, [B]; None: everywhere.
    """

    decision: HeldDecision
    length: int
    last: Tensor | None = None
    first: Tensor | None = None


def guessing() -> bool:
    """Return whether transformers is decoding with guessed tokens, of an assistant or the prompt.

    Nothing that a forward pass is given tells; who has called it does.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_assisted_decoding":
            return True
        frame = frame.f_back
    return False
