"""Conversations to train and to validate on: a source's own splits, other data, or a share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_suite.datamodules.instruction_sources import (
    Columns,
    Example,
    read_examples,
    read_rows,
)
from lightning_suite.errors import SuiteError

Source = str | list[str]
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)  # to propose
_NEAR = 0.25  # of the smaller side of a split: by so much it may differ without a word


class ValidationSplit(NamedTuple):
    """What to validate on where the source has no split for it.

    Attributes:
        source: Other data, as a source.
        fraction: Or a share of the source's prompts, in [0, 1).
        seed: Other prompts for other seeds.
    """

    source: Source | None = None
    fraction: float = 0.0
    seed: int = 0


def source_name(source: Source) -> str:
    """Return how messages call a source."""
    return source if isinstance(source, str) else ", ".join(source)


def read_splits(
    source: Source,
    columns: Columns,
    duplicate_ids: Literal["refuse", "number"],
    validation: ValidationSplit,
) -> dict[str, list[Example]]:
    """Read the conversations of a source, by split; ``train`` is always there.

    Whether a prompt is validated on depends on the prompt and the seed alone.

    Raises:
        SuiteError: The data cannot be read, or one side of the split is empty.
    """
    name = source_name(source)

    def examples(rows: Sequence[dict[str, Any]], where: str) -> list[Example]:
        return read_examples(rows, columns, where=where, duplicate_ids=duplicate_ids)

    splits = {
        split: examples(rows, name if split == "train" else f"{name} ({split})")
        for split, rows in read_rows(source).items()
    }
    if validation.source is not None:
        other = validation.source if isinstance(validation.source, str) else validation.source[0]
        splits["val"] = examples(read_rows(validation.source)["train"], other)
        known = {e.prompt for e in splits["train"]}
        if both := sum(e.prompt in known for e in splits["val"]):
            rank_zero_warn(
                f"{other}: {both:,} of {len(splits['val']):,} validation prompts are also "
                f"training prompts in {name}."
            )
    elif validation.fraction and "val" not in splits:
        draws = [_draw(example, validation.seed) for example in splits["train"]]
        held_out = [draw < validation.fraction for draw in draws]
        pairs = list(zip(splits["train"], held_out, strict=True))
        splits["val"] = [example for example, held in pairs if held]
        splits["train"] = [example for example, held in pairs if not held]
        if not (splits["val"] and splits["train"]):
            raise SuiteError(
                f"{name}: val_fraction {validation.fraction} leaves "
                f"{len(splits['train']):,} samples to train and {len(splits['val']):,} to "
                f"validate on. {_advice(draws, validation.fraction)}"
            )
        if said := _far_from_asked(splits, validation.fraction):
            rank_zero_info(f"InstructionDataModule: {name}: {said}")
    return splits


def _far_from_asked(splits: dict[str, list[Example]], fraction: float) -> str:
    """Say how many prompts are held out where it is no such share of them, as of a few it is."""
    held, trained = ({example.prompt for example in splits[part]} for part in ("val", "train"))
    count = len(held) + len(trained)
    if abs(len(held) / count - fraction) <= _NEAR * min(fraction, 1 - fraction):
        return ""
    return (
        f"val_fraction {fraction:g}: {len(held):,} of {count:,} prompts are held out. Which ones "
        "is decided by each prompt's hash, so that rows that come or go move no other prompt; for "
        "an exact split name a file (val_source)."
    )


def _draw(example: Example, seed: int) -> float:
    """Return a number in [0, 1) for a prompt; below ``val_fraction`` it is held out."""
    text = f"{seed} {example.prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def _advice(draws: Sequence[float], fraction: float) -> str:
    """Name the share nearest to the one asked for that leaves samples on both sides."""
    held = {share: sum(draw < share for draw in draws) for share in _SHARES}
    possible = [share for share in _SHARES if 0 < held[share] < len(draws)]
    if not possible:
        return "Change val_seed, or take more data."
    share = min(possible, key=lambda share: abs(share - fraction))
    return (
        f"Set val_fraction to {share}, which leaves {len(draws) - held[share]:,} and "
        f"{held[share]:,}, or take more data."
    )
