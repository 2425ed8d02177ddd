"""What is remembered of a batch between its prefill and the last token that is generated."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.scen.expert_table import Weights

_REMEMBERED = 64  # passes with gradients that may wait for their backward pass at a time
_SAME = 1e-3  # of the largest mark: rounding of a computation that is done twice


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


class Running(threading.local):
    """What a thread is about in a model: several may run one at a time.

    Attributes:
        now: The pass through the model; None outside of one, and in one without experts.
        learning: Whether the thread is in a pass that keeps gradients.
        paused: How many contexts let no expert act.
        again: Whether the next pass is a prefill whatever its cache holds.
        lengths: Of the prompts in passes that also hold answers; None: all is prompt.
    """

    def __init__(self) -> None:
        self.now: ForwardPass | None = None
        self.learning = False
        self.paused = 0
        self.again = False
        self.lengths: Tensor | None = None

    def __reduce__(self) -> Any:
        return Running, ()  # so that a model can be copied with what is attached to it


class PassesToLearnFrom:
    """Finds the pass for which a layer computes its activations again, in the backward pass.

    Several may wait (a loss of two batches), and nothing that the layer is given names one; but its
    input is that of the pass, so a mark of each is kept.
    """

    def __init__(self) -> None:
        self._known: deque[tuple[Tensor, ForwardPass | None]] = deque(maxlen=_REMEMBERED)

    def note(self, x: Tensor, now: ForwardPass | None) -> None:
        """Remember the layer's input in a pass; None: no expert acted in it."""
        self._known.append((_mark(x), now))

    def find(self, x: Tensor) -> ForwardPass | None:
        """Return the pass with this input; of several the last, and the next time another."""
        mark = _mark(x)
        # A pass without experts may not come this far again: its last tensors were there before.
        near = [
            (float((mark - other).abs().max()), now is None, -place)
            for place, (other, now) in enumerate(self._known)
            if other.shape == mark.shape and other.device == mark.device
        ]
        if not near or min(near)[0] > _SAME * float(mark.abs().max()):
            return None
        place = -min(near)[2]
        found = self._known[place]
        del self._known[place]
        self._known.appendleft(found)
        return found[1]

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


def _mark(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).mean(-1)


def cache_in(named: Mapping[str, Any]) -> Any:
    """Return the keys and values that a model was given, or that its output has; None: none.

    They are named ``past_key_values``, and from transformers 5.24 on ``cache``.

    Raises:
        SuiteError: They are a tuple, which cannot be told from its copies.
    """
    cache = named.get("cache")
    cache = named.get("past_key_values") if cache is None else cache
    if isinstance(cache, tuple):
        raise SuiteError(
            "this model's keys and values are a tuple, and experts need a Cache object to follow a "
            "sequence. Give one; if transformers makes the tuple (4.48 does for GPT-2, GPT-NeoX "
            "and OPT), install transformers>=4.56."
        )
    return cache


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
