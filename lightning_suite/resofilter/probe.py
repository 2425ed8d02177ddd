"""Score samples with the weights fixed: any network with a loss per sample."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import Feature
from lightning_suite.resofilter.precision import refuse_low_precision
from lightning_suite.resofilter.recorder import FeatureRecorder, probing, refuse_mixing_layers
from lightning_suite.resofilter.targets import Target
from lightning_suite.resofilter.verification import (
    GradientCheck,
    buffers_restored,
    is_checkable,
)

# Columns of a table -> one value a sample. Strings and whole numbers as lists, the rest tensors
# on the CPU, [N] or [N, k].
Rows = dict[str, Any]

OK, TRUNCATED, NO_LABELS, NONFINITE = "ok", "truncated", "no_labels", "nonfinite"
EMPTY = "empty_answer"  # only tokens of the template are learnt


class SampleProbe:
    """Per-sample features of a network whose weights stay as they are.

    Within the ``with`` block the model is frozen and in evaluation mode.

    Args:
        model: Any module made of samples that do not see each other.
        targets: What to watch, see :func:`~lightning_suite.resofilter.targets.find_targets`.
        features: What to compute, see :func:`~lightning_suite.resofilter.features.make_features`.
        allow_low_precision: Compute ``adam1_mean_abs`` and its like on 16-bit weights, too.
        verify: Compare the gradients of one sample with autograd's own in the first batch, and in
            the first one of several samples (not in 16 bits); it costs one more pass of each.

    Raises:
        SuiteError: A feature that counts entries near 1e-8 is asked of 16-bit weights.

    Example:
        >>> import torch
        >>> from lightning_suite.resofilter.features import make_features
        >>> from lightning_suite.resofilter.targets import find_targets
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> with SampleProbe(model, find_targets(model).found, make_features(["grad_norm"])) as p:
        ...     p.score(["a", "b"], lambda: model(x).squeeze(1))[".grad_norm"].tolist()
        [5.0, 1.0]
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        features: Sequence[Feature],
        *,
        allow_low_precision: bool = False,
        verify: bool = True,
    ) -> None:
        self.model = model
        self.recorder = FeatureRecorder(targets, features)
        self._allow_low_precision = allow_low_precision
        self._verify = verify
        self._verified = 0  # samples of the largest batch of which one was compared, up to 2
        self._exit = ExitStack()
        if not allow_low_precision:
            refuse_low_precision(features, targets)

    def __enter__(self) -> Any:
        self._exit.enter_context(probing(self.model))
        self._exit.enter_context(self.recorder)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def score(
        self,
        ids: Sequence[str],
        losses: Callable[[], Tensor],
        batch_first: Container[str] = (),
    ) -> Rows:
        """Return the table's rows of one batch.

        Args:
            ids: Of the samples, from the data.
            losses: Runs the model on the batch and returns each sample's loss: [N].
            batch_first: As in :meth:`~lightning_suite.resofilter.recorder.FeatureRecorder.start`.

        Raises:
            SuiteError: There is not one loss for each sample, a layer mixes the samples, the
                rows of a layer do not give autograd's gradient, or cannot be told apart
                (:class:`~lightning_suite.resofilter.batch.AmbiguousRowsError` where the batch has
                as many samples as positions).
        """
        self._refuse_autocast()
        if len(ids) > 1:
            refuse_mixing_layers(self.model)
        check = self._differentiate_one(ids, losses) if self._to_verify(len(ids)) else None
        self.recorder.start(
            len(ids), batch_first=batch_first, observer=None if check is None else check.observe
        )
        with torch.enable_grad():
            values = self._values(ids, losses)
            if values.requires_grad:  # a sample may reach no watched layer
                torch.autograd.backward(values.sum())
        features = self.recorder.finish()
        self._conclude(check, len(ids))
        return table_rows(ids, values.detach(), [OK] * len(ids), features)

    def _values(self, ids: Sequence[str], losses: Callable[[], Tensor]) -> Tensor:
        values = losses()
        if values.shape != (len(ids),):
            raise SuiteError(
                f"probe: expected one loss for each of {len(ids)} samples, got the shape "
                f"{tuple(values.shape)}. Use a loss with reduction='none'."
            )
        return values

    def _to_verify(self, n_samples: int) -> bool:
        return self._verify and self._verified < min(n_samples, 2) and is_checkable(self.model)

    def _differentiate_one(
        self, ids: Sequence[str], losses: Callable[[], Tensor]
    ) -> GradientCheck | None:
        """Return autograd's gradients of the largest loss of a batch; None if none is finite.

        Draws the random numbers that the batch will draw again.
        """
        check = GradientCheck(self.recorder.targets, 0)
        with isolate_rng(), buffers_restored(self.model), check.trainable(), torch.enable_grad():
            values = self._values(ids, losses)
            sizes = values.detach().abs()
            if not bool(sizes.isfinite().any()):
                return None
            check.sample = int(sizes.where(sizes.isfinite(), -1).argmax())
            if values.requires_grad:
                torch.autograd.backward(values[check.sample])
        return check

    def _conclude(self, check: GradientCheck | None, n_samples: int) -> None:
        if check is not None and check.passed():
            self._verified = min(n_samples, 2)

    def _refuse_autocast(self) -> None:
        device = next(self.model.parameters()).device.type
        if torch.is_autocast_enabled(device) and not self._allow_low_precision:
            refuse_low_precision(
                self.recorder.features, self.recorder.targets, torch.get_autocast_dtype(device)
            )


def table_rows(
    ids: Sequence[str], losses: Tensor, status: Sequence[str], features: dict[str, Tensor]
) -> Rows:
    """Return rows of a table; a sample with a value that is not finite becomes ``nonfinite``.

    Args:
        ids: Of the samples.
        losses: [N]; NaN where the status is not ``ok`` or ``truncated``.
        status: Of the samples so far.
        features: Column -> [N] or [N, k].
    """
    losses = losses.double().cpu()
    columns = {name: values.detach().cpu() for name, values in features.items()}
    scored = mark_nonfinite(status, [losses, *columns.values()])
    return {"sample_id": list(ids), "status": scored, "loss": losses, **columns}


def mark_nonfinite(status: Sequence[str], columns: Iterable[Tensor]) -> list[str]:
    """Return ``nonfinite`` for scored samples with a value, [N] or [N, k], that is not finite."""
    finite = torch.ones(len(status), dtype=torch.bool)
    for values in columns:
        finite &= values.reshape(len(status), -1).isfinite().all(1)
    return [
        NONFINITE if old in (OK, TRUNCATED) and not fine else old
        for old, fine in zip(status, finite.tolist(), strict=True)
    ]
