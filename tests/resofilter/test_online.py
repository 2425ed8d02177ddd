"""What is read from a training batch: ids, statuses, and each sample's part of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.online import (
    content_ids,
    read_samples,
)


def test_equal_content_has_equal_ids_wherever_it_stands() -> None:
    x, y = torch.arange(12.0).view(3, 4), torch.tensor([0, 1, 1])
    ids = content_ids((x, y))
    assert len(set(ids)) == 3
    assert content_ids((x[[2, 0]], y[[2, 0]])) == [ids[2], ids[0]]
    assert content_ids((x, y + 1)) != ids, "the label is content"
    assert content_ids((x.double(), y)) != ids, "so is the type"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_content(side: str) -> None:
    alone = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 1]])}
    pad = (2, 0) if side == "left" else (0, 2)
    padded = {key: nn.functional.pad(value, pad) for key, value in alone.items()}
    assert content_ids(padded) == content_ids(alone)


def test_tensors_that_disagree_on_the_samples_are_refused() -> None:
    with pytest.raises(SuiteError, match="2 tensors do not agree on the number of samples"):
        content_ids((torch.zeros(3), torch.zeros(2)))


def test_multipliers_undo_the_reduction() -> None:
    x = torch.randn(4, 3)
    assert read_samples(x).multipliers.tolist() == [4.0] * 4
    assert read_samples(x, reduction="sum").multipliers.tolist() == [1.0] * 4
    assert read_samples(x, scale=3.0).multipliers.tolist() == [12.0] * 4
    labels = torch.tensor([[-100, 1, 1, 1], [7, -100, -100, 1], [7, -100, -100, -100]])
    batch = {"input_ids": labels.clamp(min=0), "labels": labels}
    samples = read_samples(batch, reduction="token_mean")
    assert samples.counts["n_label_tokens"] == [3, 1, 0], "nothing predicts the first token"
    assert samples.status == ["ok", "ok", "no_labels"]
    assert samples.multipliers[:2].tolist() == [4 / 3, 4.0]
    own = read_samples(batch, reduction="label_mean")
    assert own.counts["n_label_tokens"] == [3, 2, 1]
    assert own.multipliers.tolist() == [2.0, 3.0, 6.0]


def test_marks_of_a_batch_become_statuses() -> None:
    labels = torch.tensor([[1, 1], [1, 1], [1, 1], [1, -100]])
    marks = {
        "truncated": torch.tensor([False, True, True, True]),
        "empty_answer": torch.tensor([False, False, True, True]),
    }
    samples = read_samples({"input_ids": labels, "labels": labels, **marks}, of_tokens="token_mean")
    assert samples.status == ["ok", "truncated", "empty_answer", "no_labels"]


@pytest.mark.parametrize(
    "options", [{}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}]
)
def test_packed_rows_are_refused(options: dict[str, bool]) -> None:
    transformers = pytest.importorskip("transformers")
    pack = transformers.DataCollatorWithFlattening(**options)
    batch = pack([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])
    with pytest.raises(SuiteError, match=r"packs several samples into one row \(.*position_ids"):
        read_samples(batch)
    one = pack([{"input_ids": [5, 6, 7]}])
    assert len(read_samples({"position_ids": one["position_ids"], "x": torch.ones(1, 3)}).ids) == 1


def test_position_ids_of_padded_rows_are_no_packing() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    positions = torch.tensor([[1, 1, 0, 1], [0, 1, 2, 0]])  # as generate() and others pad them
    batch = {"input_ids": mask, "attention_mask": mask, "position_ids": positions}
    assert len(read_samples(batch).ids) == 2


def test_rows_of_samples_without_labels_or_finite_values() -> None:
    labels = torch.tensor([[1, 1], [1, -100], [1, 1]])
    batch = {"ids": "abc", "input_ids": labels, "labels": labels}
    samples = read_samples(batch, reduction="token_mean")
    rows = samples.rows({"m.sketch": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, torch.inf]])})
    assert rows["sample_id"] == ["a", "b", "c"]
    assert rows["status"] == ["ok", "no_labels", "nonfinite"]
    assert rows["m.sketch"][0].tolist() == [1.0, 2.0]
    assert rows["m.sketch"][1].isnan().all()
