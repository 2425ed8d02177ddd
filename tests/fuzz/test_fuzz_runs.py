"""Damaged folders of runs: `report` shows what can be read and names what cannot."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from damage import bytes_of, fuzz, json_of, nothing_half_written, odd, read_or_refused, text_of
from hypothesis import given
from hypothesis import strategies as st

from lightning_suite.report.index import write_index
from lightning_suite.report.page import write_report
from lightning_suite.report.summaries import summarise

# figures without a value, and the like
pytestmark = pytest.mark.filterwarnings("ignore")

RECORD = {
    "command": ["lightning-suite", "fit", "-c", "a.yaml"],
    "seed": 0,
    "note": "A `note`.",
    "state": "finished",
    "time": "2026-01-01T00:00:00+00:00",
    "versions": {"python": "3.11"},
    "platform": "Linux",
    "cores": 2,
    "threads": 1,
    "config": "a: 1\nmodel: {class_path: SCENModule}\n",
}
BOUNDS = [
    {
        "system": s,
        "answers": 12,
        "auc": a,
        "auc_low": a - 0.1,
        "auc_high": a + 0.1,
        "kind": "random",
    }
    for s, a in (("lmcd", 0.8), ("floor", 0.7), ("ceiling", 0.9))
]
TABLES: dict[str, list[dict[str, Any]]] = {
    "lr_transfer_drift": [{"rule": "sp", "octaves_in_total": -2.5}],
    "coord_check_slopes": [{"rule": "sp", "step": 1, "deviation": 0.5}],
    "resofilter_status": [{"status": "ok", "samples": 10}],
    "scen_summary": [{"system": "ours", "edits": 5, "reliability": 1.0, "locality": 0.9}],
    "scen_curve": [
        {"system": "ours", "edits": n, "metric": "reliability", "value": 1.0} for n in (1, 3)
    ],
    "lmcd_scores": BOUNDS,
    "lmcd_calibration": [
        {"predicted": 0.5, "observed": 0.4, "low": 0.1, "high": 0.8, "answers": 10}
    ],
    "lmcd_roc": [
        {"system": s, "false_rate": x, "true_rate": x}
        for s in ("lmcd", "floor", "ceiling")
        for x in (0.0, 1.0)
    ],
    "lmcd_mastery": [
        {"student_id": f"s{n}", "kc_id": "k", "kc": "to add", "predicted": n / 3} for n in range(3)
    ],
}
METRICS = "epoch,step,train_loss,lr-Adam\n0,0,1.5,0.1\n0,1,1.25,0.1\n1,2,,0.05\n"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path id="a" d="M0 0"/></svg>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


INDEX = [
    *(
        {"name": name, "kind": "table", "files": [f"{name}.csv"], "title": name, "section": "S"}
        for name in TABLES
    ),
    {"name": "f", "kind": "figure", "files": ["f.svg"], "title": "Figure", "caption": "It."},
]
WHOLE: dict[str, str] = {
    "run.json": json.dumps(RECORD),
    "metrics.csv": METRICS,
    "config.yaml": "a: 1\nb: {c: [1, 2]}\n",
    "hparams.yaml": "d: 2\n",
    "artifacts/index.json": json.dumps(INDEX),
    "artifacts/f.svg": SVG,
    **{f"artifacts/{name}.csv": table(rows) for name, rows in TABLES.items()},
}
DRAWN = ("lmcd", "scen_curve")  # a figure takes a second: one table of a kind is damaged there
QUICK = {name: text for name, text in WHOLE.items() if not any(part in name for part in DRAWN)}


def write_run(folder: Path, files: Mapping[str, str], **damaged: bytes) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "artifacts").mkdir(parents=True)
    listed = [entry for entry in INDEX if f"artifacts/{entry['files'][0]}" in files]
    for name, text in {**files, "artifacts/index.json": json.dumps(listed)}.items():
        (folder / name).write_bytes(damaged.get(name, text.encode()))


def shown(folder: Path, *, index: bool = False) -> None:
    """Write the pages of a run; they are whole or not there."""
    with read_or_refused(folder, *(Path(name).name for name in WHOLE)):
        write_report(folder)
    page = folder / "report.html"
    assert not page.exists() or page.read_text(encoding="utf-8").rstrip().endswith("</html>")
    with read_or_refused(folder):
        summarise(folder)
    if index:
        with read_or_refused(folder, "no run in here"):
            write_index([folder.parent], folder.parent / "index.html")
    nothing_half_written(folder.parent)


def damage(name: str) -> st.SearchStrategy[bytes]:
    text = WHOLE[name]
    if not name.endswith(".json"):
        return text_of(text)
    listed = [entry for entry in INDEX if f"artifacts/{entry['files'][0]}" in QUICK]
    return json_of(listed if "index" in name else json.loads(text))


@fuzz(12, 600)
@given(st.sampled_from(sorted(QUICK)).flatmap(lambda n: st.tuples(st.just(n), damage(n))))
def test_files_of_a_run(tmp_path: Path, damaged: tuple[str, bytes]) -> None:
    name, content = damaged
    write_run(tmp_path / "run", QUICK, **{name: content})
    shown(tmp_path / "run", index=len(content) % 8 == 0)  # it takes as long again


@fuzz(2, 60)
@given(data=st.data(), name=st.sampled_from(sorted(set(TABLES) - {"lr_transfer_drift"})))
def test_tables_that_are_drawn(tmp_path: Path, data: st.DataObject, name: str) -> None:
    rows = [dict(row) for row in TABLES[name]]
    for _ in range(data.draw(st.integers(1, 2))):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.sampled_from(sorted(row)))] = str(data.draw(odd))
    content = table(rows).encode("utf-8", "surrogatepass")
    if data.draw(st.booleans()):
        content = data.draw(bytes_of(table(TABLES[name]).encode()))
    together = "scen" if name.startswith("scen") else "lmcd" if "lmcd" in name else name
    files = {n: text for n, text in WHOLE.items() if together in n} | {
        "run.json": WHOLE["run.json"]
    }
    write_run(tmp_path / "run", files, **{f"artifacts/{name}.csv": content})
    shown(tmp_path / "run")


def test_aliases_that_would_grow_a_millionfold_are_not_followed(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    write_run(tmp_path / "run", QUICK, **{"config.yaml": "\n".join(lines).encode()})
    (tmp_path / "run" / "run.json").unlink()
    shown(tmp_path / "run")
