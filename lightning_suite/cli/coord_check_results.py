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


def save_results(
    folder: RunFolder,
    settings: CheckSettings,
    measured: list[dict[str, Any]],
    checks: list[SlopeCheck],
) -> None:
    """Write the tables, the record, the figures where matplotlib is there, and the report.

    Args:
        folder: Of the check.
        settings: What all runs shared.
        measured: From :func:`~lightning_suite.cli.coord_check_runs.measure_all`.
        checks: The slopes of that.
    """
    section = "Coordinate check"
    folder.add_table(
        "coord_check_slopes",
        [check.row() for check in checks],
        title="Slopes",
        caption="Of log(quantity) against log(size), by least squares, for each step.",
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
    """Print the slopes after the first step; return 1 if one is outside."""
    print(f"{'axis':6} {'rule':10} {'quantity':16} {'slope':>14} {'expected':>9}")
    outside, judged = [], False
    for check in checks:
        if check.step != 1 or check.quantity not in CHECKED:
            continue
        slope = f"{check.slope.value:+.2f} ± {check.slope.standard_error:.2f}"
        expected = "" if check.expected is None else f"{check.expected:+.2f}"
        bad = tolerance is not None and check.outside(tolerance)
        print(
            f"{check.axis:6} {check.rule:10} {check.quantity:16} {slope:>14} {expected:>9}"
            + (f"  outside by {abs(check.deviation) - (tolerance or 0):.2f}" if bad else "")
        )
        outside += [check] * bad
        judged |= check.expected is not None
    if not judged:
        print("nothing was judged: none of these slopes has an expected value here")
    if outside:
        print(f"{len(outside)} slope(s) further than {tolerance} from what is expected")
    return 1 if outside else 0
