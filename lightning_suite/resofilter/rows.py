"""The gradients of one layer for each sample of a batch, kept as the rows that make them.

``G_n = Σ_t g_t x_tᵀ`` over the rows ``t`` of sample ``n``. Norms, inner products and singular
values follow from ``x`` and ``g`` alone. What looks at single entries of ``G`` gets it in blocks
of output rows, so that no more than ``samples · block · I`` numbers exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

# A block of G, and what is computed from it, should stay in a core's L2 cache (1-2 MiB); on an
# accelerator it should be large enough to fill the device. In entries.
_CPU_BLOCK = 128 * 1024
_DEVICE_BLOCK = 32 * 1024 * 1024
# Cost of reading one entry of a materialised G, in multiply-adds of a matrix product.
_READ_COST = 24


class InputRows:
    """Rows of a layer's input, sorted by sample; layers with the same input share one object.

    Args:
        x: [R, I], float32 or float64.
        offsets: [N + 1]: the rows of sample n are ``offsets[n]:offsets[n + 1]``.
    """

    def __init__(self, x: Tensor, offsets: Sequence[int]) -> None:
        self.x, self.offsets = x, tuple(offsets)

    @cached_property
    def grams(self) -> list[Tensor]:
        """Inner products of each sample's rows with each other: [T_n, T_n] each."""
        return [rows @ rows.mT for rows in self.samples(self.x)]

    def samples(self, rows: Tensor) -> list[Tensor]:
        """Split [R, …] into each sample's own rows."""
        return [rows[start:end] for start, end in pairwise(self.offsets)]


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

    def inverse(self, eps: float) -> Tensor:
        """Return 1 / (|G| + eps): [n, b, I]; kept, as several features read it."""
        if self._inverse is None or self._inverse[0] != eps:
            self._inverse = (eps, (self.magnitude + eps).reciprocal_())
        return self._inverse[1]

    _inverse: tuple[float, Tensor] | None = None


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
        return len(self.inputs.offsets) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        return self.g.shape[1], self.x.shape[1]

    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """Return ``(x [T, I], g [T, O])`` of each sample."""
        return list(zip(self.inputs.samples(self.x), self.inputs.samples(self.g), strict=True))

    def per_sample_sum(self, values: Tensor) -> Tensor:
        """Sum [R, …] over each sample's rows: [N, …]."""
        return torch.stack([rows.sum(0) for rows in self.inputs.samples(values)])

    @cached_property
    def squared_norm(self) -> Tensor:
        """‖G‖² by the Gram matrices of the rows, without G: [N]."""
        values = [
            (gram * (g @ g.mT)).sum()
            for gram, g in zip(self.inputs.grams, self.inputs.samples(self.g), strict=True)
        ]
        return torch.stack(values).clamp_min(0)

    @cached_property
    def weight_inner_product(self) -> Tensor:
        """⟨W, G⟩ = Σ_t g_t · W x_t, without G: [N]."""
        products = self.x @ self.weight.to(self.x.dtype).mT
        return self.per_sample_sum((products * self.g).sum(1))

    @property
    def gram_is_cheaper(self) -> bool:
        """Whether norms cost less by the rows' inner products than by making G.

        Decided by shapes alone and not by a clock: scoring again must give the same bits.
        """
        n_out, n_in = self.shape
        lengths = [end - start for start, end in pairwise(self.inputs.offsets)]
        new = n_out if "grams" in vars(self.inputs) else n_out + n_in
        by_rows = sum(length**2 for length in lengths) * new
        whole = sum((length + _READ_COST) for length in lengths) * n_out * n_in
        return by_rows < whole

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield G block by block: which samples, and their block."""
        n_out, n_in = self.shape
        for samples, x, g in self._groups():
            limit = _CPU_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK
            step = max(1, limit // (n_in * x.shape[0]))
            for start in range(0, n_out, step):
                rows = slice(start, min(start + step, n_out))
                weight = self.weight[rows].to(x.dtype)
                yield samples, Block(torch.matmul(g[:, :, rows].mT, x), weight, rows)

    def _groups(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield samples to be multiplied together: ``(which, x [n, T, I], g [n, T, O])``.

        On a CPU one by one, without padding; elsewhere padded to the longest.
        """
        offsets = self.inputs.offsets
        if self.x.device.type == "cpu":
            for n, (start, end) in enumerate(pairwise(offsets)):
                yield slice(n, n + 1), self.x[None, start:end], self.g[None, start:end]
        else:
            lengths = torch.tensor(offsets, device=self.x.device).diff()
            longest = max(end - start for start, end in pairwise(offsets))
            mask = torch.arange(longest, device=self.x.device) < lengths[:, None]
            yield slice(0, self.n_samples), _padded(self.x, mask), _padded(self.g, mask)


def _padded(rows: Tensor, mask: Tensor) -> Tensor:
    if mask.numel() == rows.shape[0]:
        return rows.view(*mask.shape, -1)
    padded = rows.new_zeros(*mask.shape, rows.shape[1])
    padded[mask] = rows
    return padded
