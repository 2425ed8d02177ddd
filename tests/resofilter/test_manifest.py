"""What a manifest says of scores, and what it compares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.manifest import (
    data_fingerprint,
    environment,
    environment_difference,
    make_manifest,
    manifest_difference,
    read_manifest,
    weights_fingerprint,
)
from lightning_suite.resofilter.store import ScoreStore
from lightning_suite.resofilter.targets import find_targets


def test_a_manifest_says_what_the_scores_depend_on(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2).double())
    features = make_features(["adam1_mean_abs"])
    manifest = make_manifest(model, find_targets(model).found, features, mode="probe")
    ScoreStore(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest["targets"] == {"0": "float64"}
    assert manifest["features"]["adam1_mean_abs"]["weight_decay"] == 0.01
    assert {"torch", "lightning-suite", "python"} <= set(manifest["versions"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_weight_hash_sees_every_bit_and_no_wrapper(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2)).to(dtype)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    with torch.no_grad():
        model[0].bias[1] = torch.nextafter(model[0].bias[1], torch.tensor(9.0, dtype=dtype))
    assert weights_fingerprint(model) != before


def test_the_data_s_hash_knows_no_order_and_refuses_equal_ids() -> None:
    samples = [("a", [1, 2], [-100, 2]), ("b", [3], [3])]
    assert data_fingerprint(samples) == data_fingerprint(reversed(samples))
    assert data_fingerprint(samples) != data_fingerprint([("a", [1, 2], [1, 2]), samples[1]])
    assert data_fingerprint(samples)["samples"] == 2
    with pytest.raises(SuiteError, match="two samples have the id 'a'"):
        data_fingerprint([samples[0], samples[0]])


def test_a_difference_names_added_and_missing_keys() -> None:
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": "x"}
    assert manifest_difference(old, new) == ["a.c: 2 -> (absent)", 'd: (absent) -> "x"']


def test_the_environment_is_noted_and_not_compared() -> None:
    here = environment(torch.device("cpu"), 2)
    assert here == {"device": "cpu", "threads": torch.get_num_threads(), "processes": 2}
    old = {"depth": 30, "environment": here}
    new = {"depth": 30, "environment": {**here, "processes": 1}}
    assert manifest_difference(old, new) == []
    assert environment_difference(old, new) == ["processes: 2 -> 1"]
    assert manifest_difference(old, {**new, "depth": 32}) == ["depth: 30 -> 32"]
    assert environment_difference(old, {}) == []
