"""What a coordinate check has found: tables, figures, and which slopes are not as expected."""

from __future__ import annotations

import sys
from typing import Any

import yaml

from lightning_suite.cli.coord_check_runs import CheckSettings
from lightning_suite.depth_mup.coord_check import CHECKED, Axis, SlopeCheck
from lightning_suite.errors import MissingExtraError
from lightning_suite.run_folder import RunFolder

_CAPTION = (
    "Each quantity after a few steps against {size}, log-log: the line is the geometric mean over "
    "seeds, the band all seeds, dashed the expected slope. ΔW1·a and ΔW2·φ are what learning "
    "changes inside a branch; the stream contributions are what these changes add to the stream, "
    "summed over blocks. nfd restores ΔW1·a, and its stream contribution grows like √L."
)

# With two seeds and small depths a net that keeps the rules misses them, and another one may have
# slopes of its own; the difference between two rules is that of the rules in any net.
_ADVICE = (
    "What to try: more seeds and larger depths (`--depths 4,8,16,32,64 --seeds 8`), and a smaller "
    "`--lr`. What is expected was measured on tanh nets with two matrices a branch drawn from "
    "N(0, 1/fan-in) and no biases; another activation or initialisation may have other slopes: "
    "then compare the rules with each other (nfd should lift first_update by p over depth_mup), "
    "and say `--tolerance null`."
)


def save_results(
    folder: RunFolder,
    settings: CheckSettings,
    measured: list[dict[str, Any]],
    checks: list[SlopeCheck],
    tolerance: float | None,
) -> None:
    """Write the tables, the record, the figures where matplotlib is there, and the report.

    Args:
        folder: Of the check.
        settings: What all runs shared.
        measured: From :func:`~lightning_suite.cli.coord_check_runs.measure_all`.
        checks: The slopes of that.
        tolerance: How far a slope may be from what is expected; None judges nothing.
    """
    section = "Coordinate check"
    folder.add_table(
        "coord_check_slopes",
        [{**check.row(), "verdict": _verdict(check, tolerance)} for check in checks],
        title="Slopes",
        caption="Of log(quantity) against log(size), by least squares, for each step. Those after "
        "the first step are judged where something is expected.",
        section=section,
    )
    columns = list(dict.fromkeys(name for row in measured for name in row))
    folder.add_table(
        "coord_check_runs", measured, title="All runs", section=section, columns=columns
    )
    folder.write_record(
        command=["lightning-suite", *sys.argv[1:]],
        seed=0,
        config=yaml.safe_dump(settings.plain(), sort_keys=False),
        note=" ".join(conclusion(checks, tolerance)),
    )
    try:
        from lightning_suite.report.coord_check_figure import (  # noqa: PLC0415
            coord_check_figure,
        )

        axes: tuple[Axis, ...] = ("depth", "width")
        for axis in axes:
            if any(row["axis"] == axis for row in measured):
                folder.add_figure(
                    f"coord_check_{axis}",
                    coord_check_figure(measured, checks, axis),
                    title=f"Coordinate check over {axis} ({settings.optimizer})",
                    caption=_CAPTION.format(size=axis),
                    section=section,
                )
    except MissingExtraError as err:
        print(f"no figure: {err}", file=sys.stderr)
    from lightning_suite.report.page import write_report  # noqa: PLC0415

    print(write_report(folder.path))


def judge(checks: list[SlopeCheck], tolerance: float | None) -> int:
    """Print the slopes after the first step and what follows; return 1 if one is outside."""
    print(f"{'axis':6} {'rule':10} {'quantity':16} {'slope':>14} {'expected':>9}")
    for check in checks:
        if check.step != 1 or check.quantity not in CHECKED:
            continue
        slope = f"{check.slope.value:+.2f} ± {check.slope.standard_error:.2f}"
        expected = "" if check.expected is None else f"{check.expected:+.2f}"
        bad = _verdict(check, tolerance) == "outside"
        print(
            f"{check.axis:6} {check.rule:10} {check.quantity:16} {slope:>14} {expected:>9}"
            + (f"  outside: off by {check.deviation:+.2f}" if bad else "")
        )
    print(*conclusion(checks, tolerance), sep="\n")
    return int(any(_verdict(check, tolerance) == "outside" for check in checks))


def conclusion(checks: list[SlopeCheck], tolerance: float | None) -> list[str]:
    """Return what the check has found in one sentence, and advice where slopes are outside.

    Args:
        checks: All slopes.
        tolerance: How far a slope may be from what is expected; None judges nothing.
    """
    judged = [check for check in checks if _verdict(check, tolerance)]
    if not judged:
        return ["nothing was judged: none of these slopes has an expected value here"]
    outside = [check for check in judged if _verdict(check, tolerance) == "outside"]
    if not outside:
        return [f"all {len(judged)} judged slopes are within {tolerance} of what is expected"]
    worst = max(outside, key=lambda check: abs(check.deviation))
    return [
        f"{len(outside)} of {len(judged)} judged slopes are further than {tolerance} from what is "
        f"expected, by {abs(worst.deviation):.2f} at most ({worst.quantity} under {worst.rule}).",
        _ADVICE,
    ]


def _verdict(check: SlopeCheck, tolerance: float | None) -> str:
    """Return ``within``, ``outside``, or nothing for what is not judged."""
    if tolerance is None or check.expected is None:
        return ""
    if check.step != 1 or check.quantity not in CHECKED:
        return ""
    return "outside" if check.outside(tolerance) else "within"
