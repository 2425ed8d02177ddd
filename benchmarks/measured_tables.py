"""Tables of what was measured, from what the benchmarks wrote: rows, columns, and on what machine.

Each function takes the results of one benchmark, as read from its JSON, and returns Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import card_tables

Result = dict[str, Any]
NOTHING = "–"
# Of ``resofilter_speed.py``, as the tables call them.
TASKS = {
    "default": "`adam1_mean_abs`, up_proj of the last 3 layers (the method)",
    "norms, up_proj of all layers": "`grad_norm`, up_proj of all layers",
    "adam1, up_proj of all layers": "`adam1_mean_abs`, up_proj of all layers",
    "norms, every linear layer": "`grad_norm`, every linear layer",
    "adam1, every linear layer": "`adam1_mean_abs`, every linear layer",
}
WAYS = {
    "ours": "ours",
    "torch.func": "torch.func",
    "opacus": "opacus",
    "opacus ghost": "its ghost norms",
    "bergson": "bergson",
    "dattri": "dattri",
    "literal loop": "literal loop",
}


def callback_overhead(result: Result) -> str:
    """What the callback adds to a step, beside the same groups without it."""
    names = {
        "groups by hand": "the same six groups, written by hand",
        "groups": '`DepthMuPLRCallback`, `apply="groups"`',
        "step": '`DepthMuPLRCallback`, `apply="step"`',
    }
    of = {(row["variant"], row["size"]): row for row in result["rows"]}
    sizes = list(dict.fromkeys(row["size"] for row in result["rows"]))
    return card_tables.markdown(
        ("added to a step of", *(_milliseconds(of["groups", size]) for size in sizes)),
        (
            (
                name,
                *(
                    f"{of[key, size]['added_microseconds']:+.0f} µs "
                    f"({100 * of[key, size]['overhead']:+.1f} %)"
                    for size in sizes
                ),
            )
            for key, name in names.items()
        ),
    ) + source(result, "callback_overhead")


def monitor_overhead(result: Result) -> str:
    """The time of a training with a monitor, over that without."""
    names = {
        "every 100 steps": "`FeatureDynamicsMonitor` at its default interval",
        "without, again": "no monitor either time (the noise)",
    }
    of = {(row["variant"], row["size"]): row for row in result["rows"]}
    sizes = list(dict.fromkeys(row["size"] for row in result["rows"]))
    return card_tables.markdown(
        ("time of steps of", *(_milliseconds(of["without, again", size]) for size in sizes)),
        (
            (
                name,
                *(
                    _between(of[key, size], "ratio_median", "ratio_min", "ratio_max")
                    for size in sizes
                ),
            )
            for key, name in names.items()
        ),
    ) + source(result, "monitor_overhead")


def batched_sweep(result: Result) -> str:
    """How much faster the runs of a sweep are together than one by one."""
    runs = result["runs_per_batch"]
    of = {
        (row["optimizer"], row["depth"]): row
        for row in result["rows"]
        if row["way"] == "ours" and row["runs"] == runs
    }
    depths = sorted({depth for _, depth in of})
    return card_tables.markdown(
        (f"{runs} runs together: times faster", *(f"{depth} blocks" for depth in depths)),
        (
            (name, *(_faster(of[key, depth]) for depth in depths))
            for key, name in (("sgd", "SGD"), ("adamw", "AdamW"))
        ),
    ) + source(result, "batched_sweep")


def resofilter_speed(result: Result) -> str:
    """The time of features over that of one bare pass, ours and the peers'."""
    of = {(row["task"], row["way"]): row for row in result["rows"]}
    ways = [way for way in WAYS if any(way == found for _, found in of)]

    def cell(task: str, way: str) -> str:
        if (task, way) not in of:
            return NOTHING
        if way == "ours":
            return f"**{_between(of[task, way], 'ratio', 'ratio_min', 'ratio_max', unit='')}**"
        return f"{of[task, way]['ratio']:.2f}"

    size = f"{result['parameters'] / 1e6:.0f} M parameters"
    return card_tables.markdown(
        (f"time over one bare pass, {size}", *(WAYS[way] for way in ways)),
        ((name, *(cell(task, way) for way in ways)) for task, name in TASKS.items()),
    ) + source(result, f"resofilter_speed --model {result['model']}")


def resofilter_memory(result: Result) -> str:
    """How far one batch lifts the memory of a fresh process."""
    of = {
        (row["task"], row["way"]): f"{row['peak_mib']:.0f}"
        for row in result["rows"]
        if "peak_mib" in row
    }
    ways = {"limit": "the bare pass", **WAYS}
    found = [way for way in ways if any(way == other for _, other in of)]
    return card_tables.markdown(
        ("MiB over what the process held", *(ways[way] for way in found)),
        ((name, *(of.get((task, way), NOTHING) for way in found)) for task, name in TASKS.items()),
    )


def resofilter_exactness(result: Result) -> str:
    """The score beside the published loop's."""
    wide, narrow = (result["comparison"][dtype] for dtype in ("float64", "float32"))
    samples = result["comparison"]["samples"]
    return card_tables.markdown(
        (f"the score beside the published loop, {samples} problems of GSM8K", "float64", "float32"),
        (
            (
                "largest relative difference; order",
                f"{wide['largest_relative_difference']:.0e}; "
                f"{'the same' if wide['same_order'] else 'another'}",
                NOTHING,
            ),
            (
                "rank correlation with the loop: exact, with the loop's rounding",
                NOTHING,
                f"{narrow['spearman_ours_loop']:.4f}, {narrow['spearman_rounded_loop']:.4f}",
            ),
            (
                "relative error against float64: ours, the loop's",
                NOTHING,
                f"{narrow['relative_error_ours']:.0e}, {narrow['relative_error_loop']:.0e}",
            ),
        ),
    ) + source(result, "resofilter_exactness", result["model"].partition(",")[0])


def scen_speed(result: Result) -> str:
    """How much faster experts and gate are trained than in the published loop."""
    of = {(row["stage"], row["way"], row.get("steps")): row for row in result["rows"]}
    experts = [row for row in result["rows"] if row["stage"] == 1 and "steps" in row]
    steps = experts[0]["steps"]
    ways = [row["way"] for row in experts if row["way"] != "loop" and ":" not in row["way"]]
    neurons, own = of[2, "ours", 1], of[1, "suite's own settings", None]
    return card_tables.markdown(
        ("times faster than the published loop", "an edit", "its steps alone"),
        (
            *(
                (
                    f"experts: {way} (SmolLM2-135M)",
                    _faster(of[1, way, steps]),
                    _faster(of[1, f"{way}: steps alone", steps]),
                )
                for way in ways
            ),
            (
                f"{neurons['edits']} indexing neurons, one of the published 20 steps (glassllm-en)",
                NOTHING,
                _faster(neurons),
            ),
            (
                "not a ratio: an edit with the suite's own settings (SmolLM2-135M)",
                f"{own['seconds_an_edit']:.2f} s of CPU time, {own['bytes_an_edit'] / 1024:.0f} KB "
                f"(a full copy: {own['bytes_of_a_full_copy'] / 1024:.0f} KB)",
                NOTHING,
            ),
        ),
    ) + source(result, "scen_speed")


def scen_overhead(result: Result) -> str:
    """What a bank costs a model that generates."""
    kinds = {
        "other": "questions that name nothing edited",
        "same subject": "questions that name an edited subject and ask something else",
    }
    of = {
        row["questions"]: row
        for row in result["rows"]
        if row["gate"] == "subject" and row["batch"] == 1
    }
    edits, tokens = f"{result['edits']:,}", result["new_tokens"]
    return card_tables.markdown(
        (f"a bank of {edits} edits, {tokens} tokens generated", "time against no bank"),
        (
            (name, _between(of[kind], "with", "with_q1", "with_q3"))
            for kind, name in kinds.items()
            if kind in of
        ),
    ) + source(result, "scen_overhead")


def lmcd_speed(result: Result) -> str:
    """How much faster students who share an exercise's text are read than one by one."""
    of = {
        (row["students"], row["mode"]): row
        for row in result["rows"]
        if row["what"] == "train" and row["mode"] != "row" and row["students"] > 8
    }
    students = sorted({number for number, _ in of})
    matrix = result.get("matrix", ())
    modes = list(dict.fromkeys(mode for _, mode in of))
    size = next((f"{row['students']} × {row['exercises']}" for row in matrix), "")
    header = (
        f"times faster than a row each, {result['prefix_tokens']} tokens ({result['data']})",
        *(f"training, {number} students of an exercise" for number in students),
        *([f"prediction of {size}"] if matrix else ()),
    )
    predicted = {row["way"]: f"{row['times_faster']:.0f}×" for row in matrix if row["way"] != "row"}
    rows = [
        (
            mode,
            *(_faster(of[number, mode]) for number in students),
            *([predicted.pop(mode, NOTHING)] if matrix else ()),
        )
        for mode in modes
    ]
    rows += [(way, *(NOTHING for _ in students), faster) for way, faster in predicted.items()]
    error = max(row["error"] for row in of.values())
    said = f"a student's state differs by {error:.0e} at most, relatively"
    return card_tables.markdown(header, rows) + source(result, "lmcd_speed", "SmolLM2-135M", said)


def source(result: Result, script: str, *more: str) -> str:
    """Return the line below a table: the command, the machine, versions, how busy it was."""
    name, _, options = script.partition(" ")
    command = f"benchmarks/{name}.py {options}".rstrip()
    said = [*more, result["machine"]]
    if "thread" not in result["machine"]:
        said.append("1 thread")
    said.append(f"torch {result['versions']['torch']}")
    if "load_average" in result:
        said.append(f"load {_loads(result['load_average'])}")
    return f"\n`{command}`: {', '.join(said)}\n"


def _loads(load: float | Sequence[float]) -> str:
    loads = load if isinstance(load, Sequence) else [load]
    least, most = f"{min(loads):.0f}", f"{max(loads):.0f}"
    return least if least == most else f"{least} to {most}"


def _milliseconds(row: Result) -> str:
    return f"{row['ms_a_step_without']:.0f} ms"


def _between(row: Result, middle: str, low: str, high: str, unit: str = "×") -> str:
    return f"{row[middle]:.2f}{unit} [{row[low]:.2f}, {row[high]:.2f}]"


def _faster(row: Result) -> str:
    digits = 0 if row["times_faster"] > 20 else 1
    low, high = row["times_faster_min"], row["times_faster_max"]
    if low == high:
        return f"{row['times_faster']:.{digits}f}×, one pass"
    return f"{row['times_faster']:.{digits}f}× [{low:.{digits}f}, {high:.{digits}f}]"
