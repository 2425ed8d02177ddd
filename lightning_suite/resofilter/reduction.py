"""How a training loss is made of its samples: by a mean of samples, or of the labels of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.token_batch import IGNORED

Reduction = Literal["auto", "mean", "sum", "token_mean", "label_mean"]
REDUCTIONS: tuple[Reduction, ...] = ("auto", "mean", "sum", "token_mean", "label_mean")
TokenReduction = Literal["token_mean", "label_mean"]
# Heads of Hugging Face models by the end of their name. Those of XLNet and XLM are called like
# the ones that predict the next token, and take labels at their own places.
_NEXT_TOKEN, _SAME_TOKEN = ("ForCausalLM", "LMHeadModel"), ("ForTokenClassification", "ForMaskedLM")
_UNSHIFTED = {"XLNetLMHeadModel", "XLMWithLMHeadModel", "FlaubertWithLMHeadModel"}


def reduction_of_tokens(model: nn.Module) -> TokenReduction | None:
    """Return what a Hugging Face model's own loss does with a label for each token.

    Args:
        model: It, or a module that holds it.

    Returns:
        ``token_mean`` where labels are shifted, so that the first one counts for nothing;
        ``label_mean`` where they are not; None where there is no such model, or two that differ.
    """
    found: set[TokenReduction] = set()
    for module in model.modules():
        name, config = type(module).__name__, getattr(module, "config", None)
        if not hasattr(config, "model_type"):
            continue
        headed = "For" in name or "LMHead" in name
        decoded = headed and getattr(config, "is_encoder_decoder", False)
        if decoded or name in _UNSHIFTED or name.endswith(_SAME_TOKEN):
            found.add("label_mean")
        elif name.endswith(_NEXT_TOKEN):
            found.add("token_mean")
    return found.pop() if len(found) == 1 else None


def reduction_of(batch: Any, of_tokens: TokenReduction | None) -> Reduction:
    """Return what ``auto`` is for a batch.

    Args:
        batch: As the data loader gives it.
        of_tokens: From :func:`reduction_of_tokens`.

    Raises:
        SuiteError: The batch has labels of tokens, and ``of_tokens`` is None.
    """
    if not (isinstance(batch, Mapping) and {"labels", "input_ids"} <= set(batch)):
        return "mean"
    labels = batch["labels"]
    if not isinstance(labels, Tensor) or labels.ndim < 2 or labels.is_floating_point():
        return "mean"  # of samples
    if of_tokens is None:
        raise SuiteError(
            "reduction=auto: the batch has a label for each token, and it cannot be told whether "
            "the loss shifts them, because the module holds no Hugging Face model that is known "
            "to, or several. Set reduction: token_mean where the loss is the mean over label "
            "tokens and the labels are the inputs (each token predicts the next one), label_mean "
            "where a label is that of its own place, mean or sum where it is made of the samples' "
            "own losses."
        )
    return of_tokens


def count_labels(batch: Any, reduction: Reduction) -> Tensor:
    """Return how many labels of each sample count in the loss: [N].

    Raises:
        SuiteError: The batch has no label for each token.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.ndim < 2:
        raise SuiteError(
            f"reduction={reduction} needs a label for each token: a batch with `labels` [N, T], "
            f"{IGNORED} where there is none. Set reduction: mean for one label a sample."
        )
    if reduction == "token_mean":
        labels = labels[:, 1:]  # nothing predicts the first token
    return (labels != IGNORED).flatten(1).sum(1)
