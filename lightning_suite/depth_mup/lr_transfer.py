"""Who trains a learning-rate transfer sweep, and what it gives of each run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lightning_suite.depth_mup.batched import (
    Run,
    runs_per_batch,
    train_batched,
)
from lightning_suite.depth_mup.models import (
    Activation,
    BranchInput,
    ReadoutInit,
    ResidualConvNet,
    ResidualMLP,
    ResidualNet,
)
from lightning_suite.depth_mup.param_groups import Factors, role_factors
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.depth_mup.rules import Rule
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings
from lightning_suite.depth_mup.sweep_grid import (
    Chunk,
    Grid,
    Point,
    RuleChoice,
    extension,
    parse_log2_lrs,
    plan,
    shard_of,
)
from lightning_suite.errors import SuiteError

__all__ = [
    "BatchedEngine",
    "Chunk",
    "Engine",
    "Grid",
    "NetSettings",
    "Point",
    "RuleChoice",
    "RunResult",
    "check_final_steps",
    "extension",
    "final_loss",
    "parse_log2_lrs",
    "plan",
    "shard_of",
]


@dataclass(frozen=True)
class NetSettings:
    """The residual net of a sweep: the arguments of the models that do not vary in it.

    Attributes:
        architecture: ``"mlp"`` or ``"conv"``.
        width: n, dimension (or channels) of the stream.
        block_depth: Matrices in a residual branch, 1 or 2.
        activation: Nonlinearity of the branches.
        branch_input: What a two-matrix branch applies to the stream first.
        bias: Whether the branches' matrices have biases.
        base_width: n0; None: the width plays no part.
        base_residual_multiplier: c0; None: 1/sqrt(L0).
        readout_init: ``"zero"`` or ``"normal"``.
        downsample: How often a conv net's stem halves the resolution.
    """

    architecture: Literal["mlp", "conv"] = "mlp"
    width: int = 64
    block_depth: int = 2
    activation: Activation = "tanh"
    branch_input: BranchInput = "identity"
    bias: bool = False
    base_width: int | None = None
    base_residual_multiplier: float | None = None
    readout_init: ReadoutInit = "zero"
    downsample: int = 0

    def build(
        self, inputs: Tensor, num_classes: int, rule: Rule, depth: int, base_depth: int, seed: int
    ) -> ResidualNet:
        """Return the net for images like ``inputs`` ``[N, C, H, W]``, initialised by ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        options = {
            "width": self.width,
            "depth": depth,
            "block_depth": self.block_depth,
            "activation": self.activation,
            "branch_input": self.branch_input,
            "bias": self.bias,
            "rule": rule,
            "base_depth": base_depth,
            "base_width": self.base_width,
            "base_residual_multiplier": self.base_residual_multiplier,
            "readout_init": self.readout_init,
            "generator": generator,
        }
        if self.architecture == "mlp":
            return ResidualMLP(inputs[0].numel(), num_classes, **options)  # type: ignore[arg-type]
        if self.architecture == "conv":
            options["downsample"] = self.downsample
            return ResidualConvNet(inputs.shape[1], num_classes, **options)  # type: ignore[arg-type]
        raise SuiteError(f"architecture={self.architecture!r}; choose 'mlp' or 'conv'.")


@dataclass(frozen=True)
class RunResult:
    """One row of the table of runs.

    Attributes:
        rule: Label of the rule.
        depth: L.
        log2_lr: Base-2 logarithm of the base learning rate.
        seed: Seed of weights and order.
        train_loss: See :func:`final_loss`.
        val_loss: Loss on the validation rows; ``inf`` for a diverged run.
        val_accuracy: Accuracy there.
        diverged_at: First step whose loss was not finite, or None.
    """

    rule: str
    depth: int
    log2_lr: float
    seed: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    diverged_at: int | None


def check_final_steps(final_steps: int, steps: int) -> None:
    """Raise a :class:`SuiteError` unless ``final_steps`` lies between 1 and ``steps``."""
    if not 1 <= final_steps <= steps:
        raise SuiteError(
            f"final_steps={final_steps} of steps={steps}; it must lie between 1 and {steps}."
        )


def final_loss(losses: Tensor, final_steps: int) -> Tensor:
    """Return the mean loss of the last steps, ``inf`` for runs that diverged.

    A run has also diverged if it ends above its first loss: at a rate beyond the stable ones a
    net need not overflow, and its huge but finite loss would bend the parabola at the optimum.

    Args:
        losses: Loss of every step ``[R, steps]``, ``inf`` from a divergence on.
        final_steps: How many steps to average.

    Returns:
        ``[R]``.
    """
    final = losses[:, -final_steps:].mean(dim=1)
    return final.masked_fill(~(final <= losses[:, 0]), math.inf)


class Engine(Protocol):
    """Who trains the chunks of a sweep."""

    def settings(self, grid: Grid) -> dict[str, Any]:
        """Return all that a run's result depends on besides its rule and depth, as plain JSON."""

    def runs_at_once(self, depth: int) -> int:
        """Return the largest number of runs in a chunk of this depth."""

    def __call__(self, chunk: Chunk, on_progress: Callable[[float], None]) -> list[RunResult]:
        """Train a chunk; ``on_progress`` hears the finished fraction."""


@dataclass(frozen=True)
class BatchedEngine:
    """Trains chunks of our residual nets with :func:`~.batched.train_batched`.

    Attributes:
        net: The architecture.
        optimizer: The optimizer.
        train: Training images ``[N, C, H, W]`` and labels ``[N]``.
        val: Validation images and labels.
        base_depth: L0.
        steps: Optimizer steps a run.
        batch_size: Rows a step.
        final_steps: The reported training loss is the mean over so many last steps.
        device: Where to train.
        dtype: Floating-point type.
    """

    net: NetSettings
    optimizer: OptimizerSettings
    train: tuple[Tensor, Tensor] = field(repr=False)
    val: tuple[Tensor, Tensor] = field(repr=False)
    base_depth: int
    steps: int = 300
    batch_size: int = 64
    final_steps: int = 50
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_final_steps(self.final_steps, self.steps)

    def settings(self, grid: Grid) -> dict[str, Any]:
        """Return all that a run's result depends on besides its rule and depth, as plain JSON."""
        return {
            "engine": "batched",
            "net": asdict(self.net),
            "optimizer": asdict(self.optimizer),
            "data": self._fingerprint(),
            "base_depth": self.base_depth,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "final_steps": self.final_steps,
            "device": torch.device(self.device).type,
            "dtype": str(self.dtype),
            "log2_lrs": grid.log2_lrs,
            "seeds": grid.seeds,
        }

    def _fingerprint(self) -> str:
        """Return a hash of the data, to recognise another data set under an old folder."""
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.val):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def make_net(self, rule: Rule, depth: int, seed: int) -> ResidualNet:
        """Return the net of one run, in float32 on the CPU."""
        classes = int(torch.cat([self.train[1], self.val[1]]).max()) + 1
        return self.net.build(self.train[0], classes, rule, depth, self.base_depth, seed)

    def runs_at_once(self, depth: int) -> int:
        """Return how many runs of this depth are best trained together."""
        return runs_per_batch(self.make_net("sp", depth, 0), self.device)

    def factors(self, rule: RuleChoice, depth: int) -> dict[str, Factors]:
        """Return what the rule multiplies each parameter's options with."""
        net, family = self.net, self.optimizer.family
        shapes = Parametrization(
            rule.rule, self.base_depth, depth, net.base_width, net.width, rule.p
        )
        roles = assign_roles(self.make_net(rule.rule, depth, 0)).roles
        by_role = role_factors(shapes, family, decoupled_decay=self.optimizer.name == "adamw")
        return {name: by_role[role] for name, role in roles.items()}

    def __call__(self, chunk: Chunk, on_progress: Callable[[float], None]) -> list[RunResult]:
        """Train a chunk; ``on_progress`` hears the finished fraction."""
        result = train_batched(
            lambda seed: self.make_net(chunk.rule.rule, chunk.depth, seed),
            [Run(point.seed, 2.0**point.log2_lr) for point in chunk.points],
            self.optimizer,
            self.train,
            steps=self.steps,
            batch_size=self.batch_size,
            factors=self.factors(chunk.rule, chunk.depth),
            val=self.val,
            device=self.device,
            dtype=self.dtype,
            on_step=lambda step: on_progress(step / self.steps),
        )
        assert result.val_loss is not None
        assert result.val_accuracy is not None
        final = final_loss(result.losses, self.final_steps)
        return [
            RunResult(
                chunk.rule.label,
                chunk.depth,
                point.log2_lr,
                point.seed,
                float(final[i]),
                float(result.val_loss[i]),
                float(result.val_accuracy[i]),
                result.diverged_at[i],
            )
            for i, point in enumerate(chunk.points)
        ]
