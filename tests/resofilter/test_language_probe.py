"""ResoFilter on causal language models: against the literal loop, in any batch, on any side."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.language_probe import CausalLMProbe, probe_batches
from lightning_suite.resofilter.targets import find_targets
from tests.reference.resofilter_reference import autograd_gradients, literal_features

VOCABULARY = 61
LENGTHS = [12, 20, 7, 15, 9, 20, 4, 17]
SMALL = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}


def llama(initializer_range: float = 0.2, **more: Any) -> nn.Module:
    config = LlamaConfig(**SMALL, initializer_range=initializer_range, **more)
    return LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    config = GPT2Config(n_embd=24, n_layer=3, n_head=3, vocab_size=VOCABULARY, n_positions=64)
    return GPT2LMHeadModel(config).eval()


def granite() -> nn.Module:
    config = GraniteConfig(**SMALL, initializer_range=0.2, logits_scaling=4.0)
    return GraniteForCausalLM(config).eval()


def lora() -> nn.Module:
    config = LoraConfig(r=3, target_modules=["up_proj"], init_lora_weights=False)
    return get_peft_model(llama(), config).eval()


class Samples:
    """Random samples whose first third is the prompt, and every way to batch them."""

    def __init__(self, lengths: Sequence[int] = LENGTHS) -> None:
        self.tokens = [torch.randint(0, VOCABULARY, (n,)) for n in lengths]
        self.labels = []
        for tokens in self.tokens:
            labels = tokens.clone()
            labels[: len(tokens) // 3] = -100
            self.labels.append(labels)
        self.ids = [f"s{n:02}" for n in range(len(lengths))]

    def padded(self, which: Sequence[int], side: str) -> dict[str, Any]:
        longest = max(len(self.tokens[n]) for n in which)

        def fill(rows: Sequence[Tensor], value: int) -> Tensor:
            out = torch.full((len(rows), longest), value)
            for row, values in zip(out, rows, strict=True):
                row[: len(values)] = values
                if side == "left":
                    row.copy_(row.roll(longest - len(values)))
            return out

        tokens = [self.tokens[n] for n in which]
        return {
            "ids": [self.ids[n] for n in which],
            "input_ids": fill(tokens, 5),
            "labels": fill([self.labels[n] for n in which], -100),
            "attention_mask": fill([torch.ones_like(t) for t in tokens], 0),
        }

    def packed(self) -> dict[str, Any]:
        """Return all samples in two rows, with some padding at the end of the first."""
        half = len(self.tokens) // 2
        groups = [range(half), range(half, len(self.tokens))]
        width = 2 + max(sum(len(self.tokens[n]) for n in group) for group in groups)
        batch = {key: torch.full((2, width), -100) for key in ("input_ids", "labels", "segments")}
        batch["input_ids"].fill_(0)
        batch["segments"].fill_(-1)
        for row, group in enumerate(groups):
            start = 0
            for n in group:
                part = slice(start, start + len(self.tokens[n]))
                batch["input_ids"][row, part] = self.tokens[n]
                batch["labels"][row, part] = self.labels[n]
                batch["segments"][row, part] = n
                start = part.stop
        return {"ids": self.ids, **batch}

    def losses(self) -> list[Callable[[nn.Module], Tensor]]:
        """Return each sample's loss as a function of the model, one sample at a time."""
        return [
            lambda model, t=t, y=y: causal_loss(model, t, y)
            for t, y in zip(self.tokens, self.labels, strict=True)
        ]


def causal_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    # not the model's own loss: it is computed in float32 even if the model is float64
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    return nn.functional.cross_entropy(logits[:-1], labels[1:])


def score(
    model: nn.Module,
    batches: Sequence[dict[str, Any]],
    features: Sequence[Any] = ("adam1_mean_abs", "grad_norm"),
    modules: str = "up_proj",
    layers: str = "last:3",
    **options: Any,
) -> dict[str, Any]:
    targets = find_targets(model, modules, layers).found
    chosen = make_features(features)
    found: dict[str, Any] = {}
    for rows in probe_batches(model, batches, targets, chosen, **options):
        for name, values in rows.items():
            found[name] = found[name] + list(values) if name in found else list(values)
    order = sorted(range(len(found["sample_id"])), key=lambda n: found["sample_id"][n])
    return {
        name: torch.stack([torch.as_tensor(values[n]) for n in order])
        if isinstance(values[0], Tensor)
        else [values[n] for n in order]
        for name, values in found.items()
    }


def resofilter_score(found: dict[str, Any]) -> Tensor:
    columns = [values for name, values in found.items() if name.endswith("adam1_mean_abs")]
    return torch.stack(columns).mean(0)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "llama": (llama, "up_proj"),
    "llama, untied head watched": (lambda: llama(tie_word_embeddings=False), "all"),
    "gpt2, transposed": (gpt2, "mlp.c_fc"),
    "granite, scaled logits": (granite, "up_proj"),
    "lora": (lora, "up_proj"),
}


@pytest.mark.parametrize("case", MODELS)
def test_the_score_is_the_literal_loop_s_to_nine_digits(case: str) -> None:
    make, modules = MODELS[case]
    model, samples = make().double(), Samples()
    found = score(model, [samples.padded(range(8), "right")], modules=modules, layers="all")
    columns = [name for name in found if name.endswith("adam1_mean_abs")]
    names = [name.replace("adam1_mean_abs", "weight") for name in columns]

    literal = literal_features(model, samples.losses(), names)

    for column, expected in zip(columns, literal.T, strict=True):
        torch.testing.assert_close(found[column], expected, rtol=1e-9, atol=0)
        assert found[column].argsort().tolist() == expected.argsort().tolist()
    losses = torch.stack([loss(model).detach() for loss in samples.losses()])
    torch.testing.assert_close(found["loss"], losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(found["perplexity"], losses.exp(), rtol=1e-10, atol=0)


def test_in_float32_the_closed_form_is_nearer_to_the_truth_than_the_published_loop() -> None:
    model = llama(initializer_range=0.02)  # as large as a trained model's weights
    samples = Samples([4 + n % 30 for n in range(48)])
    batch = [samples.padded(range(48), "right")]
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 2, 3)]

    ours = resofilter_score(score(model, batch))
    loop = literal_features(model, samples.losses(), names).mean(1)
    truth = resofilter_score(score(model.double(), batch))

    assert (ours - truth).abs().mean() < 0.5 * (loop - truth).abs().mean()
    assert spearman(ours, loop) >= 0.99
    assert spearman(ours, truth) >= spearman(loop, truth)


@pytest.mark.parametrize("case", MODELS)
def test_norms_agree_with_autograd(case: str) -> None:
    make, modules = MODELS[case]
    model, samples = make().double(), Samples()
    found = score(model, [samples.padded(range(8), "left")], ["grad_norm"], modules, layers="all")
    columns = [name for name in found if name.endswith("grad_norm")]
    names = [name.replace("grad_norm", "weight") for name in columns]
    for name, G in autograd_gradients(model, samples.losses(), names).items():
        expected = G.flatten(1).norm(dim=1)
        column = name.replace("weight", "grad_norm")
        torch.testing.assert_close(found[column], expected, rtol=1e-9, atol=0, msg=column)


@pytest.mark.parametrize(
    ("attention", "dtype", "rtol"),
    [
        ("sdpa", torch.float64, 1e-10),
        ("sdpa", torch.float32, 1e-5),
        ("eager", torch.float32, 1e-5),
    ],
)
def test_a_sample_has_the_same_score_in_every_batch(
    attention: str, dtype: torch.dtype, rtol: float
) -> None:
    model = llama(attn_implementation=attention).to(dtype)
    samples = Samples()
    ways = {
        "together, right": [samples.padded(range(8), "right")],
        "together, left": [samples.padded(range(8), "left")],
        "in threes": [samples.padded(part, "right") for part in ([3, 1, 6], [0, 7, 2], [5, 4])],
        "packed": [samples.packed()],
    }
    alone = score(model, [samples.padded([n], "right") for n in range(8)], layers="all")
    for way, batches in ways.items():
        found = score(model, batches, layers="all")
        for name, values in alone.items():
            if isinstance(values, Tensor):
                torch.testing.assert_close(
                    found[name], values, rtol=rtol, atol=0, msg=f"{name}, {way}"
                )
            else:
                assert found[name] == values, way


def test_activation_checkpointing_changes_nothing() -> None:
    model, batch = llama(), [Samples().padded(range(8), "right")]
    plain = score(model, batch, layers="all")
    with warnings.catch_warnings():  # the new name exists from transformers 5.20 on only
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.MonkeyPatch.context() as patch:  # transformers checkpoints in training mode only
        patch.setattr(nn.Module, "eval", lambda self: self)
        again = score(model.train(), batch, layers="all")
    for name, values in plain.items():
        if isinstance(values, Tensor):
            assert torch.equal(values, again[name]), name


def test_the_head_is_run_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_suite.resofilter import head_loss

    model, batch = llama().double(), [Samples().padded(range(8), "right")]
    whole = score(model, batch)
    monkeypatch.setattr(head_loss, "_CPU_LOGITS", 3 * VOCABULARY)
    parts = score(model, batch)
    for name, values in whole.items():
        if isinstance(values, Tensor):
            torch.testing.assert_close(parts[name], values, rtol=1e-12, atol=0)


def test_a_sample_without_labels_is_marked_and_costs_the_others_nothing() -> None:
    model, samples = llama(), Samples()
    clean = score(model, [samples.padded(range(8), "right")])
    samples.labels[2].fill_(-100)
    found = score(model, [samples.padded(range(8), "right")])
    assert found["status"] == ["ok", "ok", "no_labels"] + ["ok"] * 5
    assert found["n_label_tokens"][2] == 0
    rest = [0, 1, 3, 4, 5, 6, 7]
    for name, values in found.items():
        if isinstance(values, Tensor):
            assert values[2].isnan(), name
            torch.testing.assert_close(values[rest], clean[name][rest], rtol=1e-5, atol=0)


def test_a_batch_without_any_label_is_all_nan() -> None:
    samples = Samples([5, 6])
    for labels in samples.labels:
        labels.fill_(-100)
    found = score(llama(), [samples.padded([0, 1], "right")])
    assert found["status"] == ["no_labels"] * 2
    assert resofilter_score(found).isnan().all()


def test_status_says_what_was_cut_and_what_is_not_finite() -> None:
    model, samples = llama(), Samples()
    with torch.no_grad():  # one token's embedding is broken, and one sample alone uses it
        model.model.embed_tokens.weight[60] = torch.nan
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.nan_to_num(0))
    for n, tokens in enumerate(samples.tokens):
        tokens.clamp_(max=59)
        tokens[2 if n == 5 else 0] = 60 if n == 5 else 1
    batch = samples.padded(range(8), "right") | {"truncated": [n == 1 for n in range(8)]}
    found = score(model, [batch])
    assert found["status"] == ["ok", "truncated", "ok", "ok", "ok", "nonfinite", "ok", "ok"]


def test_sixteen_bit_weights_are_refused_for_counts_of_small_entries() -> None:
    model, batch = llama().bfloat16(), [Samples().padded(range(8), "right")]
    with pytest.raises(SuiteError, match=r"adam1_mean_abs count.*rank correlation of 0\.05"):
        score(model, batch)
    assert score(model, batch, ["grad_norm"])["status"] == ["ok"] * 8
    assert score(model, batch, allow_low_precision=True)["status"] == ["ok"] * 8


def test_autocast_is_refused_too() -> None:
    batch = [Samples().padded(range(8), "right")]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(SuiteError, match="autocast is on"):
        score(llama(), batch)


def test_a_sample_longer_than_the_context_is_named() -> None:
    with pytest.raises(SuiteError, match=r"sample 's01' has 70 tokens, the model's context is 64"):
        score(llama(), [Samples([5, 70]).padded([0, 1], "right")])


class Transposes(nn.Module):
    """A layer that works on [T, B, …] or on rows [T·B, …], although the batch is [B, T]."""

    def __init__(self, layer: nn.Module, flat: bool) -> None:
        super().__init__()
        self.layer, self.flat = layer, flat

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(0, 1)
        if not self.flat:
            return self.layer(rows).transpose(0, 1)
        return self.layer(rows.flatten(0, 1)).view(*rows.shape[:2], -1).transpose(0, 1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("length", [3, 5])
def test_layers_that_do_not_see_the_batch_s_order_are_refused(flat: bool, length: int) -> None:
    model, samples = llama(), Samples([length] * 3)
    mlp = model.model.layers[2].mlp
    mlp.up_proj = Transposes(mlp.up_proj, flat)
    with pytest.raises(SuiteError, match=r"2.mlp.up_proj.layer: cannot tell the samples apart"):
        score(model, [samples.padded(range(3), "right")])
    alone = score(model, [samples.padded([n], "right") for n in range(3)])
    assert alone["status"] == ["ok"] * 3


@pytest.mark.parametrize("key", ["ids", "input_ids", "labels"])
def test_a_batch_without_a_needed_key_is_refused(key: str) -> None:
    batch = Samples().padded(range(8), "right")
    del batch[key]
    with pytest.raises(SuiteError, match=f"the batch has no '{key}'"):
        score(llama(), [batch])


@pytest.mark.parametrize("bos", [None, 1])
def test_the_loss_without_the_prompt(bos: int | None) -> None:
    model, samples = llama(bos_token_id=bos).double(), Samples()
    for batch in (samples.padded(range(8), "left"), samples.packed()):
        found = score(model, [batch], without_prompt=True)["loss_without_prompt"]
        for n, labels in enumerate(samples.labels):
            answer = labels[labels != -100]
            if bos is not None:
                answer = torch.cat([torch.tensor([bos]), answer])
            if len(answer) < 2:
                assert found[n].isnan()
                continue
            expected = causal_loss(model, answer, answer).item()
            assert found[n].item() == pytest.approx(expected, rel=1e-9)


def test_a_model_of_text_and_images_keeps_its_context_apart() -> None:
    model, samples = llama(bos_token_id=1), Samples()
    expected = score(model, [samples.padded(range(3), "right")], without_prompt=True)
    text = model.config
    model.config = SimpleNamespace(return_dict=True, get_text_config=lambda: text)
    found = score(model, [samples.padded(range(3), "right")], without_prompt=True)
    assert torch.equal(found["loss_without_prompt"], expected["loss_without_prompt"])
    long = {"ids": ["a"], "input_ids": torch.ones(1, 65).long(), "labels": torch.ones(1, 65).long()}
    with pytest.raises(SuiteError, match="'a' has 65 tokens, the model's context is 64"):
        score(model, [long])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_opacus_finds_the_same_norms() -> None:
    opacus = pytest.importorskip("opacus.grad_sample", reason="opacus is not installed")
    model, samples = llama(tie_word_embeddings=False).double(), Samples()
    batch = samples.padded(range(8), "right")
    found = score(model, [batch], ["grad_norm"], "all", "all")
    for module in model.modules():  # opacus knows no RMSNorm and no rotary embedding
        trainable = isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(trainable)
    wrapped = opacus.GradSampleModule(model, strict=False, loss_reduction="sum").train()
    logits = wrapped(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    nll = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    (nll.sum(1) / (labels != -100).sum(1)).sum().backward()
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            norms = parameter.grad_sample.flatten(1).norm(dim=1)
            column = name.replace("weight", "grad_norm")
            torch.testing.assert_close(found[column], norms, rtol=1e-9, atol=0, msg=name)
            compared += 1
    assert compared == 4 * 7 + 1


def test_the_model_is_restored_when_the_iterator_is_closed() -> None:
    model = llama().train()
    targets = find_targets(model, "up_proj").found
    batches: Iterator[dict[str, Any]] = iter([Samples().padded(range(8), "right")] * 2)
    rows = probe_batches(model, batches, targets, make_features(["grad_norm"]))
    next(rows)
    rows.close()
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.lm_head._forward_pre_hooks


def test_the_probe_computes_only_what_is_asked() -> None:
    model = llama()
    targets = find_targets(model, "up_proj", "last:2").found
    with CausalLMProbe(model, targets, make_features(["grad_norm"])) as probe:
        rows = probe.score_batch(Samples().padded([0, 1], "right"))
    assert list(rows) == [
        "sample_id",
        "status",
        "loss",
        "perplexity",
        "n_tokens",
        "n_label_tokens",
        "model.layers.2.mlp.up_proj.grad_norm",
        "model.layers.3.mlp.up_proj.grad_norm",
    ]
    assert rows["n_tokens"] == [12, 20]
    assert rows["n_label_tokens"] == [8, 14]


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return torch.corrcoef(ranks)[0, 1].item()
