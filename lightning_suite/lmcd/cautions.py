"""What a reader must know before believing a diagnosis: one sentence each, or none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev, variance
from typing import Any

# What is compared with the threshold. Single answers may well lie on both sides of it where the
# means do not.
MEANS = "the mean predicted chances, of each student over the exercises of each skill,"
ANSWERS = "the predicted chances of the single answers of this test"
_FEW = 4  # exercises: the spread of fewer says little
_NOTHING = 0.02  # standard deviation of shares that is no difference to anyone
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


def likelihood_caution(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say that the predicted chances fit the test's answers worse than knowing nothing does.

    Args:
        scores: Rows of ``lmcd_scores``: ``system`` and, in nats, ``nll``, which may be missing.

    Returns:
        One sentence where the model's ``nll`` is above that of a coin (log 2) or of the floor.
    """
    scores = list(scores)
    nlls = {row["system"]: float(row["nll"]) for row in scores if row.get("nll") not in (None, "")}
    model, floor = nlls.get("lmcd", math.nan), nlls.get("floor", math.nan)
    coin = math.log(2)
    if not (model > coin or model > floor):  # NaN is above nothing
        return []
    of_floor = f"that of each student's own rate, {floor:.3f}"
    than = f"that of a coin, {coin:.3f}" if model > coin else of_floor
    both = f" ({of_floor})" if model > coin and not math.isnan(floor) else ""
    return [
        f"NLL {model:.3f} is worse than {than}{both}: on this test the chances themselves say less "
        "than that, whatever their order is. "
        + (
            "What may help: answers to more exercises, a larger prior (model.init_args.prior), "
            "another head (model.init_args.head)."
            if trained(scores)
            else _FIT_FIRST
        )
    ]


def alike_caution(items: Iterable[Mapping[str, Any]], *, trained: bool = True) -> list[str]:
    """Say that the model gives exercises about one chance that the students tell apart.

    The observed shares differ by chance alone, too; what is left of their variance without that of
    sampling is what a model could have known.

    Args:
        items: Rows of ``lmcd_items``, or with its ``predicted`` and ``observed`` (shares of right
            answers) and ``answers`` (their number); empty where there is none.
        trained: As for :func:`mastery_caution`.

    Returns:
        One sentence where there are four exercises with answers or more, they differ, and the
        predicted means differ by less than a quarter of that.
    """
    known = [
        (float(row["predicted"]), float(row["observed"]), int(row["answers"]))
        for row in items
        if row.get("predicted") not in (None, "") and row.get("observed") not in (None, "")
    ]
    known = [(said, seen, answers) for said, seen, answers in known if answers > 1]
    if len(known) < _FEW:
        return []
    said, seen, _ = zip(*known, strict=True)
    by_chance = fmean(share * (1 - share) / (answers - 1) for _, share, answers in known)
    apart = max(variance(seen) - by_chance, 0.0) ** 0.5
    if not (apart > _NOTHING and stdev(said) < apart / 4):
        return []
    return [
        f"The exercises are hardly told apart: their mean predicted chances lie between "
        f"{min(said):.2f} and {max(said):.2f}, what the students got right between "
        f"{min(seen):.2f} and {max(seen):.2f} ({len(known)} exercises). "
        + (
            "What may help: more exercises to learn from, skills (kc_ids), text: kc_names or "
            "another head (model.init_args.head)."
            if trained
            else _FIT_FIRST
        )
    ]
