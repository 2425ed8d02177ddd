"""The LightningModule around the residual nets: a classifier to tune shallow and train deep."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from lightning_suite.checkpoints import require_callbacks
from lightning_suite.depth_mup.models import (
    Activation,
    BranchInput,
    ReadoutInit,
    ResidualConvNet,
    ResidualMLP,
)
from lightning_suite.depth_mup.rules import Rule
from lightning_suite.errors import SuiteError


class ResidualNetModule(LightningModule):
    """Image classifier on a residual net whose depth and width are arguments.

    The learning rate given to ``optimizer`` is that of the base model; add
    :class:`~lightning_suite.DepthMuPLRCallback` to correct it for this one.

    Args:
        architecture: ``"mlp"`` (:class:`~lightning_suite.depth_mup.models.ResidualMLP`) or
            ``"conv"`` (:class:`~lightning_suite.depth_mup.models.ResidualConvNet`).
        image_shape: Channels, height and width of an image.
        num_classes: Number of classes.
        width: n, dimension (or channels) of the residual stream.
        depth: L, number of residual blocks.
        block_depth: Matrices in a residual branch, 1 or 2.
        activation: Nonlinearity of the branches.
        branch_input: What a two-matrix branch applies to the stream first.
        bias: Whether the matrices of the branches have biases.
        rule: Rule by which the net scales its branches and its readout. With ``"sp"`` the net is
            the same at every shape, and the callback adds the multipliers.
        base_depth: L0; default: ``depth``.
        base_width: n0; default: ``width``.
        base_residual_multiplier: c0; default 1/sqrt(L0).
        readout_init: ``"zero"`` or ``"normal"``.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer; None for a constant rate.
        lr_scheduler_interval: Whether the scheduler steps every ``"step"`` or every ``"epoch"``.

    Logged: ``train_loss``, ``val_loss``, ``val_accuracy``, ``test_loss``, ``test_accuracy``.

    Raises:
        SuiteError: An argument is not one of the values above.

    Example:
        >>> module = ResidualNetModule(depth=8, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
        >>> module(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        architecture: Literal["mlp", "conv"] = "mlp",
        image_shape: tuple[int, int, int] = (1, 8, 8),
        num_classes: int = 10,
        width: int = 64,
        depth: int = 4,
        block_depth: int = 2,
        activation: Activation = "tanh",
        branch_input: BranchInput = "identity",
        bias: bool = False,
        rule: Rule = "sp",
        base_depth: int | None = None,
        base_width: int | None = None,
        base_residual_multiplier: float | None = None,
        readout_init: ReadoutInit = "zero",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["step", "epoch"] = "step",
    ) -> None:
        super().__init__()
        if architecture not in ("mlp", "conv"):
            raise SuiteError(f"architecture={architecture!r}; choose 'mlp' or 'conv'.")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        channels, height, image_width = image_shape
        net = ResidualMLP if architecture == "mlp" else ResidualConvNet
        self.net = net(
            channels * height * image_width if architecture == "mlp" else channels,
            num_classes,
            width=width,
            depth=depth,
            block_depth=block_depth,
            activation=activation,
            branch_input=branch_input,
            bias=bias,
            rule=rule,
            base_depth=base_depth,
            base_width=base_width,
            base_residual_multiplier=base_residual_multiplier,
            readout_init=readout_init,
        )
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch of images and labels."""
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def sample_losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return each image's cross-entropy ``[N]``; `lightning-suite score` asks for it."""
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none")

    def on_validation_start(self) -> None:
        """Begin at nothing: one that broke off has left its batches."""
        self.val_accuracy.reset()

    def on_test_start(self) -> None:
        """Begin at nothing."""
        self.test_accuracy.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate(batch, "test", self.test_accuracy)

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """Return class probabilities ``[N, num_classes]``."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        return torch.softmax(self(x), dim=-1)

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy
    ) -> None:
        x, y = batch
        logits = self(x)
        accuracy(logits, y)
        self.log(f"{stage}_loss", F.cross_entropy(logits, y), prog_bar=True, sync_dist=True)
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over all trainable parameters, and the scheduler if there is one."""
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": self.lr_scheduler(optimizer),
                "interval": self.lr_scheduler_interval,
                "monitor": "train_loss",
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on without a callback that the training depended on."""
        require_callbacks(checkpoint, self._trainer)
