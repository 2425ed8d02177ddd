"""CausalLMModule trains real models on real text, and comes back from its checkpoint."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from glass_lm import glass_tokenizer
from lightning.pytorch import Callback, Trainer
from tiny import TINY

from lightning_suite import CausalLMModule, TextDataModule
from lightning_suite.errors import SuiteError

adamw = partial(torch.optim.AdamW, lr=3e-3)

make_trainer = partial(
    Trainer,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)


def text(**options: Any) -> TextDataModule:
    return TextDataModule(**{"block_size": 32, "batch_size": 8, "val_fraction": 0.002, **options})


def module(kind: str = "llama", **options: Any) -> CausalLMModule:
    return CausalLMModule(**{"config": TINY[kind], "optimizer": adamw, "init_seed": 0, **options})


@pytest.mark.parametrize("kind", TINY)
def test_the_loss_falls_on_real_text(kind: str) -> None:
    model, data = module(kind), text()
    before = make_trainer().validate(model, datamodule=data, verbose=False)[0]["val_loss"]
    make_trainer(max_steps=60, limit_val_batches=0).fit(model, datamodule=data)
    after = make_trainer().validate(model, datamodule=data, verbose=False)[0]
    assert before == pytest.approx(math.log(256), abs=0.5)  # knows nothing yet
    assert after["val_loss"] < before - 1
    assert after["val_perplexity"] == pytest.approx(math.exp(after["val_loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "batches", "steps"),
    [
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 4, "2 steps"),
        ({"max_epochs": 1, "accumulate_grad_batches": 4}, 3, "1 step"),
        ({"max_epochs": 2}, 8, None),
        ({"max_steps": 2}, 8, None),  # asked for
    ],
)
def test_a_training_of_a_few_steps_says_so_and_names_the_knobs(
    options: dict[str, Any], batches: int, steps: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(limit_train_batches=batches, limit_val_batches=0, **options)
    with caplog.at_level(logging.INFO):
        trainer.fit(module(), datamodule=text())
    said = [line for line in caplog.messages if line.startswith("CausalLMModule: this whole")]
    assert len(said) == (steps is not None)
    if steps is not None:
        assert f"training is {steps} of the optimizer: {batches} batches an epoch, 4 a" in said[0]
        assert "batch_size" in said[0]


def test_the_validation_loss_is_the_mean_over_all_label_tokens() -> None:
    model, data = module(), text(batch_size=28)  # the last batch has one row
    logged = make_trainer().validate(model, datamodule=data, verbose=False)[0]["val_loss"]
    whole = data.tensors("val")
    assert len(whole["labels"]) % 28 == 1
    with torch.no_grad():
        logits = model.eval()(whole).logits
    per_token = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).double(), whole["labels"][:, 1:].flatten()
    )
    assert logged == pytest.approx(per_token.item(), rel=1e-5)


def test_tokens_without_label_count_neither_in_the_loss_nor_in_the_tokens() -> None:
    class Mask(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, _: int) -> None:
            batch["labels"][:, :10] = -100

    model = module()
    make_trainer(max_steps=2, limit_val_batches=0, callbacks=Mask()).fit(model, datamodule=text())
    assert model.tokens_seen.item() == 2 * 8 * 22


def test_a_callbacks_setup_sees_the_model() -> None:
    class Look(Callback):
        names: tuple[str, ...] = ()

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self.names = tuple(name for name, _ in pl_module.named_parameters())

    look = Look()
    make_trainer(fast_dev_run=1, callbacks=look).fit(module(), datamodule=text())
    assert "model.model.layers.0.self_attn.q_proj.weight" in look.names


def test_init_seed_draws_the_same_weights_and_leaves_the_global_state() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = module(init_seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second, other = module(init_seed=1).state_dict(), module(init_seed=2).state_dict()
    name = "model.lm_head.weight"
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(module(init_seed=None).state_dict()[name], first[name])


def gradients_of(
    model: CausalLMModule, batch: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor | None], int]:
    """Return the gradients, and how many numbers the forward pass kept for them."""
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(batch).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return gradients, sum(kept)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_gradient_checkpointing_has_the_same_gradients(lora: dict[str, Any] | None) -> None:
    data = text()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    (plain, kept), (recomputed, few) = (
        gradients_of(module(lora=lora, gradient_checkpointing=on), batch) for on in (False, True)
    )
    assert few < kept / 2  # it is on
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert gradient is not None
        assert torch.equal(gradient, recomputed[name]), name


def test_the_tokenizer_of_a_pretrained_model_is_there_without_data_and_loaded_when_asked_for(
    tmp_path: Path,
) -> None:
    module().model.save_pretrained(tmp_path)
    model = module(config=None, pretrained=str(tmp_path))  # nobody has asked: none is needed
    with pytest.raises(SuiteError, match="tokenizer that can be loaded"):
        _ = model.tokenizer
    glass_tokenizer().save_pretrained(tmp_path)
    assert model.tokenizer("my the")["input_ids"] == glass_tokenizer()("my the")["input_ids"]
    assert model.tokenizer is model.tokenizer
    assert module().tokenizer is None  # of no model that was trained before


def test_adapters_on_a_pretrained_folder_learn_and_leave_the_base_alone(tmp_path: Path) -> None:
    module().model.save_pretrained(tmp_path)
    model = module(config=None, pretrained=str(tmp_path), lora={"r": 4, "lora_alpha": 8})
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    data = text()
    trainer = make_trainer(max_steps=20, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    after = model.model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert len(trainer.optimizers[0].param_groups[0]["params"]) == len(
        [p for p in model.parameters() if p.requires_grad]
    )


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=8)

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def run(callbacks: list[Callback], checkpoint: Path | None = None) -> CausalLMModule:
        model = module(lr_scheduler=schedule)
        make_trainer(max_steps=8, limit_val_batches=0, callbacks=callbacks).fit(
            model, datamodule=text(), ckpt_path=checkpoint, weights_only=True
        )
        return model

    whole = run([Save()])
    resumed = run([], tmp_path / "half.ckpt")
    assert resumed.tokens_seen.item() == 8 * 8 * 31
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_module_comes_back_from_its_checkpoint_without_pickle(tmp_path: Path) -> None:
    model = module()
    trainer = make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(model, datamodule=text())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = CausalLMModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert loaded.hparams["config"] == TINY["llama"]


@pytest.mark.parametrize(("interval", "expected"), [("step", 3), ("epoch", 1)])
def test_the_scheduler_counts_steps_or_epochs(interval: str, expected: int) -> None:
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    model = module(lr_scheduler=schedule, scheduler_interval=interval)
    trainer = make_trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=0)
    trainer.fit(model, datamodule=text())
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == expected


def test_a_plateau_scheduler_watches_the_validation_loss() -> None:
    schedule = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0)
    model = module(lr_scheduler=schedule)
    trainer = make_trainer(max_epochs=3, limit_train_batches=1, num_sanity_val_steps=0)
    trainer.fit(model, datamodule=text())
    assert trainer.optimizers[0].param_groups[0]["lr"] < 3e-3


def test_testing_logs_loss_and_perplexity() -> None:
    result = make_trainer().test(module(), datamodule=text(test_fraction=0.002), verbose=False)[0]
    assert result["test_perplexity"] == pytest.approx(math.exp(result["test_loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": None}, "neither is given"),
        ({"pretrained": "x"}, "both is given"),
    ],
)
def test_one_of_config_and_pretrained_is_needed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        module(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 100}, "vocab_size is 100, but the data module's vocab_size is 256"),
        ({"max_position_embeddings": 16}, "max_position_embeddings is 16, but .* block_size is 32"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(change: dict[str, int], message: str) -> None:
    model = module(config={**TINY["llama"], **change})
    with pytest.raises(SuiteError, match=message):
        make_trainer(max_steps=1).fit(model, datamodule=text())
