"""What a training batch says about its samples: their ids, and each one's part of the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.probe import EMPTY, NO_LABELS, OK, TRUNCATED, Rows, mark_nonfinite
from lightning_suite.resofilter.reduction import (
    Reduction,
    TokenReduction,
    count_labels,
    reduction_of,
)

# How collators say that a row holds several samples; see also `position_ids` in _refuse_packed.
_PACKED = ("segments", "seq_idx", "cu_seq_lens_q")


@dataclass(frozen=True)
class BatchSamples:
    """The samples of one training batch.

    Attributes:
        ids: N of them.
        multipliers: Factor from the batch's loss to each sample's own: [N].
        status: ``ok``, ``truncated``, ``empty_answer`` or ``no_labels``.
        counts: More columns of whole numbers, such as ``n_label_tokens``.
    """

    ids: list[str]
    multipliers: Tensor
    status: list[str]
    counts: dict[str, list[int]]

    def rows(self, features: Mapping[str, Tensor], **same: float) -> Rows:
        """Return the table's rows.

        Args:
            features: Column -> [N] or [N, k].
            same: Columns that have one value for the whole batch, such as ``step``.
        """
        n = len(self.ids)
        labelled = torch.tensor([status != NO_LABELS for status in self.status])
        columns = {}
        for name, values in features.items():
            cpu = values.detach().cpu()
            columns[name] = cpu.where(labelled.view(-1, *[1] * (cpu.ndim - 1)), torch.nan)
        return {
            "sample_id": list(self.ids),
            "status": mark_nonfinite(self.status, columns.values()),
            **{
                name: [value] * n
                if isinstance(value, int)
                else torch.full((n,), value, dtype=torch.float64)
                for name, value in same.items()
            },
            **self.counts,
            **columns,
        }


def read_samples(
    batch: Any,
    ids: str | int | None = None,
    reduction: Reduction = "auto",
    scale: float = 1.0,
    of_tokens: TokenReduction | None = None,
) -> BatchSamples:
    """Read a batch of any form: a mapping, a tuple, a tensor.

    Args:
        batch: As the data loader gives it, on any device.
        ids: Key or position of the samples' ids in the batch. None takes ``ids`` of a mapping
            that has it, and otherwise a hash of each sample's own content.
        reduction: How the batch's loss is made of its samples: their ``mean``, their ``sum``,
            ``token_mean`` over all label tokens but each sample's first (a causal LM's), or
            ``label_mean`` over all of them. ``auto`` is ``of_tokens`` for a mapping with
            ``input_ids`` and whole numbers ``labels`` [N, T, …], else ``mean``.
        scale: Further factor from the differentiated loss to the batch's own.
        of_tokens: From :func:`~lightning_suite.resofilter.reduction.reduction_of_tokens`.

    Raises:
        SuiteError: The batch has no ids under that key, or not one for each sample; several
            samples are packed into one row; or ``auto`` has labels of tokens and no
            ``of_tokens``.
    """
    if isinstance(batch, Mapping):
        _refuse_packed(batch)
    if ids is None and isinstance(batch, Mapping) and "ids" in batch:
        ids = "ids"
    found = content_ids(batch) if ids is None else _ids(batch, ids)
    n = len(found)
    tensors = [tensor for _, tensor in _tensors(batch)]
    if tensors and tensors[0].ndim and len(tensors[0]) != n:
        raise SuiteError(f"{n} sample ids for a batch of {len(tensors[0])} samples.")
    status, counts = [OK] * n, {}
    if isinstance(batch, Mapping):
        none = [False] * n
        marks = zip(
            *(_marks(batch.get(k, none)) for k in ("empty_answer", "truncated")), strict=True
        )
        status = [EMPTY if empty else TRUNCATED if cut else OK for empty, cut in marks]
        if isinstance(mask := batch.get("attention_mask"), Tensor) and mask.ndim == 2:
            counts["n_tokens"] = mask.sum(1).tolist()
    if reduction == "auto":
        reduction = reduction_of(batch, of_tokens)
    if reduction in ("token_mean", "label_mean"):
        labels = count_labels(batch, reduction)
        of_samples = counts["n_label_tokens"] = labels.tolist()
        status = [
            NO_LABELS if not count else old for count, old in zip(of_samples, status, strict=True)
        ]
        multipliers = labels.sum() / labels.clamp(min=1).double()
    else:
        factor = float(n) if reduction == "mean" else 1.0
        multipliers = torch.full((n,), factor, dtype=torch.float64)
    return BatchSamples(found, multipliers * scale, status, counts)


def _marks(values: Any) -> list[Any]:
    """Return one value a sample, at once: each look at a device waits for it."""
    return values.tolist() if isinstance(values, Tensor) else list(values)


def content_ids(batch: Any) -> list[str]:
    """Return 16 hexadecimal digits for each sample, made of all its tensors alone.

    Equal samples have equal ids. Padding is part of a sample where the batch has no
    ``attention_mask``.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in _tensors(batch)}
    sizes = {len(t) for t in tensors.values() if t.ndim}
    if len(sizes) != 1 or not all(t.ndim for t in tensors.values()):
        raise SuiteError(
            "the samples of a batch have no ids, and none can be made from their content, because "
            f"its {len(tensors)} tensors do not agree on the number of samples. Put `ids` into "
            "the batch, and say where with ids."
        )
    mask = tensors.pop("attention_mask", None)
    made = []
    for n in range(sizes.pop()):
        digest = hashlib.sha256()
        for name, tensor in tensors.items():
            one = tensor[n]
            if mask is not None and one.shape == mask[n].shape:
                one = one[mask[n] != 0]
            digest.update(f"{name} {one.dtype} {tuple(one.shape)}".encode())
            digest.update(one.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        made.append(digest.hexdigest()[:16])
    return made


def _refuse_packed(batch: Mapping[str, Any]) -> None:
    marks = [key for key in _PACKED if batch.get(key) is not None]
    positions, mask = batch.get("position_ids"), batch.get("attention_mask")
    if isinstance(positions, Tensor) and positions.ndim == 2:
        again = positions[:, 1:] < positions[:, :-1]
        if isinstance(mask, Tensor) and mask.shape == positions.shape:
            again = again & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
        marks += ["position_ids"] * bool(again.any())
    if marks:
        raise SuiteError(
            f"the batch packs several samples into one row ({', '.join(marks)}), and a row would "
            "be recorded as one sample. Train with one sample a row, or score the samples with "
            "`lightning-suite score`."
        )


def _ids(batch: Any, key: str | int) -> list[str]:
    try:
        values = batch[key]
    except (KeyError, IndexError, TypeError) as err:
        there = f" It has {', '.join(map(str, batch))}." if isinstance(batch, Mapping) else ""
        raise SuiteError(
            f"ids={key!r}: the batch, a {type(batch).__name__}, has nothing there.{there}"
        ) from err
    return [str(i) for i in (values.tolist() if isinstance(values, Tensor) else values)]


def _tensors(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _tensors(value, str(key))
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for position, value in enumerate(batch):
            yield from _tensors(value, f"{name}.{position}")
