"""A run in which every name and text is one that could break a page, of all four methods."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from lightning_suite.report.resofilter_figures import describe_scores
from lightning_suite.run_folder import RunFolder

_PARTS = {
    "tag": "<script>alert(1)</script>",
    "attribute": "\"><img src='http://x.example/' onerror=alert(1)>",
    "end of script": "</script></style></title></pre><h1>",
    "comment": "--> ]]> <!-- --!>",
    "entity": "&lt;b&gt; &#60;i>",
    "address": "javascript:alert(1)",
    "direction": "abc\u202edef",
    "control": "a\x00b\x1b[31m\x7f\x85\x08",
    "half": "a\U0001f525\uffff 漢字",
    "lines": "one\ntwo\r\nthree\tfour",
    "mathematics": r"$x_{\frac{1}{2}}$ $$ %s {0}",
    "no end": "x" * 10_000,
}
# All at once, for each run draws a dozen figures.
NAMES = {"hostile": " ".join(_PARTS.values()), "empty": ""}


def hostile_run(path: Path, name: str) -> Path:
    """Write what all four methods leave, with ``name`` for whatever a user may name."""
    folder = RunFolder(path)
    for artifact, rows in (*_edits(name).items(), *_diagnosis(name).items(), *_rules(name).items()):
        section = artifact.partition("_")[0]
        folder.add_table(artifact, rows, title=artifact, section=section)
    folder.add_table("mine", [{name or "a": name}], title=name, caption=name, section=name)
    _scores(folder, name)
    _metrics(path / "metrics.csv", name)
    (path / "hparams.yaml").write_text(f"name: {name}\n", encoding="utf-8")
    callback = {"class_path": name or "A", "init_args": {name: name}}
    folder.write_record(
        command=["lightning-suite", "fit", name, f"--model={name}"],
        seed=0,
        config=yaml.safe_dump({"trainer": {"callbacks": [callback]}, name: name}),
        note=name,
    )
    return path


def _edits(name: str) -> dict[str, list[dict[str, Any]]]:
    metrics = ("reliability", "generality", "locality")
    fates = {"right": 1, "quiet": 2, "missed": 0, "wrong": 0, "false_fire": 0}
    return {
        "scen_summary": [{"system": name, "edits": 3, **dict.fromkeys(metrics, 0.5)}],
        "scen_curve": [
            {"system": system, "edits": edits, "metric": metric, "kind": "", "value": 0.5}
            for system in (name, "other")
            for edits in (1, 100)
            for metric in metrics
        ],
        "scen_gate": [
            {"system": s, "kind": k, **fates} for s in (name, "b") for k in ("edit", name)
        ],
        "scen_prompts": [
            {"system": name, "kind": k, "prompt": name, "margin": m, "gate": "right"}
            for k in ("edit", name)
            for m in (0.1, 0.2)
        ],
        "scen_edits": [dict.fromkeys(("prompt", "before", "after", "target"), name)],
        "scen_answers": [{"prompt": name, "fired": name}],
    }


def _diagnosis(name: str) -> dict[str, list[dict[str, Any]]]:
    setting = {"answers": 9, "kind": name, "fold": 0, "folds": 2, "split_seed": 0}
    return {
        "lmcd_scores": [
            {"system": s, "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9, **setting}
            for s in ("lmcd", "floor", "ceiling", name)
        ],
        "lmcd_calibration": [
            {"predicted": p, "observed": p, "low": p / 2, "high": 1, "answers": 3}
            for p in (0.1, 0.9)
        ],
        "lmcd_roc": [
            {"system": s, "false_rate": x, "true_rate": x} for s in ("lmcd", name) for x in (0, 1)
        ],
        "lmcd_mastery": [
            {"student_id": f"{name}{s}", "kc_id": f"{name}{k}", "kc": name, "predicted": s / 4}
            for s in range(4)
            for k in range(3)
        ],
        "lmcd_items": [
            {"part": part, "exercise_id": name, "text": name, "predicted": 0.5, "observed": 0.5}
            | {"difficulty": 0, "discrimination": 1}
            for part in ("train", "test", name)
        ],
    }


def _rules(name: str) -> dict[str, list[dict[str, Any]]]:
    return {
        "lr_transfer_drift": [{"rule": name, "octaves_in_total": 0.5}],
        "coord_check_slopes": [{"rule": name, "step": 1, "deviation": 0.5}],
        "feature_dynamics": [{"step": 1, "block": name, "coupling": 0.5}],
    }


def _scores(folder: RunFolder, name: str) -> None:
    ids, draw = [f"{name}{i}" for i in range(12)], np.random.default_rng(0)
    feature = name.replace(".", "") or "g"
    columns = {f"{name}.{layer}.{feature}": draw.random(12) for layer in range(3)}
    status = ["ok"] * 10 + [name, "nonfinite"]
    base = {"sample_id": ids, "status": status, "loss": draw.random(12), "n_tokens": range(12)}
    describe_scores(folder, pa.table(base | columns), dict.fromkeys(ids, (name, name)))


def _metrics(path: Path, name: str) -> None:
    like = ("{}", "{}/a", "train/{}", "lr-SGD/{}", "lr-{}-momentum", "m/{}/b/c", "m/{}/block_{}_0")
    names = list(dict.fromkeys(text.format(name, name) for text in like))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "epoch", *names])
        for step, value in enumerate((1.0, 2.0, float("nan"), 1e6)):
            writer.writerow([step, 0, *[value] * len(names)])
