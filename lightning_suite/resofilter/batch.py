"""From what the layers of a batch saw, the rows of each sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.rows import InputRows, LayerGradients, Ranges
from lightning_suite.resofilter.targets import Target

Pair = tuple[Tensor, Tensor]
Observer = Callable[[Target, Sequence[Pair], LayerGradients], None]


class AmbiguousRowsError(SuiteError):
    """A batch has as many samples as a layer has positions, so either axis may be the samples."""


@dataclass
class BatchInFlight:
    """What is known about the batch whose loss is being differentiated.

    The first six are the arguments of
    :meth:`~lightning_suite.resofilter.recorder.FeatureRecorder.start`.
    """

    n_samples: int
    segments: Tensor | None
    multipliers: Tensor | None
    segments_of: Mapping[nn.Module, Tensor]
    batch_first: Container[str] = ()
    observer: Observer | None = None
    # targets whose rows could only be [N, …]: there are not as many positions as samples
    unambiguous: set[str] = field(default_factory=set)
    calls: dict[nn.Module, int] = field(default_factory=lambda: defaultdict(int))
    waiting: dict[nn.Module, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, Tensor] = field(default_factory=dict)
    # gate and up, or q, k and v, read the same input: their rows and inner products are shared
    last: _SharedInputs | None = None
    layout: _Layout | None = None
    # made once for all layers of one shape, so that they are seen to be the same without a look
    owners: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)
    newest_input: Tensor | None = None
    group_of: dict[nn.Module, int] = field(default_factory=dict)
    group_sizes: list[int] = field(default_factory=list)

    def note_input(self, module: nn.Module, x: Tensor, targets: int) -> None:
        """Count the targets that read the same input, one after the other."""
        if x is not self.newest_input:
            self.newest_input = x
            self.group_sizes.append(0)
        self.group_of[module] = len(self.group_sizes) - 1
        self.group_sizes[-1] += targets

    def gradients(self, target: Target, pairs: Sequence[Pair]) -> LayerGradients:
        """Return the per-sample gradients from all calls of the target's layer."""
        owners = _cat([self._owners(target, g) for _, g in pairs])
        g = _cat([_rows(target.output_gradients(g)) for _, g in pairs])
        xs = [x for x, _ in pairs]
        used, ranges = self._layout(owners, g)
        dtype = torch.promote_types(g.dtype, torch.float32)
        if ranges is not None:
            inputs = self._shared_inputs(target, xs, ranges, dtype)
        else:  # a sample's rows are not together: several calls, or packed in turns
            kept = used.nonzero().squeeze(1)
            kept = kept[owners[kept].argsort(stable=True)]
            owners, g = owners[kept], g[kept]
            everything = torch.arange(len(kept), device=kept.device)
            ranges = _ranges(owners, everything, self.n_samples)
            assert ranges is not None
            x = _cat([_rows(target.inputs(x)) for x in xs])[kept]
            inputs = InputRows(x.to(dtype), ranges)
        g = g.to(dtype)
        if self.multipliers is not None:
            self.multipliers = self.multipliers.to(g.device)  # once, and not for each layer
            g = g * self.multipliers.to(dtype)[owners.clamp_min(0), None]
        return LayerGradients(target.name, inputs, g, target.weight)

    def _layout(self, owners: Tensor, g: Tensor) -> tuple[Tensor, Ranges | None]:
        """Return which rows are needed, and their :func:`_ranges`.

        Gradients spread on their way down: where a layer has none in rows that the last one did
        not need, either, the last one's rows are taken (a row of zeros that is kept changes
        nothing), and below a layer that needs all nothing is looked for. Each look waits for the
        device.
        """
        old = self.layout
        if old is not None and not _equal(old.owners, owners):
            old = None
        if old is not None and old.full:
            return old.used, old.ranges
        owned = owners >= 0
        used = _nonzero_rows(g, owned)
        if old is None or bool((used & ~old.used).any()):
            ranges = _ranges(owners, used.nonzero().squeeze(1), self.n_samples)
            self.layout = old = _Layout(owners, used, ranges, full=torch.equal(used, owned))
        return old.used, old.ranges

    def _owners(self, target: Target, g: Tensor) -> Tensor:
        """Return the sample of each row of a call: [rows].

        Raises:
            SuiteError: The shape of the rows does not say it.
        """
        shape = g.shape[:1] + g.shape[2:] if target.kind == "conv2d" else g.shape[:-1]
        segments = self.segments_of.get(target.module)
        if segments is not None and shape.numel() == segments.numel():
            return self._flat(segments, g.device)
        segments = self.segments
        if segments is not None and (
            shape == (segments.numel(),) or _axes(shape) == _axes(segments.shape)
        ):
            return self._flat(segments, g.device)
        if self.n_samples == 1:  # padding has no gradient
            return self._in_turn(shape.numel(), g.device)
        # Where a sample is several rows of the batch, N rows are by chance as many: an expert's.
        by_chance = segments is not None and len(shape) == 1
        if not shape or shape[0] != self.n_samples or target.sequence_first or by_chance:
            raise SuiteError(self._refusal(target, shape))
        # Of [N, N, …] either axis may be the samples, unless it is torch's own convolution.
        if self.n_samples not in shape[1:] or target.kind == "conv2d":
            if len(shape) > 1:  # N rows say nothing of an axis of positions
                self.unambiguous.add(target.name)
        elif target.name not in self.batch_first:
            raise AmbiguousRowsError(
                f"{target.name}: cannot tell the samples apart: the layer sees rows of shape "
                f"{tuple(shape)}, and the batch has {self.n_samples} samples, so that samples may "
                "be the first axis or another one. Use a batch of another size; or, if they are "
                "the first axis, say so with batch_first=True."
            )
        return self._in_turn(shape[1:].numel(), g.device)

    def _flat(self, segments: Tensor, device: torch.device) -> Tensor:
        key = (id(segments), device)
        if key not in self.owners:
            self.owners[key] = segments.reshape(-1).to(device)
        return self.owners[key]

    def _in_turn(self, each: int, device: torch.device) -> Tensor:
        """Return the samples of rows that are as many, and together, for each."""
        key = (-each, device)  # no id
        if key not in self.owners:
            samples = torch.arange(self.n_samples, device=device)
            self.owners[key] = samples.repeat_interleave(each)
        return self.owners[key]

    def _refusal(self, target: Target, shape: torch.Size) -> str:
        advice = "Leave this layer out of the watched modules."
        if len(shape) == 1:
            advice = (
                "Perhaps it gets some of the tokens only, as an expert does. Leave it out of the "
                "watched modules, or score one sample at a time (batch_samples: 1)."
            )
        if target.sequence_first:
            advice = (
                "It is inside a Transformer layer that was built with batch_first=False. Build "
                "that with batch_first=True, or leave this layer out of the watched modules."
            )
        return (
            f"{target.name}: cannot tell the samples apart: the layer sees rows of shape "
            f"{tuple(shape)}, and the batch has {self.n_samples} samples, which should be "
            f"the first axis. {advice}"
        )

    def _shared_inputs(
        self, target: Target, xs: Sequence[Tensor], ranges: Ranges, dtype: torch.dtype
    ) -> InputRows:
        key: tuple[Any, ...] = (target.kind, target.parameter, ranges, dtype)
        key += tuple((x.data_ptr(), x._version, x.shape, x.stride()) for x in xs)
        if target.kind == "conv2d":
            key += (id(target.module),)
        # a subclass that wraps other tensors has no memory of its own: all are at address 0
        known = all(x.data_ptr() for x in xs)
        if self.last is None or self.last.key != key or not known:
            x = _cat([_rows(target.inputs(x)) for x in xs])
            group = self.group_of.get(target.module)
            readers = 1 if group is None else self.group_sizes[group]
            self.last = _SharedInputs(key, InputRows(x.to(dtype), ranges, readers), xs)
        return self.last.inputs


@dataclass
class _Layout:
    """Which rows the last layer had: owners [R], those that are used [R], and their ranges."""

    owners: Tensor
    used: Tensor
    ranges: Ranges | None
    full: bool


@dataclass
class _SharedInputs:
    """The rows made last, and what they were made of.

    The source is held so that its address, which is in the key, is not another tensor's.
    """

    key: tuple[Any, ...]
    inputs: InputRows
    source: Sequence[Tensor]


def no_gradients(target: Target, n_samples: int) -> LayerGradients:
    """Return the gradients of samples that do not reach the target's layer: no rows."""
    weight = target.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    g, x = (weight.new_empty(0, width, dtype=dtype) for width in weight.shape)
    return LayerGradients(target.name, InputRows(x, ((0, 0),) * n_samples), g, weight)


def _ranges(owners: Tensor, kept: Tensor, n_samples: int) -> Ranges | None:
    """Return the range of rows of each sample that holds all it keeps; None if there is none.

    Args:
        owners: Sample of every row, -1 for none: [R].
        kept: Rows that must be in their sample's range, ascending.
        n_samples: N.
    """
    of_kept = owners[kept]
    if bool((of_kept.diff() < 0).any()):
        return None
    ends = torch.bincount(of_kept, minlength=n_samples).cumsum(0).tolist()
    rows = kept.tolist()
    ranges, start = [], 0
    for end in ends:
        ranges.append((rows[start], rows[end - 1] + 1) if end > start else (0, 0))
        start = end
    inside = torch.cat([owners[first:last] for first, last in ranges])
    expected = torch.arange(n_samples, device=owners.device).repeat_interleave(
        torch.tensor([last - first for first, last in ranges], device=owners.device)
    )
    return tuple(ranges) if torch.equal(inside, expected) else None


def _nonzero_rows(rows: Tensor, owned: Tensor) -> Tensor:
    """Return which of the owned rows of [R, D] have an entry other than 0: [R], bool.

    Padding, and in the last layers everything that is no label, has a gradient of exactly 0.
    On a CPU most other rows show it in their first entries, which spares reading them whole; other
    devices read faster than they say which rows are left.
    """
    if rows.device.type != "cpu":
        return (rows != 0).any(1) & owned
    found = (rows[:, :8] != 0).any(1) & owned
    rest = (owned & ~found).nonzero().squeeze(1)
    found[rest] = rows[rest].abs().amax(1) != 0
    return found


def _equal(owners: Tensor, others: Tensor) -> bool:
    if owners is others:  # to compare values would wait for the device
        return True
    return owners.device == others.device and torch.equal(owners, others)


def _axes(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])
