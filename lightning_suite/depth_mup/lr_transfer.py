"""The learning-rate transfer sweep: a grid of rules, depths, rates and seeds, and who trains it.

Runs of one rule and depth form chunks; a chunk trains together and is written as one file, so a
sweep that was killed continues with the chunks that are missing. What a chunk consists of depends
on the settings alone: not on the machine, nor on what was finished before.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lightning_suite.depth_mup.batched import (
    OptimizerSettings,
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
from lightning_suite.depth_mup.rules import Rule, check_rule, correction_exponent
from lightning_suite.errors import SuiteError


@dataclass(frozen=True)
class RuleChoice:
    """A rule and, for ``nfd``, its correction exponent.

    Attributes:
        rule: One of :data:`~lightning_suite.depth_mup.rules.RULES`.
        p: Correction exponent of ``nfd``; None for the rule's own.

    Example:
        >>> RuleChoice.parse("nfd:0.25")
        RuleChoice(rule='nfd', p=0.25)
        >>> RuleChoice.parse("nfd:0.25").label
        'nfd:0.25'
    """

    rule: Rule
    p: float | None = None

    @classmethod
    def parse(cls, text: str) -> RuleChoice:
        """Read ``"sp"``, ``"nfd"`` or ``"nfd:0.25"``.

        Raises:
            SuiteError: There is no such rule, or the exponent does not fit.
        """
        name, colon, exponent = text.strip().partition(":")
        rule = check_rule(name)
        try:
            p = float(exponent) if colon else None
        except ValueError:
            raise SuiteError(
                f"rule {text!r}: {exponent!r} is not a number. Write for example nfd:0.25."
            ) from None
        correction_exponent(rule, p)
        return cls(rule, p)

    @property
    def label(self) -> str:
        """The text that :meth:`parse` reads."""
        return self.rule if self.p is None else f"{self.rule}:{self.p:g}"


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
class Grid:
    """What a sweep varies.

    Attributes:
        rules: The rules to compare.
        depths: L, ascending.
        log2_lrs: Base learning rates as powers of two, ascending.
        seeds: Seeds; each is used at every rule, depth and rate, so that they compare in pairs.
        base_depth: L0, where all rules agree.

    Raises:
        SuiteError: A list is empty or has duplicates, or a depth is not positive.
    """

    rules: tuple[RuleChoice, ...]
    depths: tuple[int, ...]
    log2_lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    base_depth: int

    def __post_init__(self) -> None:
        for name in ("rules", "depths", "log2_lrs", "seeds"):
            values = getattr(self, name)
            if not values:
                raise SuiteError(f"{name}: give at least one.")
            if len(set(values)) != len(values):
                raise SuiteError(f"{name}: a value appears twice in {_listed(values)}.")
        for name in ("depths", "log2_lrs"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        for name, least in (("base_depth", self.base_depth), ("depths", min(self.depths))):
            if least < 1:
                raise SuiteError(f"{name}: {least}, and a depth must be at least 1.")
        if min(self.seeds) < 0:
            raise SuiteError(f"seeds: {min(self.seeds)}, and a seed must not be negative.")

    @property
    def spacing(self) -> float:
        """Octaves between the two highest rates of the grid."""
        return self.log2_lrs[-1] - self.log2_lrs[-2] if len(self.log2_lrs) > 1 else 1.0


def _listed(values: Sequence[object]) -> str:
    return ", ".join(v.label if isinstance(v, RuleChoice) else str(v) for v in values)


@dataclass(frozen=True)
class Point:
    """One run of a chunk."""

    log2_lr: float
    seed: int


@dataclass(frozen=True)
class Chunk:
    """Runs that train together and are written together.

    Attributes:
        name: Name of its file, without suffix.
        rule: The rule.
        depth: L.
        points: The runs.
    """

    name: str
    rule: RuleChoice
    depth: int
    points: tuple[Point, ...]

    @property
    def cost(self) -> int:
        """Work in units of one block of one run."""
        return (self.depth + 2) * len(self.points)


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


def _slug(rule: RuleChoice, depth: int) -> str:
    return f"{rule.label.replace(':', '-p')}_L{depth}"


def plan(grid: Grid, runs_at_once: Callable[[int], int]) -> list[Chunk]:
    """Cut the grid into chunks of one rule and depth.

    Args:
        grid: The grid.
        runs_at_once: Maps a depth to the largest number of runs in a chunk.
    """
    points = [Point(lr, seed) for lr in grid.log2_lrs for seed in grid.seeds]
    chunks = []
    for rule in grid.rules:
        for depth in grid.depths:
            count = math.ceil(len(points) / runs_at_once(depth))
            cuts = [round(i * len(points) / count) for i in range(count + 1)]
            chunks += [
                Chunk(f"{_slug(rule, depth)}_{i + 1}of{count}", rule, depth, tuple(points[a:b]))
                for i, (a, b) in enumerate(itertools.pairwise(cuts))
            ]
    return chunks


def extension(grid: Grid, rule: RuleChoice, log2_lrs: Sequence[float]) -> list[Chunk]:
    """Return the chunks, one a depth, that train ``rule`` at further rates."""
    points = tuple(Point(lr, seed) for lr in log2_lrs for seed in grid.seeds)
    suffix = f"ext{min(log2_lrs):g}to{max(log2_lrs):g}"
    return [Chunk(f"{_slug(rule, d)}_{suffix}", rule, d, points) for d in grid.depths]


def shard_of(chunks: Sequence[Chunk], index: int, count: int) -> list[Chunk]:
    """Return the chunks of shard ``index`` (from 0) of ``count``, balanced by cost."""
    loads = [0] * count
    mine = set()
    for chunk in sorted(chunks, key=lambda c: (-c.cost, c.name)):
        lightest = loads.index(min(loads))
        loads[lightest] += chunk.cost
        if lightest == index:
            mine.add(chunk.name)
    return [chunk for chunk in chunks if chunk.name in mine]


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


_RANGE = re.compile(r"\s*(\S+?)\s*\.\.\s*(\S+?)\s*(?::\s*(\S+))?\s*")
_MAX_RATES = 200


def parse_log2_lrs(text: str) -> tuple[float, ...]:
    """Read learning rates: ``"2^-10..2^0"`` (every octave), ``"2^-3..2^1:0.5"``, ``"0.1,2^-2"``.

    Args:
        text: A range of powers of two with an optional step in octaves, or a comma list.

    Returns:
        Base-2 logarithms.

    Raises:
        SuiteError: The text is neither, or the range is empty.

    Example:
        >>> parse_log2_lrs("2^-2..2^0")
        (-2.0, -1.0, 0.0)
    """
    match = _RANGE.fullmatch(text)
    if not match:
        return tuple(_log2(part) for part in text.split(","))
    low, high = _log2(match[1]), _log2(match[2])
    try:
        step = float(match[3]) if match[3] else 1.0
    except ValueError:
        step = 0.0
    if not step > 0:
        raise SuiteError(
            f"lrs {text!r}: the step {match[3]!r} must be a number of octaves above 0."
        )
    if high < low:
        raise SuiteError(
            f"lrs {text!r}: the range is empty, since {match[2]} is below {match[1]}. "
            "Write the smaller rate first."
        )
    count = math.floor((high - low) / step + 1e-9) + 1
    if count > _MAX_RATES:
        raise SuiteError(f"lrs {text!r}: {count} rates; at most {_MAX_RATES} make sense.")
    return tuple(low + i * step for i in range(count))


def _log2(text: str) -> float:
    base, power, exponent = text.strip().replace("**", "^").partition("^")
    try:
        value = float(exponent) * math.log2(float(base)) if power else math.log2(float(base))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SuiteError(
            f"lrs: {text.strip()!r} is not a learning rate. Write 2^-10..2^0 for every octave, "
            "2^-3..2^1:0.5 for half octaves, or a list like 0.1,0.2 or 2^-3,2^-1."
        )
    return value
