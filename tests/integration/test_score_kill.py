"""Scoring through the shell: killed and continued, and on several processes, to the same bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_scoring import rows, write_config

from lightning_suite.cli.main import main
from lightning_suite.resofilter.store import shard_files

SAMPLES, PER_BATCH, PER_SHARD = 61, 2, 4
COMMAND = [sys.executable, "-m", "lightning_suite", "score", "-c", "score.yaml"]
# The process stands still in the middle of a batch, when some samples are scored and not written.
STANDS_AT = 12
STANDS = f"""
import sys, time
from lightning_suite.cli.main import main
from lightning_suite.resofilter.language_probe import CausalLMProbe

score, batches = CausalLMProbe.score_batch, []
def score_or_stand(self, batch):
    batches.append(batch)
    if len(batches) == {STANDS_AT}:
        time.sleep(600)
    return score(self, batch)
CausalLMProbe.score_batch = score_or_stand
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, *args: str, command: list[str] = COMMAND) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, err
    return out


def scored_ids(folder: Path) -> Counter[str]:
    return Counter(
        sample_id
        for path in shard_files(folder)
        for sample_id in pq.read_table(path, columns=["sample_id"])["sample_id"].to_pylist()
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, config and the scores of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("scoring")
    data: list[dict[str, Any]] = [
        {**row, "id": f"{n:03}"} for n, row in enumerate(rows(30) * 3) if n < SAMPLES
    ]
    config = write_config(folder, data, batch_samples=PER_BATCH, rows_per_shard=PER_SHARD)
    assert main(["score", "-c", str(config), "--out", str(folder / "whole")]) == 0
    return folder


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes_and_scores_nothing_twice(
    whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", STANDS, *COMMAND[3:]]
    process = start(whole, "--out", "killed", command=command)
    written = (STANDS_AT - 1) * PER_BATCH // PER_SHARD
    deadline = time.monotonic() + 240
    while len(shard_files(whole / "killed")) < written:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = {path: path.read_bytes() for path in shard_files(whole / "killed")}
    done = scored_ids(whole / "killed")
    assert len(done) == written * PER_SHARD < (STANDS_AT - 1) * PER_BATCH, "some were not written"
    assert not (whole / "killed" / "scores.parquet").exists()

    capfd.readouterr()
    assert main(["score", "-c", str(whole / "score.yaml"), "--out", str(whole / "killed")]) == 0
    out = capfd.readouterr().out
    now, earlier = (int(n) for n in re.findall(r"(\d+) samples scored now, (\d+) before", out)[0])
    assert (now, earlier) == (SAMPLES - len(done), len(done))
    after = scored_ids(whole / "killed")
    assert len(after) == SAMPLES
    assert set(after.values()) == {1}, "nothing is scored twice"
    assert all(path.read_bytes() == content for path, content in before.items())
    merged = (whole / "killed" / "scores.parquet").read_bytes()
    assert merged == (whole / "whole" / "scores.parquet").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices", "torchrun"])
def test_two_processes_score_each_sample_once_to_the_same_bytes(whole: Path, launcher: str) -> None:
    if launcher == "devices":
        process = start(whole, "--out", launcher, "--devices", "2")
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        process = start(
            whole, "--out", launcher, command=[*torchrun, "--nproc-per-node=2", *COMMAND[1:]]
        )
    finish(process)
    shards = Counter(path.name[:5] for path in shard_files(whole / launcher))
    assert set(shards) == {"rank0", "rank1"}
    ids = scored_ids(whole / launcher)
    assert len(ids) == SAMPLES
    assert set(ids.values()) == {1}
    merged = (whole / launcher / "scores.parquet").read_bytes()
    assert merged == (whole / "whole" / "scores.parquet").read_bytes()


@pytest.mark.slow
def test_a_refusal_ends_all_processes_with_one_message(whole: Path) -> None:
    process = start(whole, "--out", "whole", "--devices", "2", "--seed_everything", "1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("lightning-suite: error:") == 1
    assert "the scores in this folder were made with other weights of the model" in err
    assert "Traceback" not in err
