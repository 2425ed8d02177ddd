"""What comes out of `make pipeline`, and what its choices are worth.

    python benchmarks/pipeline.py                  # runs `make pipeline`, then reads its folders
    python benchmarks/pipeline.py --read           # only reads what is in runs/pipeline
    python benchmarks/pipeline.py --read --arms 3  # and fine-tunes in other ways, three seeds each

The arms are the pipeline's fine-tuning with one thing changed: without the correction for depth, on
a random half of the problems, on all of them for as many steps. Their loss is that of the same
held-out problems. A seed is one of the adapters and of the order (and of the random half).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lightning_suite.cli.main import main as suite
from lightning_suite.files import atomic_write, write_json
from lightning_suite.resofilter.store import merge_shards

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs/pipeline"
RESULT = Path(__file__).parent / "results/pipeline.json"
PAGE = ROOT / "docs/pipeline.md"
START, END = "<!-- outcome: written by benchmarks/pipeline.py -->", "<!-- end of outcome -->"
# Arm -> what is given after the shipped config, which holds for all else.
ARMS: dict[str, list[str]] = {
    "as the pipeline": [],
    "no correction for depth": ["rule: sp"],
    "a random half": ["--data.init_args.source=runs/pipeline/random_{seed}.jsonl"],
    "all, as many steps": [
        "--data.init_args.source=word_problems:48:0",
        "--trainer.max_epochs=1",
        "--trainer.check_val_every_n_epoch=1",
    ],
}


def main() -> None:
    """Run what is asked for and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--read", action="store_true", help="do not run `make pipeline` first")
    parser.add_argument("--arms", type=int, default=0, metavar="SEEDS", help="fine-tune otherwise")
    parser.add_argument("--make", default="", help="variables for make, such as VENV=…")
    parser.add_argument("--runs", type=Path, default=RUNS, help="the pipeline's folder, for --read")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if not arguments.read:
        result["cost"] = run_pipeline(arguments.make.split())
    result["outcome"] = read(arguments.runs)
    write_json(RESULT, result)
    if arguments.arms:
        result["arms"] = [arm(name, seed) for seed in range(arguments.arms) for name in ARMS]
        result["summary"] = summary(result["arms"])
        write_json(RESULT, result)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    with atomic_write(PAGE) as file:
        file.write(f"{before}{START}\n{tables(result)}\n{END}{rest.partition(END)[2]}")
    print(RESULT)


def run_pipeline(variables: list[str]) -> dict[str, Any]:
    """Run `make pipeline` and measure it, the installation aside."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(["make", "pipeline", *variables], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_seconds": round(cpu),
        "wall_seconds": round(time.monotonic() - started),
        "peak_mib": round(after.ru_maxrss / 1024),
        "threads": 1,
        "device": "cpu",
        "others_on_the_machine": os.getloadavg()[0],
    }


def read(runs: Path) -> dict[str, Any]:
    """Read what the newest runs of the pipeline's folders say."""
    before, after = versions(runs / "fine_tune")[-2:]
    rows = merge_shards(after / "gradient_features").to_pylist()
    editing, evaluated = versions(runs / "edit"), versions(runs / "evaluate")
    tables = [run / "artifacts/scen_summary.csv" for run in editing]
    systems = rows_of(tables[-1]) if tables and tables[-1].exists() else []
    seen = bool(evaluated and (evaluated[-1] / "metrics.csv").exists())  # a chain may be under way
    selection = json.loads((runs / "kept.selection.json").read_text())
    return {
        "scored": selection["rows"],
        "kept": selection["kept"],
        "val_loss_before": last(before, "val_loss"),
        "val_loss_after": last(after, "val_loss"),
        "val_loss_with_edits": last(evaluated[-1], "val_loss") if seen else None,
        "fired_on_held_out": last(evaluated[-1], "scen/fired_rate") if seen else None,
        "edits_learnt": last(editing[0], "scen/success"),
        "edits_found_by_the_gate": last(editing[0], "scen/fired_rate"),
        "steps": int(last(after, "step")) + 1,
        "gradient_rows": len(rows),
        "learning_rate": rows[0]["lr"],
        "systems": systems,
        "train_loss": [float(value) for value in column(after, "train_loss")],
    }


def arm(name: str, seed: int) -> dict[str, Any]:
    """Fine-tune in another way; return the held-out loss."""
    folder = f"arms_{name.replace(' ', '_').replace(',', '')}_{seed}"
    changed = [text.format(seed=seed) for text in ARMS[name]]
    rule = "sp" if "rule: sp" in changed else "depth_mup"
    if any("random_" in text for text in changed):
        scores, half = str(RUNS / "scores"), str(RUNS / f"random_{seed}.jsonl")
        by = ["--by", "random", "--seed", str(seed), "--out", half, "--force"]
        run("select", scores, "--keep", "0.5", *by)
    # plain lists replace those of the config: no checkpoint, and a folder of its own
    run(
        *("fit", "-c", "pipeline/fine_tune"),
        "-c",
        "{trainer: {enable_checkpointing: false, callbacks: [{class_path: DepthMuPLRCallback, "
        f"init_args: {{rule: {rule}, base_depth: 8, pretrained: true}}}}], logger: ["
        "{class_path: lightning.pytorch.loggers.CSVLogger, "
        f"init_args: {{save_dir: runs/pipeline_arms, name: {folder}}}}}]}}}}",
        *(f"--seed_everything={seed}", f"--data.init_args.seed={seed}"),
        *(text for text in changed if text.startswith("--")),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    )
    done = versions(RUNS.with_name("pipeline_arms") / folder)[-1]
    return {
        "arm": name,
        "seed": seed,
        "val_loss": last(done, "val_loss"),
        "steps": int(last(done, "step")) + 1,
    }


def run(*words: str) -> None:
    """Run one command of the program in this process.

    Raises:
        SystemExit: It ended with an error.
    """
    if status := suite(list(words)):
        sys.exit(status)


def summary(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and range of each arm, and of its differences to the pipeline's own."""
    own = {row["seed"]: row["val_loss"] for row in arms if row["arm"] == "as the pipeline"}
    rows = []
    for name in ARMS:
        losses = {row["seed"]: row["val_loss"] for row in arms if row["arm"] == name}
        differences = [loss - own[seed] for seed, loss in losses.items()]
        rows.append(
            {
                "arm": name,
                "seeds": len(losses),
                "val_loss": statistics.mean(losses.values()),
                "lowest": min(losses.values()),
                "highest": max(losses.values()),
                "difference": statistics.mean(differences),
                "difference_lowest": min(differences),
                "difference_highest": max(differences),
            }
        )
    return rows


def tables(result: dict[str, Any]) -> str:
    """Return the result as Markdown, for the page."""
    outcome = result["outcome"]
    losses = (
        ("SmolLM2-135M as it is", outcome["val_loss_before"]),
        (
            f"after {outcome['steps']} steps on {outcome['kept']} problems",
            outcome["val_loss_after"],
        ),
        ("exported, with ten edits in force", outcome["val_loss_with_edits"]),
    )
    lines = ["| held-out problems | nats a token |", "|---|---|"]
    lines += [f"| {what} | {loss:.4f} |" for what, loss in losses if loss is not None]
    lines += ["", "| ten edits, their own prompts | share |", "|---|---|"]
    lines.append(f"| every token of the answer the likeliest | {outcome['edits_learnt']:.2f} |")
    lines.append(f"| given to them by the gate | {outcome['edits_found_by_the_gate']:.2f} |")
    names = [name for name in (outcome["systems"] or [{}])[0] if name != "system"]
    if names:
        lines += ["", f"| of the edits | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for row in outcome["systems"]:
        cells = (f"{float(row[name]):.3g}" if row[name] else "–" for name in names)
        lines.append(f"| {row['system']} | {' | '.join(cells)} |")
    if result.get("summary"):
        lines += ["", "| fine-tuned | seeds | held-out loss | against the pipeline |"]
        lines.append("|---|---|---|---|")
    for row in result.get("summary", ()):
        lines.append(
            f"| {row['arm']} | {row['seeds']} | {row['val_loss']:.4f} "
            f"[{row['lowest']:.4f}, {row['highest']:.4f}] | {row['difference']:+.4f} "
            f"[{row['difference_lowest']:+.4f}, {row['difference_highest']:+.4f}] |"
        )
    return "\n".join(lines)


def versions(folder: Path) -> list[Path]:
    """Return the runs in a folder, the oldest first."""
    return sorted(folder.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))


def rows_of(table: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV table."""
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def column(run: Path, key: str) -> list[str]:
    """Return the values of a metric in the order of the steps."""
    with (run / "metrics.csv").open(newline="") as file:
        return [row[key] for row in csv.DictReader(file) if row.get(key)]


def last(run: Path, key: str) -> float:
    """Return the last value of a metric."""
    return float(column(run, key)[-1])


if __name__ == "__main__":
    main()
