"""A disk that is full or not ours ends every command in one message, and loses nothing."""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_scoring import rows, write_config

from lightning_suite.cli.disk_errors import explain_disk_error
from lightning_suite.cli.main import main
from lightning_suite.files import atomic_write

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*nothing to learn within max_length"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

FULL = "No space left on device"
REPLACE = Path.replace


class Disk:
    """Counts what is written, and is full from the n-th file on.

    Attributes:
        written: Names of the files, the one that failed included.
    """

    def __init__(self, full_at: int | None) -> None:
        self.written: list[str] = []
        self._full_at = full_at

    def replace(self, source: Path, target: Path) -> Path:
        self.written.append(Path(target).name)
        if len(self.written) - 1 == self._full_at:
            raise OSError(errno.ENOSPC, FULL)
        return REPLACE(source, target)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], Disk]:
    """Return a function that makes the disk full at the n-th file."""

    def full(at: int | None) -> Disk:
        made = Disk(at)
        monkeypatch.setattr(Path, "replace", lambda *names: made.replace(*names))  # noqa: PLW0108 (binds)
        return made

    return full


def test_score_goes_on_after_a_full_disk_at_any_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, disk: Any
) -> None:
    figures = "lightning_suite.report.resofilter_figures.describe_scores"
    monkeypatch.setattr(figures, lambda folder, *_: folder.add_table("t", [{"a": 1}], title="T"))
    config = str(write_config(tmp_path, rows(4), rows_per_shard=2, batch_samples=2))
    whole = disk(None)
    assert main(["score", "-c", config, "--out", str(tmp_path / "whole")]) == 0
    wanted = (tmp_path / "whole" / "scores.parquet").read_bytes()
    assert {"manifest.json", "source.json", "contents.parquet", "run.json"} <= {*whole.written}
    assert {"scores.parquet", "t.csv", "index.json", "report.html"} <= {*whole.written}
    for number, name in enumerate(whole.written):
        out = tmp_path / str(number)
        disk(number)
        assert main(["score", "-c", config, "--out", str(out)]) == 2, name
        err = capfd.readouterr().err
        assert f"{out / 'shards' / name if name[:4] == 'rank' else name}" in err
        assert FULL in err
        assert "same command again" in err
        assert "Traceback" not in err
        assert not list(out.rglob(".*")), "nothing half written"
        disk(None)
        assert main(["score", "-c", config, "--out", str(out)]) == 0, name
        assert (out / "scores.parquet").read_bytes() == wanted, name


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes: the system refuses, nothing else."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("size", [0, 1000, 1800])
def test_fit_says_what_could_not_be_written(
    size: int, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # the log is such a file here
    with small_files(size):
        assert main(["fit", "-c", "base.yaml"]) == 2
    err = capsys.readouterr().err
    assert "lightning-suite: error: " in err
    assert "File too large" in err
    assert "--ckpt_path to go on from the last checkpoint" in err
    assert "Traceback" not in err
    assert main(["fit", "-c", "base.yaml"]) == 0


def test_what_is_printed_may_not_fit_either(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 (not a file)
        monkeypatch.setattr("sys.stdout", full)
        assert main(["list"]) == 2
        assert f"what is printed: {FULL}" in capsys.readouterr().err


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "here").write_text("mine")
    config = str(write_config(tmp_path, rows(3)))
    assert main(["score", "-c", config, "--out", str(tmp_path / "here" / "scores")]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'here' / 'scores'}: Not a directory" in err
    assert (tmp_path / "here").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="Linux has such a file system")
@pytest.mark.parametrize("name", ["/proc/x.yaml", "/proc/y/x.yaml"])
def test_a_file_system_that_takes_no_files_is_named(name: str, capsys: Any) -> None:
    assert main(["cp", "depth_mup/digits", name]) == 2
    err = capsys.readouterr().err
    assert f"{name}: no file can be made there" in err
    assert "suite-partial" not in err


def test_a_source_that_is_not_there_is_not_the_target_s_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "b.txt").read_text()


def test_an_atomic_write_names_its_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic_write(tmp_path / "a.txt") as file:
            file.write("half")
            raise OSError(errno.ENOSPC, FULL)

    with pytest.raises(OSError, match=FULL) as info:
        write_half()
    assert info.value.filename == str(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_errors_that_libraries_make_of_a_full_disk_are_known(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")

    def save_checkpoint() -> None:
        with atomic_write(tmp_path / "x.ckpt", "wb") as file:
            torch.save({"a": torch.zeros(9000)}, file)

    def save_tensors() -> None:
        safetensors.save_file({"a": torch.zeros(9000)}, tmp_path / "x.safetensors")

    for save in (save_checkpoint, save_tensors):
        with small_files(5000), pytest.raises(Exception) as info:  # noqa: PT011 (of any kind)
            save()
        assert "File too large" in str(explain_disk_error(info.value, "fit"))


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain_disk_error(FileNotFoundError(errno.ENOENT, "No such file"), "fit") is None
    assert explain_disk_error(OSError("no number"), "fit") is None
    assert explain_disk_error(RuntimeError("shapes"), "fit") is None
    monkeypatch.setenv("LIGHTNING_SUITE_TRACEBACK", "1")

    def denied(_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x")

    monkeypatch.setattr("lightning_suite.cli.main._dispatch", denied)
    with pytest.raises(PermissionError):
        main(["list"])
    monkeypatch.delenv("LIGHTNING_SUITE_TRACEBACK")
    assert main(["list"]) == 2
