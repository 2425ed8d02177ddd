"""Backbones that cannot share a prefix are found out, whatever their reason, and read by rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import VOCABULARY, WIDTH, backbone, fusion
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd import fusion as fusion_module
from lightning_suite.lmcd.backbone import load_backbone
from lightning_suite.lmcd.fusion import Mode
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.packing_check import refuse_window
from tests.support.versions import of_transformers_5

WINDOW = 16
GPT_NEO: dict[str, Any] = {
    "model_type": "gpt_neo",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": WINDOW,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {"model_type": "lfm2", "full_attn_idxs": [1]},
    "jamba": {
        "model_type": "jamba",
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
    },
}
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def pairs(tokens: int, students: int) -> tuple[Prefixes, Tensor, Tensor]:
    ids = torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(1))
    each = torch.arange(students)
    return Prefixes(ids, torch.tensor([tokens])), each * 0, each


@pytest.mark.parametrize("mode", ["packed", "cached"])
@pytest.mark.parametrize("named", [True, False])
@torch.no_grad()
def test_a_window_of_places_falls_back_when_the_last_student_would_not_see_the_start(
    mode: Mode, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not named:  # a key that is not known: the trial alone must see it
        monkeypatch.setattr(fusion_module, "refuse_window", lambda *_: None)
    model = load_backbone(None, GPT_NEO).eval()
    made = fusion(model, mode)
    made(*pairs(10, 4))  # 14 places are within the window: nothing is said
    assert made.mode == mode
    truth = fusion(model, "row")(*pairs(10, 9))
    words = "its window of 16 places" if named else "its states differ by"
    with pytest.warns(UserWarning, match=f"cannot share a prefix between students .{words}"):
        fused = made(*pairs(10, 9))
    assert made.mode == "row"
    assert torch.equal(fused.relative, truth.relative)


@torch.no_grad()
def test_a_window_in_the_mask_is_found_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_module, "refuse_window", lambda *_: None)
    made = fusion(backbone("llama", model_type="mistral", sliding_window=8), "packed", 30)
    made(*pairs(5, 30))
    assert made.mode == "packed"
    with pytest.warns(UserWarning, match="its states differ by"):
        made(*pairs(12, 3))  # a longer prefix, though a shorter row


class Config:
    def __init__(self, **keys: Any) -> None:
        self.__dict__ = keys


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (Config(), False),
        (Config(sliding_window=50), True),
        (Config(sliding_window=50, use_sliding_window=False), False),
        (Config(sliding_window=None), False),
        (Config(sliding_window=51), False),
        (Config(attention_chunk_size=50), True),
        (Config(attention_window_size=50), True),
        (Config(attention_window=[512, 50]), True),
        (Config(local_attention=100), True),
        (Config(local_attention=102), False),
        (Config(window_size=57), True),
        (Config(window_size=58), False),
        (Config(window_size=57, attention_types=[[["global"], 4]]), False),
    ],
)
def test_all_windows_that_configs_name_are_asked_for(config: Config, refused: bool) -> None:
    assert (refuse_window(config, 50, 8) is not None) == refused


@pytest.mark.parametrize("kind", HYBRIDS)
@torch.no_grad()
def test_a_hybrid_of_attention_and_other_layers_is_read_by_rows(kind: str) -> None:
    model = load_backbone(None, {**_SHAPE, **HYBRIDS[kind]}).eval()
    for mode in ("auto", "packed"):
        made = fusion(model, mode)  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match="cannot share a prefix .* mode=row is used"):
            fused = made(*pairs(9, 5))
        assert made.mode == "row"
        assert torch.equal(fused.relative, fusion(model, "row")(*pairs(9, 5)).relative)


@of_transformers_5
def test_a_model_that_does_not_say_where_its_head_begins_is_refused_by_name() -> None:
    llama4 = {**_SHAPE, "model_type": "llama4_text", "num_local_experts": 2}
    with pytest.raises(SuiteError, match="Llama4ForCausalLM does not say where its language-mod"):
        load_backbone(None, {**llama4, "num_experts_per_tok": 1, "head_dim": 8})


@torch.no_grad()
def test_a_trial_is_made_once_and_again_for_longer_rows_alone() -> None:
    made = fusion(backbone("llama"), "cached")
    made(*pairs(10, 4))
    made._checked = (10, 14)
    calls = []
    made.backbone.register_forward_hook(lambda *_: calls.append(1))
    made(*pairs(9, 5))
    assert len(calls) == 2  # the text and the students
    made(*pairs(10, 5))
    assert made._checked == (10, 15)


@torch.no_grad()
def test_memory_that_runs_out_is_no_word_of_the_backbone_on_masks() -> None:
    model = backbone("llama")

    def full(module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["attention_mask"].dim() == 4:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(full, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        fusion(model, "packed")(*pairs(9, 5))
