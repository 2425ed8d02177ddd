"""Choose how a model can be run from the edited map on, by trying it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_suite.errors import SuiteError
from lightning_suite.language.prompts import IGNORED
from lightning_suite.scen.answer_states import AnswerRow, Positions, StateCache, Tokens
from lightning_suite.scen.linear_maps import linear_shape
from lightning_suite.scen.upper_layers import SplitModel

# Of |logits|: far above what another order of the same sums changes, far below any mistake.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def open_cache(
    model: nn.Module,
    layer: str,
    rows: Sequence[AnswerRow],
    positions: Positions = "last",
    *,
    shared: frozenset[Tokens] = frozenset(),
    token_budget: int = 2048,
) -> StateCache:
    """Find the fastest way to run ``model`` from ``layer`` on that gives what the model gives.

    The shortest and the longest row are run with a random change of the map's output, as a whole
    and in parts: not every decoder layer adds the map's output to the residual stream as it is
    (Gemma 2 and OLMo 2 normalize it first), and not every model keeps keys and values.

    Args:
        model: Hugging Face causal LM, frozen and in evaluation mode.
        layer: Dotted name of the edited map.
        rows: What will be trained on.
        positions: As in :class:`StateCache`.
        shared: As there.
        token_budget: As there.

    Raises:
        SuiteError: No way gives the model's own logits.
    """
    by_length = sorted(rows, key=lambda row: len(row.tokens))
    probes = [by_length[0], by_length[-1]]
    why: Exception | str = ""
    keeps = (True, False) if positions == "last" else (False,)
    for keep, additive in product(keeps, (True, False)):
        split = SplitModel(model, layer, additive=additive)
        cache = StateCache(
            split, positions, shared=shared, keep_prefix=keep, token_budget=token_budget
        )
        try:
            error = _error(cache, probes)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as err:
            why = err  # a model that is built otherwise fails in its own way
            continue
        if error <= _TOLERANCE[cache.split.dtype]:
            if positions == "last" and not keep:
                warnings.warn(
                    f"{type(model).__name__}: the keys and values of prompts cannot be kept "
                    f"({why}); every step runs whole sequences through the upper layers.",
                    stacklevel=2,
                )
            return cache
        why = f"logits differ by {error:.1e} of the largest"
    raise SuiteError(
        f"{type(model).__name__} cannot be run from layer {layer!r} on: {why}. Experts can be "
        "trained for decoder-only models whose layers run one after the other."
    )


def _error(cache: StateCache, rows: Sequence[AnswerRow]) -> float:
    """Return how far the losses' logits are from the whole model's, relative to the largest."""
    split = cache.split
    batch = cache.build(rows).select(torch.arange(len(rows)))
    generator = torch.Generator().manual_seed(0)
    shape = (*batch.x.shape[:2], linear_shape(split.linear)[1])
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)
    change = noise.to(batch.start) * batch.acts[..., None]
    with torch.no_grad():
        output = split.linear(batch.x[batch.acts])
        change *= output.std() if output.numel() > 1 else 1.0
        final = split.from_layer(batch.start, change, batch.mask, batch.positions, batch.prefix)
        errors: list[Tensor] = []
        for i, row in enumerate(rows):
            first = len(cache.prefix(row))
            at = batch.labels[i] != IGNORED
            ours = split.logits(final[i][at])
            tail = change[i, : len(row.tokens) - 1 - first]
            with _changed(split.linear, F.pad(tail, (0, 0, first, 0))):
                ids = torch.tensor([row.tokens[:-1]], device=split.device)
                theirs = split.model(ids, use_cache=False).logits[0, row.n_prompt - 1 :]
            errors.append((ours - theirs).abs().max() / theirs.abs().max())
    return float(torch.stack(errors).max())  # nan if one of them is


@contextmanager
def _changed(linear: nn.Module, change: Tensor) -> Iterator[None]:
    """Add a known change to what a map returns."""
    handle = linear.register_forward_hook(lambda _m, _i, out: out + change.reshape(out.shape))
    try:
        yield
    finally:
        handle.remove()
