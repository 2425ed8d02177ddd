"""The weights of all experts: a growing table on the host, and what an expert does to an output."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError

ExpertKind = Literal["low_rank", "full"]
_LOCK = threading.Lock()  # one for all tables: a lock cannot be copied with its table
Weights = dict[str, Tensor]


def expert_shapes(kind: ExpertKind, d_in: int, d_out: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one expert by name, with their shapes."""
    if kind == "full":
        return {"weight": (d_out, d_in)}
    return {"a": (rank, d_in), "b": (d_out, rank)}


def edited_output(
    weights: Mapping[str, Tensor], x: Tensor, y: Tensor, bias: Tensor | None
) -> Tensor:
    """Return what a linear map with an expert gives.

    Args:
        weights: Of one expert a row: ``a`` [F, r, d_in] and ``b`` [F, d_out, r], added to the map;
            or ``weight`` [F, d_out, d_in], in place of it.
        x: Input of the map, [F, T, d_in].
        y: Its output without experts, [F, T, d_out].
        bias: Of the map, [d_out]; kept where an expert takes the map's place.
    """
    if "weight" in weights:
        replaced = torch.bmm(x, weights["weight"].mT)
        return replaced if bias is None else replaced + bias
    change = torch.bmm(torch.bmm(x, weights["a"].mT), weights["b"].mT)
    return y + change.to(y.dtype)


def edited_rows(
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    *,
    first: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Let experts act on some sequences of a batch; the others keep every bit.

    Args:
        weights: Of one expert for each of ``rows``, as for :func:`edited_output`.
        x: Input of the map, [N, T, d_in].
        y: Its output without experts, [N, T, d_out]; not changed.
        rows: Which sequences, [F].
        first: Position from which experts act, [N]; None: everywhere.
        bias: Of the map, [d_out].
    """
    start = None if first is None else first[rows]
    begin = 0 if start is None else int(start.min())
    old = y[rows, begin:]
    new = edited_output(weights, x[rows, begin:], old, bias).to(y.dtype)
    if start is not None:
        at = torch.arange(begin, y.shape[1], device=y.device)
        new = torch.where((at >= start[:, None])[..., None], new, old)
    changed = y.clone()
    changed[rows, begin:] = new
    return changed


class ExpertTable:
    """Experts by slot, of one kind and shape.

    They stay on the host, the first ones perhaps in a mapped file; those that fire are copied to
    the layer's device, where the most recent ones are kept.

    Args:
        shapes: Tensors of one expert, see :func:`expert_shapes`.
        dtype: That they are stored in.
        recent: Most experts kept on a device other than the host.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, recent: int = 64
    ) -> None:
        self.shapes, self.dtype = dict(shapes), dtype
        self._stored = {name: torch.empty(0, *shape, dtype=dtype) for name, shape in shapes.items()}
        self._grown = _Grown(shapes, dtype)
        self._recent: OrderedDict[tuple[int, torch.device, torch.dtype], Weights] = OrderedDict()
        self._most_recent = recent

    def __len__(self) -> int:
        return len(next(iter(self._stored.values()))) + self._grown.used

    @property
    def nbytes(self) -> int:
        """Return the bytes of all experts, mapped ones included, spare room not."""
        one = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return len(self) * one * self.dtype.itemsize

    def append(self, experts: Mapping[str, Tensor]) -> None:
        """Add experts, in time proportional to their number.

        Args:
            experts: By name, [n, …] each.
        """
        self._grown.append(experts)

    def shorten(self, size: int) -> None:
        """Forget those of the experts behind the first ``size`` that were appended."""
        self._grown.used -= min(self._grown.used, max(0, len(self) - size))

    def check(self, experts: Mapping[str, Tensor], count: int) -> None:
        """Refuse tensors that are not ``count`` experts of this table.

        Raises:
            SuiteError: A name, shape or number is wrong, or a weight is not finite.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in experts.items()}
        expected = {name: (count, *shape) for name, shape in self.shapes.items()}
        if shapes != expected:
            raise SuiteError(f"experts: expected tensors {expected}, found {shapes}.")
        for name, tensor in experts.items():
            if not torch.isfinite(tensor).all():
                rows = (~torch.isfinite(tensor)).flatten(1).any(1).nonzero().flatten().tolist()
                raise SuiteError(
                    f"experts: {name} of expert {rows[0]} (of {count}) is not finite; its training "
                    "has failed. Train it with a smaller learning rate."
                )

    def gather(self, slots: Sequence[int], device: torch.device, dtype: torch.dtype) -> Weights:
        """Return the experts in ``slots``, one a row, for computing on ``device`` in ``dtype``."""
        if device.type == "cpu":
            return {name: rows.to(dtype) for name, rows in self._select(slots).items()}
        with _LOCK:
            return self._recently(slots, device, dtype)

    def _recently(self, slots: Sequence[int], device: torch.device, dtype: torch.dtype) -> Weights:
        missing = [
            slot for slot in dict.fromkeys(slots) if (slot, device, dtype) not in self._recent
        ]
        copied = {name: rows.to(device, dtype) for name, rows in self._select(missing).items()}
        for row, slot in enumerate(missing):
            self._recent[slot, device, dtype] = {n: tensor[row] for n, tensor in copied.items()}
        for slot in slots:
            self._recent.move_to_end((slot, device, dtype))
        rows_of = [self._recent[slot, device, dtype] for slot in slots]
        while len(self._recent) > self._most_recent:
            self._recent.popitem(last=False)
        return {name: torch.stack([rows[name] for rows in rows_of]) for name in self.shapes}

    def state(self) -> Weights:
        """Return all experts by name, [E, …]; a view where that is possible."""
        grown = self._grown.rows()
        if not self._grown.used:
            return self._stored
        if not len(self) - self._grown.used:
            return grown
        return {name: torch.cat([rows, grown[name]]) for name, rows in self._stored.items()}

    def load(self, experts: Mapping[str, Tensor]) -> None:
        """Replace all experts by ``experts``, which may lie in a mapped file; nothing is copied."""
        self._stored = {name: experts[name] for name in self.shapes}
        self._grown = _Grown(self.shapes, self.dtype)
        self._recent.clear()

    def _select(self, slots: Sequence[int]) -> Weights:
        index = torch.tensor(slots, dtype=torch.long)
        first = len(next(iter(self._stored.values())))
        late = index >= first
        grown = self._grown.rows()
        if not late.any():
            return {name: stored[index] for name, stored in self._stored.items()}
        if late.all():
            return {name: rows[index - first] for name, rows in grown.items()}
        found = {}
        for name, shape in self.shapes.items():
            rows = torch.empty(len(slots), *shape, dtype=self.dtype)
            rows[~late] = self._stored[name][index[~late]]
            rows[late] = grown[name][index[late] - first]
            found[name] = rows
        return found


class _Grown:
    """Rows in memory with room to spare, doubled when it is used up."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self.used = 0
        self._room = {name: torch.empty(0, *shape, dtype=dtype) for name, shape in shapes.items()}

    def rows(self) -> Weights:
        return {name: room[: self.used] for name, room in self._room.items()}

    def append(self, rows: Mapping[str, Tensor]) -> None:
        total = self.used + len(next(iter(rows.values())))
        for name, room in self._room.items():
            if total > len(room):
                larger = room.new_empty(max(total, 2 * len(room)), *room.shape[1:])
                larger[: self.used] = room[: self.used]
                self._room[name] = larger
            self._room[name][self.used : total] = rows[name].detach()
        self.used = total
