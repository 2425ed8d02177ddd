"""States of shipped text are read once for a model and kept; another model has its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer

from lightning_suite.scen import kept_states
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.kept_states import kept_final_states
from lightning_suite.scen.prompts import PromptFormat

PROMPTS = ["The dog", "Once upon a time there was", "Tom"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def encoder(model: Any = None) -> PromptEncoder:
    prompts = PromptFormat(glass_tokenizer(), "{prompt} {response}")
    return PromptEncoder(model or glass_model(), prompts, 1)


def refuse(*_: object) -> None:
    raise AssertionError("the model was asked")


class TestLargeModels:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kept_states, "_WORTH_KEEPING", 0)

    def test_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader = encoder()
        truth = reader.final_states(PROMPTS)
        assert torch.equal(kept_final_states(reader, PROMPTS), truth)
        again = encoder()
        monkeypatch.setattr(again, "final_states", refuse)
        assert torch.equal(kept_final_states(again, PROMPTS), truth)
        with pytest.raises(AssertionError, match="was asked"):
            kept_final_states(again, [*PROMPTS[:2], "Tim"])

    def test_other_weights_have_their_own(self) -> None:
        kept_final_states(encoder(), PROMPTS)
        model = glass_model()
        model.model.layers[0].mlp.up_proj.weight.data.mul_(1.1)
        assert torch.equal(
            kept_final_states(encoder(model), PROMPTS), encoder(model).final_states(PROMPTS)
        )

    @pytest.mark.parametrize("size", [0, 20, 300])
    def test_a_damaged_file_is_made_again(self, tmp_path: Path, size: int) -> None:
        truth = kept_final_states(encoder(), PROMPTS)
        (file,) = tmp_path.rglob("*.safetensors")
        whole = file.read_bytes()
        file.write_bytes(whole[:size])
        assert torch.equal(kept_final_states(encoder(), PROMPTS), truth)
        assert file.read_bytes() == whole


def test_what_is_quickly_read_is_not_kept(tmp_path: Path) -> None:
    kept_final_states(encoder(), PROMPTS)
    assert not list(tmp_path.rglob("*.safetensors"))
