"""What a learning-rate transfer sweep consists of: a grid of rules, depths, rates and seeds.

Runs of one rule and depth form chunks; a chunk trains together and is written as one file, so a
sweep that was killed continues with the chunks that are missing. What a chunk consists of depends
on the settings alone: not on the machine, nor on what was finished before.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_suite.depth_mup.rules import Rule, check_rule, correction_exponent
from lightning_suite.errors import SuiteError

_RANGE = re.compile(r"\s*(\S+?)\s*\.\.\s*(\S+?)\s*(?::\s*(\S+))?\s*")
_MAX_RATES = 200


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
