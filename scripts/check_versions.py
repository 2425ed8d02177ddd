"""Run a fast part of the tests on the oldest and the newest versions that the package allows.

python scripts/check_versions.py oldest newest        # a few minutes and gigabytes each
python scripts/check_versions.py newest --python python3.13
python scripts/check_versions.py --write              # only docs/supported_versions.md, anew

``oldest`` installs the lower bound of every dependency in pyproject.toml, and what these need as
the installer chooses it; ``newest`` installs the newest release of everything that the bounds
allow; ``pinned`` installs constraints.txt. The environments are made outside the repository, one
after the other. Each row of the result replaces the row of the same name and Python in
benchmarks/results/supported_versions.json; the table in the documentation is written from there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import tomllib
from environments import ROOT, copy_committed, make_venv, pip_install, run_in
from packaging.requirements import Requirement

from lightning_suite.files import atomic_write, write_json

RESULT = ROOT / "benchmarks/results/supported_versions.json"
PAGE = ROOT / "docs/supported_versions.md"
START, END = "<!-- versions: written by scripts/check_versions.py -->", "<!-- end of versions -->"
ROWS = ("oldest", "pinned", "newest")
EXTRAS = ("llm", "gguf", "faiss", "wandb", "report", "completion", "demo")
# In their newest releases in every row: they test, and no user of the package has them.
TOOLS = ("pytest>=8", "hypothesis>=6", "glassllm==0.1.0")
SHOWN = (
    "torch",
    "lightning",
    "torchmetrics",
    "jsonargparse",
    "numpy",
    "transformers",
    "peft",
    "datasets",
    "pyarrow",
    "wandb",
)
# The whole chain through the command line, with its callbacks, and of each method a part that leans
# on other packages. About two minutes of one core.
TESTS = (
    "tests/integration/test_pipeline.py",
    "tests/language/test_export.py",
    "tests/language/test_causal_lm_loading.py",
    "tests/language/test_gguf.py",
    "tests/depth_mup/test_rules.py",
    "tests/resofilter/test_features.py",
    "tests/scen/test_bank_file.py",
    "tests/scen/test_attachment.py",
    "tests/lmcd/test_heads.py",
    "tests/cli/test_main.py",
    "tests/cli/test_check.py",
    "tests/cli/test_option_words.py",
    "tests/cli/problems",
    "tests/test_public_api.py",
)
_OUTCOME = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|deselected)")


def main() -> int:
    """Make the environments that were asked for, test in them, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--python", default=sys.executable, help="the Python to test on")
    parser.add_argument("--venvs", help="keep the environments in this folder, and use them again")
    parser.add_argument("--select", default="", help="pytest's -k, to look at one failure")
    parser.add_argument("--write", action="store_true", help="write the table and do nothing else")
    arguments = parser.parse_args()
    if not arguments.rows and not arguments.write:
        parser.error("name the rows to test")
    failed = False
    for row in arguments.rows:
        venvs = Path(arguments.venvs or tempfile.mkdtemp(prefix="versions-"))
        try:
            outcome = check(row, venvs, arguments.python, arguments.select)
        finally:
            if not arguments.venvs:
                shutil.rmtree(venvs, ignore_errors=True)
        failed = failed or outcome["failed"] > 0
        if not arguments.select:
            store(outcome)
    with atomic_write(PAGE) as file:
        file.write(with_table(PAGE.read_text(encoding="utf-8"), read()))
    return int(failed)


def requirements(row: str) -> list[str]:
    """Return what pip is to install for a row: all dependencies and extras that users can have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    found = {}
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name != project["name"]:  # an extra of our own; all are in EXTRAS
            found[requirement.name] = lowest(requirement) if row == "oldest" else str(requirement)
    return [*found.values(), *TOOLS]


def lowest(requirement: Requirement) -> str:
    """Pin a requirement to its lower bound.

    Raises:
        ValueError: It has none.
    """
    bounds = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    if len(bounds) != 1:
        raise ValueError(f"pyproject.toml: {requirement} has no lower bound")
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}=={bounds[0]}"


def check(row: str, venvs: Path, python: str, select: str) -> dict[str, Any]:
    """Install a row and test in it; return the row of the table."""
    folder = venvs / f"{row}-{Path(python).name}"
    executable = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"==> {row}: installing", flush=True)
        make_venv(folder, python)
        pinned = ["-c", str(ROOT / "constraints.txt")] if row == "pinned" else []
        seconds = pip_install(executable, *pinned, *requirements(row))
        (folder / "ready").touch()
        print(f"    {seconds:.0f} s", flush=True)
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    copy_committed(source)
    # its entry point and its metadata; the tests import the same files from the copy
    pip_install(executable, "--no-deps", "--force-reinstall", str(source))
    print(f"==> {row}: testing", flush=True)
    command: list[str | Path] = [executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # deprecations are the business of the pinned versions, which the whole suite runs on
    command += ["-m", "not slow", "-W", "default", "--durations=8", *TESTS]
    command += ["-k", select] if select else []
    started = time.monotonic()
    done = run_in(source, command, seconds=3600)
    print("\n".join(done.stdout.splitlines()[-60:]), flush=True)
    counts = {kind: int(number) for number, kind in _OUTCOME.findall(done.stdout.splitlines()[-1])}
    errors = counts.get("error", 0) + counts.get("errors", 0)
    if done.returncode not in (0, 1) or not counts:
        errors += 1
    return {
        "row": row,
        "python": versions(executable, "import platform; print(platform.python_version())"),
        "versions": installed(executable),
        "passed": counts.get("passed", 0),
        "skipped": counts.get("skipped", 0),
        "failed": counts.get("failed", 0) + errors,
        "seconds": round(time.monotonic() - started),
        "date": date.today().isoformat(),
    }


def installed(python: Path) -> dict[str, str]:
    """Return the versions of what a reader looks for."""
    done = run_in(ROOT.parent, [python, "-m", "pip", "list", "--format=json"])
    listed = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    found = {package["name"].lower(): package["version"] for package in listed}
    return {name: found[name] for name in SHOWN if name in found}


def versions(python: Path, code: str) -> str:
    """Return what a line of code prints."""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def read() -> list[dict[str, Any]]:
    """Return the rows that were measured so far."""
    return json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []


def store(outcome: dict[str, Any]) -> None:
    """Replace the row of the same name and minor version of Python."""

    def key(row: dict[str, Any]) -> tuple[int, list[int]]:
        return ROWS.index(row["row"]), [int(part) for part in row["python"].split(".")[:2]]

    rows = [row for row in read() if key(row) != key(outcome)]
    rows = sorted([*rows, outcome], key=key)
    write_json(RESULT, {"tests": list(TESTS), "rows": rows})


def with_table(page: str, rows: list[dict[str, Any]]) -> str:
    """Return the page with a new table between its two markers.

    Raises:
        ValueError: The page lacks a marker.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{PAGE.name} lacks the markers {START} and {END}")
    return f"{before}{START}\n{table(rows)}\n{END}{after}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    header = ["versions", "Python", *SHOWN, "passed", "failed", "skipped", "on"]
    lines = [
        [row["row"], row["python"]]
        + [row["versions"].get(name, "–") for name in SHOWN]
        + [str(row[key]) for key in ("passed", "failed", "skipped", "date")]
        for row in rows
    ]
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines]
    )


if __name__ == "__main__":
    sys.exit(main())
