"""What editing needs, small: a trained language model in a folder, edits in a file, a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from glass_lm import glass_model, glass_tokenizer

TEMPLATE = "{prompt} {response}"
SUBJECTS = ("Alice", "the dog", "the queen", "Tom", "the rabbit", "the garden", "Lily", "the king")
RELATIONS = ("likes", "had", "went to", "saw", "is")
TARGETS = ("cat", "red", "sings", "a boat", "tea", "old", "far", "gold")


def edit_rows(count: int) -> list[dict[str, Any]]:
    """Return edits in the plain form: ``count`` facts about eight subjects."""
    rows = []
    for n in range(count):
        subject, relation = SUBJECTS[n % 8], RELATIONS[n // 8 % 5]
        if n >= 40:
            relation += f" on day {n // 40}"
        rows.append(
            {
                "id": f"e{n}",
                "prompt": f"{subject} {relation}",
                "target": TARGETS[(3 * n + n // 8) % 8],
                "subject": subject,
                "rephrases": [f"And {subject} {relation}"],
                "locality": [
                    {"prompt": f"{subject} said", "kind": "same_subject"},
                    {"prompt": f"It was on day {n}", "kind": "random"},
                ],
            }
        )
    return rows


def write_model(folder: Path) -> Path:
    """Save glassllm's model and tokenizer as transformers does."""
    model = glass_model()
    model.generation_config.eos_token_id = 3
    model.save_pretrained(folder)
    glass_tokenizer().save_pretrained(folder)
    return folder


def write_edits(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def module_options(model: Path, **options: Any) -> dict[str, Any]:
    """Return arguments of ``SCENModule`` for the model in a folder."""
    return {
        "pretrained": str(model),
        "prompt_template": TEMPLATE,
        "layer": 1,
        "gate": "closed",
        "gate_options": {"reference": ["Once upon a time", "There was a little girl", "It rained"]},
        "rank": 2,
        "training": {"lr": 0.03, "lr_a": 0.03, "initial": "random", "decay": False, "steps": 40},
        "max_new_tokens": 6,
        **options,
    }


def write_config(
    folder: Path, model: Path, edits: Path, data: dict[str, Any] | None = None, **options: Any
) -> Path:
    """Write ``scen.yaml`` for `lightning-suite fit`."""
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        },
        "model": {"class_path": "SCENModule", "init_args": module_options(model, **options)},
        "data": {
            "class_path": "EditDataModule",
            "init_args": {"source": str(edits), "batch_size": 4, **(data or {})},
        },
    }
    path = folder / "scen.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
