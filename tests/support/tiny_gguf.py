"""Write a small GGUF: random Llama weights, a byte-level tokenizer, a chat template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def byte_symbols() -> list[str]:
    """Return the printable characters that byte-level tokenizers write for the bytes 0 to 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def write_gguf(path: Path, *, nan: bool = False) -> dict[str, np.ndarray]:
    """Write the file; return its tensors by their GGUF name, as a reader should see them."""
    gguf = pytest.importorskip("gguf")
    hidden, inner, heads, kv_heads, layers = 32, 64, 4, 2, 2
    tokens = ["<|end|>", "<|im_start|>", "<|im_end|>", *byte_symbols(), "ab", "cd"]
    # two: transformers 4 takes a list of one element for the element itself
    merges = ["a b", "c d"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    draw = np.random.default_rng(0)
    kv = hidden * kv_heads // heads
    shapes = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
    for n in range(layers):
        shapes |= {
            f"blk.{n}.attn_norm": (hidden,),
            f"blk.{n}.ffn_norm": (hidden,),
            f"blk.{n}.attn_q": (hidden, hidden),
            f"blk.{n}.attn_k": (kv, hidden),
            f"blk.{n}.attn_v": (kv, hidden),
            f"blk.{n}.attn_output": (hidden, hidden),
            f"blk.{n}.ffn_gate": (inner, hidden),
            f"blk.{n}.ffn_up": (inner, hidden),
            f"blk.{n}.ffn_down": (hidden, inner),
        }
    seen = {}
    for name, shape in shapes.items():
        tensor = draw.normal(0, 0.1, shape).astype(np.float32)
        if nan and name == "blk.1.ffn_up":
            tensor[3, 4] = np.nan
        if name == "blk.0.ffn_up":  # one quantized tensor, as real files have
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(tensor, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
            tensor = gguf.quants.dequantize(packed, kind)
        else:
            writer.add_tensor(f"{name}.weight", tensor)
        seen[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return seen
