"""Record each sample's gradient features in the batches of a training, one batch after another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_suite.resofilter.features import Feature
from lightning_suite.resofilter.online import BatchSamples
from lightning_suite.resofilter.probe import Rows
from lightning_suite.resofilter.recorder import FeatureRecorder
from lightning_suite.resofilter.targets import Target
from lightning_suite.resofilter.verification import GradientCheck


class TrainingRecorder:
    """Turns the batches of a training into rows.

    For each batch to be recorded: :meth:`start` before its forward pass, :meth:`take` after its
    backward pass, :meth:`end`. Until a comparison with autograd's gradients has passed, each
    batch is compared. The hooks are on the model until :meth:`detach`.

    Args:
        targets: What to watch.
        features: What to compute.
        verify: Whether the recorded gradients are compared with autograd's.
        batch_first: Whether the first axis of every target is known to be the samples.

    Attributes:
        recorder: Watches the layers; knows the names of columns and the layouts seen so far.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        features: Sequence[Feature],
        *,
        verify: bool = True,
        batch_first: bool = False,
    ) -> None:
        self.recorder = FeatureRecorder(targets, features)
        self.recorder.attach()
        self._batch_first = batch_first
        self._unverified = verify
        self._check: GradientCheck | None = None
        self._samples: BatchSamples | None = None
        self._rows: Rows | None = None

    @property
    def waits(self) -> bool:
        """Whether a batch was started and not taken yet."""
        return self._samples is not None

    def start(self, samples: BatchSamples) -> None:
        """Watch the next forward and backward pass, of a batch of these samples."""
        self._detach_check()  # of a batch that was skipped, which Lightning does not end
        self._samples, self._rows = samples, None
        known = self.recorder.unambiguous
        if self._batch_first:
            known = {target.name for target in self.recorder.targets}
        if self._unverified:
            self._check = GradientCheck(self.recorder.targets)
            self._check.attach()
        self.recorder.start(
            len(samples.ids),
            multipliers=samples.multipliers,
            batch_first=known,
            observer=None if self._check is None else self._check.observe,
        )

    def take(self, **same: float) -> None:
        """Compute the batch's rows from what its backward pass left; later passes do not count.

        Args:
            same: Columns that have one value for the whole batch, such as ``step``.

        Raises:
            SuiteError: The samples' gradients do not add up to autograd's.
        """
        samples, self._samples = self._samples, None
        if samples is None:
            return
        features = self.recorder.finish()
        check = self._detach_check()
        if check is not None and check.passed():
            self._unverified = False
        self._rows = samples.rows(features, **same)

    def end(self) -> Rows | None:
        """Return the batch's rows; None of a batch that was not recorded or had no backward."""
        self.recorder.cancel()
        self._detach_check()
        self._samples = None
        rows, self._rows = self._rows, None
        return rows

    def detach(self) -> None:
        """Take all hooks off the model and forget an unfinished batch."""
        self._detach_check()
        self.recorder.detach()
        self._samples, self._rows = None, None

    def _detach_check(self) -> GradientCheck | None:
        check, self._check = self._check, None
        if check is not None:
            check.detach()
        return check


def group_of(target: Target, optimizers: Iterable[Optimizer]) -> dict[str, Any]:
    """Return the parameter group that trains a target; the very first where none does.

    Without any optimizer it is one with a rate of NaN.
    """
    weight = getattr(target.module, target.parameter)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    first = groups[0] if groups else {"lr": math.nan}
    return next((g for g in groups if any(p is weight for p in g["params"])), first)
