"""Language models without their heads, frozen, adapted or trained; and where students start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import (
    add_lora,
    causal_lm_from_config,
    causal_lm_from_pretrained,
    checkpoint_activations,
    load_tokenizer,
)

Training = Literal["frozen", "lora", "full"]


def load_backbone(
    pretrained: str | None,
    config: Mapping[str, Any] | str | None,
    *,
    training: Training = "frozen",
    lora: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> Any:
    """Load or build a decoder without its language-modelling head.

    Args:
        pretrained: As for :func:`~lightning_suite.language.loading.causal_lm_from_pretrained`.
        config: Or an untrained one, as for ``causal_lm_from_config``.
        training: What of it is trained.
        lora: Fields of ``peft.LoraConfig``, with ``training="lora"``.
        dtype: Of the parameters.
        attn_implementation: ``eager``, ``sdpa``, …; None lets transformers choose.
        gradient_checkpointing: Compute activations again in the backward pass.
        seed: Of untrained weights and adapters.

    Raises:
        SuiteError: Neither or both of ``pretrained`` and ``config`` are given, or ``lora`` and
            ``training`` contradict each other.
    """
    if (config is None) == (pretrained is None):
        raise SuiteError(
            "give either pretrained (a trained backbone) or config (an untrained one); "
            f"{'both' if config is not None else 'neither'} is given."
        )
    if (lora is not None) != (training == "lora"):
        raise SuiteError(
            f"backbone is {training} and lora is {lora}. Give lora, for example "
            "{r: 16, lora_alpha: 32}, together with backbone: lora."
        )
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if pretrained is not None:
            model = causal_lm_from_pretrained(pretrained, **options)
        else:
            assert config is not None
            model = causal_lm_from_config(config, **options)
        model = _without_head(model)
        if gradient_checkpointing:
            checkpoint_activations(model)
        if lora is not None:
            model = add_lora(model, {"task_type": "FEATURE_EXTRACTION", **lora})
    return model.requires_grad_(False) if training == "frozen" else model


def _without_head(model: Any) -> Any:
    """Return the decoder of a causal language model.

    Raises:
        SuiteError: It cannot be told from the head.
    """
    decoder = model.base_model
    if decoder is model:  # its own prefix is that of a larger model with images (Llama 4)
        decoder = model.get_decoder()
    if decoder is None or decoder is model or getattr(decoder, "lm_head", None) is not None:
        raise SuiteError(
            f"{type(model).__name__} does not say where its language-modelling head begins, and "
            "LMCD reads the states below it. Take another model."
        )
    return decoder


def untrained_names(backbone: Any) -> set[str]:
    """Return the names in ``backbone.state_dict()`` that training leaves alone.

    Loading ``pretrained`` again gives these, so that no checkpoint need hold them.
    """
    trained = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    return set(backbone.state_dict()) - trained


def sample_weights(backbone: Any) -> Tensor:
    """Return a few numbers of each weight that training leaves alone: float32, on the CPU.

    Two backbones with the same numbers are the same; another one of the same shape is found.
    """
    state, few = backbone.state_dict(), []
    for name in sorted(untrained_names(backbone)):
        values = state[name].detach().flatten()
        few.append(values[:: max(1, len(values) // 4)][:4].float())
    return torch.cat(few).cpu() if few else torch.zeros(0)


def check_same_weights(kept: Tensor | None, backbone: Any, pretrained: str) -> None:
    """Refuse a backbone whose untrained weights are not those that a checkpoint was trained on.

    Args:
        kept: From :func:`sample_weights`; None in checkpoints of old.
        backbone: Loaded from ``pretrained``.
        pretrained: For the message.

    Raises:
        SuiteError: It is another, beyond what another type of the numbers makes of them.
    """
    if kept is None:
        return
    kept, ours = kept.cpu(), sample_weights(backbone)
    # bfloat16 rounds by .002 of a number; models of one family differ by more
    if kept.shape == ours.shape and (kept - ours).norm() <= 5e-3 * kept.norm():
        return
    raise SuiteError(
        f"LMCDModule: pretrained {pretrained!r} is not the backbone that the checkpoint was "
        "trained with: its weights are others, and students and head would read another model. "
        "Set pretrained to that of the training."
    )


def start_vector(backbone: Any, token: str, pretrained: str | None) -> Tensor:
    """Return the embedding of ``token``, where students' vectors start: float32 [H].

    Args:
        backbone: From :func:`load_backbone`.
        token: Several tokens are averaged.
        pretrained: Whose tokenizer is used; an untrained backbone reads bytes.

    Raises:
        SuiteError: ``token`` is nothing to the tokenizer.
    """
    table = backbone.get_input_embeddings()
    if pretrained is None:
        ids = [byte % len(table.weight) for byte in token.encode()]
    else:
        ids = load_tokenizer(pretrained)(token, add_special_tokens=False)["input_ids"]
    if not ids:
        raise SuiteError(f"student_token {token!r} has no tokens.")
    # through the layer and not from its weights, which it may scale (Gemma 3)
    vectors: Tensor = table(torch.tensor(ids, device=table.weight.device))
    return vectors.detach().float().mean(0)
