"""SGD, Adam and AdamW on one parameter of many runs, each step inside the backward pass.

A parameter is updated as soon as its gradient is complete, so that weight, gradient and optimizer
state are still in the cache, and no gradient outlives its own layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_suite.depth_mup.param_groups import Factors
from lightning_suite.depth_mup.rules import OptimizerFamily
from lightning_suite.errors import SuiteError, did_you_mean

OptimizerName = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer without its learning rate, in the words of :mod:`torch.optim`.

    Attributes:
        name: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        momentum: SGD's momentum.
        nesterov: Whether SGD's momentum is Nesterov's.
        weight_decay: Decoupled for ``adamw``, an L2 penalty's gradient for the others.
        betas: Adam's two decay rates.
        eps: Adam's epsilon.

    Raises:
        SuiteError: A value is outside its range.
    """

    name: OptimizerName = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        names = ("sgd", "adam", "adamw")
        if self.name not in names:
            raise SuiteError(
                f"optimizer {self.name!r} is not known to the batched engine."
                f"{did_you_mean(self.name, names)} Choose one of: {', '.join(names)}."
            )
        if not 0 <= self.momentum < 1:
            raise SuiteError(f"momentum={self.momentum}, and it must lie in [0, 1).")
        if self.nesterov and not self.momentum:
            raise SuiteError("nesterov=True needs a momentum above 0.")
        if self.weight_decay < 0:
            raise SuiteError(f"weight_decay={self.weight_decay}, and it must not be negative.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SuiteError(f"betas={self.betas}, and both must lie in [0, 1).")

    @property
    def family(self) -> OptimizerFamily:
        """The learning-rate law that the optimizer follows."""
        return "sgd" if self.name == "sgd" else "adam"


@dataclass
class StackedParameter:
    """One parameter of all runs, with its optimizer state, updated during the backward pass.

    Attributes:
        value: ``[R, ...]``; the optimizer's step changes it in place.
        factors: By what the options are multiplied.
        settings: The optimizer.
        lr: Learning rate of each run, the factor multiplied in: ``[R, 1, ...]``.
        state: Momentum, or Adam's two moments, ``[R, ...]`` each.
        steps_done: Number of steps so far.
    """

    value: Tensor
    factors: Factors
    settings: OptimizerSettings
    lr: Tensor
    state: list[Tensor] = field(init=False)
    steps_done: int = 0

    def __post_init__(self) -> None:
        needed = 2 if self.settings.family == "adam" else int(self.settings.momentum > 0)
        self.state = [torch.zeros_like(self.value) for _ in range(needed)]
        self._attach()

    def _attach(self) -> None:
        self.value.requires_grad_()
        self.value.register_post_accumulate_grad_hook(self._update)

    def keep(self, rows: Tensor) -> None:
        """Keep only the runs ``rows``."""
        self.value = self.value.detach()[rows]
        self.lr = self.lr[rows]
        self.state = [tensor[rows] for tensor in self.state]
        self._attach()

    @torch.no_grad()
    def _update(self, value: Tensor) -> None:
        grad = value.grad
        assert grad is not None
        value.grad = None
        self.steps_done += 1
        if self.settings.family == "adam":
            self._adam(value, grad)
        else:
            self._sgd(value, grad)

    def _sgd(self, value: Tensor, grad: Tensor) -> None:
        options = self.settings
        decay = options.weight_decay * self.factors.weight_decay
        if decay:
            grad = grad.add(value, alpha=decay)
        if options.momentum:
            (velocity,) = self.state
            velocity.mul_(options.momentum).add_(grad)
            grad = grad.add(velocity, alpha=options.momentum) if options.nesterov else velocity
        value.addcmul_(grad, self.lr, value=-1)

    def _adam(self, value: Tensor, grad: Tensor) -> None:
        options = self.settings
        beta1, beta2 = options.betas
        decay = options.weight_decay * self.factors.weight_decay
        if decay and options.name == "adamw":
            value.mul_(1 - self.lr * decay)
        elif decay:
            grad = grad.add(value, alpha=decay)
        mean, square = self.state
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction1 = 1 - beta1**self.steps_done
        correction2 = 1 - beta2**self.steps_done
        denominator = square.sqrt().div_(math.sqrt(correction2))
        denominator.add_(options.eps * self.factors.eps)
        value.addcmul_(mean / denominator, self.lr, value=-1 / correction1)
