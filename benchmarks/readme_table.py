"""Write the measured figures of ``benchmarks/results/*.json`` into the README.

python benchmarks/readme_table.py            # rewrite the table between the two markers
python benchmarks/readme_table.py --check    # exit 1 if the README is not up to date
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import card_tables

Rows = Iterator[tuple[str, str]]


def callback_overhead(result: dict[str, Any]) -> Rows:
    for row in result["rows"]:
        if row["variant"] in ("groups", "step", "groups by hand"):
            what = (
                "the same groups written by hand"
                if row["variant"] == "groups by hand"
                else f'`DepthMuPLRCallback`, `apply="{row["variant"]}"`'
            )
            yield (
                f"{what}: cost of a step of {row['ms_a_step_without']:.0f} ms",
                f"{row['added_microseconds']:+.0f} µs ({100 * row['overhead']:+.1f} %)",
            )


def monitor_overhead(result: dict[str, Any]) -> Rows:
    for row in result["rows"]:
        what = f"steps of {row['ms_a_step_without']:.0f} ms"
        numbers = f"{row['ratio_median']:.2f}× [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]"
        if row["variant"] == "every 100 steps":
            yield f"`FeatureDynamicsMonitor` at its default interval: time, {what}", numbers
        elif row["variant"] == "without, again":
            yield f"the same measurement without a monitor (the noise), {what}", numbers


def batched_sweep(result: dict[str, Any]) -> Rows:
    runs = result["runs_per_batch"]
    for optimizer in ("sgd", "adamw"):
        cells = [
            f"L={row['depth']}: {row['times_faster']:.1f}× "
            f"[{row['times_faster_min']:.1f}, {row['times_faster_max']:.1f}]"
            for row in result["rows"]
            if (row["way"], row["runs"], row["optimizer"]) == ("ours", runs, optimizer)
        ]
        yield (
            f"{runs} runs of a sweep together, against one by one ({optimizer}): times faster",
            "; ".join(cells),
        )


def scen_speed(result: dict[str, Any]) -> Rows:
    for row in result["rows"]:
        ratio = ""
        if "times_faster" in row:
            digits = 0 if row["times_faster"] > 20 else 1
            low, high = row["times_faster_min"], row["times_faster_max"]
            ratio = f"{row['times_faster']:.{digits}f}× [{low:.{digits}f}, {high:.{digits}f}]"
        if row["stage"] == 2 and row["way"] == "ours" and ratio:
            yield (
                f"{row['edits']} indexing neurons, {row['steps']} of the published 20 steps: times "
                "faster than the published loop (glassllm-en)",
                ratio,
            )
        elif row["stage"] == 1 and ratio and row["way"] != "loop":
            yield (
                f"experts, {row['way']}: an edit's step: times faster than the published loop "
                "(SmolLM2-135M)",
                ratio,
            )
        elif "seconds_an_edit" in row:
            yield (
                "an edit with the suite's own settings (SmolLM2-135M, one CPU thread); its size",
                f"{row['seconds_an_edit']:.2f} s of CPU time, {row['bytes_an_edit'] / 1024:.0f} KB "
                f"(a full copy: {row['bytes_of_a_full_copy'] / 1024:.0f} KB)",
            )


def scen_overhead(result: dict[str, Any]) -> Rows:
    kinds = {
        "other": "name nothing edited",
        "same subject": "name an edited subject and ask something else",
    }
    for row in result["rows"]:
        if row["gate"] == "subject" and row["batch"] == 1:
            yield (
                f"a bank of {result['edits']:,} edits in SmolLM2-135M, questions that "
                f"{kinds[row['questions']]}: CPU time of generating {result['new_tokens']} tokens, "
                "against no bank",
                f"{row['with']:.2f}× [{row['with_q1']:.2f}, {row['with_q3']:.2f}]",
            )


def resofilter_exactness(result: dict[str, Any]) -> Rows:
    wide, narrow = (result["comparison"][dtype] for dtype in ("float64", "float32"))
    yield (
        f"ResoFilter's score against the published loop, {result['comparison']['samples']} "
        "problems of GSM8K, SmolLM2-135M, float64: largest relative difference",
        f"{wide['largest_relative_difference']:.0e}, "
        f"{'same order' if wide['same_order'] else 'another order'}",
    )
    yield (
        "the same in float32: rank correlation with the loop, exact and with the loop's rounding; "
        "relative error against float64, the exact score's and the loop's",
        f"{narrow['spearman_ours_loop']:.4f}, {narrow['spearman_rounded_loop']:.4f}; "
        f"{narrow['relative_error_ours']:.0e} and {narrow['relative_error_loop']:.0e}",
    )


def resofilter_speed(result: dict[str, Any]) -> Rows:
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        of_way = {row["way"]: row for row in result["rows"] if row["task"] == task}
        ours = of_way.pop("ours")
        del of_way["limit"]
        peers = ", ".join(f"{way} {row['ratio']:.2f}×" for way, row in of_way.items())
        yield (
            f"Per-sample features ({task}), {result['parameters'] / 1e6:.0f} M parameters: time "
            "against one bare forward and backward pass",
            f"{ours['ratio']:.2f}× [{ours['ratio_min']:.2f}, {ours['ratio_max']:.2f}]"
            + (f"; {peers}" if peers else ""),
        )


def lmcd_speed(result: dict[str, Any]) -> Rows:
    for row in result["rows"]:
        if row["what"] == "train" and row["students"] > 8 and row["mode"] != "row":
            low, high = row["times_faster_min"], row["times_faster_max"]
            spread = f" [{low:.0f}, {high:.0f}]" if row["repeats"] > 1 else ", one pass"
            yield (
                f"LMCD, {row['students']} students of one exercise ({result['data']}, "
                f"{result['prefix_tokens']} tokens), training, {row['mode']}: times faster than a "
                "row each (SmolLM2-135M); error",
                f"{row['times_faster']:.0f}×{spread}; {row['error']:.0e}",
            )
    for row in result.get("matrix", ()):
        if row["way"] != "row":
            yield (
                f"LMCD, prediction of {row['students']} students × {row['exercises']} exercises, "
                f"{row['way']}: times faster than a row each",
                f"{row['times_faster']:.0f}×",
            )


FIGURES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "callback_overhead": callback_overhead,
    "monitor_overhead": monitor_overhead,
    "batched_sweep": batched_sweep,
    "scen_speed": scen_speed,
    "scen_overhead": scen_overhead,
    "lmcd_speed": lmcd_speed,
    "resofilter_exactness": resofilter_exactness,
    "resofilter_speed_llama": resofilter_speed,
    "resofilter_speed_smollm2": resofilter_speed,
}
# Results of a script that measures several things.
SCRIPTS = {
    "resofilter_speed_llama": "resofilter_speed",
    "resofilter_speed_smollm2": "resofilter_speed",
}


def benchmarks() -> str:
    """Return the table of all figures; a result that is not there leaves its rows out."""
    return card_tables.markdown(
        ("what", "measured", "command"),
        (
            (what, figure, f"`benchmarks/{SCRIPTS.get(name, name)}.py`")
            for name, rows in FIGURES.items()
            if (card_tables.RESULTS / f"{name}.json").exists()
            for what, figure in rows(card_tables.result(name))
        ),
    )


def main() -> int:
    return card_tables.main("README.md", {"benchmarks": benchmarks}, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
