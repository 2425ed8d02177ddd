"""What an index says of one run: its method, its main figures, and its configuration by keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_suite.errors import SuiteError
from lightning_suite.report.metrics import METRICS, Series, panels, read_metrics
from lightning_suite.report.runs import Run, open_run
from lightning_suite.report.scen_figures import METRICS as EDIT_METRICS
from lightning_suite.report.scen_figures import Row, read_rows
from lightning_suite.report.scen_gate_counts import gate_counts

_MOST_KEYS = 5_000  # of a configuration; more is hardly one that a person compares
_DEEPEST = 30

# What is better of a quantity can be read off its name; of most others it is a matter of taste.
_LOWER = re.compile(r"(^|[/_])(loss|nll|perplexity|ppl|rmse|mse|mae|error|ece|regret)($|[/_])")
_HIGHER = re.compile(
    r"(^|[/_])(acc|accuracy|auc|auroc|f1|r2|reliability|generality|locality)($|[/_])"
)


Better = Callable[[Iterable[float]], float]


class Figure(NamedTuple):
    """One number that tells how a run came out."""

    name: str
    value: float


@dataclass(frozen=True)
class Summary:
    """One run, as an index shows it.

    Attributes:
        folder: Of the run.
        run: What it left; None if that cannot be read.
        problem: Why it cannot be read, or what of it; empty if all is well.
        methods: Names of the methods whose traces it bears, sorted.
        figures: Its main figures by name: of the methods' tables, then the module's own metrics.
        series: All logged curves.
        config: Leaves of its configuration by dotted key.
    """

    folder: Path
    run: Run | None
    problem: str = ""
    methods: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)


def summarise(folder: Path) -> Summary:
    """Read what an index shows of a run; damage is named in the summary, not raised.

    Args:
        folder: Of the run.
    """
    try:
        run = open_run(folder)
    except SuiteError as err:
        return Summary(folder, None, str(err))
    problems: list[str] = []
    series: Mapping[str, Series] = {}
    if (path := run.logs / "metrics.csv").exists():
        try:
            series = read_metrics(path).series
        except SuiteError as err:
            problems.append(str(err))
    figures: dict[str, float] = {}
    tables = run.tables()
    for read in _FIGURES:
        try:
            figures |= {figure.name: figure.value for figure in read(tables)}
        except (SuiteError, ValueError, KeyError) as err:
            problems.append(f"{folder}: {err}")
    figures |= dict(_metrics(series))
    config: Mapping[str, str] = {}
    texts = run.configs()
    for name, text in list(texts.items())[:1]:
        try:
            config = flat(yaml.safe_load(text))
        except (yaml.YAMLError, SuiteError, RecursionError, ValueError) as err:
            problems.append(f"{folder}: {name}: {' '.join(str(err).split())}")
    return Summary(folder, run, " ".join(problems), _methods(run, texts), figures, series, config)


def better(name: str) -> Better | None:
    """Return ``min`` or ``max``, whichever is the better of this quantity; None if unknown."""
    plain = name.lower().replace(" ", "_")
    if _LOWER.search(plain):
        return min
    return max if _HIGHER.search(plain) else None


def flat(config: Any) -> dict[str, str]:
    """Return the leaves of a configuration by dotted key, as YAML would write them.

    A class in a list stands under its short name, so that one more callback before it does not
    make all that follow it different.

    Raises:
        SuiteError: It has more leaves or levels than a configuration can have.

    Example:
        >>> flat({"a": {"b": 1}, "c": [{"class_path": "x.EarlyStopping", "init_args": {"n": 2}}]})
        {'a.b': '1', 'c.EarlyStopping': 'yes', 'c.EarlyStopping.n': '2'}
    """
    leaves: dict[str, str] = {}
    stack: list[tuple[tuple[str, ...], Any]] = [((), config)]
    while stack:
        keys, value = stack.pop()
        if len(leaves) > _MOST_KEYS or len(keys) > _DEEPEST or len(stack) > _MOST_KEYS:
            raise SuiteError("the configuration is too large to be compared")
        dotted = ".".join(keys)
        if isinstance(value, dict) and value:
            inside = value
            if isinstance(value.get("class_path"), str):
                name = value["class_path"].rpartition(".")[2]
                leaves[dotted] = "yes" if keys and keys[-1] == name else name
                arguments = value.get("init_args")
                inside = arguments if isinstance(arguments, dict) else {}
            stack += [((*keys, str(key)), item) for key, item in reversed(inside.items())]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            stack += reversed([((*keys, _item(value, n)), item) for n, item in enumerate(value)])
        elif keys:
            leaves[dotted] = _leaf(value)
    return leaves


def _item(items: list[Any], place: int) -> str:
    def name(item: Any) -> str:
        path = item.get("class_path") if isinstance(item, dict) else None
        return path.rpartition(".")[2] if isinstance(path, str) else ""

    own = name(items[place])
    twice = sum(name(item) == own for item in items) > 1
    return own if own and not twice else str(place)


def _leaf(value: Any) -> str:
    """Write a leaf as YAML would; of lists in lists only so much as a page can show.

    Aliases make a few lines of YAML into lists of any size.
    """
    pieces: list[str] = []
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if len(pieces) + len(stack) > _MOST_KEYS:
            raise SuiteError("the configuration is too large to be compared")
        if isinstance(item, _Text):
            pieces.append(item)
        elif isinstance(item, list):
            inside = [part for one in item[:_MOST_KEYS] for part in (one, _Text(", "))][:-1]
            stack += [_Text("]"), *reversed(inside), _Text("[")]
        elif item is None or isinstance(item, bool):
            pieces.append({None: "null", True: "true", False: "false"}[item])
        else:
            pieces.append(str(item) or "''")
    return "".join(pieces)


class _Text(str):
    """Punctuation between the items of a list."""


# --- figures of each method -----------------------------------------------------------------------


def _sweep(tables: Mapping[str, Path]) -> list[Figure]:
    rows = read_rows(tables, "lr_transfer_drift", ("rule",))
    return _figures(rows, "rule", {"octaves_in_total": "drift of {} (octaves)"})


def _slopes(tables: Mapping[str, Path]) -> list[Figure]:
    rows = read_rows(tables, "coord_check_slopes", ("rule", "step", "deviation"))
    worst: dict[str, float] = {}
    for row in rows:
        if row["step"] == "1" and row["deviation"]:
            value = abs(float(row["deviation"]))
            worst[row["rule"]] = max(value, worst.get(row["rule"], 0.0))
    return [Figure(f"largest deviation of {rule}", value) for rule, value in worst.items()]


def _scores(tables: Mapping[str, Path]) -> list[Figure]:
    rows = read_rows(tables, "resofilter_status", ("status", "samples"))
    usable = [float(row["samples"]) for row in rows if row["status"] in ("ok", "truncated")]
    return [Figure("scored samples", sum(usable))] if rows else []


def _edits(tables: Mapping[str, Path]) -> list[Figure]:
    rows = read_rows(tables, "scen_summary", ("system", "edits"))[:1]
    return [
        *[Figure("edits", float(row["edits"])) for row in rows],
        *_figures(rows, "system", {name: name for name in EDIT_METRICS}),
    ]


def _gates(tables: Mapping[str, Path]) -> list[Figure]:
    counts = gate_counts(tables)
    if counts is None:
        return []
    return [
        Figure("questions", counts.questions),
        Figure("questions answered by an edit", counts.fired),
    ]


def _diagnosis(tables: Mapping[str, Path]) -> list[Figure]:
    rows = read_rows(tables, "lmcd_scores", ("system", "auc"))
    names = {"lmcd": "AUC", "floor": "floor AUC", "ceiling": "ceiling AUC"}
    return [
        Figure(names[row["system"]], float(row["auc"]))
        for row in rows
        if row["system"] in names and row["auc"]
    ]


def _figures(rows: Sequence[Row], label: str, columns: Mapping[str, str]) -> list[Figure]:
    return [
        Figure(name.format(row[label]), float(row[column]))
        for row in rows
        for column, name in columns.items()
        if row.get(column)
    ]


_FIGURES = (_sweep, _slopes, _scores, _edits, _gates, _diagnosis)


def _metrics(series: Mapping[str, Series]) -> list[Figure]:
    """The last values of what the module itself logs: losses and accuracies, no learning rates."""
    return [
        Figure(name, series[name].values[-1])
        for panel in panels(list(series))
        if panel.group == METRICS
        or (not panel.ordered and any(better(name) for _, name in panel.lines))
        for _, name in panel.lines
    ]


# --- method ---------------------------------------------------------------------------------------

# By the names of artifacts and of logged keys, and by the classes of a configuration.
_METHODS = {
    "depth-muP": (
        ("lr_transfer", "coord_check", "feature_dynamics", "depth_mup/"),
        ("DepthMuPLRCallback", "FeatureDynamicsMonitor", "ResidualNetModule"),
    ),
    "ResoFilter": (("resofilter",), ("GradientFeatureCallback",)),
    "SCEN": (("scen",), ("SCENModule", "ExpertGateCallback")),
    "LMCD": (
        ("lmcd",),
        ("LMCDModule", "DiagnosisReportCallback", "AttachNewStudentsCallback"),
    ),
}


def _methods(run: Run, texts: Mapping[str, str]) -> tuple[str, ...]:
    names = [artifact.name for _, artifact in run.artifacts]
    classes = {
        word.rpartition(".")[2]
        for text in texts.values()
        for word in re.findall(r"class_path:\s*['\"]?([\w.]+)", text)
    }
    commands = {"lr-transfer": "depth-muP", "coord-check": "depth-muP", "score": "ResoFilter"}
    return tuple(
        method
        for method, (prefixes, known) in _METHODS.items()
        if any(name.startswith(prefixes) for name in names)
        or classes & set(known)
        or commands.get(run.subcommand) == method
    )
