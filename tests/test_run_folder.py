from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import Artifact, RunFolder


def a_figure(height: float = 1.0) -> Figure:
    figure = Figure(figsize=(2, 2))
    figure.add_subplot().plot([0, 1], [0, height], marker="o")
    return figure


def test_a_table_is_a_csv_file_and_an_entry_of_the_index(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    path = folder.add_table(
        "slopes", [{"rule": "sp", "slope": 0.5}], title="Slopes", caption="Of what", section="Check"
    )
    assert path == tmp_path / "run" / "artifacts" / "slopes.csv"
    assert path.read_text() == "rule,slope\nsp,0.5\n"
    assert json.loads((folder.artifacts / "index.json").read_text()) == [
        {
            "name": "slopes",
            "kind": "table",
            "files": ["slopes.csv"],
            "title": "Slopes",
            "caption": "Of what",
            "section": "Check",
        }
    ]


def test_a_figure_is_written_as_svg_and_png(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    path = folder.add_figure("curve", a_figure(), title="A curve")
    assert path.read_text().startswith("<?xml")
    assert (folder.artifacts / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert folder.index() == [Artifact("curve", "figure", ("curve.svg", "curve.png"), "A curve")]


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "1").add_figure("curve", a_figure(), title="")
    second = RunFolder(tmp_path / "2").add_figure("curve", a_figure(), title="")
    other = RunFolder(tmp_path / "3").add_figure("curve", a_figure(2.0), title="")
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    assert b"<text" not in first.read_bytes()  # glyphs are paths: no fonts of the reader's machine


def test_a_second_artifact_of_the_same_name_and_kind_replaces_the_first_in_place(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    folder.add_table("a", [{"x": 1}], title="old")
    folder.add_table("b", [{"x": 1}], title="b")
    folder.add_table("a", [{"x": 2}], title="new")
    folder.add_figure("a", a_figure(), title="a figure may share the name of its table")
    titles = [artifact.title for artifact in folder.index()]
    assert titles == ["new", "b", "a figure may share the name of its table"]
    assert (folder.artifacts / "a.csv").read_text() == "x\n2\n"


def test_two_writers_of_one_folder_keep_each_others_entries(tmp_path: Path) -> None:
    one, other = RunFolder(tmp_path), RunFolder(tmp_path)
    one.add_table("a", [{"x": 1}], title="a")
    other.add_table("b", [{"x": 1}], title="b")
    assert [artifact.name for artifact in one.index()] == ["a", "b"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", ".hidden", "-x", "a b", "x" * 101])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(SuiteError, match="Artifact name .* use letters, digits"):
        folder.add_table(name, [{"x": 1}], title="")
    with pytest.raises(SuiteError, match="Artifact name"):
        folder.add_figure(name, a_figure(), title="")
    assert list(tmp_path.iterdir()) == []


GOOD = {"name": "a", "kind": "table", "files": ["a.csv"], "title": "A"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("\udcff", "not readable as JSON"),
        ("{}", "expected a list"),
        ("[1]", "entry 1: expected an object"),
        ([GOOD, GOOD | {"title": 3}], "entry 2: 'title' must be text, not 3"),
        ([GOOD | {"kind": "film"}], "'kind' must be 'table' or 'figure', not 'film'"),
        ([GOOD | {"files": []}], "'files' must be a list"),
        ([GOOD | {"files": ["../../etc/passwd"]}], "'../../etc/passwd' is not a plain file name"),
        ([GOOD | {"files": ["/etc/passwd"]}], "not a plain file name"),
        ([GOOD | {"files": [None]}], "None is not a plain file name"),
        ([GOOD | {"name": '"><b>'}], "not a plain file name"),
    ],
)
def test_a_damaged_index_is_named_and_not_overwritten(
    tmp_path: Path, content: Any, message: str
) -> None:
    folder = RunFolder(tmp_path)
    folder.artifacts.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    index = folder.artifacts / "index.json"
    index.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SuiteError) as caught:
        folder.index()
    assert str(index) in str(caught.value)
    assert message in str(caught.value)
    with pytest.raises(SuiteError):
        folder.add_table("b", [{"x": 1}], title="b")
    assert index.read_bytes() == text.encode(errors="surrogateescape")


def test_a_folder_without_anything_has_an_empty_index_and_record(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "none").index() == []
    assert RunFolder(tmp_path / "none").record() == {}


def test_the_record_says_how_the_run_was_made(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_record(command=["lightning-suite", "fit"], seed=7, config="a: 1\n", note="Why")
    record = folder.record()
    assert record["command"] == ["lightning-suite", "fit"]
    assert (record["seed"], record["config"], record["note"]) == (7, "a: 1\n", "Why")
    assert {"python", "torch", "lightning", "lightning-suite"} <= set(record["versions"])
    assert record["time"].endswith("+00:00")
    assert record["cores"] >= 1


def test_a_record_does_not_load_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from lightning_suite.run_folder import RunFolder;"
        f"RunFolder({str(tmp_path)!r}).write_record(command=['x'], seed=None, config=None);"
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
    assert RunFolder(tmp_path).record()["threads"] is None


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(SuiteError, match=r"run\.json: expected a JSON object"):
        RunFolder(tmp_path).record()


def test_a_record_that_was_begun_is_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish()  # nothing was begun
    assert list(tmp_path.iterdir()) == []
    folder.write_record(command=["fit"], seed=1, config="a: 1", state="running")
    assert folder.record()["state"] == "running"
    before = folder.record()
    folder.finish()
    assert folder.record() == before | {
        "state": "finished",
        "stopped_by": "",
        "ended": folder.record()["ended"],
    }
    folder.finish("KeyboardInterrupt")
    assert (folder.record()["state"], folder.record()["stopped_by"]) == (
        "stopped",
        "KeyboardInterrupt",
    )


def test_a_run_that_begins_tidies_up_after_killed_ones_beside_it(tmp_path: Path) -> None:
    halves = [
        tmp_path / "version_0" / ".run.json.abcdefgh.suite-partial",
        tmp_path / "version_0" / "artifacts" / ".t.csv.abcdefgh.suite-partial",
        tmp_path / "version_0" / "checkpoints" / ".last.ckpt.abcdefgh.suite-partial",
        tmp_path / "version_0" / "gradient_features" / ".manifest.json.abcdefgh.suite-partial",
        tmp_path / "version_0/gradient_features/shards/.rank0-000000.parquet.abc.suite-partial",
    ]
    for half in halves:
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_text("{")
    new = RunFolder(tmp_path / "version_1")
    new.write_record(command=["a"], seed=0, config=None, state="running")
    assert not any(half.exists() for half in halves)
    assert (tmp_path / "version_0" / "artifacts").is_dir()
