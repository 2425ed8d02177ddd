"""How `lightning-suite score` scores the samples of any LightningModule's training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lightning_suite.cli.parsing import time_left
from lightning_suite.cli.progress import ProgressLine
from lightning_suite.cli.scoring_data import ScoringData
from lightning_suite.errors import SuiteError
from lightning_suite.language.module import CausalLMModule
from lightning_suite.resofilter.batch import AmbiguousRowsError
from lightning_suite.resofilter.features import Feature
from lightning_suite.resofilter.language_probe import CausalLMProbe
from lightning_suite.resofilter.probe import Rows, SampleProbe
from lightning_suite.resofilter.store import ScoreStore
from lightning_suite.resofilter.targets import Target

_GIVE_LOSSES = "Give the module a method sample_losses(batch) -> [N]."
_SECONDS_PER_SHARD = 60  # a kill costs at most so much work


class ModuleProbe(SampleProbe):
    """Scores batches of any LightningModule.

    A module with a method ``sample_losses(batch) -> [N]`` is run on whole batches. Any other is
    given each sample as a batch of one, whose ``training_step`` loss is that sample's own.

    Args:
        module: The user's.
        targets: What to watch.
        features: What to compute.
        allow_low_precision: As in :class:`~lightning_suite.resofilter.probe.SampleProbe`.
    """

    def score_batch(self, batch: Any, ids: Sequence[str]) -> Rows:
        """Return the table's rows of one batch."""
        losses = getattr(self.model, "sample_losses", None)
        if losses is None:
            return self.score(ids, lambda: self._training_step(batch))
        return self.score(ids, lambda: losses(batch))

    def _training_step(self, batch: Any) -> Tensor:
        kind = type(self.model).__name__
        step: Any = self.model.training_step
        if not getattr(self.model, "automatic_optimization", True):
            raise SuiteError(
                f"{kind} optimizes by hand in its training_step, and score changes no weights. "
                f"{_GIVE_LOSSES}"
            )
        numbered = is_param_in_hook_signature(step, "batch_idx", min_args=2)  # as a Trainer asks
        try:
            out = step(batch, 0) if numbered else step(batch)
        except AttributeError as err:
            if "self.trainer." not in str(err):
                raise
            raise SuiteError(
                f"{kind}.training_step asks its trainer ({err}), and score has none. {_GIVE_LOSSES}"
            ) from err
        loss = out["loss"] if isinstance(out, Mapping) else out
        if not isinstance(loss, Tensor):
            raise SuiteError(
                f"{kind}.training_step returned {type(loss).__name__}; score needs the loss. "
                f"{_GIVE_LOSSES}"
            )
        return loss.reshape(1)


def scored_network(module: LightningModule) -> nn.Module:
    """Return the part whose layers are named in the scores: a language model's own."""
    network: nn.Module = module.model if isinstance(module, CausalLMModule) else module
    return network


@contextmanager
def open_probe(
    module: LightningModule,
    targets: Sequence[Target],
    features: Sequence[Feature],
    data: ScoringData,
    *,
    without_prompt: bool = False,
    allow_low_precision: bool = False,
) -> Iterator[Callable[[Sequence[int]], Rows]]:
    """Freeze the model and return the function from indices of samples to rows of the table.

    Args:
        module: On its device already.
        targets: What to watch.
        features: What to compute.
        data: The samples.
        without_prompt: As in :class:`~lightning_suite.resofilter.language_probe.CausalLMProbe`.
        allow_low_precision: As in :class:`~lightning_suite.resofilter.probe.SampleProbe`.
    """
    if isinstance(module, CausalLMModule):
        options = {"without_prompt": without_prompt, "allow_low_precision": allow_low_precision}
        with CausalLMProbe(module.model, targets, features, **options) as probe:
            yield lambda indices: probe.score_batch(
                {"ids": [data.ids[i] for i in indices], **data.fetch(indices)}
            )
        return
    if without_prompt:
        raise SuiteError("without_prompt needs a CausalLMModule.")
    one_by_one = not hasattr(module, "sample_losses")
    with ModuleProbe(
        module, targets, features, allow_low_precision=allow_low_precision
    ) as module_probe:

        def score_part(part: Sequence[int]) -> list[Rows]:
            batch = data.fetch(part)
            try:
                return [module_probe.score_batch(batch, [data.ids[i] for i in part])]
            except AmbiguousRowsError:
                # With another number of samples it shows whether they are the first axis. Done
                # whatever was seen before: a run that goes on must come to the same bits.
                half = (len(part) + 1) // 2
                return score_part(part[:half]) + score_part(part[half:])

        def score(indices: Sequence[int]) -> Rows:
            parts = [[i] for i in indices] if one_by_one else [list(indices)]
            rows = [row for part in parts for row in score_part(part)]
            return {name: _joined([row[name] for row in rows]) for name in rows[0]}

        yield score


def score_batches(
    score: Callable[[Sequence[int]], Rows],
    batches: Iterable[Sequence[int]],
    store: ScoreStore,
    progress: Progress,
) -> None:
    """Score batches into the store; whatever stops it, what is scored is written.

    Args:
        score: Indices of a batch -> rows.
        batches: Indices.
        store: Of this rank.
        progress: Told after each batch.
    """
    written = time.monotonic()
    try:
        for batch in batches:
            store.add(score(batch))
            progress.add(len(batch))
            if time.monotonic() - written > _SECONDS_PER_SHARD:
                store.flush()
                written = time.monotonic()
    finally:
        store.flush()


class Progress:
    """One line on the terminal, or one line a minute in a file.

    Args:
        total: Samples to score.
        shown: Whether this process says anything.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        self.total, self.done = total, 0
        self._line = ProgressLine(in_log=60, on_terminal=0.2, shown=shown)

    def add(self, samples: int) -> None:
        """Count samples and, now and then, say how far it is."""
        self.done += samples
        if self._line.is_due():
            rate = self.done / self._line.seconds
            left = time_left((self.total - self.done) / rate)
            self._line.show(f"{self.done:,} of {self.total:,} samples, {rate:.3g} a second, {left}")

    def close(self) -> None:
        """Clear the line."""
        self._line.close()


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [value for part in parts for value in part]
