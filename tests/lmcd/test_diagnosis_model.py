"""Fusion and head together: exact whatever surrounds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import backbone, batch, fusion

from lightning_suite.lmcd.fusion import Mode
from lightning_suite.lmcd.heads.irt import SCALE
from lightning_suite.lmcd.heads.registry import make_head
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.model import DiagnosisModel
from lightning_suite.lmcd.ridge import fit_ridge


def test_the_head_is_computed_in_float32_under_mixed_precision() -> None:
    torch.manual_seed(0)
    # all read alike, so that the states are read before and the head alone is under autocast
    model = DiagnosisModel(fusion(backbone("llama"), "cached"), make_head("mirt", 32, 0), "start")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_()
    prefixes, rows, students = batch()
    given = (prefixes, rows, students, torch.zeros(3, 0))
    truth, prior = model(*given), model.prior(students)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, penalty = model(*given), model.prior(students)
    assert logits.dtype == penalty.dtype == torch.float32
    assert torch.equal(logits, truth)
    assert torch.equal(penalty, prior)


@pytest.mark.parametrize("mode", ["row", "packed", "cached"])
def test_ability_knows_no_text_and_discrimination_and_guessing_no_student(mode: Mode) -> None:
    torch.manual_seed(0)
    model = DiagnosisModel(fusion(backbone("llama"), mode), make_head("4pl", 32, 0))
    head: Any = model.head
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    prefixes, rows, students = batch()
    other = Prefixes(prefixes.input_ids.flip(0), prefixes.lengths)
    with torch.no_grad():
        vectors = model.fusion.students(students)
        states, elsewhere = (model.states(p, rows, vectors) for p in (prefixes, other))
    assert torch.equal(head.ability(states.student), head.ability(elsewhere.student))
    said = head.item_parameters(states.exercise, states.relative)
    for row in range(3):
        for name in ("discrimination", "guessing", "slipping"):
            of_row = said[name][rows == row]
            torch.testing.assert_close(of_row, of_row[:1].expand_as(of_row), atol=1e-5, rtol=1e-5)
    assert said["difficulty"][rows == 0].std() > 1e-3  # each student sees it otherwise
    assert said["discrimination"].std() > 1e-3


def test_units_and_the_start_of_the_difficulty_know_no_dropout() -> None:
    config: dict[str, Any] = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    trained = fusion(backbone("gpt2", frozen=False, **config), "packed")
    head: Any = make_head("irt", 32, 0)
    model = DiagnosisModel(trained, head).train()
    prefixes, _, _ = batch()
    found = []
    for _ in range(2):
        model.measure_units([prefixes])
        model.start_difficulty([prefixes], torch.tensor([-1.0, 0.0, 2.0]))
        found.append((model.units.clone(), head.difficulty.weight.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert model.fusion.backbone.training


@pytest.mark.parametrize("name", ["1pl", "2pl", "irt", "4pl"])
def test_the_start_of_the_difficulty_is_that_of_the_ridge_with_its_constant(name: str) -> None:
    model = DiagnosisModel(fusion(backbone("llama"), "cached"), make_head(name, 32, 0), "start")
    head: Any = model.head
    prefixes, _, _ = batch()
    easy = torch.tensor([2.0, 3.0, 5.0])  # all are easy: without the constant half would be hard
    model.measure_units([prefixes])
    model.start_difficulty([prefixes], easy)
    states = model.read_at_start(prefixes)
    truth = fit_ridge(states.relative, -easy).predict(states.relative)
    discrimination = head.item_parameters(states.exercise, states.relative)["discrimination"]
    hard = SCALE * discrimination * head.difficulty(states.relative)[:, 0]
    torch.testing.assert_close(hard.double(), truth, rtol=1e-4, atol=1e-4)
    assert hard.mean().item() == pytest.approx(-10 / 3, abs=1e-3)
