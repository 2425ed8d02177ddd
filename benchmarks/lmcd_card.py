"""Write the measured tables of ``benchmarks/results/lmcd_*.json`` into docs/lmcd.md.

python benchmarks/lmcd_card.py            # rewrite each table between its two markers
python benchmarks/lmcd_card.py --check    # exit 1 if the card is not up to date
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import card_tables
from card_tables import markdown
from lmcd_intervals import over_folds

NAMES = {"frcsub": "FrcSub", "verbagg": "VerbAgg", "situations": "a new situation"}
CEILING = "ceiling of one ability"
ROWS = {  # of what LMCD is compared with, as the card calls them
    "floor": "floor: the student's own rate",
    "ids irt": "IRT by id",
    "ids mirt": "MIRT by id",
    "ids ncdm": "NCDM by id",
    "q_matrix": "ridge on the Q-matrix",
    "ridge raw": "ridge on the frozen text",
    "ridge kc_names": "ridge on the frozen text with names of skills",
    CEILING: CEILING,
}
HEADS = ("ncdm", "dina", "irt", "1pl", "2pl", "4pl", "mirt", "kancd")
AGAINST = {
    "floor": "floor",
    "ids irt": "IRT by id",
    "ids ncdm": "NCDM by id",
    "q_matrix": "ridge on the Q-matrix",
    "ridge kc_names": "ridge on the text",
}
TEXTS = {
    "raw": "raw",
    "kc_names": "names of skills",
    "diffused": "diffused (template)",
    "both": "raw text and description",
}

Data = dict[str, Any]


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """Return a figure below 1 as the card writes it: .887 or +.012, with a minus sign."""
    text = f"{abs(value):.{digits}f}".removeprefix("0")
    below = "−" if value < 0 else ""
    return f"{below or '+' if sign else below}{text}"


def spread(row: Data) -> str:
    """Return AUC and its standard deviation over folds."""
    return f"{number(row['auc'])} ± {number(row['sd'])}"


def away(row: Data, other: Data, name: str, folds: int) -> str:
    """Return a paired difference; bold where both of its intervals exclude zero."""
    each = [a - b for a, b in zip(row["folds"], other["folds"], strict=True)]
    exercises = over_folds(each, folds)
    value = number(sum(each) / len(each), sign=True)
    if name not in row["against"]:
        return value
    students = row["against"][name]["interval"]
    low, high = (number(edge, sign=True) for edge in students)
    clear = all(low > 0 or high < 0 for low, high in (students, exercises))
    return f"{f'**{value}**' if clear else value} [{low}, {high}]"


def load(name: str) -> Data:
    return card_tables.result(f"lmcd_{name}")


def baselines(result: str = "quality") -> str:
    """Return bounds and baselines, on all data sets of a result."""
    data = load(result)["data"]
    names = [name for name in NAMES if name in data]
    return markdown(
        ["", *(NAMES[name] for name in names)],
        [
            [title, *(spread(data[name][key]) if key in data[name] else "" for name in names)]
            for key, title in ROWS.items()
            if any(key in data[name] for name in names)
        ],
    )


def against(name: str, result: str, ways: dict[str, str]) -> str:
    """Return ways, by what the card calls them, against what they are compared with."""
    found = load(result)
    rows = found["data"][name]
    return markdown(
        ["", "AUC", *(f"against {title}" for title in AGAINST.values())],
        [
            [
                title,
                spread(rows[way]),
                *(away(rows[way], rows[key], key, found["folds"]) for key in AGAINST),
            ]
            for way, title in ways.items()
            if way in rows
        ],
    )


def heads(name: str, result: str = "quality") -> str:
    """Return every head on one data set."""
    return against(name, result, {f"{head} kc_names": f"`{head}`" for head in HEADS})


def trained(name: str = "frcsub", result: str = "quality_trained") -> str:
    """Return LMCD with a trained backbone, or where each student reads."""
    ways = {
        "ncdm kc_names": "frozen",
        "ncdm kc_names lora": "LoRA",
        "ncdm kc_names reads": "frozen, each student reads",
    }
    return against(name, result, ways)


def texts(result: str = "quality", ways: tuple[str, ...] = ("ncdm", "irt", "ridge")) -> str:
    """Return what texts do for the ways that were measured with all of them."""
    data = load(result)["data"]
    columns = [
        (name, way)
        for name in data
        for way in ways
        if all(f"{way} {text}" in data[name] for text in TEXTS)
    ]
    titles = [way if way == "ridge" else f"`{way}`" for _, way in columns]
    return markdown(
        ["text", *(f"{NAMES[name]}, {t}" for (name, _), t in zip(columns, titles, strict=True))],
        [
            [title, *(number(data[name][f"{way} {text}"]["auc"]) for name, way in columns)]
            for text, title in TEXTS.items()
        ],
    )


def attach() -> str:
    """Return how well new students are predicted."""
    ways = ("floor", "rate and difficulty", "map", "gradient", "trained")
    table = []
    for name, rows in load("attach")["data"].items():
        of = {(row["answers"], row["way"]): row for row in rows}
        for count in dict.fromkeys(row["answers"] for row in rows):
            own = of[count, "map"]
            low, high = (number(x, sign=True) for x in own["against_trained_interval"])
            table.append(
                [
                    NAMES[name],
                    str(count),
                    *(number(of[count, way]["auc"]) for way in ways),
                    f"{number(own['against_trained'], sign=True)} [{low}, {high}]",
                ]
            )
    return markdown(
        [
            "", "K", "floor: own rate", "rate and difficulty", "`map`", "`gradient`", "trained",
            "`map` against trained",
        ],
        table,
    )  # fmt: skip


def curves() -> str:
    """Return time and memory against students and tokens."""
    rows = load("curves")["rows"]
    of = {(row["students"], row["tokens"], row["mode"]): row for row in rows}
    modes = ("row", "packed", "cached")

    def cells(size: tuple[int, int]) -> list[str]:
        own = [of[(*size, mode)] for mode in modes]
        return [
            *(f"{row['seconds']:.2f}" for row in own),
            *(f"{row['times_faster']:.0f}×" for row in own[1:]),
            *(f"{row['peak_mib']:.0f}" for row in own),
        ]

    return markdown(
        [
            "students", "tokens", *(f"{mode}, s" for mode in modes), "packed", "cached",
            *(f"{mode}, MiB" for mode in modes),
        ],
        [
            [str(count), str(length), *cells((count, length))]
            for count, length in dict.fromkeys((row["students"], row["tokens"]) for row in rows)
        ],
    )  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {
    "baselines": baselines,
    "frcsub": lambda: heads("frcsub"),
    "verbagg": lambda: heads("verbagg"),
    "texts": texts,
    "irt_texts": lambda: texts("quality_texts"),
    "attach": attach,
    "curves": curves,
    "trained": trained,
    "reads": lambda: trained(result="quality_reads"),
    "trained_verbagg": lambda: trained("verbagg", "quality_trained_verbagg"),
    "situation_baselines": lambda: baselines("quality_situations"),
    "situations": lambda: heads("situations", "quality_situations"),
}


def main() -> int:
    return card_tables.main("docs/lmcd.md", TABLES, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
