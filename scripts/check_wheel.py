"""Build the wheel, install it into an empty environment, and use it from an empty folder.

python scripts/check_wheel.py                  # a fresh environment: downloads all dependencies
python scripts/check_wheel.py --borrow PYTHON  # quicker: dependencies of that Python's environment

What a checkout hides is found here: a file that is not packaged, a module that only lies beside
the package, an import of something that nobody declared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from environments import ROOT, copy_committed, make_venv, pip_install, run_in

# What a user of the package must not get: rooms of the checkout.
PRIVATE = ("callbacks", "datamodules", "configs", "tests", "benchmarks", "scripts", "examples")
LONGEST_HELP = 50  # lines: one screen


class CheckError(Exception):
    """A check did not hold; the message says which and what was seen."""


def main() -> int:
    """Run all checks; print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--borrow", metavar="PYTHON", help="use this Python's installed packages")
    parser.add_argument("--extras", default="demo", help="extras to install (default: %(default)s)")
    parser.add_argument("--venv", metavar="FOLDER", help="make the environment here, and keep it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as name:
        folder = Path(name)
        try:
            wheel = build(folder)
            check_contents(wheel, folder / "source")
            python = install(wheel, folder, arguments)
            check_use(python, folder)
        except (CheckError, subprocess.CalledProcessError) as err:
            print(f"FAILED: {err}", file=sys.stderr)
            return 1
    print("all well")
    return 0


def build(folder: Path) -> Path:
    """Build the wheel from a copy of the last commit."""
    source, dist = copy_committed(folder / "source"), folder / "dist"
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist)]
    built = run_in(source, words)
    if built.returncode:
        raise CheckError(f"the wheel cannot be built:\n{built.stdout}")
    (wheel,) = dist.glob("*.whl")
    say(f"built {wheel.name}, {wheel.stat().st_size / 1024:.0f} KiB")
    return wheel


def check_contents(wheel: Path, source: Path) -> None:
    """Compare the names in the wheel with what the copied tree says must be there."""
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"lightning_suite/{p.relative_to(source)}" for p in source.glob("configs/*/*.yaml")}
    package = source / "lightning_suite"
    data = {
        str(path.relative_to(source))
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".py" and "configs" not in path.parts
    }
    missing = (configs | data) - names
    if missing or not configs or not data:
        raise CheckError(f"the wheel lacks {sorted(missing)}")
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if top != {"lightning_suite"}:
        raise CheckError(f"the wheel exposes {sorted(top)}, expected lightning_suite alone")
    say(f"holds {len(configs)} configs and {len(data)} data files, exposes lightning_suite alone")


def install(wheel: Path, folder: Path, options: argparse.Namespace) -> Path:
    """Make the environment and install the wheel into it."""
    borrowed, extras = options.borrow, options.extras
    venv = Path(options.venv or folder / "venv").resolve()
    python = make_venv(venv, borrowed or sys.executable)
    if borrowed:
        lend(Path(borrowed), python)
        pip_install(python, "--no-deps", str(wheel))
        say(f"installed beside the packages of {borrowed}")
    else:
        constraints = ROOT / "constraints.txt"
        seconds = pip_install(python, "-c", str(constraints), f"{wheel}[{extras}]")
        say(
            f"installed with [{extras}] and all it needs into an empty environment, {seconds:.0f} s"
        )
    where = run_in(folder, [python, "-c", "import lightning_suite as s; print(s.__file__)"])
    if str(venv) not in where.stdout:
        raise CheckError(f"lightning_suite comes from {where.stdout}")
    return python


def lend(lender: Path, python: Path) -> None:
    """Let an environment see another one's packages, this project's own checkout excepted.

    A .pth file adds the folder to the path; .pth files in there, an editable install's among them,
    are not read.
    """
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs, ours = (
        run_in(ROOT.parent, [each, "-c", ask]).stdout.strip() for each in (lender, python)
    )
    Path(ours, "borrowed.pth").write_text(theirs + "\n")


def check_use(python: Path, folder: Path) -> None:
    """List, copy, check and fit from an empty folder, as somebody would who has only the wheel."""
    empty = folder / "empty"
    empty.mkdir()
    program = python.with_name("lightning-suite")

    def suite(*words: str) -> str:
        done = run_in(empty, [program, *words])
        if done.returncode:
            raise CheckError(
                f"lightning-suite {' '.join(words)} ended with {done.returncode}:\n{done.stdout}"
            )
        return done.stdout

    lines = suite("--help").splitlines()
    if len(lines) > LONGEST_HELP:
        raise CheckError(f"--help has {len(lines)} lines, at most {LONGEST_HELP} fit on a screen")
    say(f"--help: {len(lines)} lines")
    listed = suite("list")
    if "depth_mup/digits" not in listed or "overlays/wandb" not in listed:
        raise CheckError(f"list does not show the configs:\n{listed}")
    suite("cp", "depth_mup/digits", "mine.yaml")
    suite("check", "mine.yaml", "overlays/feature_dynamics")
    suite("doctor")
    say("list, cp, check and doctor work in an empty folder")
    suite("fit", "-c", "mine.yaml", "--trainer.max_steps=5", "--trainer.accelerator=cpu")
    run = empty / "lightning_logs/version_0"
    if json.loads((run / "run.json").read_text())["state"] != "finished":
        raise CheckError(f"{run}/run.json does not say that the run has finished")
    suite("report", "lightning_logs/version_0")
    if "<style>" not in (run / "report.html").read_text():
        raise CheckError("report.html has no style: page.css is not packaged")
    say("fit on the copy trains (digits, 5 steps), report draws its page")
    for name in PRIVATE:
        if run_in(empty, [python, "-c", f"import {name}"]).returncode == 0:
            raise CheckError(f"`import {name}` works: the wheel exposes a room of the checkout")
    say(f"cannot be imported: {', '.join(PRIVATE)}")


def say(text: str) -> None:
    """Print one line at once."""
    print(f"- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
