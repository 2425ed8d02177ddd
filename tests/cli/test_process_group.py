"""A command's process group ends before Python does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from lightning_suite.cli.process_group import process_group_ended

RANKS = 2
PROCESS = """\
import sys
import torch
import torch.distributed as dist
from lightning_suite.cli.process_group import process_group_ended

rank, ranks, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with process_group_ended():
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for _ in range(3_000):  # so many that some are under way while Python ends
        dist.all_reduce(torch.ones(1_000), async_op=True)
"""


def begin(folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)


@pytest.fixture(autouse=True)
def _no_group_after() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_without_a_group_nothing_happens() -> None:
    with process_group_ended():
        pass
    assert not dist.is_initialized()


def test_a_group_that_began_inside_is_ended(tmp_path: Path) -> None:
    with process_group_ended():
        begin(tmp_path)
    assert not dist.is_initialized()


def test_a_group_that_was_there_before_stays(tmp_path: Path) -> None:
    begin(tmp_path)
    with process_group_ended():
        assert dist.is_initialized()
    assert dist.is_initialized()


def test_after_an_error_nothing_is_waited_for(tmp_path: Path) -> None:
    def work() -> None:
        with process_group_ended():
            begin(tmp_path)
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert dist.is_initialized()


@pytest.mark.slow
def test_collectives_that_are_under_way_at_the_end_end_no_process_badly(tmp_path: Path) -> None:
    """Without the guard most of these processes end by "terminate called", status -6."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(RANKS), str(tmp_path / "store")],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(RANKS)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * RANKS, errors
