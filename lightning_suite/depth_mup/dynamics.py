r"""How much each residual block learns: updates, stream contributions, forward-backward coupling.

All quantities compare the weights now, :math:`W = W_0 + \Delta W`, with a reference :math:`W_0`
(usually the initial weights), on rows of one training batch. In a block
:math:`h_l = h_{l-1} + c\,W_2\,\varphi(W_1\,a(h_{l-1}))`, with RMS over all entries:

=================== ==============================================================================
``first_update``    :math:`\mathrm{RMS}(\Delta W_1\,a)`: what learning does inside the branch.
                    *Not* the change of the pre-activation: that contains :math:`W_1\,\Delta a`
                    and is O(1) under every rule.
``last_update``     :math:`\mathrm{RMS}(\Delta W_2\,\varphi)`
``product``         :math:`\mathrm{RMS}(\Delta W_2\,\Delta\varphi)`, where :math:`\Delta\varphi` is
                    the change of W2's input that this block's own :math:`\Delta W` causes
``first_stream``    what :math:`\Delta W_1` adds to the stream:
                    :math:`c\,W_{2,0}\,[\varphi(W_1 a) - \varphi(W_{1,0}\,a)]`
``last_stream``     what :math:`\Delta W_2` adds to the stream: :math:`c\,\Delta W_2\,\varphi(W_1
                    a)`
``relative_change`` :math:`\lVert\Delta W\rVert / \lVert W_0\rVert` over the block's matrices
``coupling``        :math:`\cos(h_l, g_l)`, g the loss's gradient in the stream; mean over rows
``min_eigenvalue``  smallest eigenvalue of :math:`H_l H_l^\top / d` ``[rows, rows]``; a row of H is
                    one sample's whole stream state (all its positions), d its length
=================== ==============================================================================

In an arbitrary block (attention, gated MLP, several branches) W1 is every ``hidden_first`` matrix
and W2 every ``hidden_last`` one, and the stream contributions are differences of the block's own
output on the *same* input, so that they need no formula for the block:

* ``first_stream`` = block(h; W1, W2_0) - block(h; W1_0, W2_0)
* ``last_stream`` = block(h; W1, W2) - block(h; W1, W2_0)

which are the two formulas of the table for the residual nets, and whose sum is exactly what
learning in this block's matrices adds to the stream. Biases and gains stay as they are now.

Source: arXiv 2512.21075 (coupling, collapse of the first internal layer's learning) and the
coordinate checks of arXiv 2310.02244; the decomposition for general blocks is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Quantity = Literal[
    "first_update",
    "last_update",
    "product",
    "first_stream",
    "last_stream",
    "relative_change",
    "coupling",
    "min_eigenvalue",
]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

# Root mean squares: their squares, not they themselves, are averaged over blocks and ranks.
_ROOT_MEAN_SQUARES = ("first_update", "last_update", "product", "first_stream", "last_stream")


def mean_square(tensors: Iterable[Tensor]) -> Tensor:
    """Return the mean of the squares of all entries of all ``tensors``; NaN if there are none."""
    tensors = list(tensors)
    count = sum(t.numel() for t in tensors)
    if not count:
        return torch.tensor(math.nan)
    return torch.stack([t.square().sum() for t in tensors]).sum() / count


def is_linear_map(module: nn.Module) -> bool:
    """Whether :func:`apply_weight` knows what ``module`` does with its weight."""
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or _is_hf_conv1d(module)


def _is_hf_conv1d(module: nn.Module) -> bool:
    # transformers' Conv1D is a linear layer with a transposed weight; the package is optional
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def apply_weight(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Apply ``module`` to ``x`` with ``weight`` in place of its own and without its bias.

    Args:
        module: ``nn.Linear`` (LoRA's too), ``nn.Conv1d/2d/3d``, or transformers' ``Conv1D``.
        weight: Of the module's weight's shape.
        x: An input of the module.
    """
    if isinstance(module, nn.Linear):
        return F.linear(x, weight)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        convolved: Tensor = module._conv_forward(x, weight, None)
        return convolved
    if _is_hf_conv1d(module):
        return x @ weight
    raise TypeError(f"{type(module).__name__} is no linear map that is known here")


def row_cosines(h: Tensor, g: Tensor) -> Tensor:
    """Return the mean over rows of cos(h_i, g_i); rows without gradient do not count.

    Args:
        h: Stream states ``[R, ...]``.
        g: Their gradients, same shape; any positive multiple gives the same result.
    """
    h, g = h.flatten(1), g.to(h.dtype).flatten(1)
    cosines: Tensor = (h * g).sum(1) / (h.norm(dim=1) * g.norm(dim=1))
    return cosines.nanmean()


def gram(h: Tensor) -> Tensor:
    """Return H Hᵀ / d of the stream states ``h`` ``[R, ...]``: ``[R, R]``, float64, on the CPU."""
    rows = h.flatten(1)
    return (rows @ rows.T / rows.shape[1]).cpu().double()


@dataclass(frozen=True)
class BlockMeasurement:
    """What one block contributes to a :class:`Dynamics`; all tensors are detached.

    Attributes:
        scalars: Quantity to 0-d tensor, squared where the quantity is a root mean square.
        gram: :func:`gram` of the block's output, ``[R, R]``.
        first_stream: Stream contribution of the first matrices; None where there are none.
        last_stream: Stream contribution of the last matrices.
    """

    scalars: dict[str, Tensor]
    gram: Tensor
    first_stream: Tensor | None
    last_stream: Tensor


@dataclass(frozen=True)
class Dynamics:
    """All quantities of this module's table, for every block and for the whole stream.

    Attributes:
        blocks: Quantity to its values at the blocks 1 … L, NaN where a block has none.
        first_stream: RMS of the *sum* over blocks of what the first matrices add to the stream;
            NaN where the stream's shape changes between blocks.
        last_stream: The same for the last matrices.
    """

    blocks: dict[Quantity, list[float]]
    first_stream: float
    last_stream: float

    @property
    def depth(self) -> int:
        """L."""
        return len(self.blocks["last_update"])

    def summary(self) -> dict[str, float]:
        """Return one number a quantity: what a training curve shows.

        Updates are root mean squares over the blocks; the stream contributions are those of the
        sum over blocks; ``min_eigenvalue`` is the smallest of all blocks; the rest are means.
        Quantities that no block has are left out.
        """
        out: dict[str, float] = {}
        for name in QUANTITIES:
            values = [v for v in self.blocks[name] if math.isfinite(v)]
            if name in ("first_stream", "last_stream"):
                out[name] = getattr(self, name)
            elif not values:
                continue
            elif name in _ROOT_MEAN_SQUARES:
                out[name] = math.sqrt(math.fsum(v * v for v in values) / len(values))
            elif name == "min_eigenvalue":
                out[name] = min(values)
            else:
                out[name] = math.fsum(values) / len(values)
        return {name: value for name, value in out.items() if math.isfinite(value)}

    def curves(self) -> list[dict[str, float]]:
        """Return one row a block: its number, t = l/L, and all quantities."""
        return [
            {
                "block": index + 1,
                "t": (index + 1) / self.depth,
                **{name: self.blocks[name][index] for name in QUANTITIES},
            }
            for index in range(self.depth)
        ]


def pack(blocks: list[BlockMeasurement | None]) -> Tensor:
    """Lay out measurements as one float64 tensor that may be *summed* over ranks.

    Args:
        blocks: One measurement a block; None for a block that did not run (stochastic depth).

    Returns:
        ``[2, L * 8 + 2]`` on the CPU: values (squared where they are root mean squares), and how
        many ranks have them.
    """
    rows = []
    for block in blocks:
        scalars = {} if block is None else dict(block.scalars)
        if block is not None:
            if block.gram.isfinite().all():  # the training may have diverged
                scalars["min_eigenvalue"] = torch.linalg.eigvalsh(block.gram)[0]
            if block.first_stream is not None:
                scalars["first_stream"] = mean_square([block.first_stream])
            scalars["last_stream"] = mean_square([block.last_stream])
        rows += [scalars.get(name, torch.tensor(math.nan)).cpu().double() for name in QUANTITIES]
    done = [block for block in blocks if block is not None]
    rows.append(_mean_square_of_sum([b.first_stream for b in done if b.first_stream is not None]))
    rows.append(_mean_square_of_sum([b.last_stream for b in done]))
    values = torch.stack(rows)
    return torch.stack([values.nan_to_num(0.0, 0.0, 0.0), values.isfinite().double()])


def _mean_square_of_sum(contributions: list[Tensor]) -> Tensor:
    if not contributions or len({c.shape for c in contributions}) > 1:
        return torch.tensor(math.nan, dtype=torch.float64)
    return mean_square([torch.stack(contributions).sum(0)]).cpu().double()


def unpack(summed: Tensor) -> Dynamics:
    """Make the :class:`Dynamics` out of :func:`pack`'s tensor, after a sum over ranks or without.

    Args:
        summed: ``[2, L * 8 + 2]``.
    """
    values, counts = summed.cpu()
    values = values / counts  # NaN where nobody has a value
    table = values[:-2].view(-1, len(QUANTITIES))
    blocks: dict[Quantity, list[float]] = {}
    for index, name in enumerate(QUANTITIES):
        column = table[:, index]
        blocks[name] = (column.sqrt() if name in _ROOT_MEAN_SQUARES else column).tolist()
    first, last = values[-2:].sqrt().tolist()
    return Dynamics(blocks, first, last)
