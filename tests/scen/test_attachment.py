"""A bank acts in a model: where it shall, on every path through the model, and nowhere else."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import pytest
import torch
from exact_gates import StateGate, TextGate
from glass_lm import glass_model, glass_tokenizer
from tiny import TINY
from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import add_lora, causal_lm_from_config, checkpoint_activations
from lightning_suite.scen.attachment import (
    Attachment,
    attach,
    attachment_of,
    attachments_in,
    without_experts,
)
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.expert_table import ExpertKind
from lightning_suite.scen.fingerprint import identify
from lightning_suite.scen.layer_choice import causal_lm
from lightning_suite.scen.passes import cache_in
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.sequences import real_tokens

QUESTIONS = [
    "Where does Tom live?",
    "What is the colour of the big red ball that Lily has?",
    "Who is Sam?",
    "What did the little dog eat in the garden?",
]
EDITED = (0, 1, 3)
OTHERS = ["Where does Max live?", "Why is the sky blue?"]
MIXED = [QUESTIONS[0], OTHERS[0], QUESTIONS[3], QUESTIONS[1], OTHERS[1], QUESTIONS[0]]
FIRED = [0, -1, 2, 1, -1, 0]


@pytest.fixture
def model() -> Any:
    return glass_model(torch.float64)


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    return glass_tokenizer()


def prompts(model: Any) -> PromptFormat:
    return PromptFormat.for_model(causal_lm(model), tokenizer())


def bank_for(
    model: nn.Module,
    stage: str = "layer",
    expert: ExpertKind = "low_rank",
    positions: Any = None,
    questions: list[str] | None = None,
    layer: int | None = None,
) -> ExpertBank:
    """A bank of random experts, strong enough to change every answer."""
    base = identify(model, layer)
    encoder = PromptEncoder(causal_lm(model), prompts(model), base.layer)
    gate = TextGate() if stage == "prompt" else StateGate(encoder)
    bank = ExpertBank(base, gate, expert=expert, rank=2, positions=positions, dtype="float32")
    asked = [QUESTIONS[i] for i in EDITED] if questions is None else questions
    edits = [Edit(f"e{i}", question, "new") for i, question in enumerate(asked)]
    generator = torch.Generator().manual_seed(1)
    experts = {
        name: torch.randn(len(edits), *shape, generator=generator) * (0.3 if name != "a" else 1)
        for name, shape in bank.table.shapes.items()
    }
    bank.insert(edits, experts)
    return bank


def batch(model: Any, questions: list[str], side: Any = "left") -> dict[str, Tensor]:
    form = prompts(model)
    return form.batch([form.encode(question) for question in questions], side)


def generated(model: Any, questions: list[str], **options: Any) -> Tensor:
    """Return generated tokens, [N, 8]."""
    inputs = batch(model, questions)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **options}
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def logits(model: Any, questions: list[str], side: Any = "left") -> list[Tensor]:
    """Return the logits at the real tokens of each question."""
    inputs = batch(model, questions, side)
    found = model(**inputs).logits
    return [row[mask.bool()] for row, mask in zip(found, inputs["attention_mask"], strict=True)]


stages = pytest.mark.parametrize("stage", ["layer", "prompt"])


class TestWhatDoesNotFire:
    @stages
    @pytest.mark.parametrize("expert", ["low_rank", "full"])
    def test_has_bitwise_the_base_models_logits_beside_rows_that_fire(
        self, model: Any, stage: str, expert: ExpertKind
    ) -> None:
        with torch.no_grad():
            base = model(**batch(model, MIXED)).logits
            with attach(bank_for(model, stage, expert), model, tokenizer()) as attached:
                edited = model(**batch(model, MIXED)).logits
        assert attached.last_routing is not None
        assert attached.last_routing.expert.tolist() == FIRED
        same = (base == edited).flatten(1).all(1).tolist()
        assert same == [slot == -1 for slot in FIRED]

    def test_the_layers_output_is_the_very_tensor_where_no_row_fires(self, model: Any) -> None:
        bank = bank_for(model)
        layer = model.get_submodule(bank.base.layer)
        seen = []
        layer.register_forward_hook(lambda *call: seen.append(call[2]))
        with attach(bank, model, tokenizer()):
            layer.register_forward_hook(lambda *call: seen.append(call[2]))
            generated(model, OTHERS, max_new_tokens=2, min_new_tokens=2)
        assert len(seen) == 4
        assert seen[0] is seen[1]
        assert seen[2] is seen[3]

    def test_prompt_tokens_before_the_last_keep_the_base_models_keys_and_values(
        self, model: Any
    ) -> None:
        inputs = batch(model, [QUESTIONS[0]])
        with torch.no_grad():
            base = model(**inputs).past_key_values.layers[-1].keys
            with attach(bank_for(model), model, tokenizer()):
                edited = model(**inputs).past_key_values.layers[-1].keys
        assert torch.equal(base[:, :, :-1], edited[:, :, :-1])
        assert not torch.equal(base[:, :, -1], edited[:, :, -1])


class TestWhatFires:
    @stages
    def test_rows_of_a_batch_are_what_each_is_alone(self, model: Any, stage: str) -> None:
        eight = [*MIXED, QUESTIONS[3], OTHERS[0]]
        plain = generated(model, eight)
        with attach(bank_for(model, stage), model, tokenizer()):
            together = generated(model, eight)
            alone = torch.cat([generated(model, [question]) for question in eight])
        assert torch.equal(together, alone)
        changed = (together != plain).any(1).tolist()
        assert changed == [slot != -1 for slot in [*FIRED, 2, -1]]

    @stages
    def test_the_side_of_the_padding_makes_no_difference(self, model: Any, stage: str) -> None:
        with attach(bank_for(model, stage), model, tokenizer()):
            left, right = logits(model, MIXED), logits(model, MIXED, "right")
            alone = [logits(model, [question])[0] for question in MIXED]
        for a, b, c in zip(left, right, alone, strict=True):
            # rotary embeddings are float32 whatever the model is, and padding moves positions
            torch.testing.assert_close(a, c, rtol=0, atol=1e-4)
            torch.testing.assert_close(b, c, rtol=0, atol=1e-10)

    @stages
    @pytest.mark.parametrize("expert", ["low_rank", "full"])
    def test_generation_is_the_full_recomputation(
        self, model: Any, stage: str, expert: ExpertKind
    ) -> None:
        inputs = batch(model, MIXED)
        with attach(bank_for(model, stage, expert), model, tokenizer()) as attached:
            out = model.generate(
                **inputs,
                max_new_tokens=8,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            mask = torch.cat([inputs["attention_mask"], torch.ones(len(MIXED), 8).long()], 1)
            lengths = inputs["attention_mask"].sum(1)
            with torch.no_grad(), attached.prompt_lengths(lengths):
                whole = model(out.sequences, attention_mask=mask, use_cache=False).logits
        steps = torch.stack(out.logits, 1)
        at = inputs["input_ids"].shape[1] - 1
        torch.testing.assert_close(whole[:, at:-1].float(), steps, rtol=0, atol=1e-5)

    @stages
    def test_beams_are_the_full_recomputation(self, model: Any, stage: str) -> None:
        inputs = batch(model, MIXED[:4])
        with attach(bank_for(model, stage), model, tokenizer()) as attached:
            out = model.generate(
                **inputs,
                max_new_tokens=6,
                num_beams=3,
                num_return_sequences=3,
                do_sample=False,
                length_penalty=0.0,
                early_stopping=False,
                eos_token_id=-1,
                output_scores=True,
                return_dict_in_generate=True,
            )
            mask = inputs["attention_mask"].repeat_interleave(3, 0)
            lengths = mask.sum(1)
            mask = torch.cat([mask, torch.ones(12, 6).long()], 1)
            with torch.no_grad(), attached.prompt_lengths(lengths):
                whole = model(out.sequences, attention_mask=mask, use_cache=False).logits
        at = inputs["input_ids"].shape[1]
        chosen = out.sequences[:, at:, None]
        scores = whole[:, at - 1 : -1].log_softmax(-1).gather(2, chosen).sum((1, 2))
        torch.testing.assert_close(scores.float(), out.sequences_scores, rtol=0, atol=1e-4)

    def test_samples_of_one_prompt_have_its_expert(self, model: Any) -> None:
        with attach(bank_for(model), model, tokenizer()) as attached:
            generated(model, MIXED[:2], do_sample=True, num_return_sequences=3)
        assert attached.last_routing is not None
        assert attached.last_routing.expert.tolist() == [0, 0, 0, -1, -1, -1]

    def test_a_cache_of_fixed_size_gives_the_same(self, model: Any) -> None:
        with attach(bank_for(model), model, tokenizer()):
            growing = generated(model, MIXED)
            fixed = generated(model, MIXED, cache_implementation="static")
        assert torch.equal(growing, fixed)

    def test_a_low_rank_expert_acts_everywhere_if_so_wanted(self, model: Any) -> None:
        inputs = batch(model, [QUESTIONS[0]])
        with torch.no_grad():
            base = model(**inputs).logits
            with attach(bank_for(model, positions="all"), model, tokenizer()):
                everywhere = model(**inputs).logits
        assert (base != everywhere).flatten(2).any(2).all()

    @pytest.mark.parametrize("kind", sorted(TINY))
    @stages
    def test_all_architectures(self, kind: str, stage: str) -> None:
        torch.manual_seed(0)
        model = causal_lm_from_config({**TINY[kind], "vocab_size": 2048}, dtype="float64").eval()
        model.generation_config.eos_token_id = 3
        for linear in model.modules():
            if isinstance(linear, nn.Linear) and linear.bias is not None:
                nn.init.normal_(linear.bias)  # full experts keep it
        questions = [MIXED[0], MIXED[1], MIXED[2]]
        bank = bank_for(model, stage, "full", questions=[MIXED[0], MIXED[2]])
        with torch.no_grad():
            bank.table.load({"weight": bank.experts([0, 1])["weight"] * 3})
        base = logits(model, questions, "right")
        with attach(bank, model, tokenizer()) as attached:
            edited = logits(model, questions, "right")
            assert torch.equal(generated(model, questions[:1]), generated(model, questions)[:1])
        assert attached.last_routing is not None
        assert attached.last_routing.expert.tolist() == [0, -1, 1]
        assert [torch.equal(a, b) for a, b in zip(base, edited, strict=True)] == [0, 1, 0]

    @stages
    @pytest.mark.parametrize("guess", ["assistant", "lookup"])
    def test_guessed_tokens_change_nothing_where_the_prompts_end_is_said(
        self, model: Any, stage: str, guess: str
    ) -> None:
        asked = [QUESTIONS[0]]
        with attach(bank_for(model, stage), model, tokenizer()) as attached:
            plain = generated(model, asked, min_new_tokens=0)
            options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
            if guess == "assistant":
                options = {"assistant_model": glass_model(torch.float64)}
            with attached.prompt_lengths([len(prompts(model).encode(asked[0]))]):
                quick = generated(model, asked, min_new_tokens=0, **options)
            assert attached.last_routing is not None
            assert attached.last_routing.expert.tolist() == [0]
        assert torch.equal(plain, quick)

    @stages
    def test_guessed_tokens_are_refused_where_nobody_says_where_the_prompts_end(
        self, model: Any, stage: str
    ) -> None:
        guesses: tuple[dict[str, Any], ...] = (
            {"prompt_lookup_num_tokens": 3},
            {"assistant_model": glass_model(torch.float64)},
        )
        with attach(bank_for(model, stage), model, tokenizer()) as attached:
            for options in guesses:
                with pytest.raises(SuiteError, match=r"attached\.prompt_lengths"):
                    generated(model, QUESTIONS[:1], min_new_tokens=0, **options)
            with attached.paused():
                generated(model, QUESTIONS[:1], min_new_tokens=0, **guesses[0])


class TestFullExperts:
    def test_a_copy_of_the_matrix_changes_nothing(self) -> None:
        torch.manual_seed(0)
        for kind in ("llama", "gpt2", "opt"):
            config = {**TINY[kind], "vocab_size": 2048}
            model = causal_lm_from_config(config, dtype="float64").eval()
            model.generation_config.eos_token_id = 3
            bank = bank_for(model, "prompt", "full")
            layer: Any = model.get_submodule(bank.base.layer)
            if getattr(layer, "bias", None) is not None:
                nn.init.normal_(layer.bias)
            bank = bank_for(model, "prompt", "full")
            with torch.no_grad():
                own = layer.weight.T if kind == "gpt2" else layer.weight
                layer.weight.copy_(layer.weight.float())  # what the bank stores exactly
            bank = bank_for(model, "prompt", "full")
            bank.table.load({"weight": own.detach().float().expand(3, -1, -1)})
            base = logits(model, MIXED)
            with attach(bank, model, tokenizer()) as attached:
                edited = logits(model, MIXED)
            assert attached.last_routing is not None
            assert attached.last_routing.expert.tolist() == FIRED
            for a, b in zip(base, edited, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


class TestConversations:
    @pytest.mark.parametrize("name", ["past_key_values", "cache"])
    def test_a_cache_is_found_by_its_name_before_and_since_transformers_5_24(
        self, name: str
    ) -> None:
        cache: list[Tensor] = []  # an empty cache is one too
        assert cache_in({"past_key_values": None, "cache": None, name: cache}) is cache
        assert cache_in({name: cache}) is cache
        assert cache_in({}) is None
        with pytest.raises(SuiteError, match=r"are a tuple, .* install transformers>=4.56"):
            cache_in({name: ()})

    @torch.no_grad()
    def test_two_caches_in_turn_keep_their_own_experts(self, model: Any) -> None:
        def steps(questions: list[list[str]]) -> list[Tensor]:
            caches, out = [], []
            for asked in questions:
                caches.append(model(**batch(model, asked), use_cache=True).past_key_values)
            for cache in caches:
                out.append(model(torch.full((1, 1), 9), past_key_values=cache).logits)
            return out

        with attach(bank_for(model), model, tokenizer()):
            together = steps([[MIXED[0]], [MIXED[1]], [MIXED[2]]])
            alone = [steps([[question]])[0] for question in MIXED[:3]]
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    @torch.no_grad()
    def test_a_continued_cache_keeps_its_expert_until_told_otherwise(self, model: Any) -> None:
        form = prompts(model)
        first, second = form.encode(QUESTIONS[0]), form.encode(QUESTIONS[1])[1:]
        with attach(bank_for(model, "prompt"), model, tokenizer()) as attached:
            cache = model(torch.tensor([first])).past_key_values
            model(torch.tensor([second]), past_key_values=cache)
            held = attached.last_routing
            attached.route_again()
            model(torch.tensor([second]), past_key_values=cache)
            again = attached.last_routing
        assert held is not None
        assert again is not None
        assert (held.expert.tolist(), again.expert.tolist()) == ([0], [1])

    @torch.no_grad()
    def test_a_copied_cache_of_a_shared_beginning_is_routed_by_what_follows(
        self, model: Any
    ) -> None:
        from copy import deepcopy

        form = prompts(model)
        beginning = form.encode("You answer questions.")
        with attach(bank_for(model, "prompt"), model, tokenizer()) as attached:
            cache = model(torch.tensor([beginning])).past_key_values
            for slot, row in enumerate(EDITED):
                rest = form.encode(QUESTIONS[row])[1:]
                model(torch.tensor([rest]), past_key_values=deepcopy(cache))
                assert attached.last_routing is not None
                assert attached.last_routing.expert.tolist() == [slot]

    @torch.no_grad()
    def test_another_number_of_rows_than_the_cache_was_filled_with_is_refused(
        self, model: Any
    ) -> None:
        with attach(bank_for(model), model, tokenizer()):
            cache = model(**batch(model, MIXED[:1])).past_key_values
            cache.batch_repeat_interleave(2)
            with pytest.raises(SuiteError, match="filled with 1 sequences .* continued with 2"):
                model(torch.full((2, 1), 9), past_key_values=cache)


class TestGatesOfBothStages:
    def test_a_text_gate_is_shown_the_prompt_without_padding_and_start_token(
        self, model: Any
    ) -> None:
        bank = bank_for(model, "prompt")
        assert isinstance(bank.gate, TextGate)
        with attach(bank, model, tokenizer()):
            logits(model, MIXED)
        assert bank.gate.asked == [prompts(model).prompt_text(question) for question in MIXED]

    @torch.no_grad()
    def test_embeddings_in_place_of_tokens_suit_a_layer_gate_only(self, model: Any) -> None:
        inputs = batch(model, MIXED)
        embeds = {
            "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]),
            "attention_mask": inputs["attention_mask"],
        }
        with attach(bank_for(model), model, tokenizer()):
            assert torch.equal(model(**embeds).logits, model(**inputs).logits)
        with (
            attach(bank_for(model, "prompt"), model, tokenizer()),
            pytest.raises(SuiteError, match="'exact_text' reads the text of prompts.*input_ids"),
        ):
            model(**embeds)

    @stages
    def test_explaining_is_routing_without_generating(self, model: Any, stage: str) -> None:
        bank = bank_for(model, stage)
        with attach(bank, model, tokenizer()) as attached:
            fired = [decision.fired for decision in attached.explain(MIXED)]
            assert bank.explain(MIXED[2]).fired == "e2"
        assert fired == ["e0", None, "e2", "e1", None, "e0"]

    def test_a_bank_that_is_attached_nowhere_cannot_explain(self, model: Any) -> None:
        with pytest.raises(SuiteError, match="attached to 0 models"):
            attachment_of(bank_for(model))


class TestComingAndGoing:
    def test_detaching_leaves_the_model_as_it_was(self, model: Any) -> None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modules = [type(module) for module in model.modules()]
        hooks = [
            (len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        ]
        plain = generated(model, MIXED)
        attached = attach(bank_for(model), model, tokenizer())
        assert list(model.state_dict()) == list(before)
        assert [type(module) for module in model.modules()] == modules
        assert not torch.equal(generated(model, MIXED), plain)
        attached.detach()
        attached.detach()
        assert hooks == [
            (len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        ]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(generated(model, MIXED), plain)

    def test_a_second_bank_on_the_layer_is_refused_until_the_first_goes(self, model: Any) -> None:
        bank = bank_for(model)
        with attach(bank, model, tokenizer()), pytest.raises(SuiteError, match="acts on .* alread"):
            attach(bank, model, tokenizer())
        attach(bank, model, tokenizer()).detach()

    def test_two_banks_on_two_layers_act_both(self, model: Any) -> None:
        first, second = bank_for(model), bank_for(model, "prompt", layer=0, questions=OTHERS[:1])
        plain = generated(model, MIXED)
        with attach(first, model, tokenizer()), attach(second, model, tokenizer()):
            both = generated(model, MIXED)
        assert (both != plain).any(1).tolist() == [True, True, True, True, False, True]

    def test_an_error_in_the_model_leaves_nothing_behind(self, model: Any) -> None:
        plain = generated(model, MIXED)

        def fail(*_: Any) -> None:
            raise RuntimeError("lost power")

        hook = model.model.norm.register_forward_hook(fail)
        with (
            pytest.raises(RuntimeError, match="lost power"),
            attach(bank_for(model), model, tokenizer()),
        ):
            generated(model, MIXED)
        hook.remove()
        assert torch.equal(generated(model, MIXED), plain)

    def test_an_error_in_one_pass_does_not_reach_the_next(self, model: Any) -> None:
        with attach(bank_for(model), model, tokenizer()):
            right = generated(model, MIXED)
            with pytest.raises(IndexError):
                model(torch.full((2, 3), 10**6))
            assert torch.equal(generated(model, MIXED), right)

    @stages
    def test_disabled_and_without_experts_and_removed_are_the_base_model(
        self, model: Any, stage: str
    ) -> None:
        bank = bank_for(model, stage)
        plain = logits(model, MIXED)

        def same() -> bool:
            return all(torch.equal(a, b) for a, b in zip(logits(model, MIXED), plain, strict=True))

        with attach(bank, model, tokenizer()):
            assert not same()
            with bank.disabled():
                assert same()
            with without_experts(model):
                assert same()
            assert not same()
            bank.remove(["e0", "e1"])
            partly = [torch.equal(a, b) for a, b in zip(logits(model, MIXED), plain, strict=True)]
            assert partly == [slot != 2 for slot in FIRED]
            bank.remove(["e2"])
            assert same()


class TestWrappedModels:
    @stages
    def test_peft(self, model: Any, stage: str) -> None:
        bank = bank_for(model, stage)
        with attach(bank, model, tokenizer()):
            expected = generated(model, MIXED)
        wrapped = add_lora(model, {"r": 2, "target_modules": [bank.base.layer]}).eval()
        assert identify(wrapped, bank.base.layer) == bank.base
        with attach(bank, wrapped, tokenizer()):
            assert torch.equal(generated(wrapped, MIXED), expected)  # a new adapter is zero
            for name, value in wrapped.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(value)
            adapted = generated(wrapped, MIXED)
        assert not torch.equal(adapted, expected)
        assert (adapted != generated(wrapped, MIXED)).any()

    def test_training_around_a_bank_with_activation_checkpointing(self, model: Any) -> None:
        def gradient(checkpointed: bool) -> tuple[Tensor, Tensor]:
            wrapped = add_lora(glass_model(torch.float64), {"r": 2, "init_lora_weights": False})
            if checkpointed:
                checkpoint_activations(wrapped)
            wrapped.train()
            inputs = batch(model, MIXED)
            with attach(bank_for(model, positions="all"), wrapped, tokenizer()):
                loss = wrapped(**inputs, labels=inputs["input_ids"]).loss
                loss.backward()
            found = [p.grad.flatten() for p in wrapped.parameters() if p.grad is not None]
            return loss.detach(), torch.cat(found)

        torch.manual_seed(1)
        loss, plain = gradient(False)
        torch.manual_seed(1)
        again, checkpointed = gradient(True)
        assert torch.equal(loss, again)
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-12)
        assert plain.abs().sum() > 0

    @pytest.mark.parametrize(
        "then", ["another batch", "a shuffled batch", "evaluation", "unedited"]
    )
    def test_activations_are_computed_again_for_the_pass_they_belong_to(self, then: str) -> None:
        shuffled = [MIXED[i] for i in (1, 0, 4, 3, 2, 5)]

        def gradient(checkpointed: bool) -> Tensor:
            torch.manual_seed(1)
            model = glass_model(torch.float64)
            wrapped = add_lora(model, {"r": 2, "init_lora_weights": False})
            if checkpointed:
                checkpoint_activations(wrapped)
            wrapped.train()
            first = batch(model, MIXED)
            second = batch(model, shuffled if then == "a shuffled batch" else OTHERS * 3)
            with attach(bank_for(model, positions="all"), wrapped, tokenizer()) as attached:
                loss = wrapped(**first, labels=first["input_ids"]).loss
                if then == "evaluation":
                    with torch.no_grad():
                        wrapped(**second)
                elif then == "unedited":
                    with attached.paused():
                        loss = loss - wrapped(**first, labels=first["input_ids"]).loss
                else:
                    loss = loss - wrapped(**second, labels=second["input_ids"]).loss
                loss.backward()
            return torch.cat([p.grad.flatten() for p in wrapped.parameters() if p.grad is not None])

        plain, checkpointed = gradient(False), gradient(True)
        assert plain.abs().sum() > 0
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-12)

    def test_threads_keep_their_own_experts(self, model: Any) -> None:
        with attach(bank_for(model, "prompt"), model, tokenizer()):
            right = [generated(model, [question]) for question in MIXED[:4]]
            with ThreadPoolExecutor(4) as pool:
                found = pool.map(lambda question: generated(model, [question]), MIXED[:4] * 3)
                assert all(map(torch.equal, found, right * 3))

    def test_a_copy_of_an_attached_model_can_be_made(self, model: Any) -> None:
        with attach(bank_for(model, "prompt"), model, tokenizer()):
            copied = copy.deepcopy(model)
            assert torch.equal(generated(copied, MIXED), generated(model, MIXED))

    def test_a_copy_has_a_handle_of_its_own(self, model: Any) -> None:
        bank = bank_for(model)
        plain = generated(model, MIXED)
        with attach(bank, model, tokenizer()) as attached:
            copied = copy.deepcopy(model)
            edited = generated(model, MIXED)
            assert attachments_in(model) == [attached]
        assert attachments_in(model) == []
        (own,) = attachments_in(copied)
        assert own.bank is not bank
        assert torch.equal(generated(copied, MIXED), edited)
        with without_experts(copied):
            assert torch.equal(generated(copied, MIXED), plain)
        with pytest.raises(SuiteError, match="acts on .* already"):
            attach(bank, copied, tokenizer())
        own.detach()
        assert torch.equal(generated(copied, MIXED), plain)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in copied.modules())
        with attach(bank, copied, tokenizer()):
            assert torch.equal(generated(copied, MIXED), edited)

    def test_a_copy_made_after_detaching_is_the_base_model(self, model: Any) -> None:
        attach(bank_for(model), model, tokenizer()).detach()
        assert attachments_in(copy.deepcopy(model)) == []

    def test_pickling_an_attached_model_is_refused_by_name(self, model: Any) -> None:
        with (
            attach(bank_for(model), model, tokenizer()),
            pytest.raises(SuiteError, match=r"cannot be pickled .*Detach the bank first"),
        ):
            pickle.dumps(model)
        assert pickle.dumps(model)

    def test_a_compiled_model_is_refused(self, model: Any) -> None:
        with pytest.raises(SuiteError, match="Attach the bank to the model before torch.compile"):
            attach(bank_for(model), torch.compile(model, backend="eager"), tokenizer())

    def test_a_model_with_a_compiled_forward_inside_is_refused(self, model: Any) -> None:
        inner = model.model.layers[1].mlp
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inner, "forward", torch.compile(inner.forward, backend="eager"))
            with pytest.raises(SuiteError, match="the model is compiled"):
                attach(bank_for(model), model, tokenizer())

    def test_a_module_that_holds_the_model(self, model: Any) -> None:
        class Holder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

        bank = bank_for(model)
        plain = generated(model, MIXED)
        with attach(bank, Holder(), tokenizer()) as attached:
            assert isinstance(attached, Attachment)
            assert not torch.equal(generated(model, MIXED), plain)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_a_model_of_another_precision(self, model: Any, dtype: torch.dtype) -> None:
        bank = bank_for(model, "prompt")
        other = glass_model(dtype)
        base = logits(other, MIXED)
        with attach(bank, other, tokenizer()):
            edited = logits(other, MIXED)
        same = [torch.equal(a, b) for a, b in zip(base, edited, strict=True)]
        assert same == [slot == -1 for slot in FIRED]
        assert edited[0].dtype == dtype


class TestMasks:
    @torch.no_grad()
    def test_no_mask_means_that_all_tokens_are_real(self, model: Any) -> None:
        ids = batch(model, MIXED[:1])["input_ids"]
        with attach(bank_for(model), model, tokenizer()) as attached:
            model(ids)
        assert attached.last_routing is not None
        assert attached.last_routing.expert.tolist() == [0]

    @pytest.mark.parametrize(
        ("kind", "window"),
        [
            ("mistral", {"sliding_window": 8}),
            ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
            ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ],
    )
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_a_cache_of_fixed_size_shows_the_whole_prompt_of_a_model_with_windows(
        self, kind: str, window: dict[str, Any], attention: str
    ) -> None:
        torch.manual_seed(0)
        config = {**TINY[kind], "vocab_size": 2048, "max_position_embeddings": 256, **window}
        model = causal_lm_from_config(config, dtype="float64", attn_implementation=attention).eval()
        model.generation_config.eos_token_id = 3
        bank = bank_for(model, "prompt")
        assert isinstance(bank.gate, TextGate)
        shown = [prompts(model).prompt_text(question) for question in MIXED]
        with attach(bank, model, tokenizer()) as attached:
            for kept in ({}, {"cache_implementation": "static"}):
                bank.gate.asked.clear()
                generated(model, MIXED, **kept)
                assert bank.gate.asked == shown
                assert attached.last_routing is not None
                assert attached.last_routing.expert.tolist() == FIRED

    def test_a_mask_of_who_attends_to_whom_is_read_from_where_the_cache_ends(self) -> None:
        seen = torch.ones(1, 1, 2, 6, dtype=torch.bool).tril(3)  # 3 in the cache, 2 new, 1 to come
        seen[..., 0] = False
        assert real_tokens(seen, 1, 2, seen.device, past=3).tolist() == [[True, True]]
        seen[..., 3] = False
        assert real_tokens(seen, 1, 2, seen.device, past=3).tolist() == [[False, True]]
        with pytest.raises(SuiteError, match="shows 6 tokens, and the sequences have 9: a cache"):
            real_tokens(seen, 1, 2, seen.device, past=7)

    def test_a_mask_that_is_no_tensor_is_named(self) -> None:
        with pytest.raises(SuiteError, match=r"found a object.*attn_implementation"):
            real_tokens(object(), 1, 2, torch.device("cpu"))

    @torch.no_grad()
    @pytest.mark.parametrize(
        ("lengths", "message"),
        [
            ([0, 1], "a prompt of .0, 1. tokens"),
            ([1, 99], "99. tokens"),
            ([1], "1 for a batch of 2"),
        ],
    )
    def test_impossible_prompt_lengths_are_refused(
        self, model: Any, lengths: list[int], message: str
    ) -> None:
        with (
            attach(bank_for(model), model, tokenizer()) as attached,
            attached.prompt_lengths(lengths),
            pytest.raises(SuiteError, match=message),
        ):
            model(**batch(model, MIXED[:2]))
