"""The gradients of one layer for each sample of a batch, kept as the rows that make them.

``G_n = Σ_t g_t x_tᵀ`` over the rows ``t`` of sample ``n``. Norms, inner products and singular
values follow from ``x`` and ``g`` alone. What looks at single entries of ``G`` gets it in blocks
of output rows, so that no more than ``samples · block · I`` numbers exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# A block of G, and what is computed from it, should stay in a core's L2 cache (1-2 MiB); on an
# accelerator it should be large enough to fill the device. In entries.
_CPU_BLOCK = 128 * 1024
_DEVICE_BLOCK = 32 * 1024 * 1024
# Of a weight that is read in another dtype: one copy of it all would be 2 GB in a model of 70 B.
_WEIGHT_BLOCK = 4 * 1024 * 1024
# Rows of a symmetric T x T matrix that are made at a time, from the diagonal on.
_STRIP = 64
# Cost of one multiply-add in a T x T product, and of reading one entry of a materialised G, in
# multiply-adds of G's own product; measured on a CPU for layers of 192-1536 and T of 50-800.
_GRAM_COST, _READ_COST = 1.2, 8
# By inner products a squared norm is off by about eps · Σ_t ‖x_t‖²‖g_t‖². Where no more than this
# share of that sum is left of it, it is computed again in float64: float32 keeps six digits.
_CANCELLED = 1 / 32

Ranges = tuple[tuple[int, int], ...]


class InputRows:
    """A layer's input as rows, and where each sample's are; layers with one input share it.

    Args:
        x: [R, I], float32 or float64.
        ranges: First row of each sample and the one after its last: N pairs. Rows in no range
            are padding.
        readers: How many targets read this input.
    """

    def __init__(self, x: Tensor, ranges: Ranges, readers: int = 1) -> None:
        self.x, self.ranges, self.readers = x, ranges, readers

    def samples(self, rows: Tensor) -> list[Tensor]:
        """Return each sample's own part of [R, …], as views."""
        return [rows[start:end] for start, end in self.ranges]

    def padded(self, rows: Tensor) -> Tensor:
        """Return [R, D] as [N, longest, D], zeros at the end."""
        return pad_sequence(self.samples(rows), batch_first=True)

    @cached_property
    def gram_strips(self) -> list[list[Tensor]]:
        """Inner products of each sample's rows, see :func:`_gram_strips`.

        Those beyond the diagonal blocks are doubled: they stand for their mirror images, too.
        """
        grams = [_gram_strips(rows) for rows in self.samples(self.x)]
        for strips in grams:
            for strip in strips:
                strip[:, _STRIP:] *= 2
        return grams

    @cached_property
    def padded_gram(self) -> Tensor:
        """Inner products of each sample's rows: [N, longest, longest]."""
        rows = self.padded(self.x)
        return rows @ rows.mT


@dataclass
class Block:
    """Some rows of G, for some samples.

    Attributes:
        gradient: [n, b, I].
        weight: The same rows of the weight, in the gradient's dtype: [b, I].
        rows: Which of the O rows these are.
    """

    gradient: Tensor
    weight: Tensor
    rows: slice

    @cached_property
    def magnitude(self) -> Tensor:
        """Absolute values of the gradient: [n, b, I]."""
        return self.gradient.abs()

    def denominator(self, eps: float) -> Tensor:
        """Return |G| + eps: [n, b, I]; kept, as several features read it."""
        if self._denominator is None or self._denominator[0] != eps:
            self._denominator = (eps, self.magnitude + eps)
        return self._denominator[1]

    _denominator: tuple[float, Tensor] | None = None


class LayerGradients:
    """Per-sample gradients of one target for one batch.

    Args:
        name: Of the target.
        inputs: Rows of the layer's input.
        g: Gradients of the layer's output for the same rows: [R, O], the dtype of the inputs.
        weight: [O, I], any floating dtype.
    """

    def __init__(self, name: str, inputs: InputRows, g: Tensor, weight: Tensor) -> None:
        self.name, self.inputs, self.g, self.weight = name, inputs, g, weight

    @property
    def x(self) -> Tensor:
        """Rows of the input: [R, I]."""
        return self.inputs.x

    @property
    def n_samples(self) -> int:
        """Number of samples, those without rows included."""
        return len(self.inputs.ranges)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        return self.g.shape[1], self.x.shape[1]

    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """Return ``(x [T, I], g [T, O])`` of each sample."""
        return list(zip(self.inputs.samples(self.x), self.inputs.samples(self.g), strict=True))

    @cached_property
    def squared_norm(self) -> Tensor:
        """‖G‖² = Σ_{t,t'} (x_t·x_t')(g_t·g_t'), without G: [N].

        In float64 for samples whose terms cancel: layer inputs that are nearly parallel, and
        output gradients that nearly sum to 0.
        """
        if _sample_by_sample(self.x):
            grams = zip(self.inputs.gram_strips, self.inputs.samples(self.g), strict=True)
            sums = torch.stack([_product_of_grams(strips, g) for strips, g in grams])
            found, own = sums.unbind(1)
        else:
            g = self.inputs.padded(self.g)
            products = self.inputs.padded_gram * (g @ g.mT)
            found = products.sum((1, 2))
            own = products.diagonal(dim1=1, dim2=2).sum(1)
        if found.dtype != torch.float64:
            samples = self.samples()
            for n, cancelled in enumerate((found < _CANCELLED * own).tolist()):
                if cancelled:
                    x, g = (rows.double() for rows in samples[n])
                    found[n] = ((x @ x.mT) * (g @ g.mT)).sum()
        return found.clamp_min(0)

    @cached_property
    def weight_inner_product(self) -> Tensor:
        """⟨W, G⟩ = Σ_t g_t · W x_t, without G: [N]."""
        x, g, parts = self.x, self.g, []
        for rows, weight in self._weight_rows(x.dtype):
            products = (x @ weight.mT).mul_(g[:, rows])
            parts.append(torch.stack([part.sum() for part in self.inputs.samples(products)]))
        return torch.stack(parts).sum(0)

    @cached_property
    def weight_squared_norm(self) -> Tensor:
        """‖W‖² in float64: []."""
        blocks = self._weight_rows(torch.float64)
        return torch.stack([weight.square().sum() for _, weight in blocks]).sum()

    def _weight_rows(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield W in a dtype: all of it, or rows of it where that is a copy."""
        n_out, n_in = self.shape
        step = n_out if self.weight.dtype == dtype else max(1, _WEIGHT_BLOCK // n_in)
        for start in range(0, n_out, step):
            rows = slice(start, min(start + step, n_out))
            yield rows, self.weight[rows].to(dtype)

    @property
    def gram_is_cheaper(self) -> bool:
        """Whether norms cost less by the rows' inner products than by making G.

        Decided by shapes alone and not by a clock: scoring again must give the same bits.
        """
        n_out, n_in = self.shape
        lengths = [end - start for start, end in self.inputs.ranges]
        width: float = n_out
        if "gram_strips" not in vars(self.inputs):
            width += n_in / self.inputs.readers
        by_rows = _GRAM_COST * width * sum(t * (t + _STRIP) / 2 for t in lengths)
        return by_rows < n_out * n_in * sum(t + _READ_COST for t in lengths)

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield G block by block: which samples, and their block."""
        n_out, n_in = self.shape
        for samples, x, g in self._groups():
            limit = _CPU_BLOCK if _sample_by_sample(x) else _DEVICE_BLOCK
            step = max(1, limit // (n_in * x.shape[0]))
            for start in range(0, n_out, step):
                rows = slice(start, min(start + step, n_out))
                weight = self.weight[rows].to(x.dtype)
                yield samples, Block(torch.matmul(g[:, :, rows].mT, x), weight, rows)

    def _groups(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield samples to be multiplied together: ``(which, x [n, T, I], g [n, T, O])``.

        On a CPU one by one, without padding; elsewhere padded to the longest.
        """
        if _sample_by_sample(self.x):
            for n, (start, end) in enumerate(self.inputs.ranges):
                yield slice(n, n + 1), self.x[None, start:end], self.g[None, start:end]
        else:
            padded = self.inputs.padded
            yield slice(0, self.n_samples), padded(self.x), padded(self.g)


def _sample_by_sample(rows: Tensor) -> bool:
    """Return whether samples are multiplied one by one; elsewhere they are padded."""
    return rows.device.type == "cpu"


def _gram_strips(rows: Tensor) -> list[Tensor]:
    """Return the upper half of ``rows @ rows.T`` [T, T] in strips that begin at the diagonal."""
    return [rows[i : i + _STRIP] @ rows[i:].mT for i in range(0, len(rows), _STRIP)]


def _product_of_grams(doubled_strips: Sequence[Tensor], g: Tensor) -> Tensor:
    """Return Σ_{t,t'} K_tt' (g_t·g_t') and its part with t = t', given doubled strips of K: [2]."""
    pairs = zip(doubled_strips, _gram_strips(g), strict=True)
    products = [of_g.mul_(strip) for strip, of_g in pairs]
    parts = [torch.stack([p.sum(), p.diagonal().sum()]) for p in products]
    return torch.stack(parts).sum(0) if parts else g.new_zeros(2)
