"""Experts: what one edit changes of one linear map, for many edits side by side.

An expert is either a low-rank change, y = Wx + B_i A_i x (the default: r (d_in + d_out) numbers an
edit), or a full copy of the matrix that replaces it (arXiv 2404.02699, Sec. 3.2).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.scen.answer_states import Positions

_LOW_RANK_LR, _FULL_LR = 0.15, 3e-3


@dataclass(frozen=True)
class ExpertSettings:
    """How experts are trained.

    Attributes:
        kind: ``"low_rank"`` or ``"full"``.
        rank: Of a low-rank expert.
        lr: Learning rate of Adam at the first step; None: 0.15 for low rank, where A x has unit
            size, and 3e-3 for full copies.
        lr_a: That of A in a low-rank expert; None: ``lr``.
        decay: Whether learning rates fall linearly, to 0 after the last step.
        initial: Of A: ``"data"``: the principal directions of what the map reads in the edit's
            examples, so that A x has unit size from the first step on; ``"random"``: as LoRA's.
        steps: Most optimizer steps.
        stop_loss: An edit whose loss on a step's examples is below this stops: its expert stays
            as it is. None: never.
        positions: ``"last"``: the expert acts from the last prompt token on; ``"all"``: on every
            token, as published.
        weight_decay: Share of the expert, times ``lr``, that every step takes away (decoupled);
            of a full copy: of its difference to the base.
        examples_per_step: Of an edit's examples, how many a step uses: the first one always, the
            others in turn, in an order drawn per edit. None: all.
        seed: Of the initial values and of that order.
    """

    kind: Literal["low_rank", "full"] = "low_rank"
    rank: int = 4
    lr: float | None = None
    lr_a: float | None = 2e-3
    decay: bool = True
    initial: Literal["data", "random"] = "data"
    steps: int = 20
    stop_loss: float | None = None
    positions: Positions = "last"
    weight_decay: float = 0.0
    examples_per_step: int | None = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            SuiteError: One of them.
        """
        for key, least in (("rank", 1), ("steps", 1), ("examples_per_step", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise SuiteError(f"{key} {value}: must be {least} or more.")
        for key, rate in (("lr", self.lr), ("lr_a", self.lr_a)):
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise SuiteError(f"{key} {rate}: must be a positive number.")
        for key, value, known in (
            ("kind", self.kind, ("low_rank", "full")),
            ("positions", self.positions, ("last", "all")),
            ("initial", self.initial, ("data", "random")),
        ):
            if value not in known:
                raise SuiteError(f"{key} {value!r} is unknown; use {' or '.join(known)}.")

    @property
    def rates(self) -> dict[str, float]:
        """Return the learning rate of each trained tensor, by name."""
        if self.kind == "full":
            return {"change": self.lr or _FULL_LR}
        lr = self.lr or _LOW_RANK_LR
        return {"a": self.lr_a or lr, "b": lr}


@dataclass(frozen=True)
class LowRankExperts:
    """E low-rank changes.

    Attributes:
        a: [E, r, d_in].
        b: [E, d_out, r].
    """

    a: Tensor
    b: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return what is trained and saved, by name; the first dimension is the edit."""
        return {"a": self.a, "b": self.b}

    def change(self, x: Tensor) -> Tensor:
        """Return what each expert adds to W x: [E, M, d_in] -> [E, M, d_out]."""
        return x @ self.a.mT @ self.b.mT


@dataclass(frozen=True)
class FullExperts:
    """E full copies of the matrix.

    Attributes:
        weight: What replaces W, [E, d_out, d_in]. The base's bias, if any, stays.
    """

    weight: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved, by name; the first dimension is the edit."""
        return {"weight": self.weight}


@dataclass(frozen=True)
class TrainedExperts:
    """Experts and how their training went; E edits.

    Attributes:
        ids: Of the edits, in the order given.
        experts: Low-rank or full.
        losses: Loss before each step; nan after an edit has stopped. [E, steps].
        steps: Updates that each edit took, [E].
        final_loss: Cross-entropy of the first example with the trained expert, [E].
        learned: Whether every token of that example's answer is the most likely one (forced
            decoding), bool [E].
    """

    ids: tuple[str, ...]
    experts: LowRankExperts | FullExperts
    losses: Tensor
    steps: Tensor
    final_loss: Tensor
    learned: Tensor


def initial_low_rank(
    ids: Sequence[str], rank: int, d_in: int, d_out: int, *, seed: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return untrained low-rank experts: A uniform in ±1/√d_in as LoRA's, B zero.

    A is drawn from the seed and the edit's id alone, in float32: the other edits of a run, their
    order and its precision make no difference.
    """
    bound = 1 / math.sqrt(d_in)
    a = torch.stack(
        [
            torch.rand(rank, d_in, generator=generator_of(name, seed), dtype=torch.float32) * 2 - 1
            for name in ids
        ]
    )
    return {"a": (a * bound).to(dtype), "b": torch.zeros(len(ids), d_out, rank, dtype=dtype)}


def principal_directions(x: Tensor, start: Tensor) -> Tensor:
    """Return the initial A of one expert from what the map reads in its examples.

    Row k is the k-th principal direction of ``x`` (not centred: the mean counts most), scaled so
    that its products with the rows of ``x`` have root mean square 1.

    Args:
        x: Inputs of the map where the expert acts, [n, d_in].
        start: A random A [r, d_in], whose rows stay where ``x`` has fewer directions than r.
    """
    values, left = torch.linalg.eigh(x.double() @ x.double().T)
    values, left = values.flip(0)[: len(start)], left.flip(1)[:, : len(start)]
    found = values > 1e-9 * values[0]
    directions = (x.double().T @ left[:, found] / values[found]).T * math.sqrt(len(x))
    return torch.cat([directions.to(start), start[len(directions) :]])


def generator_of(name: str, seed: int) -> torch.Generator:
    """Return a generator that belongs to one edit."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class StackedAdam:
    """Adam for E independent problems in stacked tensors [E, …] (PyTorch's formula and defaults).

    The moments of one problem never meet another's, so each is updated as if it were alone.

    Args:
        parameters: name -> [E, …], updated in place.
        lr: Learning rate, of all or by name.
        weight_decay: Decoupled, as in AdamW.
    """

    BETAS = (0.9, 0.999)
    EPS = 1e-8

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: float | Mapping[str, float],
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters = dict(parameters)
        self._lr = lr if isinstance(lr, Mapping) else dict.fromkeys(parameters, lr)
        self._decay = weight_decay
        self._first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._step = 0

    def keep(self, which: Tensor) -> None:
        """Go on with the problems ``which`` (indices) only."""
        for store in (self.parameters, self._first, self._second):
            for name, value in store.items():
                store[name] = value[which]

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], rate: float = 1.0) -> None:
        """Update every problem with its gradient, at ``rate`` times the learning rate."""
        self._step += 1
        beta1, beta2 = self.BETAS
        correction1, correction2 = 1 - beta1**self._step, 1 - beta2**self._step
        for name, parameter in self.parameters.items():
            gradient, first, second = gradients[name], self._first[name], self._second[name]
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            lr = rate * self._lr[name]
            if self._decay:
                parameter.mul_(1 - lr * self._decay)
            scale = second.sqrt().div_(math.sqrt(correction2)).add_(self.EPS)
            parameter.addcdiv_(first, scale, value=-lr / correction1)
