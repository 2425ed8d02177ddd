"""What a reader must know before believing a diagnosis: one sentence each, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# What is compared with the threshold. Single answers may well lie on both sides of it where the
# means do not.
MEANS = "the mean predicted chances, of each student over the exercises of each skill,"
ANSWERS = "the predicted chances of the single answers of this test"
_FIT_FIRST = (
    "This model has not been trained: run fit first, and give its checkpoint (--ckpt_path)."
)


def floor_caution(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say that the model orders the test's answers worse than each student's own rate does.

    Args:
        scores: Rows of ``lmcd_scores``: ``system`` and ``auc``, of which ``lmcd`` and ``floor``
            are compared; ``trained`` is 0 where the model is as it was built, and may be missing.

    Returns:
        One sentence, or nothing where the model is not below or one of the two is not known.
    """
    scores = list(scores)
    aucs = {row["system"]: float(row["auc"]) for row in scores}
    model, floor = aucs.get("lmcd"), aucs.get("floor")
    if model is None or floor is None or not model < floor:  # NaN is below nothing
        return []
    return [
        f"AUC {model:.3f} is below {floor:.3f}, what each student's own rate gives: on this test "
        "the model knows less than that rate. "
        + (
            "What may help: answers to more exercises, more epochs (trainer.max_epochs), another "
            "head (model.init_args.head)."
            if trained(scores)
            else _FIT_FIRST
        )
    ]


def trained(scores: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the model was trained, as far as the rows of ``lmcd_scores`` know."""
    return not any(str(row.get("trained", "1")) == "0" for row in scores)


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


def mastery_caution(rows: Iterable[Mapping[str, Any]], *, trained: bool = True) -> list[str]:
    """Say that all students master the same, all skills or none.

    Args:
        rows: Of ``lmcd_mastery``, or with its ``predicted`` (a probability) and ``mastered`` (1 or
            0); both empty where nothing was predicted.
        trained: Whether the model was; one that was not needs other advice.

    Returns:
        One sentence, or nothing where ``mastered`` tells something apart.
    """
    known = [
        (float(row["predicted"]), int(row["mastered"])) for row in rows if row["predicted"] != ""
    ]
    if len(known) < 2 or len({mastered for _, mastered in known}) > 1:
        return []
    side = "at or above" if known[0][1] else "below"
    return _one_sided(MEANS, min(known)[0], max(known)[0], side, trained)


def chances_caution(
    low: float, high: float, threshold: float, *, of: str, trained: bool = True
) -> list[str]:
    """Say that all chances lie on one side of what counts as mastered.

    Args:
        low: The least of them; NaN where none was predicted.
        high: The largest.
        threshold: From which on a chance counts as mastered.
        of: What they are: :data:`MEANS` or :data:`ANSWERS`.
        trained: As for :func:`mastery_caution`.

    Returns:
        As :func:`mastery_caution`.
    """
    if not (high < threshold or low >= threshold):
        return []
    side = "at or above" if low >= threshold else "below"
    return _one_sided(of, low, high, side, trained, f" ({threshold:g})")


def _one_sided(
    of: str, low: float, high: float, side: str, trained: bool, threshold: str = ""
) -> list[str]:
    advice = (
        "Compare the chances themselves, or set DiagnosisReportCallback's threshold between them; "
        "chances that hardly differ need more answers or more epochs."
        if trained
        else _FIT_FIRST
    )
    return [
        f"Mastery says nothing here: {of} all lie between {low:.3g} and {high:.3g}, "
        f"{side} what counts as mastered{threshold}. {advice}"
    ]
