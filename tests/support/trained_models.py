"""Small trained models from the package registry, as transformers models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM


def glassllm_en(max_positions: int = 128) -> tuple[LlamaForCausalLM, Any]:
    """Return glassllm-en (0.8 M parameters, a Llama written in NumPy) and its tokenizer.

    The tokenizer has ``encode`` and ``decode``. Skips the test where the package is missing.
    """
    glassllm = pytest.importorskip("glassllm", reason="glassllm is not installed")
    source, tokenizer = glassllm.load_pretrained("en")
    cfg = source.cfg
    weights = {n: torch.tensor(p.data) for n, p in source.named_parameters().items()}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.d_model,
            intermediate_size=weights["blocks.0.ffn.W1"].shape[1],
            num_hidden_layers=cfg.n_layers,
            num_attention_heads=cfg.n_heads,
            num_key_value_heads=cfg.n_kv_heads,
            max_position_embeddings=max_positions,
            rms_norm_eps=cfg.eps,
            rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_base},
            tie_word_embeddings=True,
        )
    )
    names = {
        "norm1.gamma": "input_layernorm.weight",
        "norm2.gamma": "post_attention_layernorm.weight",
        "attn.W_Q": "self_attn.q_proj.weight",
        "attn.W_K": "self_attn.k_proj.weight",
        "attn.W_V": "self_attn.v_proj.weight",
        "attn.W_O": "self_attn.o_proj.weight",
        "ffn.W1": "mlp.gate_proj.weight",
        "ffn.W3": "mlp.up_proj.weight",
        "ffn.W2": "mlp.down_proj.weight",
    }
    state = {
        "model.embed_tokens.weight": weights["E"],
        "model.norm.weight": weights["norm_f.gamma"],
        "lm_head.weight": weights["E"],
    }
    for layer in range(cfg.n_layers):
        for theirs, ours in names.items():
            value = weights[f"blocks.{layer}.{theirs}"]
            value = value.mT if value.ndim == 2 else value
            if theirs in ("attn.W_Q", "attn.W_K"):
                value = _halves_instead_of_pairs(value, cfg.d_model // cfg.n_heads)
            state[f"model.layers.{layer}.{ours}"] = value
    model.load_state_dict(state)
    return model.eval(), tokenizer


def _halves_instead_of_pairs(weight: Tensor, head: int) -> Tensor:
    """Reorder a head's outputs: rotary embedding of neighbours -> of its two halves."""
    order = torch.cat([torch.arange(0, head, 2), torch.arange(1, head, 2)])
    return weight.view(-1, head, weight.shape[1])[:, order].reshape(weight.shape)
