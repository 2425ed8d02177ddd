"""What identifies a split, so that no model is tested on answers that it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_suite.datamodules.cold_start_sources import ResponseData
from lightning_suite.datamodules.cold_start_splits import Split
from lightning_suite.errors import SuiteError


def manifest(data: ResponseData, split: Split, **settings: Any) -> dict[str, Any]:
    """Return what identifies a split: counts and hashes of its parts, as plain values."""
    return {
        "kind": split.kind,
        **settings,
        "held_out": split.held_out,
        "answers": {name: len(part) for name, part in split.parts.items()},
        "exercises": {n: len(data.exercise[p].unique()) for n, p in split.parts.items()},
        "students": {n: len(data.student[p].unique()) for n, p in split.parts.items()},
        "sha256": {name: _digest(data, part) for name, part in split.parts.items()},
    }


def check_oracle(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse to test a model that knows answers to the test's exercises as if it did not.

    Args:
        theirs: Manifest that the model was trained with. Where it says nothing of
            ``train_on_oracle``, as those of an earlier revision, an oracle counts as trained on.
        ours: Of the data.

    Raises:
        SuiteError: Only one of the two is trained on the oracle's answers.
    """
    known = theirs.get("train_on_oracle", "oracle" in theirs["sha256"])
    if known and not ours["train_on_oracle"]:
        raise SuiteError(
            "the model was trained on answers to the test's exercises (train_on_oracle), or does "
            "not say that it was not: this test would pass for cold. Set oracle_fraction and "
            "train_on_oracle as in the training to report it as an upper bound, or train without."
        )
    if ours["train_on_oracle"] and not known:
        raise SuiteError(
            "train_on_oracle is set, and the model was not trained on the oracle's answers: its "
            "scores would pass for an upper bound. Set train_on_oracle to false."
        )


def _digest(data: ResponseData, part: Tensor) -> str:
    digest = hashlib.sha256()
    pairs = zip(data.student[part].tolist(), data.exercise[part].tolist(), strict=True)
    rows = sorted((data.students[s], data.exercises[e].id) for s, e in pairs)
    for student, exercise in rows:
        digest.update(f"{student}\0{exercise}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
