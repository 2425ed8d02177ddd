"""What the authors' script keeps, and which scores are not what it would have made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import Adam1MeanAbsRounded
from lightning_suite.resofilter.published import as_published, resofilter_selection


def published_script(scores: list[float], prompts: list[str], p: float) -> list[int]:
    """The authors' procedure, written out as loops."""
    seen: set[str] = set()
    data = []
    for index, prompt in enumerate(prompts):
        if prompt not in seen:
            seen.add(prompt)
            data.append(index)
    by_score = sorted(data, key=lambda index: scores[index], reverse=True)
    dropped = set(by_score[: int(len(data) * p)])
    return [index for index in data if index not in dropped]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from("abcdefgh")), min_size=1),
    st.sampled_from([0.25, 0.5, 0.75]),
)
def test_compatibility_mode_is_the_published_procedure(
    samples: list[tuple[float, str]], p: float
) -> None:
    scores, prompts = [s for s, _ in samples], [p for _, p in samples]
    kept = resofilter_selection(np.array(scores), prompts, p)
    assert kept.tolist() == published_script(scores, prompts, p)


def test_a_prompt_whose_first_sample_has_no_score_is_lost() -> None:
    scores = np.array([np.nan, 1.0, 2.0, 3.0])
    assert resofilter_selection(scores, ["a", "a", "b", "c"], 0).tolist() == [2, 3]


def manifest(**changes: Any) -> dict[str, Any]:
    names = [f"model.layers.{n}.mlp.up_proj" for n in (27, 28, 29)]
    return {
        "features": {"adam1_mean_abs": {"lr": 1e-5, "eps": 1e-8, "weight_decay": 0.01}},
        "targets": dict.fromkeys(names, "float32"),
        "depth": 30,
        "max_length": 768,
        "precision": {"autocast": None, "matmul": "ieee"},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "longest"),
    [({}, 768), ({"max_length": 512}, 511), ({"max_length": 2048}, 768), ({"depth": 30}, 1)],
)
def test_scores_that_the_script_would_make_pass(changes: dict[str, Any], longest: int) -> None:
    as_published(manifest(**changes), longest)


def test_the_score_with_the_scripts_rounding_passes_with_its_constants() -> None:
    feature = Adam1MeanAbsRounded()
    rounded = manifest(features={feature.name: feature.spec()})
    as_published(rounded, 1, by=feature.name)
    other = manifest(features={feature.name: {**feature.spec(), "beta2": 0.99}})
    with pytest.raises(SuiteError, match=r"beta2 of adam1_mean_abs_rounded is 0\.99, expected"):
        as_published(other, 1, by=feature.name)


def test_another_score_is_refused() -> None:
    message = "by is 'grad_norm', expected 'adam1_mean_abs' or 'adam1_mean_abs_rounded'"
    with pytest.raises(SuiteError, match=message):
        as_published(manifest(), 1, by="grad_norm")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [f"model.layers.{n}.mlp.shared_expert.up_proj" for n in (27, 28, 29)],
            r"27.mlp.shared_expert.up_proj is not the layer's own mlp.up_proj",
        ),
        (
            [f"model.layers.{n}.mlp.experts.{e}.up_proj" for n in (27, 28, 29) for e in (0, 1)],
            r"layers \[27, 28, 29\] have several up_proj",
        ),
        (
            [f"{part}.layers.{n}.mlp.up_proj" for n in (27, 28, 29) for part in ("text", "vision")],
            r"layers \[27, 28, 29\] have several up_proj",
        ),
    ],
    ids=["shared experts", "experts", "two networks"],
)
def test_only_one_dense_up_projection_a_layer_is_the_published_module(
    names: list[str], message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        as_published(manifest(targets=dict.fromkeys(names, "float32")), 1)


@pytest.mark.parametrize(
    ("changes", "longest", "message"),
    [
        ({"depth": 32}, 1, r"layers \[27, 28, 29\] of 32 are scored, expected the last three"),
        ({"depth": None}, 1, "how many layers the model has is not recorded"),
        ({"max_length": 512}, 512, "max_length is 512, expected 768, and there are .* 512 tokens"),
        ({"max_length": 2048}, 769, "max_length is 2048, expected 768, and there are .* 769"),
        ({"precision": {"autocast": "bfloat16", "matmul": "ieee"}}, 1, "autocast is bfloat16"),
        ({"precision": {"matmul": "tf32"}}, 1, "products of float32 are tf32, expected ieee"),
    ],
)
def test_what_changes_the_scores_is_refused(
    changes: dict[str, Any], longest: int, message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        as_published(manifest(**changes), longest)
