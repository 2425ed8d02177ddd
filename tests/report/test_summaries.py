"""What an index says of one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_suite.errors import SuiteError
from lightning_suite.report.summaries import better, flat, summarise
from lightning_suite.run_folder import RunFolder


@pytest.mark.parametrize(
    ("name", "table", "rows", "method", "figures"),
    [
        (
            "depth-muP sweep",
            "lr_transfer_drift",
            [{"rule": "sp", "octaves_in_total": -2.5}, {"rule": "nfd", "octaves_in_total": ""}],
            "depth-muP",
            {"drift of sp (octaves)": -2.5},
        ),
        (
            "coordinate check",
            "coord_check_slopes",
            [
                {"rule": "sp", "step": 1, "deviation": -0.5},
                {"rule": "sp", "step": 1, "deviation": 0.2},
                {"rule": "sp", "step": 2, "deviation": 9},
            ],
            "depth-muP",
            {"largest deviation of sp": 0.5},
        ),
        (
            "scores",
            "resofilter_status",
            [
                {"status": "ok", "samples": 40},
                {"status": "truncated", "samples": 2},
                {"status": "no_labels", "samples": 3},
            ],
            "ResoFilter",
            {"scored samples": 42},
        ),
        (
            "edits",
            "scen_summary",
            [
                {"system": "expert_gate", "edits": 50, "reliability": 1, "locality": ""},
                {"system": "grace", "edits": 50, "reliability": 0, "locality": 0},
            ],
            "SCEN",
            {"edits": 50, "reliability": 1},
        ),
        (
            "answers",
            "scen_answers",
            [{"prompt": "a", "fired": "e1"}, {"prompt": "b", "fired": None}],
            "SCEN",
            {"questions": 2, "questions answered by an edit": 1},
        ),
        (
            "diagnosis",
            "lmcd_scores",
            [{"system": "lmcd", "auc": 0.7}, {"system": "floor", "auc": 0.6}],
            "LMCD",
            {"AUC": 0.7, "floor AUC": 0.6},
        ),
    ],
)
def test_every_method_has_its_main_figures(
    tmp_path: Path,
    name: str,
    table: str,
    rows: list[dict[str, object]],
    method: str,
    figures: dict[str, float],
) -> None:
    RunFolder(tmp_path).add_table(table, rows, title="T")
    summary = summarise(tmp_path)
    assert summary.problem == ""
    assert summary.methods == (method,)
    assert summary.figures == figures


def test_a_fit_shows_what_its_module_logs_but_no_learning_rates(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,train_loss,lr-SGD,lmcd/val_auc,depth_mup/rms/block_0\n0,2,0.1,,1\n1,nan,0.1,0.6,2\n"
    )
    figures = dict(summarise(tmp_path).figures)
    assert str(figures.pop("train_loss")) == "nan"  # a finding
    assert figures == {"lmcd/val_auc": 0.6}


def test_the_method_is_also_read_off_the_classes_of_the_configuration(tmp_path: Path) -> None:
    config = "trainer:\n  callbacks:\n  - class_path: lightning_suite.DepthMuPLRCallback\n"
    config += "  - class_path: GradientFeatureCallback\nnote: LMCDModule\n"
    RunFolder(tmp_path).write_record(command=["x", "fit"], seed=0, config=config)
    assert summarise(tmp_path).methods == ("depth-muP", "ResoFilter")


def test_damage_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add_table("lmcd_scores", [{"system": "lmcd", "auc": "high"}], title="T")
    folder.write_record(command=["x", "fit"], seed=0, config="a: [1")
    (tmp_path / "metrics.csv").write_text("step,a\n1,x\n")
    summary = summarise(tmp_path)
    assert "metrics.csv, row 2, column 'a': expected a number" in summary.problem
    assert "column 'auc': expected a number, found 'high'" in summary.problem
    assert "Configuration of the run: while parsing" in summary.problem
    assert summary.methods == ("LMCD",)
    (tmp_path / "run.json").write_text("[]")
    assert summarise(tmp_path).run is None
    assert "run.json: expected a JSON object" in summarise(tmp_path).problem


@pytest.mark.parametrize(
    ("name", "pick"),
    [
        ("val_loss", min),
        ("train_loss_epoch", min),
        ("lmcd/val_ece", min),
        ("lmcd/val_auc", max),
        ("AUC", max),
        ("locality", max),
        ("floor AUC", max),
        ("glossary", None),
        ("train_step", None),
        ("edits", None),
    ],
)
def test_what_is_better_is_read_off_the_name_or_left_open(name: str, pick: object) -> None:
    assert better(name) is pick


def test_a_configuration_is_compared_by_class_and_argument_not_by_place_in_a_list() -> None:
    config = {
        "seed": 0,
        "empty": "",
        "none": None,
        "trainer": {
            "callbacks": [
                {"class_path": "a.B", "init_args": {"x": [1, True, None]}},
                {"class_path": "c.D"},
                {"class_path": "c.D"},
            ]
        },
        "model": {"class_path": "my.Net", "init_args": {"width": 4}},
    }
    assert flat(config) == {
        "seed": "0",
        "empty": "''",
        "none": "null",
        "trainer.callbacks.B": "yes",
        "trainer.callbacks.B.x": "[1, true, null]",
        "trainer.callbacks.1": "D",
        "trainer.callbacks.2": "D",
        "model": "Net",
        "model.width": "4",
    }


def test_a_configuration_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    loop: dict[str, object] = {}
    loop["again"] = loop
    with pytest.raises(SuiteError, match="too large"):
        flat(loop)
    laughs = "a: &a [{x: 1}, {x: 1}]\n" + "".join(
        f"{new}: &{new} [*{old}, *{old}, *{old}, {{}}]\n"
        for old, new in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
    )
    (tmp_path / "run.json").write_text(json.dumps({"config": laughs}))
    assert "too large" in summarise(tmp_path).problem


def test_lists_that_aliases_make_endless_are_refused() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(SuiteError, match="too large to be compared"):
        flat(yaml.safe_load("\n".join(lines)))


def test_lists_in_lists_are_written_as_yaml_does() -> None:
    assert flat({"a": [1, [2, None, True], ""], "b": []}) == {
        "a": "[1, [2, null, true], '']",
        "b": "[]",
    }
