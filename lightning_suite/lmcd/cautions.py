"""What a reader must know before believing a diagnosis: one sentence each, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def floor_caution(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say that the model orders the test's answers worse than each student's own rate does.

    Args:
        scores: Rows of ``lmcd_scores``: ``system`` and ``auc``, of which ``lmcd`` and ``floor``
            are compared.

    Returns:
        One sentence, or nothing where the model is not below or one of the two is not known.
    """
    aucs = {row["system"]: float(row["auc"]) for row in scores}
    model, floor = aucs.get("lmcd"), aucs.get("floor")
    if model is None or floor is None or not model < floor:  # NaN is below nothing
        return []
    return [
        f"AUC {model:.3f} is below {floor:.3f}, what each student's own rate gives: on this test "
        "the model knows less than that rate. What may help: answers to more exercises, more "
        "epochs (trainer.max_epochs), another head (model.init_args.head)."
    ]


def oracle_caution(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say that the model knows answers to the test's exercises.

    Args:
        scores: Rows of ``lmcd_scores``; ``train_on_oracle`` is 1 where it does, and may be missing.

    Returns:
        One sentence, or nothing.
    """
    if not any(str(row.get("train_on_oracle", "0")) == "1" for row in scores):
        return []
    return [
        "Not a cold test: the model was trained on some of the answers to the test's exercises "
        "(train_on_oracle). Its scores are an upper bound for one that was not."
    ]


def mastery_caution(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say that all students master the same, all skills or none.

    Args:
        rows: Of ``lmcd_mastery``, or with its ``predicted`` (a probability) and ``mastered`` (1 or
            0); both empty where nothing was predicted.

    Returns:
        One sentence, or nothing where ``mastered`` tells something apart.
    """
    known = [
        (float(row["predicted"]), int(row["mastered"])) for row in rows if row["predicted"] != ""
    ]
    if len(known) < 2 or len({mastered for _, mastered in known}) > 1:
        return []
    return _one_sided(min(known)[0], max(known)[0], bool(known[0][1]))


def chances_caution(low: float, high: float, threshold: float) -> list[str]:
    """Say that all chances lie on one side of what counts as mastered.

    Args:
        low: The least predicted chance; NaN where none was predicted.
        high: The largest.
        threshold: From which on a chance counts as mastered.

    Returns:
        As :func:`mastery_caution`.
    """
    if not (high < threshold or low >= threshold):
        return []
    return _one_sided(low, high, low >= threshold)


def _one_sided(low: float, high: float, mastered: bool) -> list[str]:
    side = "at or above" if mastered else "below"
    return [
        f"Mastery says nothing here: all predicted chances lie between {low:.2f} and {high:.2f}, "
        f"{side} what counts as mastered. Compare the chances themselves, or "
        "set DiagnosisReportCallback's threshold between them; chances that hardly differ need "
        "more answers or more epochs."
    ]
