"""``lightning-suite coord-check`` as a user runs it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lightning_suite.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs" / "depth_mup"
SMALL = ["--depths=2,4", "--seeds=1", "--steps=2", "--model.init_args.width=16"]


@pytest.fixture
def check(tmp_path, monkeypatch, capfd):
    """Run the command in an empty folder; returns status, output and errors."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)

    def run(*args, config="coord_check_mlp.yaml"):
        status = main(["coord-check", "-c", str(CONFIGS / config), "--out=out", *args])
        return status, *capfd.readouterr()

    return run


def read(name):
    with Path("out", "artifacts", name).open() as file:
        return list(csv.DictReader(file))


def test_a_check_leaves_tables_figure_and_report(check):
    status, out, _ = check(*SMALL, "--tolerance=null", "--rules=depth_mup,nfd")
    assert status == 0
    slopes = read("coord_check_slopes.csv")
    assert {row["rule"] for row in slopes} == {"depth_mup", "nfd"}
    assert {row["step"] for row in slopes} == {"1", "2"}
    runs = read("coord_check_runs.csv")
    assert len(runs) == 2 * 2 * 2  # rules, depths, steps
    assert all(float(row["first_update"]) > 0 for row in runs)
    assert Path("out/artifacts/coord_check_depth.svg").stat().st_size > 10_000
    assert Path("out/report.html").is_file()
    assert "nfd        first_stream" in out


def test_at_the_base_depth_all_rules_are_the_same_net(check):
    """So their first rows agree to the last digit: factors, multipliers and seeds are right."""
    check(*SMALL, "--tolerance=null", "--base_depth=2")
    first = [row for row in read("coord_check_runs.csv") if row["size"] == "2"]
    assert len({row["rule"] for row in first}) == 3
    assert len({(row["step"], row["first_update"], row["loss"]) for row in first}) == 2


def test_status_is_one_where_a_slope_is_outside_and_the_report_says_by_how_much(check):
    status, out, _ = check(*SMALL, "--tolerance=0.0001", "--rules=nfd")
    assert status == 1
    judged = [row for row in read("coord_check_slopes.csv") if row["verdict"]]
    assert {(row["step"], row["verdict"]) for row in judged} == {("1", "outside")}
    assert len(judged) == 4
    for row in judged:  # the number of the table, and not what it is beyond the tolerance
        assert f"outside: off by {float(row['deviation']):+.2f}" in out
    worst = max(abs(float(row["deviation"])) for row in judged)
    said = f"4 of 4 judged slopes are further than 0.0001 from what is expected, by {worst:.2f} at"
    page = Path("out/report.html").read_text(encoding="utf-8")
    for where in (out, page):
        assert said in where
        assert "more seeds and larger depths" in where


def test_within_the_tolerance_the_page_says_so_and_advises_nothing(check):
    status, out, _ = check(*SMALL, "--tolerance=10", "--rules=nfd")
    assert status == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    for where in (out, page):
        assert "all 4 judged slopes are within 10" in where
        assert "What to try" not in where


def test_a_stopped_check_goes_on_where_it_was(check):
    args = [*SMALL, "--tolerance=null", "--rules=nfd"]
    check(*args)
    before = read("coord_check_runs.csv")
    store = Path("out/coord_check.json")
    saved = json.loads(store.read_text())
    saved["runs"]["depth/nfd/2/0"][0]["loss"] = 123.0  # a mark that a second run would remove
    del saved["runs"]["depth/nfd/4/0"]
    store.write_text(json.dumps(saved))
    check(*args)
    after = read("coord_check_runs.csv")
    assert after[0]["loss"] == "123.0"
    assert after[1:] == before[1:]
    _, _, err = check(*args, "--lr=0.02")
    assert "made with other settings, starting anew" in err
    assert read("coord_check_runs.csv")[0]["loss"] != "123.0"


def test_widths_are_a_second_check(check):
    args = ["--rules=depth_mup", "--widths=16,64", "--tolerance=0.3"]
    _, out, _ = check(*SMALL[:3], *args)
    widths = [row for row in read("coord_check_slopes.csv") if row["axis"] == "width"]
    assert {row["expected"] for row in widths} == {"0.0", ""}
    assert "width  depth_mup  last_update" in out


def test_a_llama_from_scratch(check):
    pytest.importorskip("transformers")
    status, _, _ = check(
        "--depths=1,2", "--seeds=1", "--steps=1", "--rules=nfd", config="coord_check_llama.yaml"
    )
    assert status == 0
    assert {row["quantity"] for row in read("coord_check_slopes.csv")} >= {
        "first_update",
        "last_update",
        "first_stream",
        "last_stream",
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rules=depth_mupp"], "unknown rule 'depth_mupp'. Did you mean 'depth_mup'?"),
        (["--depths=4"], "two or more different numbers"),
        (["--depths=4,x"], "depths: '4,x' is not a list of whole numbers"),
        (["--depths="], "two or more different numbers"),
        (["--seeds=1000"], "the data has only"),
        (["--model.class_path=ResidualNetModul"], "ResidualNetModul"),
        (["--model.init_args.widht=8"], "widht"),
        (["--model.init_args.readout_init=zero"], "use readout_init: normal"),
        (["--base_depth=0"], "base_depth=0, and it must be at least 1"),
        (["--widths=8,16", "--base_width=0"], "base_width=0, and it must be at least 1"),
        (["--lr=0"], "lr=0.0, and it must be above 0"),
        (["--lr=1e200"], "training has diverged: under 'nfd' at depth 2 the loss is nan"),
        (["--tolerance=-1"], "tolerance=-1.0; it must be at least 0"),
        (["--model.init_args.block_depth=3"], "ResidualNetModule: block_depth=3; a branch has"),
        (["--depth_key=model.init_args.nett.depth"], "there is no 'nett' in the config"),
    ],
)
def test_mistakes_are_explained(check, args, message):
    status, _, err = check("--depths=2,4", "--seeds=1", "--steps=1", "--rules=nfd", *args)
    assert status == 2
    assert message in err


def test_a_check_that_judges_nothing_says_so(check):
    status, out, _ = check(*SMALL, "--rules=sp,mup")
    assert status == 0
    assert "nothing was judged" in out


def test_model_and_data_are_asked_for(capfd):
    assert main(["coord-check"]) == 2
    assert "needs the sections `model` and `data`" in capfd.readouterr().err
