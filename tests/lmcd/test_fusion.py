"""One row a student, packed rows and cached prefixes give the same states and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import BACKBONES, VOCABULARY, WIDTH, backbone, batch, fusion
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import add_lora, causal_lm_from_config
from lightning_suite.lmcd import fusion as fusion_module
from lightning_suite.lmcd.backbone import start_vector
from lightning_suite.lmcd.fusion import Fused, Mode, StudentFusion
from lightning_suite.lmcd.layout import Prefixes

SHAPES = [(kind, attention) for kind in BACKBONES for attention in ("sdpa", "eager")]
EXACT = 1e-5


def error(got: Tensor, truth: Tensor) -> float:
    return ((got - truth).norm() / truth.norm()).item()


def answers(fused: Fused) -> Tensor:
    """Something that depends on all three vectors and is not saturated."""
    readout = torch.linspace(-1, 1, WIDTH)
    logit = (fused.student - fused.relative + 0.5 * fused.exercise) @ readout / WIDTH
    probability: Tensor = logit.sigmoid()
    assert probability.min() > 0.02
    assert probability.max() < 0.98
    return probability


def run(model: Any, mode: Mode) -> tuple[Fused, Tensor, dict[str, Tensor]]:
    made = fusion(model, mode)
    made.zero_grad()
    fused = made(*batch())
    probability = answers(fused)
    probability.log().sum().backward()
    gradients = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
    assert made.mode == mode  # it has not fallen back
    return fused, probability.detach(), gradients


@pytest.mark.parametrize(("kind", "attention"), SHAPES)
def test_the_three_ways_are_equal_with_a_frozen_backbone(kind: str, attention: str) -> None:
    truth, probability, gradients = run(backbone(kind, attention), "row")
    modes: tuple[Mode, ...] = ("packed", "cached")
    for mode in modes:
        fused, tried, found = run(backbone(kind, attention), mode)
        for got, wanted in zip(fused, truth, strict=True):
            assert error(got, wanted) <= EXACT
        assert (tried - probability).abs().max() <= EXACT
        assert found.keys() == gradients.keys() == {"students.weight"}
        assert error(found["students.weight"], gradients["students.weight"]) <= EXACT


@pytest.mark.parametrize(("kind", "attention"), SHAPES)
def test_rows_and_packed_rows_are_equal_with_a_trained_backbone(kind: str, attention: str) -> None:
    truth, probability, gradients = run(backbone(kind, attention, frozen=False), "row")
    fused, tried, found = run(backbone(kind, attention, frozen=False), "packed")
    assert error(fused.relative, truth.relative) <= EXACT
    assert (tried - probability).abs().max() <= EXACT
    assert found.keys() == gradients.keys()
    assert len(gradients) > 20
    whole = torch.cat([g.flatten() for g in gradients.values()])
    assert error(torch.cat([found[n].flatten() for n in gradients]), whole) <= EXACT


def test_adapters_are_trained_equally() -> None:
    def adapted() -> Any:
        lora = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
        return add_lora(backbone("llama"), {"task_type": "FEATURE_EXTRACTION", **lora}).eval()

    truth, _, gradients = run(adapted(), "row")
    fused, _, found = run(adapted(), "packed")
    assert error(fused.relative, truth.relative) <= EXACT
    assert sum("lora" in name for name in gradients) == 12
    for name, gradient in gradients.items():
        assert error(found[name], gradient) <= EXACT


def see_everything(lengths: Tensor, prefix: int, students: int) -> Tensor:
    seen = torch.ones(prefix + students, prefix + students, dtype=torch.bool).tril()
    return seen.expand(len(lengths), -1, -1)


def next_positions(lengths: Tensor, prefix: int, students: int) -> Tensor:
    return torch.arange(prefix + students).expand(len(lengths), -1)


@pytest.mark.parametrize(("kind", "attention"), SHAPES)
@pytest.mark.parametrize(
    ("mode", "name", "wrong"),
    [
        ("packed", "packed_mask", see_everything),
        ("packed", "packed_positions", next_positions),
        ("cached", "packed_mask", see_everything),
    ],
)
def test_a_wrong_mask_or_position_shows(
    mode: Mode,
    name: str,
    wrong: Any,
    kind: str,
    attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth, probability, gradients = run(backbone(kind, attention), "row")
    made = fusion(backbone(kind, attention), mode)
    made._checked = (10**9, 10**9)  # or the model itself would notice, see below
    monkeypatch.setattr(fusion_module, name, wrong)
    fused = made(*batch())
    tried = answers(fused)
    tried.log().sum().backward()
    assert error(fused.relative, truth.relative) > 100 * EXACT
    assert (tried - probability).abs().max() > 100 * EXACT
    assert made.students.weight.grad is not None
    assert error(made.students.weight.grad, gradients["students.weight"]) > 100 * EXACT


def test_a_backbone_that_does_not_obey_the_mask_falls_back_with_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth, _, _ = run(backbone("llama"), "row")
    made = fusion(backbone("llama"), "cached")
    monkeypatch.setattr(fusion_module, "packed_mask", see_everything)
    with pytest.warns(UserWarning, match="LlamaModel cannot share a prefix .* mode=row is used"):
        fused = made(*batch())
    assert made.mode == "row"
    assert torch.equal(fused.relative, truth.relative)


class RoundedUnderAutocast:
    """Attention of a machine whose packed and single rows round differently in bfloat16."""

    def __init__(self, model: Any) -> None:
        model.layers[0].self_attn.o_proj.register_forward_hook(self._round)
        self.calls = 0

    def _round(self, module: Any, inputs: Any, out: Tensor) -> Tensor | None:
        self.calls += 1
        return out * (1 + 2**-7 * (-1) ** self.calls) if torch.is_autocast_enabled("cpu") else None


@pytest.mark.parametrize("mode", ["packed", "cached"])
def test_rounding_under_mixed_precision_is_no_reason_to_fall_back(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = backbone("llama")
    RoundedUnderAutocast(model)
    made = fusion(model, mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = made(*batch())  # a warning is an error
    assert made.mode == mode
    assert {state.dtype for state in fused} == {torch.float32}
    truth = fusion(backbone("llama"), "row")(*batch())
    assert EXACT < error(fused.relative, truth.relative) < 0.05
    # a mask that is not obeyed still shows
    monkeypatch.setattr(fusion_module, "packed_mask", see_everything)
    made = fusion(model, mode)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.warns(UserWarning, match="its states differ by .* with the mask"),
    ):
        made(*batch())
    assert made.mode == "row"


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_backbone_in_low_precision_shares_prefixes_and_a_wrong_mask_still_shows(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in ("packed", "cached"):
        made = fusion(backbone(kind).to(dtype), mode)  # type: ignore[arg-type]
        made(*batch())
        assert made.mode == mode
    for name, wrong in (("packed_mask", see_everything), ("packed_positions", next_positions)):
        with monkeypatch.context() as patched:
            patched.setattr(fusion_module, name, wrong)
            made = fusion(backbone(kind).to(dtype), "packed")
            with pytest.warns(UserWarning, match="its states differ by .* with the mask"):
                made(*batch())


def test_a_backbone_that_refuses_a_mask_of_four_dimensions_falls_back_with_its_words() -> None:
    model = backbone("llama")

    def refuse(module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["attention_mask"].dim() == 4:
            raise ValueError("attention_mask must be of shape (batch, length)")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    made = fusion(model, "packed")
    with pytest.warns(UserWarning, match=r"it refuses the mask: .* of shape \(batch, length\)\)"):
        fused = made(*batch())
    assert made.mode == "row"
    assert torch.equal(fused.relative, fusion(model, "row")(*batch()).relative)


def test_a_backbone_without_positions_falls_back_with_a_message() -> None:
    torch.manual_seed(0)
    bloom = {"model_type": "bloom", "vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2}
    made = fusion(causal_lm_from_config(bloom).base_model, "packed")
    with pytest.warns(UserWarning, match="cannot share a prefix between students"):
        made(*batch())
    assert made.mode == "row"


def test_a_sliding_window_that_is_shorter_than_the_prefix_falls_back() -> None:
    config = {"model_type": "mistral", "sliding_window": 5}
    truth = fusion(backbone("llama", **config), "row")(*batch())
    made = fusion(backbone("llama", **config), "cached")
    with pytest.warns(UserWarning, match="sliding window of 5 tokens"):
        fused = made(*batch())
    assert error(fused.relative, truth.relative) <= EXACT
    prefixes, rows, students = batch()
    short = Prefixes(prefixes.input_ids[:, :4], prefixes.lengths.clamp(max=4))
    made = fusion(backbone("llama", **config), "cached")
    made(short, rows, students)
    assert made.mode == "cached"


def test_cached_prefixes_are_computed_once_and_forgotten_with_the_weights() -> None:
    made = fusion(backbone("llama"), "cached")
    made(*batch())
    calls = []
    made.backbone.register_forward_hook(
        lambda module, args, kwargs, out: calls.append(kwargs["inputs_embeds"].shape[:2]),
        with_kwargs=True,
    )
    prefixes, rows, students = batch()
    again = made(prefixes, rows, students)
    assert calls == [(3, 5)]  # the student tokens alone: most students of an exercise are 5
    # another order, other pads: the same exercises
    order = torch.tensor([1, 2, 0])
    back = order.argsort()
    swapped = Prefixes(prefixes.input_ids[order], prefixes.lengths[order])
    assert error(made(swapped, back[rows], students).relative, again.relative) <= EXACT
    assert calls == [(3, 5), (3, 5)]
    made.load_state_dict(made.state_dict())
    made(prefixes, rows, students)
    assert calls[2:] == [(3, 11), (3, 5)]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_many_students_of_a_cached_text_are_read_in_several_rows(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, _, gradients = run(backbone("llama"), "row")
    monkeypatch.setattr(fusion_module, "_WIDTH", width)
    shapes = []
    model = backbone("llama")
    model.register_forward_hook(
        lambda module, args, kwargs, out: shapes.append(kwargs["inputs_embeds"].shape[:2]),
        with_kwargs=True,
    )
    fused, _, found = run(model, "cached")
    assert shapes[-1] == ({1: 10, 2: 6, 3: 4}[width], width)  # of 5, 2 and 3 students
    assert error(fused.relative, truth.relative) <= EXACT
    assert error(fused.exercise, truth.exercise) <= EXACT
    assert error(found["students.weight"], gradients["students.weight"]) <= EXACT


def test_what_does_not_fit_into_the_cache_is_computed_again() -> None:
    model = backbone("llama")
    truth = fusion(model, "cached")(*batch())
    made = StudentFusion(
        model, 9, model.get_input_embeddings().weight[7], noise=1.0, seed=3, cache_gib=1e-6
    )
    assert made.mode == "cached"
    for _ in range(2):
        assert torch.equal(made(*batch()).relative, truth.relative)
    assert len(made._cache) == 0


def test_the_cache_of_a_prediction_serves_training() -> None:
    made = fusion(backbone("llama"), "cached")
    with torch.inference_mode():
        made(*batch())
    made(*batch()).relative.sum().backward()
    assert made.students.weight.grad is not None


def test_what_one_reader_reads_of_all_exercises_is_read_once() -> None:
    made = fusion(backbone("llama"), "cached")
    prefixes, _, _ = batch()
    with torch.inference_mode():
        made.read_alike(prefixes, made.students.weight[2].detach())
    for student in (2, 5, 2):
        vector = made.students.weight[student].detach()
        truth = made.fuse(prefixes, torch.arange(3), vector.expand(3, -1))
        alike = made.read_alike(prefixes, vector)
        assert error(alike.relative, truth.relative) <= EXACT
        assert error(alike.exercise, truth.exercise) <= EXACT
        readout = torch.nn.Linear(WIDTH, 1)
        readout(alike.relative).sum().backward()  # it may be used in training
        assert torch.equal(made.read_alike(prefixes, vector).relative, alike.relative)


def test_the_exercise_is_the_same_for_every_student_and_the_student_has_seen_no_text() -> None:
    for mode in ("row", "packed", "cached"):
        made = fusion(backbone("gpt2"), mode)
        prefixes, rows, students = batch()
        fused = made(prefixes, rows, students)
        for row in range(3):
            of_row = fused.exercise[rows == row]
            assert error(of_row, of_row[:1].expand_as(of_row)) <= EXACT
        assert error(made.exercise_states(prefixes)[rows], fused.exercise) <= EXACT
        other = Prefixes(prefixes.input_ids.flip(0), prefixes.lengths)
        assert torch.equal(made(other, rows, students).student, fused.student)


def test_states_are_float32_whatever_the_backbone_is() -> None:
    made = fusion(backbone("qwen2").bfloat16(), "auto")
    assert made.mode == "cached"
    fused = made(*batch())
    assert {state.dtype for state in fused} == {torch.float32}
    truth = fusion(backbone("qwen2").bfloat16(), "row")(*batch())
    assert error(fused.relative, truth.relative) < 0.05


def test_the_students_start_near_the_given_token() -> None:
    model = backbone("llama")
    token = model.get_input_embeddings().weight[7]
    made = StudentFusion(model, 500, token, noise=0.1)
    away = made.students.weight - token
    assert away.std().item() == pytest.approx(0.1 * token.square().mean().sqrt().item(), rel=0.05)
    assert torch.equal(made.students.weight, StudentFusion(model, 500, token).students.weight)


def test_a_frozen_backbone_has_no_dropout_and_a_trained_one_has() -> None:
    config = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    frozen = fusion(backbone("gpt2", **config), "cached").train()
    assert frozen.training
    assert torch.equal(frozen(*batch()).relative, frozen(*batch()).relative)
    trained = fusion(backbone("gpt2", frozen=False, **config), "packed").train()
    assert error(trained(*batch()).relative, trained(*batch()).relative) > 0.01


def test_the_start_is_what_the_backbone_makes_of_the_token() -> None:
    """Gemma 3 scales embeddings in the layer: the weights alone are no token's vector."""
    gemma = {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 32}
    model = backbone("llama", **gemma)
    start = start_vector(model, "s", None)
    token = model.get_input_embeddings()(torch.tensor([ord("s") % VOCABULARY]))[0]
    torch.testing.assert_close(start, token)
    assert start.norm() > 4 * model.get_input_embeddings().weight.norm(dim=1).mean()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_text_without_a_position_behind_it_is_refused(kind: str) -> None:
    made = fusion(backbone(kind), "cached")
    one = torch.zeros(1, dtype=torch.int64)
    most = Prefixes(torch.ones(1, 63, dtype=torch.int64), one + 63)
    assert made(most, one, one).relative.isfinite().all()
    with pytest.raises(SuiteError, match=r"64 tokens.* reads 64 at most.* max_length to 63"):
        made(Prefixes(torch.ones(1, 64, dtype=torch.int64), one + 64), one, one)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SuiteError, match="mode=cached: the prefixes of a backbone that is trained"):
        fusion(backbone("llama", frozen=False), "cached")
    with pytest.raises(SuiteError, match="mode='pakced' is not known. Did you mean 'packed'"):
        fusion(backbone("llama"), "pakced")  # type: ignore[arg-type]
    with pytest.raises(SuiteError, match=r"start has shape \(8,\); the backbone's embeddings have"):
        StudentFusion(backbone("llama"), 3, torch.zeros(8))
