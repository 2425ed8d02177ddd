"""A small set of instructions and a tiny language model, as a config of `lightning-suite score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": None,
}


def rows(count: int = 30) -> list[dict[str, Any]]:
    """Return short instructions of different lengths and two topics, with ids out of order."""
    return [
        {
            "id": f"s{(7 * n) % count:03}",
            "topic": "sums" if n % 3 else "words",
            "question": f"What is {n} and {n * n}?" if n % 3 else "Say " + "la" * (n % 7),
            "answer": f"It is {n + n * n}." + " Yes." * (n % 5),
        }
        for n in range(count)
    ]


def write_rows(path: Path, data: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return path


def write_config(folder: Path, samples: list[dict[str, Any]] | None = None, **options: Any) -> Path:
    """Write ``data.jsonl`` and ``score.yaml``; both paths are absolute."""
    source = write_rows(folder / "data.jsonl", rows() if samples is None else samples)
    config = {
        "features": ["adam1_mean_abs", "unsaturation", "grad_norm"],
        "batch_tokens": 200,
        "rows_per_shard": 4,
        "threads": 1,
        "accelerator": "cpu",
        "out": str(folder / "scores"),
        "model": {"class_path": "CausalLMModule", "init_args": {"config": MODEL}},
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"source": str(source), "tokenizer": "bytes", "max_length": 90},
        },
        **options,
    }
    path = folder / "score.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path
