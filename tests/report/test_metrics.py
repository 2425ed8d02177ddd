from __future__ import annotations

import math
from pathlib import Path

import pytest

from lightning_suite.errors import SuiteError
from lightning_suite.report.metrics import Panel, panels, read_metrics


def write(folder: Path, text: str) -> Path:
    path = folder / "metrics.csv"
    path.write_text(text, newline="")
    return path


def test_sparse_columns_become_series_without_gaps(tmp_path: Path) -> None:
    metrics = read_metrics(
        write(tmp_path, "epoch,step,train_loss,val_loss\n0,4,2.5,\n0,9,1e-1,\n0,9,,0.75\n")
    )
    assert set(metrics.series) == {"train_loss", "val_loss"}
    assert metrics.series["train_loss"].steps == [4.0, 9.0]
    assert metrics.series["train_loss"].values == [2.5, 0.1]
    assert metrics.series["val_loss"].steps == [9.0]
    assert not metrics.torn


def test_columns_that_never_got_a_value_are_left_out(tmp_path: Path) -> None:
    assert read_metrics(write(tmp_path, "step,a,b\n1,2,\n")).series.keys() == {"a"}


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    values = read_metrics(write(tmp_path, "step,a\n1,nan\n2,inf\n3,-inf\n")).series["a"].values
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]


def test_without_a_step_column_the_rows_are_counted(tmp_path: Path) -> None:
    assert read_metrics(write(tmp_path, "a\n5\n6\n")).series["a"].steps == [0.0, 1.0]


def test_names_with_commas_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    metrics = read_metrics(write(tmp_path, 'step,"loss, smoothed"\r\n1,0.5\r\n'))
    assert metrics.series["loss, smoothed"].values == [0.5]


@pytest.mark.parametrize("last", ["2,0.12", "2", "2,0.1234,"])
def test_a_last_row_that_was_being_written_is_left_out(tmp_path: Path, last: str) -> None:
    metrics = read_metrics(write(tmp_path, "step,a,b\n1,0.5,\n" + last))
    assert metrics.torn
    assert metrics.series["a"].values == [0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("step,a\n1,2\n2,two\n", "row 3, column 'a': expected a number, found 'two'"),
        ("step,a\n1,2,3\n", "row 2: 3 cells, but the header has 2"),
        ("step,a\n1\n", "row 2: 1 cells, but the header has 2"),
        ('step,a\n1,"2" 3\n', "row 2: not readable as CSV"),
    ],
)
def test_damage_is_named_with_file_and_row(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SuiteError) as caught:
        read_metrics(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"metrics\.csv: no such file"):
        read_metrics(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SuiteError, match=r"metrics\.csv: cannot be read"):
        read_metrics(tmp_path / "metrics.csv")


def test_training_and_validation_share_a_panel_and_the_loss_comes_first() -> None:
    assert panels(["val_accuracy", "val_loss", "train_loss_epoch", "train_loss_step"]) == [
        Panel(
            "Metrics",
            "loss",
            [
                ("train (epoch)", "train_loss_epoch"),
                ("train (step)", "train_loss_step"),
                ("val", "val_loss"),
            ],
        ),
        Panel("Metrics", "accuracy", [("val", "val_accuracy")]),
    ]
    assert panels(["val/loss", "train/loss"]) == [
        Panel("Metrics", "loss", [("train", "train/loss"), ("val", "val/loss")])
    ]


def test_learning_rates_of_one_optimizer_share_a_panel_without_their_common_path() -> None:
    names = [
        "lr-AdamW/depth_mup/output",
        "lr-AdamW/depth_mup/hidden_first",
        "lr-AdamW/depth_mup/output-weight_decay",
        "lr-SGD",
    ]
    assert panels(names) == [
        Panel(
            "Learning rates",
            "Learning rate · AdamW",
            [
                ("hidden_first", "lr-AdamW/depth_mup/hidden_first"),
                ("output", "lr-AdamW/depth_mup/output"),
            ],
        ),
        Panel("Learning rates", "Learning rate · SGD", [("SGD", "lr-SGD")]),
        Panel(
            "Learning rates",
            "Weight decay · AdamW",
            [("output", "lr-AdamW/depth_mup/output-weight_decay")],
        ),
    ]


def test_keys_of_a_method_that_differ_in_a_number_share_a_panel_in_counting_order() -> None:
    names = [f"depth_mup/stream_rms/block_{n}" for n in (10, 2, 1)]
    assert panels(names) == [
        Panel(
            "depth_mup",
            "stream_rms",
            [(f"block_{n}", f"depth_mup/stream_rms/block_{n}") for n in (1, 2, 10)],
            ordered=True,
        )
    ]
    assert [
        panel.title for panel in panels(["m/block_1/rms", "m/block_2/rms", "m/block_1/cos"])
    ] == [
        "block_1 / cos",  # alone, it is called by its name
        "* / rms",
    ]


def test_a_digit_within_a_name_counts_nothing() -> None:
    """Three lone metrics, no series of them: each has its panel, and none is called ``*``."""
    names = ["lmcd/val_f1", "lmcd/test_f1", "lmcd/hits_at_5"]
    assert [(panel.title, panel.lines[0][1]) for panel in panels(names)] == [
        ("hits_at_5", "lmcd/hits_at_5"),
        ("test_f1", "lmcd/test_f1"),
        ("val_f1", "lmcd/val_f1"),
    ]


def test_keys_of_a_method_with_one_part_have_a_panel_each_and_longer_ones_one_a_parent() -> None:
    assert [
        (panel.group, panel.title, [label for label, _ in panel.lines])
        for panel in panels(["m/loss", "m/cost", "m/angle/mean", "m/angle/max", "a/x"])
    ] == [
        ("a", "x", ["x"]),
        ("m", "loss", ["loss"]),
        ("m", "angle", ["max", "mean"]),
        ("m", "cost", ["cost"]),
    ]


def test_the_order_of_columns_is_no_matter() -> None:
    names = ["val_loss", "m/a/b_2", "m/a/b_1", "lr-SGD/x", "train_loss", "lr-SGD/y"]
    assert panels(names) == panels(names[::-1])
