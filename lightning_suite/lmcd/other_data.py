"""Whether a checkpoint and the data at hand are about the same class at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_suite.errors import SuiteError

# What a checkpoint keeps in ``lmcd``, and what a reader calls it.
_KINDS = {"student_ids": "students", "kc_ids": "KCs", "exercise_ids": "exercises"}


def other_data(kept: Mapping[str, Sequence[str]], ours: Mapping[str, Sequence[str]]) -> str:
    """Say what a checkpoint and the data have too little of in common to be about the same class.

    Of two sets of ids that grow and shrink over the years one is mostly part of the other.

    Args:
        kept: ``student_ids``, ``kc_ids`` and ``exercise_ids`` of the checkpoint; those that are
            missing or empty on one of the two sides are not compared.
        ours: Of the data.

    Returns:
        For example ``"none of 30 students and 2 of 9 KCs"``: of the data's, those that the
        checkpoint knows. Empty where in each kind half of the smaller side is on the other, too.

    Example:
        >>> other_data({"student_ids": ["ann"]}, {"student_ids": ["ben", "cem"]})
        'none of 2 students'
        >>> other_data({"student_ids": ["ann"]}, {"student_ids": ["ann", "cem", "dora"]})
        ''
    """
    few = []
    for name, what in _KINDS.items():
        here, there = set(ours.get(name, ())), set(kept.get(name, ()))
        both = len(here & there)
        if here and there and 2 * both < min(len(here), len(there)):
            few.append(f"{f'{both:,}' if both else 'none'} of {len(here):,} {what}")
    return " and ".join(few)


def refuse_replacing(callbacks: Sequence[Any], ours: Mapping[str, Sequence[str]]) -> None:
    """Refuse a fit that would put its checkpoint in the place of one of other data.

    Args:
        callbacks: ``trainer.checkpoint_callbacks``. Looked at are those of Lightning's
            ``ModelCheckpoint`` with one fixed file name, whose next file replaces the last.
        ours: As for :func:`other_data`.

    Raises:
        SuiteError: Naming the file, and how to keep both.
    """
    for callback in callbacks:
        folder, name = getattr(callback, "dirpath", None), getattr(callback, "filename", None)
        counted = getattr(callback, "_enable_version_counter", True)
        if folder is None or name is None or "{" in name or counted:
            continue
        file = Path(folder) / f"{name}{callback.FILE_EXTENSION}"
        if few := other_data(_kept(file), ours):
            raise SuiteError(
                f"{file} was trained on other data, and this fit would replace it: it knows {few} "
                "of this data. To keep both, set another dirpath of ModelCheckpoint in a copy of "
                "the configuration (lightning-suite cp); if it is not needed any more, move or "
                "delete the file."
            )


def _kept(file: Path) -> Mapping[str, Sequence[str]]:
    """Return what a checkpoint of LMCD knows of its data, without reading its tensors."""
    if not file.is_file():
        return {}
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch fails in many ways on what is no checkpoint; nobody can use it
        return {}
    kept = checkpoint.get("lmcd") if isinstance(checkpoint, dict) else None
    known = kept if isinstance(kept, dict) else {}
    return {name: list(map(str, known[name])) for name in _KINDS if _is_list(known.get(name))}


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)
