"""Whatever something is called: it is shown, is no markup, and breaks neither page nor figure."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from hostile_run import NAMES, hostile_run
from test_page import Page, assert_self_contained

from lightning_suite.report.index import write_index
from lightning_suite.report.page import write_report
from lightning_suite.run_folder import RunFolder

UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\uffff\ud800-\udfff]")


@pytest.mark.parametrize("kind", NAMES)
def test_a_run_of_all_methods_is_shown_whatever_its_parts_are_called(
    tmp_path: Path, kind: str
) -> None:
    page = Page(write_report(hostile_run(tmp_path / "run", NAMES[kind])))
    assert_self_contained(page)
    assert not UNSEEN.search(page.source)
    assert "Not shown" not in page.text
    assert page.count("img") == 0
    assert page.count("script") == page.count("h1") == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.source) < 8_000_000


def test_a_control_character_in_a_metric_is_shown_as_its_escape(tmp_path: Path) -> None:
    """It is in the curve's legend, too, where XML would not have it."""
    (tmp_path / "metrics.csv").write_text("step,m/a/b\x01,m/a/c\n0,1,2\n1,2,3\n", encoding="utf-8")
    page = Page(write_report(tmp_path))
    assert page.count("svg") == 1
    assert r"m/a/b\x01" in page.text


def test_groups_that_differ_in_signs_only_do_not_share_ids(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,a b/c,a-b/c\n0,1,2\n1,2,3\n", encoding="utf-8")
    page = Page(write_report(tmp_path))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert page.count("svg") == 2
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_folders_and_files_whose_names_are_no_text_are_linked(tmp_path: Path) -> None:
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    RunFolder(run).add_table("t", [{"x": 1}], title="T")
    (run / os.fsdecode(b"artifacts/\xfe.bin")).write_text("x")
    page = Page(write_report(run))
    assert ("h1", r"run\udcff") in page.headings
    assert 'href="artifacts/%FE.bin"' in page.source
    index = Page(write_index([tmp_path], tmp_path / "index.html"))
    assert 'href="run%FF/report.html"' in index.source


def test_half_characters_in_a_configuration_do_not_stop_an_index(tmp_path: Path) -> None:
    for name, value in (("a", r"\ud83d"), ("b", r"\ud83e")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hparams.yaml").write_text(f'name: "{value}"\n')
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    assert r"\ud83d" in page.text


@pytest.mark.skipif(sys.platform != "linux", reason="arguments are bytes on Linux only")
def test_a_command_with_a_file_name_that_is_no_text_is_recorded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    command = ["lightning-suite", "fit", os.fsdecode(b"\xff.yaml")]
    folder.write_record(command=command, seed=0, config=None, state="running")
    folder.finish(stopped_by="FileNotFoundError: \udcff.yaml")
    assert folder.record()["command"][-1] == r"\udcff.yaml"
    assert folder.record()["stopped_by"] == r"FileNotFoundError: \udcff.yaml"
    assert r"\udcff.yaml" in Page(write_report(tmp_path)).text
