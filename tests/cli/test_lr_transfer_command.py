"""``lightning-suite lr-transfer`` as a user types it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_suite.cli.main import main
from lightning_suite.cli.shipped import find_config

SMALL = [
    *("--depths", "2,4,8", "--rules", "sp,nfd:0.25", "--lrs", "2^-5..2^-2", "--seeds", "2"),
    *("--model.width", "16", "--steps", "40", "--final_steps", "10", "--extend", "0"),
]


def lr_transfer(out: Path, *more: str) -> int:
    return main(["lr-transfer", *SMALL, "--out", str(out), *more])


def runs(out: Path) -> bytes:
    return (out / "artifacts" / "lr_transfer_runs.csv").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert lr_transfer(out) == 0
    return out


def test_it_leaves_tables_figures_a_record_and_a_report(whole: Path) -> None:
    files = {path.name for path in (whole / "artifacts").iterdir()}
    tables = {f"lr_transfer_{name}.csv" for name in ("runs", "optima", "drift")}
    figures = {f"lr_transfer{name}.{kind}" for name in ("", "_optimum") for kind in ("svg", "png")}
    assert tables | figures <= files
    with (whole / "artifacts" / "lr_transfer_runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 4 * 2
    assert {row["rule"] for row in rows} == {"sp", "nfd:0.25"}
    assert "Best learning rate at every depth" in (whole / "report.html").read_text()
    assert (whole / "run.json").exists()


def test_it_prints_the_optima_and_the_finding(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lr_transfer(whole) == 0  # everything is finished: only drawn again
    out, err = capsys.readouterr()
    assert "L=8" in out
    assert "Under sp the best rate moved by" in out
    assert "from depth 2 to 8 (range over 2 seeds" in out
    assert str(whole / "report.html") in out
    assert err == ""


def test_killed_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_suite", "lr-transfer", *SMALL, "--out", tmp_path]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    chunks = tmp_path / "chunks"
    deadline = time.monotonic() + 240
    while not list(chunks.glob("*.csv")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(chunks.glob("*.csv"))) < 6
    assert not (tmp_path / "artifacts").exists()

    assert lr_transfer(tmp_path) == 0
    assert runs(tmp_path) == runs(whole)


def test_shards_end_in_the_same_table(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert lr_transfer(here, "--shard", "1/2") == 0
    assert lr_transfer(there, "--shard", "2/2") == 0
    assert "give the command without --shard" in capsys.readouterr().out
    assert lr_transfer(here, "--merge", f"[{there}]") == 0
    assert "3 finished chunks taken over" in capsys.readouterr().out
    assert runs(here) == runs(whole)


def test_other_settings_under_the_same_folder_are_refused(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lr_transfer(whole, "--steps", "41") == 2
    assert "steps: 40 in the folder, 41 now" in capsys.readouterr().err


def test_tables_and_figures_say_how_little_their_intervals_cover(whole: Path) -> None:
    entries = json.loads((whole / "artifacts/index.json").read_text())
    captions = {entry["name"]: entry["caption"] for entry in entries}
    for name in ("lr_transfer_drift", "lr_transfer_optima", "lr_transfer_optimum"):
        assert "no 95 % confidence interval" in captions[name]
        assert "75 % with 3 seeds" in captions[name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rules", "spp"], "unknown rule 'spp'. Did you mean 'sp'?"),
        (["--base_depth", "0"], "base_depth: 0, and a depth must be at least 1"),
        (["--lrs", "2^0..2^-3"], "Write the smaller rate first"),
        (["--depths", "2,deep"], "depths: '2,deep' is not a list of whole numbers"),
        (["--depths", "2.5"], "depths: '2.5' is not a list of whole numbers"),
        (["--seeds", "0"], "seeds: give at least one"),
        (["--shard", "3/2"], "shard: '3/2'; write 1/4"),
        (["--final_steps", "50"], "final_steps=50 of steps=40"),
        (["--optimizer.name", "lion"], "optimizer.name"),
        (["--model.activation", "tan"], "model.activation"),
        (["--batch_size", "100000"], "batch_size=100000"),
    ],
)
def test_bad_input_is_explained(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lr_transfer(tmp_path / "new", *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("lightning-suite: error: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["quickstart/depth_mup", "depth_mup/lr_transfer_digits"])
def test_the_shipped_configs_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--steps=4", "--final_steps=2", "--seeds=1", "--depths=2,3", "--extend=0"]
    assert main(["lr-transfer", "-c", name, *small, f"--out={tmp_path}"]) == 0
    assert (tmp_path / "report.html").exists()


def test_the_config_of_fashion_mnist_differs_only_in_the_data_and_its_rates() -> None:
    one, other = (
        yaml.safe_load(find_config(f"depth_mup/lr_transfer_{name}").read_text())
        for name in ("digits", "fashion_mnist")
    )
    assert {key for key in one if one[key] != other[key]} == {"out", "lrs", "seeds", "data"}
    assert other["data"]["init_args"]["source"] == "/usr/share/datasets/fashion-mnist"
